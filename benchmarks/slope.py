"""The slope of a line through samples that hang together, with an interval that knows it.

Memory grows in steps and stays there, so neighbouring samples tell nearly the same, and the usual interval of least squares
would be far too narrow. Ours has the standard error of Newey and West (Bartlett kernel over a quarter of the samples) and
the factor of Kiefer and Vogelsang (2005) for so wide a kernel, 2.72 instead of 1.96.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BANDWIDTH = 0.25
"""Of the Bartlett kernel, as a share of the samples."""
FEWEST_SAMPLES = 20


@dataclass(frozen=True)
class Slope:
    """A least-squares slope, with its 95 % interval for autocorrelated samples."""

    value: float
    low: float
    high: float


def fit_slope(x: Sequence[float], y: Sequence[float]) -> Slope:
    """The slope of y over x and its interval, as the head of this file says.

    Raises:
        ValueError: for fewer than 20 samples.
    """
    if len(x) < FEWEST_SAMPLES:
        raise ValueError(
            f"A slope with an interval needs at least {FEWEST_SAMPLES} samples, got {len(x)}. Train longer, or sample more."
        )
    centred = np.asarray(x, dtype=float) - np.mean(x)
    values = np.asarray(y, dtype=float) - np.mean(y)
    square = float(centred @ centred)
    slope = float(centred @ values) / square
    scores = centred * (values - slope * centred)
    lags = int(BANDWIDTH * len(scores))
    variance = float(scores @ scores)
    for lag in range(1, lags):
        variance += 2 * (1 - lag / lags) * float(scores[lag:] @ scores[:-lag])
    half = _factor(BANDWIDTH) * max(variance, 0.0) ** 0.5 / square
    return Slope(slope, slope - half, slope + half)


def _factor(b: float) -> float:
    """97.5 % point of the t statistic with a Bartlett kernel over the share `b` (Kiefer and Vogelsang 2005, table 1)."""
    return 1.96 + 2.9694 * b + 0.4160 * b**2 - 0.5324 * b**3
