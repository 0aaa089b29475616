"""What follows from relearn curves: lowest points, recovery, means over trials, the strongest attack."""

import json
import math

import pytest

from hf_era.evaluation.relearn.result import (
    RelearnCurve,
    RelearnPoint,
    RelearnResult,
    RelearnTrial,
    rises_at_the_end,
)


def curve(*forget: float, every: int = 1) -> RelearnCurve:
    """Retain losses are the forget losses plus 10."""
    return RelearnCurve([RelearnPoint(index * every, loss, loss + 10) for index, loss in enumerate(forget)])


def trial(
    number: int, *forget: float, kind: str = "full", stories: int = 4, learning_rate: float = 1e-3
) -> RelearnTrial:
    return RelearnTrial(kind, stories, learning_rate, number, number, curve(*forget, every=5))


RESULT = RelearnResult(
    trials=[
        trial(0, 3.0, 2.0, 1.04, 1.2),
        trial(1, 3.0, 1.03, 1.02, 1.5),
        trial(2, 3.0, 2.5, 2.6),
        trial(0, 3.0, 1.5, kind="lora"),
    ],
    before={"forget": 1.0, "retain": 11.0},
    notes=["a note"],
)


def test_means_are_over_trials_of_the_same_attack() -> None:
    full, lora = RESULT.summaries()
    assert (full.kind, full.stories, full.learning_rate, full.trials) == ("full", 4, 1e-3, 3)
    assert (full.start_forget, full.start_retain) == (3.0, 13.0)
    # Lowest 1.04 at step 10, 1.02 at step 10, 2.5 at step 5; Student's t of 2 degrees of freedom is 4.303.
    mean = (1.04 + 1.02 + 2.5) / 3
    half = 4.303 * math.sqrt(sum((value - mean) ** 2 for value in (1.04, 1.02, 2.5)) / 2) / math.sqrt(3)
    assert full.lowest_forget.value == pytest.approx(mean)
    assert full.lowest_forget.low == pytest.approx(mean - half)
    assert full.lowest_forget.high == pytest.approx(mean + half)
    assert full.lowest_step == pytest.approx((10 + 10 + 5) / 3)
    assert full.retain_at_lowest.value == pytest.approx(mean + 10)
    assert full.robust_unlearning.value == pytest.approx(mean - 1.0)
    assert (lora.trials, lora.lowest_forget.value, lora.lowest_forget.low) == (1, 1.5, None)


def test_recovered_means_below_the_model_before_plus_a_twentieth_nat() -> None:
    full, lora = RESULT.summaries()
    # Below 1.05 first at step 10 (1.04) and at step 5 (1.03); the third trial never.
    assert full.recovered == 2
    assert full.steps_to_recover == 7.5
    assert full.retain_at_recovery.value == pytest.approx((11.04 + 11.03) / 2)
    assert (lora.recovered, lora.steps_to_recover, lora.retain_at_recovery.value) == (0, None, None)


def test_steps_to_recover_are_the_median_over_the_trials_that_recovered() -> None:
    """One trial that takes long must not say how long an attack takes: the mean of 5, 5 and 20 steps is 10."""
    slow = trial(2, 3.0, 2.5, 2.0, 1.5, 1.0)
    never = trial(3, 3.0, 2.5)
    (part,) = RelearnResult([trial(0, 3.0, 1.0), trial(1, 3.0, 1.0), slow, never], RESULT.before).summaries()
    assert part.recovered == 3
    assert part.steps_to_recover == 5.0


def test_unlearning_is_of_the_same_stories_as_robust_unlearning() -> None:
    assert RESULT.unlearning == pytest.approx(3.0 - 1.0)
    unknown = RelearnResult(RESULT.trials, None)
    assert unknown.unlearning is None
    part = unknown.summaries()[0]
    assert (part.robust_unlearning.value, part.recovered, part.steps_to_recover) == (None, None, None)


def test_the_strongest_attack_has_the_lowest_mean() -> None:
    strongest = RESULT.strongest()
    assert strongest is not None
    assert strongest.kind == "lora"  # 1.5 against 1.52
    zero = RelearnResult([*RESULT.trials, trial(0, 3.0, 0.0, stories=1)], None).strongest()
    assert zero is not None
    assert zero.stories == 1
    assert RelearnResult([], None).strongest() is None


def test_it_survives_json() -> None:
    text = json.dumps(RESULT.to_dict(), allow_nan=False)
    values = json.loads(text)
    assert RelearnResult.from_dict(values) == RESULT
    assert values["strongest"]["kind"] == "lora"
    assert values["unlearning"] == pytest.approx(2.0)
    assert [part["trials"] for part in values["summaries"]] == [3, 1]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_point_that_is_not_finite_is_never_the_lowest(bad: float) -> None:
    assert curve(3.0, bad, 2.0, bad).lowest.step == 2
    assert curve(bad, 3.0).lowest.step == 1


def test_a_curve_without_points_is_refused() -> None:
    with pytest.raises(ValueError, match="needs at least the point of step 0"):
        RelearnCurve([])


@pytest.mark.parametrize(
    ("losses", "rises"),
    [([1.0], 0), ([1.0, 2.0], 1), ([3.0, 1.0, 2.0, 3.0], 2), ([1.0, 2.0, 2.0], 0), ([1.0, 2.0, 1.5, 1.6], 1)],
)
def test_rises_are_counted_from_the_end(losses: list[float], rises: int) -> None:
    assert rises_at_the_end(curve(*losses).points) == rises
