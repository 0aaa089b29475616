"""Compute ratio and share of filtering against closed forms."""

import re

import numpy as np
import pytest

from hf_era.evaluation.compute_ratio import ComputeRatio, fit_compute_curve
from hf_era.evaluation.share_of_filtering import ReferenceCurve, range_of_testbed, share_of_filtering

BUDGETS = [200.0, 400.0, 800.0, 1600.0, 3200.0]


def power_law(compute, floor=1.5, scale=8.0, exponent=0.35):
    return floor + scale * np.asarray(compute) ** -exponent


# ---- Compute ratio ----


@pytest.mark.parametrize(("floor", "scale", "exponent"), [(1.5, 8.0, 0.35), (0.0, 5.0, 0.1), (2.4, 900.0, 1.3)])
def test_a_power_law_is_found_again_and_turned_round(floor, scale, exponent):
    curve = fit_compute_curve(BUDGETS[::-1], power_law(BUDGETS[::-1], floor, scale, exponent))
    assert curve.floor == pytest.approx(floor, abs=1e-3)
    assert curve.exponent == pytest.approx(exponent, rel=1e-3)
    assert curve.scale * curve.unit**exponent == pytest.approx(scale, rel=1e-2)
    assert (curve.r_squared, curve.largest_residual) == (pytest.approx(1), pytest.approx(0, abs=1e-5))
    # A model with the loss of a base of 1,000 steps has five eighths of the control's compute.
    found = curve.ratio(power_law(1000.0, floor, scale, exponent), reference=1600)
    assert (found.value, found.bound) == (pytest.approx(0.625, rel=1e-3), "")


def test_outside_of_the_base_runs_there_is_a_bound_only():
    curve = fit_compute_curve(BUDGETS, power_law(BUDGETS))
    assert curve.ratio(9.0, 1600) == ComputeRatio(0.125, "at most")
    assert curve.ratio(float(power_law(3300.0)), 1600) == ComputeRatio(2.0, "at least")
    assert curve.ratio(0.1, 1600) == ComputeRatio(2.0, "at least")  # below the floor: no compute reaches it
    with pytest.raises(ValueError, match="needs a finite loss and a positive reference, got nan and 1600"):
        curve.ratio(float("nan"), 1600)


def test_goodness_of_fit_says_what_the_curve_does_not_explain():
    bent = power_law(BUDGETS) + np.array([0, 0, 0.1, 0, 0])
    curve = fit_compute_curve(BUDGETS, bent)
    predicted = np.array([curve.loss_at(budget) for budget in BUDGETS])
    assert curve.r_squared == pytest.approx(1 - ((bent - predicted) ** 2).sum() / ((bent - bent.mean()) ** 2).sum())
    assert curve.largest_residual == pytest.approx(abs(bent - predicted).max())
    assert 0.9 < curve.r_squared < 0.999
    # Nothing near it fits better.
    for exponent in curve.exponent * np.array([0.9, 1.1]):
        design = np.stack([np.ones(5), (np.array(BUDGETS) / curve.unit) ** -exponent], axis=1)
        assert np.linalg.lstsq(design, bent)[1][0] > ((bent - predicted) ** 2).sum()


@pytest.mark.parametrize(
    ("compute", "losses", "message"),
    [
        ([100, 200, 200], [3, 2, 2], "needs base runs of at least 3 different budgets, got [100.0, 200.0]"),
        ([], [], "at least 3 different budgets, got []"),
        ([0, 100, 200], [4, 3, 2], "needs positive, finite compute"),
        ([1, 100, 200], [4, 3, float("inf")], "finite losses"),
        ([100, 200, 400], [2, 3, 4], "The losses of the base runs do not fall with compute"),
    ],
)
def test_curves_that_cannot_be_fitted(compute, losses, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        fit_compute_curve(compute, losses)


# ---- Share of filtering ----


@pytest.fixture
def curves():
    """A(r) = r and D(r) = 2 r - 1.5, over 2 to 3 and 2.2 to 3.5."""
    all_data = ReferenceCurve.of([3.0, 2.0, 2.5, 2.2], [3.0, 2.0, 2.5, 2.2])
    return all_data, ReferenceCurve.of([2.2, 2.6, 3.0, 3.5], [2.9, 3.7, 4.5, 5.5])


def test_share_is_the_place_between_the_curves_at_equal_retain_loss(curves):
    # At 2.75: A 2.75, D 4.0.
    assert share_of_filtering(2.75, 2.75, *curves) == pytest.approx(0)
    assert share_of_filtering(4.0, 2.75, *curves) == pytest.approx(1)
    assert share_of_filtering(3.0, 2.75, *curves) == pytest.approx(0.2)
    assert share_of_filtering(2.5, 2.75, *curves) == pytest.approx(-0.2)


def test_no_share_outside_of_the_curves_or_where_they_are_the_same(curves):
    assert [share_of_filtering(3.0, retain, *curves) for retain in (2.1, 3.2, 1.0)] == [None, None, None]
    assert share_of_filtering(3.0, 2.5, curves[0], curves[0]) is None
    assert share_of_filtering(float("inf"), 2.5, *curves) is None


def test_range_of_a_testbed_and_whether_it_discriminates(curves):
    found = range_of_testbed(*curves)
    # D - A = r - 1.5 over 2.2 to 3.
    assert (found.lowest, found.mean, found.highest) == pytest.approx((0.7, 1.1, 1.5))
    assert (found.retain, found.discriminates) == ((2.2, 3.0), True)
    lower = ReferenceCurve(curves[1].retain, tuple(loss - 0.85 for loss in curves[1].forget))
    assert range_of_testbed(curves[0], lower).mean == pytest.approx(0.25)
    assert not range_of_testbed(curves[0], lower).discriminates
    apart = ReferenceCurve.of([5, 6, 7, 8], [1, 2, 3, 4])
    assert range_of_testbed(curves[0], apart) is None


@pytest.mark.parametrize("retain", [[2.0, 2.5, 3.0], [2.0, 2.5, 3.0, 2.0]])
def test_a_reference_curve_needs_four_budgets(retain):
    with pytest.raises(ValueError, match="needs models of at least 4 budgets, each with a retain loss of its own"):
        ReferenceCurve.of(retain, [1.0] * len(retain))
