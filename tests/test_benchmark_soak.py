"""The soak's slope and its interval: a planted leak is found, and memory that moves without a trend is not taken for one."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.slope import fit_slope
from benchmarks.soak import Sample, summarise


def noise(seed: int, number: int = 150, memory: float = 0.8) -> np.ndarray:
    """Autocorrelated, as memory is: each value keeps a share of the one before."""
    values, generator = [0.0], np.random.default_rng(seed)
    for step in generator.normal(size=number - 1):
        values.append(memory * values[-1] + step)
    return np.asarray(values)


def test_a_line_is_found_exactly() -> None:
    slope = fit_slope(range(40), [3.0 * x + 7 for x in range(40)])
    assert (slope.value, slope.low, slope.high) == pytest.approx((3.0, 3.0, 3.0))


def test_the_interval_holds_for_autocorrelated_samples() -> None:
    """It should miss in 5 of 100. The usual interval, of independent samples, misses in about half of these."""
    x = np.arange(150)
    missed, missed_by_the_usual = 0, 0
    for seed in range(200):
        y = noise(seed) + 0.01 * x
        slope = fit_slope(x, y)
        missed += not slope.low <= 0.01 <= slope.high
        residuals = y - np.polyval(np.polyfit(x, y, 1), x)
        usual = 1.96 * residuals.std(ddof=2) / ((x - x.mean()) ** 2).sum() ** 0.5
        missed_by_the_usual += abs(slope.value - 0.01) > usual
    assert missed <= 30
    assert missed_by_the_usual > 60


def samples(kib_per_step: float, files_per_step: float = 0.0) -> list[Sample]:
    wander = noise(0, 200)
    return [
        Sample(
            10 * at,
            0.0,
            int(2**28 + 1024 * (kib_per_step * 10 * at + 50 * wander[at])),
            int(2**27 + 1024 * 10 * kib_per_step * at),
            20 + int(files_per_step * at),
            9,
        )
        for at in range(200)
    ]


def test_a_leak_of_memory_or_files_is_seen_and_nothing_else() -> None:
    level, leaking = summarise(samples(0.0), 500), summarise(samples(2.0, 0.1), 500)
    assert level["resident_bytes"]["level"]
    assert level["held_bytes"]["level"]
    assert level["open_files"]["level"]
    assert level["threads"]["level"]
    assert not leaking["resident_bytes"]["level"]
    assert not leaking["held_bytes"]["level"]
    assert leaking["resident_bytes"]["kib_per_1000_steps"]["value"] == pytest.approx(2_000, rel=0.2)
    assert leaking["held_bytes"]["kib_per_1000_steps"]["value"] == pytest.approx(2_000, rel=1e-6)
    assert not leaking["open_files"]["level"]
    assert leaking["threads"]["level"]


def test_too_few_samples() -> None:
    with pytest.raises(ValueError, match="at least 20 samples, got 3"):
        fit_slope(range(3), range(3))
