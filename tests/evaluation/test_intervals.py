"""Intervals: the bootstrap on distributions whose answer is known, small cases by hand."""

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import Tensor

from hf_era.evaluation import intervals
from hf_era.evaluation.intervals import (
    Estimate,
    mean_interval,
    paired_difference,
    ratio_estimate,
    ratio_of_means_estimate,
)

TOKENS = 50.0  # of each story where all are equally long


def width(estimate: Estimate) -> float:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.high - estimate.low


def normal_stories(number: int, seed: int, mean: float = 2.0, deviation: float = 0.4) -> tuple[Tensor, Tensor]:
    """Summed losses and tokens of equally long stories whose losses are normal."""
    generator = torch.Generator().manual_seed(seed)
    losses = mean + deviation * torch.randn(number, generator=generator, dtype=torch.float64)
    return losses * TOKENS, torch.full((number,), TOKENS)


# ---- Bootstrap ----


def test_half_width_is_that_of_the_normal_distribution() -> None:
    nll, tokens = normal_stories(600, seed=0)
    estimate = ratio_estimate(nll, tokens, samples=4_000)
    losses = nll / TOKENS
    assert estimate.value == pytest.approx(float(losses.mean()))
    half = 1.96 * float(losses.std()) / math.sqrt(600)
    assert width(estimate) / 2 == pytest.approx(half, rel=0.05)
    assert estimate.high - estimate.value == pytest.approx(half, rel=0.1)


def test_95_of_100_intervals_cover_the_true_mean() -> None:
    covered = 0
    for repetition in range(200):
        estimate = ratio_estimate(*normal_stories(80, seed=repetition, mean=2.0), samples=400, seed=repetition)
        covered += estimate.low < 2.0 < estimate.high
    # 190 +- 3 standard deviations of a binomial with 200 draws at 0.95; intervals of 90 % would cover 180.
    assert 181 <= covered <= 199


def test_long_stories_weigh_more_and_vary_more() -> None:
    """The interval of a ratio of sums by linearisation: deviations of nll - loss * tokens, over the tokens."""
    generator = np.random.default_rng(1)
    tokens = generator.integers(5, 400, 1_000).astype(float)
    nll = tokens * generator.normal(1.5, 0.5, 1_000)
    estimate = ratio_estimate(torch.tensor(nll), torch.tensor(tokens), samples=4_000)
    loss = nll.sum() / tokens.sum()
    half = 1.96 * math.sqrt(((nll - loss * tokens) ** 2).sum()) / tokens.sum()
    assert estimate.value == pytest.approx(loss)
    assert width(estimate) / 2 == pytest.approx(half, rel=0.05)


