"""What follows from relearn curves: lowest points, recovery, means over trials, the strongest attack."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from hf_era.evaluation.relearn.result import (
    Attack,
    AttackSummary,
    Effort,
    RelearnCurve,
    RelearnPoint,
    RelearnResult,
    RelearnTrial,
    nothing_improves,
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
    # Lowest 1.04 at step 10, 1.02 at step 10, 2.5 at step 5; Student's t of 2 degrees of freedom is 4.30265.
    mean = (1.04 + 1.02 + 2.5) / 3
    half = 4.302652730 * math.sqrt(sum((value - mean) ** 2 for value in (1.04, 1.02, 2.5)) / 2) / math.sqrt(3)
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
    assert full.steps_to_recover == 10.0  # of 5, 10 and never
    assert full.retain_at_recovery.value == pytest.approx((11.04 + 11.03) / 2)
    assert (lora.recovered, lora.steps_to_recover, lora.retain_at_recovery.value) == (0, None, None)


def summary(*trials: RelearnTrial) -> AttackSummary:
    (part,) = RelearnResult(list(trials), RESULT.before).summaries()
    return part


def test_a_trial_that_never_recovers_counts_as_above_those_that_do() -> None:
    """Of 5, 5, 20 steps and never the median is 12.5, not the 5 of those that recovered."""
    slow, never = trial(2, 3.0, 2.5, 2.0, 1.5, 1.0), trial(3, 3.0, 2.5)
    part = summary(trial(0, 3.0, 1.0), trial(1, 3.0, 1.0), slow, never)
    assert (part.recovered, part.recovery, part.steps_to_recover) == (3, "reached", 12.5)
    # Half of the trials never: the median is above what both were given, 5 and 15 steps.
    part = summary(trial(0, 3.0, 1.0), trial(1, 3.0, 2.5, 2.4, 2.3))
    assert (part.recovered, part.recovery, part.steps_to_recover) == (1, "not reached", None)
    assert part.effort == Effort(steps=10, stories=40, tokens=None)
    # One that began below the level brought nothing back.
    part = summary(trial(0, 1.04, 1.0), trial(1, 1.04, 1.0))
    assert (part.recovered, part.recovery, part.steps_to_recover) == (2, "at the start", 0.0)
    assert RelearnResult([trial(0, 3.0, 1.0)], None).summaries()[0].recovery == "unknown"


def test_the_effort_to_recover_is_counted_in_steps_stories_and_tokens() -> None:
    part = summary(replace(trial(0, 3.0, 1.0), tokens=300), replace(trial(1, 3.0, 2.0, 1.0), tokens=500))
    assert part.effort == Effort(steps=7.5, stories=30, tokens=(5 * 300 + 10 * 500) / 2)


def edges(*trials: RelearnTrial, steps: int = 15) -> tuple[str, ...]:
    strongest = RelearnResult(list(trials), RESULT.before, settings={"steps": steps}).strongest()
    assert strongest is not None
    return strongest.edges


def test_a_minimum_at_the_edge_of_what_was_tried_is_marked() -> None:
    """Three rates and three N, the best of them in the middle, the curve turned: no edge. Then each edge by itself."""
    turned = (3.0, 2.0, 1.5, 1.6)
    weaker = [
        trial(0, 3.0, 2.9, 2.95, 3.0, learning_rate=rate, stories=stories)
        for rate, stories in ((1e-4, 4), (1e-2, 4), (1e-3, 1), (1e-3, 16))
    ]
    assert edges(trial(0, *turned), *weaker) == ()
    assert edges(trial(0, 3.0, 2.0, 1.7, 1.5), *weaker) == ("steps",)
    assert edges(trial(0, *turned), trial(1, 3.0, 2.0, 1.7, 1.5), *weaker) == ("steps",)  # one of the trials is enough
    assert edges(trial(0, *turned), weaker[0], *weaker[2:]) == ("learning rate",)
    assert edges(trial(0, *turned), *weaker[:3]) == ("stories",)
    # Ended early, by patience or because the next loss was not finite: going on would not have lowered it.
    assert edges(trial(0, 3.0, 1.5), *weaker) == ()
    # At another number of stories the rates were tried, at this one not.
    swept = [trial(0, 3.0, 2.0, 2.5, 2.6, stories=1, learning_rate=rate) for rate in (1e-4, 1e-2)]
    assert edges(trial(0, *turned), *swept, weaker[3]) == ("learning rate",)
    # Every attack says whether it had turned; only the strongest one is a minimum over the others.
    result = RelearnResult([trial(0, *turned), *weaker, trial(0, 3.0, 2.9, 2.8, 2.7, stories=64)], None)
    assert [part.edges for part in result.summaries()] == [(), (), (), (), (), ("steps",)]
    assert result.to_dict()["strongest"]["edges"] == []


def chosen_by(learning_rate: float, *losses: float) -> RelearnTrial:
    """One whose losses on the half for choosing are these, and on the other 1 higher."""
    points = [RelearnPoint(5 * number, loss + 1, 9.0, selection_loss=loss) for number, loss in enumerate(losses)]
    return RelearnTrial("full", 4, learning_rate, 0, 0, RelearnCurve(points))


def test_a_rate_at_the_edge_beside_one_that_brought_back_as_much_is_no_edge() -> None:
    more = trial(0, 3.0, 2.9, 2.95, 3.0, stories=16)  # not at the edge in examples either
    best = chosen_by(1e-2, 3.0, 2.0, 1.5, 1.6)
    for beside, expected in ((1.509, ()), (1.511, ("learning rate",))):
        assert edges(best, chosen_by(1e-3, 3.0, 2.0, beside, 1.8), more) == expected
    # The rate farther away does not count, and of attacks that were all in vain the lowest rate is an edge.
    assert edges(best, chosen_by(1e-3, 3.0, 2.9, 2.8, 3.0), chosen_by(1e-4, 3.0, 2.0, 1.5, 1.6), more) == (
        "learning rate",
    )
    in_vain = [chosen_by(rate, 3.0, 3.1, 3.2, 3.3) for rate in (1e-3, 1e-2, 1e-4)]
    weak = trial(0, 4.0, 3.9, 3.95, 4.0, stories=16)
    assert edges(*in_vain, weak) == ("learning rate",)


@pytest.mark.parametrize(
    ("losses", "settings", "has_turned"),
    [
        # Evaluated every 5 of 15 steps: patience asks for three evaluations without a new low.
        ((3.0, 3.4, 3.5, 3.6), {"patience": 3}, True),
        ((3.0, 2.0, 3.5, 3.4), {"patience": 2}, True),
        ((3.0, 2.0, 2.1, 2.2), {"patience": 3}, False),
        ((3.0, 2.5, 2.0, 2.001), {"patience": 3}, False),
        ((3.0, 2.5, 2.0, 2.001), {"patience": None}, True),
        ((3.0, 2.5, 2.0, 2.001), {}, True),  # not known
        ((3.0, 2.5, 2.0, 1.9), {"patience": None}, False),
        ((3.0, 2.0, 2.1, 2.2), {"patience": 2, "evaluate_every": 10}, False),  # of steps 10 and 15 one counts
        ((3.0, 2.0, 2.001), {"patience": 3}, True),  # ended before its last step: by patience, or by a loss not finite
    ],
)
def test_a_trial_that_ran_out_of_steps_before_its_patience_has_not_turned(
    losses: tuple[float, ...], settings: dict[str, int | None], has_turned: bool
) -> None:
    asked = {"steps": 15, "evaluate_every": 5, **settings}
    (part,) = RelearnResult([trial(0, *losses)], None, settings=asked).summaries()
    assert ("steps" not in part.edges) == has_turned


def test_the_attacked_model_before_the_method_is_the_zero() -> None:
    result = replace(RESULT, before_trials=[trial(0, 1.0, 0.95, 0.97, kind="lora")])
    assert result.before_attacked.robust_unlearning.value == pytest.approx(-0.05)
    assert RESULT.before_attacked is None
    assert RelearnResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    old = {name: value for name, value in result.to_dict().items() if name != "before_trials"}
    assert RelearnResult.from_dict(old).before_trials == []


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
    ("losses", "patience", "is_over"),
    [
        ([1.0, 2.0, 3.0], 2, True),
        ([1.0, 2.0], 2, False),
        ([1.0, 2.0, 1.5], 2, True),  # it need not rise each time
        ([1.0, 1.0, 1.0], 2, True),
        ([1.0, 5.0, 4.0, 3.0], 2, False),  # above its lowest, and coming down
        ([5.0, 1.0, 1.2, 0.9], 2, False),
    ],
)
def test_nothing_improves_where_no_evaluation_is_below_the_one_before_them(
    losses: list[float], patience: int, is_over: bool
) -> None:
    assert nothing_improves(curve(*losses).points, patience) == is_over


def halved(number: int, *losses: tuple[float, float], steps: int | None = None, **names: Any) -> RelearnTrial:
    """Losses are pairs: on the half for choosing, and on the half that is reported."""
    points = [RelearnPoint(5 * at, own, own + 10, chosen, 100 * at) for at, (chosen, own) in enumerate(losses)]
    names = {"schedule": "constant" if steps is None else "cosine", "steps": steps, **names}
    return RelearnTrial("full", 4, 1e-3, number, number, RelearnCurve(points), 20, **names)


def test_what_is_chosen_on_one_half_is_reported_on_the_other() -> None:
    """The reported half has its own lowest points, elsewhere: they do not count."""
    first = halved(0, (3.0, 3.0), (2.0, 2.2), (2.1, 1.4))
    second = replace(halved(0, (3.0, 3.0), (2.5, 1.1), (2.6, 1.2)), learning_rate=1e-2)
    result = RelearnResult([first, second], {"forget": 1.45, "retain": 11.0})
    strongest = result.strongest()
    assert strongest is not None
    assert (strongest.learning_rate, strongest.selection, strongest.lowest_step) == (1e-3, 2.0, 5.0)
    assert (strongest.lowest_forget.value, strongest.retain_at_lowest.value) == (2.2, 12.2)
    assert strongest.robust_unlearning.value == pytest.approx(0.75)
    # 1.4 is below the level of 1.5, but not at the chosen step: that is no recovery.
    assert (strongest.recovered, strongest.recovery) == (0, "not reached")
    assert (strongest.tokens_to_lowest, strongest.tokens) == (100.0, 200.0)
    assert RelearnResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


@pytest.mark.parametrize(
    ("half_as_long", "converged"), [(None, False), (2.0, False), (1.505, True), (1.4, True), (1.495, True)]
)
def test_a_schedule_is_long_enough_when_another_length_brings_back_as_much(
    half_as_long: float | None, converged: bool
) -> None:
    """A schedule ends where it is: its lowest point is the last one, however long it is."""
    turned = replace(halved(0, (3.0, 3.0), (2.9, 2.9), (3.0, 3.0)), learning_rate=1e-4)
    trials = [halved(0, (3.0, 3.0), (2.0, 2.0), (1.5, 1.5), steps=10), turned]
    if half_as_long is not None:
        trials.append(halved(0, (3.0, 3.0), (half_as_long, 1.0), steps=5))
    result = RelearnResult(trials, None, settings={"steps": 10, "patience": 2, "evaluate_every": 5})
    longest = result.summaries()[0]
    assert ("steps" not in longest.edges) == converged
    if half_as_long == 1.4:  # and the shorter one is the strongest: a longer one was tried
        strongest = result.strongest()
        assert strongest is not None
        assert (strongest.steps, "steps" in strongest.edges) == (5, False)


def test_each_kind_and_mixture_has_a_strongest_attack() -> None:
    """With the edges of its own grid: of three rates with all weights the middle one, of two through LoRA the higher."""
    trials = [
        *(trial(0, 3.0, loss, 3.1, learning_rate=rate) for rate, loss in ((1e-4, 2.5), (1e-3, 2.0), (1e-2, 2.2))),
        *(trial(0, 3.0, loss, 3.1, kind="lora", learning_rate=rate) for rate, loss in ((1e-3, 2.8), (1e-2, 2.6))),
        replace(trial(0, 3.0, 2.9, 3.1), mixture="retain"),
    ]
    result = RelearnResult(trials, None)
    found = {(part.kind, part.mixture): part for part in result.strongest_of_each_kind()}
    assert {kind: (part.learning_rate, part.lowest_forget.value, part.edges) for kind, part in found.items()} == {
        ("full", "forget"): (1e-3, 2.0, ("stories",)),
        ("lora", "forget"): (1e-2, 2.6, ("stories", "learning rate")),
        ("full", "retain"): (1e-3, 2.9, ("stories", "learning rate")),
    }
    assert found["full", "forget"] == result.strongest()
    assert RelearnResult([], None).strongest_of_each_kind() == []


def test_an_attack_has_a_name_and_comes_out_of_earlier_files() -> None:
    assert Attack("full", 64, 2e-4).name == "full 64 0.0002"
    assert Attack("lora", 64, 2e-4, "cosine", "half", 300).name == "lora 64 0.0002 cosine-300 half"
    assert Attack.from_dict({"kind": "full", "stories": 4, "learning_rate": 0.1, "x": 1}) == Attack("full", 4, 0.1)
