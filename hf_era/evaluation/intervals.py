"""95 % intervals: by bootstrap over examples, and Student's t over the few values of several trials or seeds.

Examples are what is resampled, not tokens: the tokens of one example hang together. A difference of two losses on the same
examples is resampled in pairs, so that what both have in common (a hard example is hard for both) cancels. Two sets of
examples are resampled independently of each other.

Intervals are BCa (Efron 1987), scipy's; where that is not defined, as for equal values, or its jackknife would take long,
they are percentiles of the resamples. scipy is imported when the first interval is made.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

BOOTSTRAP_SAMPLES = 1_000
MOST_FOR_BCA = 5_000
"""Examples: their jackknife takes 0.2 s, that of 25,000 examples 5 s, for one interval of the many of a run."""
# Indices drawn at once: 8 MiB of int64, and several arrays of that size are alive at a time.
INDICES_AT_ONCE = 1 << 20
Sums = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval. `value` is None where it was not measured, the bounds where there is no interval."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


# ---- Bootstrap over examples ----


def ratio_estimate(
    numerators: Tensor, denominators: Tensor, samples: int = BOOTSTRAP_SAMPLES, seed: int = 0
) -> Estimate:
    """sum(numerators) / sum(denominators) over examples: a token-weighted mean, with its interval.

    Args:
        numerators, denominators (`Tensor`): (examples,), for instance summed losses and tokens; the latter >= 0. Examples
            with a denominator of 0 are left out. None left: no value.
        samples (`int`, *optional*, defaults to `1000`): resamples. 0: no interval.
        seed (`int`, *optional*, defaults to `0`): of the resampling, which has a generator of its own.
    """
    return _estimate([_counted(numerators, denominators)], samples, seed)


def ratio_of_means_estimate(
    upper: tuple[Tensor, Tensor], lower: tuple[Tensor, Tensor], samples: int = BOOTSTRAP_SAMPLES, seed: int = 0
) -> Estimate:
    """The weighted mean over one set of examples divided by that over another set, with its interval.

    Each set is given by its numerators and denominators, as in `ratio_estimate`, and resampled on its own: they have nothing
    in common, and may differ in size. There is no interval if the lower mean of some resample is 0, and no value if a set
    has no example that counts, or if the lower mean is 0.
    """
    return _estimate([_counted(*upper), _counted(*lower)], samples, seed)


def paired_difference(
    later: Tensor, earlier: Tensor, tokens: Tensor, samples: int = BOOTSTRAP_SAMPLES, seed: int = 0
) -> Estimate:
    """Token-weighted mean of `later` minus that of `earlier` on the same examples, with its interval over examples.

    All are of shape (examples,), in the same order: summed negative log-likelihoods, and tokens. Examples without any token
    are left out.
    """
    return ratio_estimate(later.double() - earlier.double(), tokens, samples, seed)


def _counted(numerators: Tensor, denominators: Tensor) -> Sums:
    """Both in fp64, without the examples whose denominator is 0."""
    counted = denominators > 0
    return numerators[counted].double().numpy(), denominators[counted].double().numpy()


def _estimate(sets: Sequence[Sums], samples: int, seed: int) -> Estimate:
    """The weighted mean of the one set, or that of the first over that of the second."""
    sizes = [len(below) for _, below in sets]
    if not all(sizes) or not all(above.sum() for above, _ in sets[1:]):  # a lower mean of 0
        return Estimate(None)

    def statistic(*chosen: Any, axis: int = -1) -> Any:
        means = [
            above[part].sum(axis) / below[part].sum(axis) for (above, below), part in zip(sets, chosen, strict=True)
        ]
        return means[0] if len(means) == 1 else means[0] / means[1]

    value = float(statistic(*map(np.arange, sizes)))
    return Estimate(value, *(_interval(statistic, sizes, samples, seed) if samples else (None, None)))


def _interval(
    statistic: Callable[..., Any], sizes: Sequence[int], samples: int, seed: int
) -> tuple[float, float] | tuple[None, None]:
    """The 95 % interval of a statistic of indices into sets of these sizes; none if a resample's value is not finite."""
    from scipy.stats import bootstrap  # 0.7 s, for those who need it

    with np.errstate(all="ignore"), warnings.catch_warnings():  # of what is not defined: looked at below
        warnings.simplefilter("ignore")
        found = bootstrap(
            # A set of one, which scipy refuses, is twice the same.
            [np.arange(size) if size > 1 else np.zeros(2, dtype=np.int64) for size in sizes],
            statistic,
            n_resamples=samples,
            batch=max(INDICES_AT_ONCE // max(sizes), 1),
            vectorized=True,
            method="BCa" if max(sizes) <= MOST_FOR_BCA else "percentile",
            rng=np.random.default_rng(seed),
        )
    if not np.isfinite(found.bootstrap_distribution).all():
        return None, None
    low, high = found.confidence_interval
    if not np.isfinite([low, high]).all():
        low, high = np.quantile(found.bootstrap_distribution, [0.025, 0.975])
    return float(low), float(high)


# ---- Student's t over few values ----


def mean_interval(values: Sequence[float]) -> Estimate:
    """Mean and 95 % interval (Student's t) of independent values; one value has no interval, none no mean.

    Values that are not finite make a mean that is not finite, without an interval.
    """
    count = len(values)
    if not count:
        return Estimate(None)
    mean = sum(values) / count
    if count == 1 or not math.isfinite(mean):
        return Estimate(mean)
    from scipy.special import stdtrit  # what `scipy.stats.t` calls, without the 0.7 s of `scipy.stats`

    half = float(stdtrit(count - 1, 0.975)) * statistics.stdev(values) / math.sqrt(count)
    return Estimate(mean, mean - half, mean + half)
