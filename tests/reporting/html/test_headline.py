"""The sentences about a result: every method, every way that an attack can end, missing parts."""

import io
import math
from dataclasses import replace

import pytest
from rich.console import Console

from hf_era.evaluation.intervals import Estimate
from hf_era.evaluation.relearn.result import RelearnCurve, RelearnPoint, RelearnResult, RelearnTrial
from hf_era.evaluation.summary import aggregate, summary_of
from hf_era.reporting import render_model_card
from hf_era.reporting.comparison_tables import strongest_attack_over_seeds
from hf_era.reporting.headline import cautions, change, headline_sentences, share_brought_back
from hf_era.reporting.html.report import render_report
from hf_era.reporting.tables import attacks_table, differences_table
from hf_era.run.outputs import warn

from ..samples import bare_run, estimate, model_result, run_result, stage, stock_result

NOT_CONVERGED = (
    "The relearn attack is not converged. The lowest forget loss of the strongest attack, full fine-tuning on 64 stories "
    "at learning rate 0.0002, lies at the edge of what was tried (not turned at its last step; the largest number of "
    "stories; the lowest, the highest or the only learning rate with so many stories): more of the same may bring back "
    "more, and robust unlearning is at most what stands here."
)


def attacked(*losses, before=3.0, trials=2):
    """One attack whose trials all have these forget losses."""
    curve = RelearnCurve([RelearnPoint(step, loss, 3.0) for step, loss in enumerate(losses)])
    made = [RelearnTrial("full", 64, 2e-4, number, number, curve) for number in range(trials)]
    return RelearnResult(made, {"forget": before, "retain": 3.0}).to_dict()


def sentence(result, beginning):
    [found] = [text for text in headline_sentences(result) if text.startswith(beginning)]
    return found


def test_a_run_in_full():
    sentences = headline_sentences(run_result(attack=attacked(3.4, 3.2, 3.04)))
    assert sentences[:3] == [
        "At the end: forget loss 3.290 [3.210, 3.370] and retain loss 3.010 [2.945, 3.075] nats a token "
        "(in brackets: 95 % intervals of this run, over stories).",
        "Ablation raises the forget loss by 0.412 [0.382, 0.442] nats a token and the retain loss by 0.083 [0.073, 0.093].",
        "Against the pretrained base, the forget loss is 0.254 [0.224, 0.284] higher (data filtering: +0.364), the retain "
        "loss is 0.127 [0.107, 0.147] lower (data filtering: -0.457), and the loss on the forget words alone is 3.979 "
        "[3.629, 4.329] higher (data filtering: +4.670).",
    ]
    assert sentences[3].startswith("The model also went on learning: its retain loss is lower than before.")
    # (3.4 - 3.04) / (3.4 - 3.0), all on the attack's stories; the trials are the same, so their interval is a point.
    assert sentences[4:] == [
        "The attack, full fine-tuning on 64 stories at learning rate 0.0002, brings back 90 % of what the method took "
        "within 2 steps: forget loss from 3.400 to 3.040 [3.040, 3.040] (mean of 2 trials).",
        "Robust unlearning, the lowest forget loss under that attack minus the forget loss before the method: at most "
        "+0.040 [+0.040, +0.040] nats a token (data filtering under its own strongest attack: at most -0.106).",
        "Under the strongest attack the forget loss was back at the level before the method + 0.05 after 2 steps (128 "
        "stories read) in 2 of 2 trials.",
    ]


def test_the_attacked_model_before_the_method_stands_beside():
    """A base that moves by -0.03 under the same attack: of +0.09 robust unlearning, 0.12 lies between the two."""
    made = RelearnResult.from_dict(attacked(3.4, 3.09, 3.1))
    zero = RelearnResult.from_dict(attacked(3.0, 2.97, 2.98)).trials
    result = run_result(attack=replace(made, before_trials=zero).to_dict())
    assert sentence(result, "Robust unlearning").endswith(
        " The same attack changes the forget loss of the model before the method by -0.030: +0.120 lies between the two."
    )
    rows = attacks_table(result).rows
    assert rows[-1][0] == "the strongest, on the model before the method"
    assert rows[-1][5].startswith("≤ -0.030") is False  # it turned
    assert [row[1] for row in differences_table(result).rows if row[0].startswith("The same attack")] == [
        "-0.030 [-0.030, -0.030]"
    ]
    # It ran out of steps before patience: both ends may lie lower.
    unturned = replace(made, before_trials=zero, settings={"steps": 2, "patience": 3}).to_dict()
    result = run_result(attack=unturned)
    assert sentence(result, "Robust unlearning").endswith(" by at most -0.030: so far +0.120 lies between the two.")
    assert "≤ -0.030" in strongest_attack_over_seeds(aggregate([result])).rows[0]


