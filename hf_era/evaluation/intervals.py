"""95 % intervals: by bootstrap over examples, and Student's t over the few values of several trials or seeds.

Examples are what is resampled, not tokens: the tokens of one example hang together. A difference of two losses on the same
examples is resampled in pairs, so that what both have in common (a hard example is hard for both) cancels. Two sets of
examples are resampled independently of each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

BOOTSTRAP_SAMPLES = 1_000
# Indices drawn at once (32 MiB of int64): 1,000 resamples of 100,000 examples are 10^8 indices, and several tensors of
# that size are alive at a time. One generator draws all chunks in turn, so their size does not change the result.
INDICES_PER_CHUNK = 1 << 22
# Two-sided 95 % points of Student's t for 1, 2, ... degrees of freedom.
_STUDENT_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval. `value` is None where it was not measured, the bounds where there is no interval."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


# ---- Bootstrap over examples ----


def bootstrap(
    statistic: Callable[[Tensor], Tensor], size: int, samples: int = BOOTSTRAP_SAMPLES, seed: int = 0
) -> tuple[float, float] | None:
    """The 95 % percentile interval of a statistic over resampled indices.

    Args:
        statistic: takes indices (resamples, size), int64, and returns one value per row: (resamples,). It is called
            with a part of the resamples at a time.
        size (`int`): number of examples. samples (`int`, *optional*, defaults to `1000`): resamples. 0: no interval.
        seed (`int`, *optional*, defaults to `0`): of the resampling, which has a generator of its own.

    Returns: lower and upper bound; `None` without samples, without examples, or if a resample's value is not finite.
    """
    if samples == 0 or size == 0:
        return None
    return _percentiles(_resampled(statistic, size, samples, torch.Generator().manual_seed(seed)))


def ratio_estimate(
    numerators: Tensor, denominators: Tensor, samples: int = BOOTSTRAP_SAMPLES, seed: int = 0
) -> Estimate:
    """sum(numerators) / sum(denominators) over examples: a token-weighted mean, with its interval as `bootstrap` makes it.

    Both are of shape (examples,), for instance summed losses and tokens; the latter >= 0. Examples with a denominator of 0
    are left out. None left: no value.
    """
    above, below = _counted(numerators, denominators)
    if not len(below):
        return Estimate(None)
    interval = bootstrap(_ratio_of_sums(above, below), len(below), samples, seed)
    return Estimate(float(above.sum() / below.sum()), *(interval or (None, None)))


def ratio_of_means_estimate(
    upper: tuple[Tensor, Tensor], lower: tuple[Tensor, Tensor], samples: int = BOOTSTRAP_SAMPLES, seed: int = 0
) -> Estimate:
    """The weighted mean over one set of examples divided by that over another set, with its interval.

    Each set is given by its numerators and denominators, as in `ratio_estimate`, and resampled on its own: they have nothing
    in common, and may differ in size. There is no interval if the lower mean of some resample is 0, and no value if a set
    has no example that counts, or if the lower mean is 0.
    """
    sets = [_counted(*upper), _counted(*lower)]
    if not all(len(below) for _, below in sets):
        return Estimate(None)
    mean, lower_mean = (float(above.sum() / below.sum()) for above, below in sets)
    if lower_mean == 0:
        return Estimate(None)
    if samples == 0:
        return Estimate(mean / lower_mean)
    generator = torch.Generator().manual_seed(seed)
    means, lower_means = (_resampled(_ratio_of_sums(*part), len(part[0]), samples, generator) for part in sets)
    return Estimate(mean / lower_mean, *(_percentiles(means / lower_means) or (None, None)))


def paired_difference(
    later: Tensor, earlier: Tensor, tokens: Tensor, samples: int = BOOTSTRAP_SAMPLES, seed: int = 0
) -> Estimate:
    """Token-weighted mean of `later` minus that of `earlier` on the same examples, with its interval over examples.

    All are of shape (examples,), in the same order: summed negative log-likelihoods, and tokens. Examples without any token
    are left out.
    """
    return ratio_estimate(later.double() - earlier.double(), tokens, samples, seed)


def _counted(numerators: Tensor, denominators: Tensor) -> tuple[Tensor, Tensor]:
    """Both in fp64, without the examples whose denominator is 0."""
    counted = denominators > 0
    return numerators[counted].double(), denominators[counted].double()


def _ratio_of_sums(above: Tensor, below: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda chosen: above[chosen].sum(1) / below[chosen].sum(1)


def _resampled(statistic: Callable[[Tensor], Tensor], size: int, samples: int, generator: torch.Generator) -> Tensor:
    """The statistic of each resample: (samples,), fp64."""
    rows = max(INDICES_PER_CHUNK // size, 1)
    parts = []
    for start in range(0, samples, rows):
        chosen = torch.randint(size, (min(rows, samples - start), size), generator=generator)
        parts.append(statistic(chosen).double())
    return torch.cat(parts)


def _percentiles(values: Tensor) -> tuple[float, float] | None:
    if not bool(values.isfinite().all()):
        return None
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


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
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    half = student_t(count - 1) * deviation / math.sqrt(count)
    return Estimate(mean, mean - half, mean + half)


def student_t(degrees_of_freedom: int) -> float:
    """The two-sided 95 % point of Student's t, to three digits; beyond 30 degrees, by the Cornish-Fisher expansion.
    Raises `ValueError` for less than one degree of freedom."""
    if degrees_of_freedom < 1:
        raise ValueError(
            f"`degrees_of_freedom` should be at least 1, got {degrees_of_freedom}. Pass two values or more."
        )
    if degrees_of_freedom <= len(_STUDENT_T):
        return _STUDENT_T[degrees_of_freedom - 1]
    normal = 1.959964
    first = (normal**3 + normal) / (4 * degrees_of_freedom)
    second = (5 * normal**5 + 16 * normal**3 + 3 * normal) / (96 * degrees_of_freedom**2)
    return normal + first + second