def test_it_is_bca_and_beyond_so_many_examples_percentiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a skewed statistic BCa moves both bounds to the side of the long tail; written out by the formulas."""
    values = torch.arange(1, 21, dtype=torch.float64) ** 4
    estimate = ratio_estimate(values, torch.ones(20), samples=4_000, seed=5)
    monkeypatch.setattr(intervals, "MOST_FOR_BCA", 19)
    percentiles = ratio_estimate(values, torch.ones(20), samples=4_000, seed=5)
    generator, numbers = np.random.default_rng(5), values.numpy()
    means = np.sort(numbers[generator.integers(0, 20, (4_000, 20))].mean(1))
    assert (percentiles.low, percentiles.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
    normal = NormalDist()
    bias = normal.inv_cdf((means < numbers.mean()).mean())
    influence = numbers - numbers.mean()  # of leaving one out, up to a factor
    acceleration = (influence**3).sum() / (6 * (influence**2).sum() ** 1.5)
    moved = [bias + sign * 1.959964 for sign in (-1, 1)]
    shares = [normal.cdf(bias + part / (1 - acceleration * part)) for part in moved]
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.quantile(means, shares)), rel=1e-3)


def test_the_seed_decides() -> None:
    stories = normal_stories(50, seed=0)
    assert ratio_estimate(*stories, seed=1) == ratio_estimate(*stories, seed=1)
    assert ratio_estimate(*stories, seed=1).low != ratio_estimate(*stories, seed=2).low


def test_drawing_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stories = normal_stories(30, seed=0)
    whole = ratio_estimate(*stories)
    monkeypatch.setattr(intervals, "INDICES_AT_ONCE", 30 * 64 + 7)
    found = ratio_estimate(*stories)
    assert (found.low, found.high) == (pytest.approx(whole.low, rel=1e-12), pytest.approx(whole.high, rel=1e-12))


def test_stories_without_tokens_are_left_out() -> None:
    nll, tokens = torch.tensor([3.0, 0.0, 4.0, 8.0]), torch.tensor([2.0, 0.0, 2.0, 4.0])
    kept = tokens > 0
    assert ratio_estimate(nll, tokens) == ratio_estimate(nll[kept], tokens[kept])
    assert ratio_estimate(nll, tokens).value == pytest.approx(15 / 8)


def test_nothing_to_resample() -> None:
    none, some = torch.zeros(0), torch.ones(3)
    assert ratio_estimate(none, none) == Estimate(None) == ratio_estimate(some, torch.zeros(3))
    assert ratio_estimate(some, some, samples=0) == Estimate(1.0)


def test_where_bca_is_not_defined_percentiles_are() -> None:
    assert ratio_estimate(torch.full((9,), 6.0), torch.full((9,), 3.0)) == Estimate(2.0, 2.0, 2.0)
    assert ratio_estimate(torch.tensor([6.0]), torch.tensor([3.0])) == Estimate(2.0, 2.0, 2.0)


def test_what_is_not_finite_has_no_interval() -> None:
    estimate = ratio_estimate(torch.tensor([1.0, math.nan, 2.0]), torch.ones(3))
    assert math.isnan(estimate.value)
    assert (estimate.low, estimate.high) == (None, None)


# ---- Differences and ratios ----


def test_a_paired_difference_by_hand() -> None:
    later, earlier = torch.tensor([6.0, 9.0, 5.0]), torch.tensor([4.0, 6.0, 5.0])
    tokens = torch.tensor([2.0, 6.0, 0.0])  # the third story does not count
    estimate = paired_difference(later, earlier, tokens, samples=2_000)
    assert estimate.value == pytest.approx((2 + 3) / 8)
    # A resample holds the first story twice (2/2), the second twice (3/6) or both: the extremes have a quarter each.
    assert (estimate.low, estimate.high) == (pytest.approx(0.5), pytest.approx(1.0))


def test_pairs_share_the_difficulty_of_a_story() -> None:
    generator = torch.Generator().manual_seed(0)
    difficulty, first, second = torch.randn(3, 500, generator=generator, dtype=torch.float64)
    earlier, later = 2 + 0.5 * difficulty + 0.05 * first, 2.1 + 0.5 * difficulty + 0.05 * second
    tokens = torch.ones(500)
    paired = paired_difference(later, earlier, tokens)
    assert width(paired) / 2 == pytest.approx(1.96 * 0.05 * math.sqrt(2 / 500), rel=0.15)
    unpaired = [width(ratio_estimate(losses, tokens)) for losses in (later, earlier)]
    assert width(paired) < 0.2 * math.hypot(*unpaired)


def test_a_ratio_of_means_resamples_each_side_by_itself() -> None:
    upper, lower = normal_stories(900, seed=1, mean=3.0), normal_stories(400, seed=2, mean=2.0)
    estimate = ratio_of_means_estimate(upper, lower, samples=4_000)
    means = [float(nll.sum() / tokens.sum()) for nll, tokens in (upper, lower)]
    assert estimate.value == pytest.approx(means[0] / means[1])
    # To first order the relative variances of the two means add up.
    relative = math.hypot(0.4 / math.sqrt(900) / 3.0, 0.4 / math.sqrt(400) / 2.0)
    assert width(estimate) / 2 == pytest.approx(1.96 * relative * 1.5, rel=0.1)
    same = ratio_of_means_estimate(lower, lower)
    assert same.value == 1.0
    assert width(same) > 0.01  # in pairs it would be 1 in every resample


def test_a_ratio_of_means_that_cannot_be() -> None:
    some, none = (torch.tensor([2.0, 4.0]), torch.ones(2)), (torch.zeros(0), torch.zeros(0))
    zero, sometimes = (torch.zeros(2), torch.ones(2)), (torch.tensor([0.0, 2.0]), torch.ones(2))
    assert ratio_of_means_estimate(some, zero) == Estimate(None)
    assert ratio_of_means_estimate(some, none) == Estimate(None) == ratio_of_means_estimate(none, some)
    assert ratio_of_means_estimate(zero, some) == Estimate(0.0, 0.0, 0.0)
    assert ratio_of_means_estimate(some, sometimes) == Estimate(3.0)  # some resamples divide by 0
    assert ratio_of_means_estimate(some, some, samples=0) == Estimate(1.0)


# ---- Student's t ----


def test_mean_interval_by_hand() -> None:
    estimate = mean_interval([1.0, 2.0, 6.0])
    half = 4.302652730 * math.sqrt((4 + 1 + 9) / 2) / math.sqrt(3)
    assert estimate.value == pytest.approx(3.0)
    assert (estimate.low, estimate.high) == (pytest.approx(3 - half), pytest.approx(3 + half))


def test_mean_interval_of_too_few_values() -> None:
    assert mean_interval([]) == Estimate(None)
    assert mean_interval([1.5]) == Estimate(1.5)
    assert mean_interval([2.0, 2.0]) == Estimate(2.0, 2.0, 2.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_mean_interval_of_values_that_are_not_finite(bad: float) -> None:
    estimate = mean_interval([1.0, bad, 2.0])
    assert not math.isfinite(estimate.value)
    assert (estimate.low, estimate.high) == (None, None)