@pytest.mark.parametrize(
    ("lowest", "expected"),
    [
        (3.4 - 0.001, "brings back next to nothing of what the method took (0 %) within 1 step"),
        (3.4 - 0.4, "brings back all of what the method took (100 %) within 1 step"),
        (3.4 - 0.6, "brings back all of what the method took and more (150 %) within 1 step"),
    ],
)
def test_the_share_brought_back(lowest, expected):
    assert expected in sentence(run_result(attack=attacked(3.4, lowest)), "The attack")


def test_an_attack_that_brings_back_nothing():
    result = run_result(attack=attacked(3.4, 3.5, 3.6))
    assert sentence(result, "The attack").endswith("made the forget loss no lower than it was at the start (3.400).")
    assert sentence(result, "Under").endswith(
        "not back at the level before the method + 0.05 within 2 steps in any of 2 trials."
    )


def test_the_share_is_of_one_set_of_stories_and_none_of_too_little():
    """Never over the ablation gap, 0.412, which other stories were measured for."""
    result = run_result(attack=attacked(3.4, 3.2), training={"minimum_ablation_gap": 0.5})
    assert share_brought_back(summary_of(result), 0.5) is None
    assert share_brought_back(summary_of(result), 0.39) == pytest.approx(0.2 / 0.4)
    assert "lowers the forget loss from 3.400 to 3.200" in sentence(result, "The attack")


def test_nothing_to_bring_back():
    assert sentence(run_result(attack=attacked(3.02, 3.01)), "The forget loss was below").endswith(
        "already before the attacks: there was nothing to bring back."
    )


@pytest.mark.parametrize(
    ("tokens", "read"),
    [((None, None), ("192 stories", "4 stories")), ((9_000, 700), ("27,000 tokens", "1,400 tokens"))],
)
def test_the_fastest_attack_is_the_one_that_read_least(tokens, read):
    """One step with 64 stories reads more than two with 2."""
    strong = RelearnResult.from_dict(attacked(3.4, 3.3, 3.2, 2.9, trials=1))
    [frugal] = RelearnResult.from_dict(attacked(3.4, 3.2, 3.04, trials=1)).trials
    hasty = replace(frugal, kind="lora", curve=RelearnCurve([frugal.curve.points[0], RelearnPoint(1, 3.04, 3.0)]))
    trials = [replace(strong.trials[0], tokens=tokens[0]), replace(hasty, tokens=tokens[0])]
    trials.append(replace(frugal, stories=2, tokens=tokens[1]))
    sentences = headline_sentences(run_result(attack=replace(strong, trials=trials).to_dict()))
    assert sentences[-2].endswith(f"before the method + 0.05 after 3 steps ({read[0]} read) in the only trial.")
    assert sentences[-1].startswith("Fastest back was full fine-tuning on 2 stories at learning rate 0.0002: back at")
    assert f"after 2 steps ({read[1]} read) in the only trial" in sentences[-1]


def test_a_median_that_was_not_reached_is_above_what_was_tried():
    both = RelearnResult.from_dict(attacked(3.4, 3.3, 3.04))
    never = replace(both.trials[1], curve=RelearnCurve([RelearnPoint(step, 3.4, 3.0) for step in range(11)]))
    result = run_result(attack=replace(both, trials=[both.trials[0], never]).to_dict())
    assert sentence(result, "Under").endswith(
        "back at the level before the method + 0.05 in 1 of 2 trials only: the median is above 6 steps (384 stories read)."
    )
    assert attacks_table(result).rows[0][7:9] == ["1 of 2", "> 6 steps (384 stories read)"]
    there = run_result(attack=attacked(3.02, 3.01))
    assert attacks_table(there).rows[0][7:9] == ["already at the start", "-"]


def test_other_methods():
    filtering = headline_sentences(stock_result())
    assert filtering[0].startswith("This is data filtering, the yardstick")
    assert not [text for text in filtering if "blation" in text]
    assert headline_sentences(stock_result("base")) == [
        "This is the model before the method, untouched. Forget loss 3.036 [2.956, 3.116] and retain loss 3.137 "
        "[3.072, 3.202] nats a token (in brackets: 95 % intervals of this run, over stories)."
    ]
    model = headline_sentences(model_result())
    assert model[1].startswith("Against somebody/base, the forget loss is 0.254")
    assert "brings back all of what the method took" in model[3]


def test_nothing_measured():
    assert headline_sentences(bare_run()) == [
        "The losses were not measured.",
        "What ablation removes was not measured.",
        "How it compares with the model before the method was not measured.",
        "No relearn attack was made: how fast the capability comes back is not known.",
    ]
    assert headline_sentences(run_result(attack=attacked(math.nan, math.nan)))[-1].startswith(
        "The relearn attacks did not"
    )


def test_the_direction_of_a_change():
    assert change("loss", Estimate(-0.2, -0.3, -0.1)) == "lowers the loss by 0.200 [0.100, 0.300]"
    assert change("loss", Estimate(0.0001)) == "leaves the loss as it is (+0.000)"
    assert "not finite" in change("loss", Estimate(math.nan))


def test_cautions():
    def leads(**overrides):
        return [caution.lead for caution in cautions(run_result(attack=None, **overrides))]

    fine = run_result().differences
    assert leads() == []
    assert leads(differences={**fine, "ablation_gap": estimate(0.01)}) == ["NOTHING WAS LOCALISED"]
    assert leads(differences={**fine, "unlearning": estimate(-0.3)}) == ["The capability was not removed"]
    assert leads(differences={**fine, "retain_tax": estimate(0.3)}) == [
        "The retain loss rose as much as the forget loss"
    ]
    broken = {**run_result().losses, "after_coherence": stage(math.inf, 3.0, 3.0)}
    assert leads(losses=broken) == ["A loss is not finite"]
    assert list(map(str, cautions(run_result(attack=attacked(3.4, 3.04))))) == [
        "The removal does not hold. Under the strongest attack the forget loss minus that before the method falls to +0.040 "
        "nats a token or below.",
        NOT_CONVERGED,
    ]
    assert cautions(bare_run())[0].lead == "It is not known whether anything was localised"
    assert cautions(stock_result("base")) == []
    # A control removes nothing that could come back; its attack is to be believed as far as that of others.
    assert list(map(str, cautions(stock_result(attack=attacked(3.4, 3.04))))) == [NOT_CONVERGED]


def test_forget_words_that_do_not_fit_the_stories_are_a_caution():
    data = {"forget_words": ["tree"], "forget_stories": 3, "retain_stories": 4, "attack_stories": 0}
    held = {"forget_stories_with_a_forget_word": 0, "retain_stories_with_a_forget_word": 3}
    swapped = model_result(attack=None, data={**data, **held})
    (caution,) = cautions(swapped)
    assert caution.lead == "The forget words do not fit the stories"
    assert "Are `--forget` and `--retain` swapped?" in caution.text
    assert "Are `--forget` and `--retain` swapped?" in render_report(swapped)
    fits = {"forget_stories_with_a_forget_word": 3, "retain_stories_with_a_forget_word": 0}
    assert cautions(model_result(attack=None, data={**data, **fits})) == []


def test_the_card_and_the_terminal_warn_as_the_report_does():
    result = run_result(attack=attacked(3.4, 3.04))
    card, console = render_model_card(result), Console(file=io.StringIO(), width=1_000)
    warn(result, console)
    assert [caution.lead for caution in cautions(result)] == [
        "The removal does not hold", "The relearn attack is not converged"
    ]  # fmt: skip
    for caution in cautions(result):
        assert f"> **{caution.lead}.** " in card
        assert str(caution) in console.file.getvalue()
    # Rates on both sides, and turned: nothing is at the edge but the number of stories, which is said and no warning.
    made = RelearnResult.from_dict(attacked(3.4, 3.2, 3.3))
    weak = [replace(trial, learning_rate=rate, curve=RelearnCurve([*trial.curve.points[:1], RelearnPoint(1, 3.5, 3.0)]))
            for trial in made.trials for rate in (1e-5, 1e-3)]  # fmt: skip
    settled = run_result(attack=replace(made, trials=[*made.trials, *weak], settings={"steps": 40}).to_dict())
    assert cautions(settled) == []
    assert summary_of(settled).strongest.edges == ("stories",)
