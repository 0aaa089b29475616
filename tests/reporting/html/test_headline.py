"""The sentences about a result: every method, every way that an attack can end, missing parts."""

import math
from dataclasses import replace

import pytest

from hf_era.evaluation.intervals import Estimate
from hf_era.evaluation.relearn.result import RelearnCurve, RelearnPoint, RelearnResult, RelearnTrial
from hf_era.evaluation.summary import summary_of
from hf_era.reporting.headline import cautions, change, headline_sentences, share_brought_back

from ..samples import bare_run, estimate, model_result, run_result, stage, stock_result


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
    # (3.4 - 3.04) / 0.412 = 0.874; the trials are the same, so their interval is a point.
    assert sentences[4] == (
        "The attack, full fine-tuning on 64 stories at learning rate 0.0002, brings back 87 % of what ablation took within "
        "2 steps: forget loss from 3.400 to 3.040 [3.040, 3.040] (mean of 2 trials)."
    )
    assert sentences[6:] == [
        "Under the strongest attack the forget loss was back at the level before the method + 0.05 after 2 steps in 2 of 2 "
        "trials."
    ]


@pytest.mark.parametrize(
    ("lowest", "expected"),
    [
        (3.4 - 0.001, "brings back next to nothing of what ablation took (0 %) within 1 step"),
        (3.4 - 0.412, "brings back all of what ablation took (100 %) within 1 step"),
        (3.4 - 0.618, "brings back all of what ablation took and more (150 %) within 1 step"),
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


def test_no_share_of_a_gap_below_the_runs_minimum():
    result = run_result(attack=attacked(3.4, 3.2), training={"minimum_ablation_gap": 0.5})
    assert share_brought_back(summary_of(result), 0.5) is None
    assert share_brought_back(summary_of(result), 0.4) == pytest.approx(0.2 / 0.412)
    assert "lowers the forget loss from 3.400 to 3.200" in sentence(result, "The attack")


def test_nothing_to_bring_back():
    assert sentence(run_result(attack=attacked(3.02, 3.01)), "The forget loss was below").endswith(
        "already before the attacks: there was nothing to bring back."
    )


def test_one_trial_and_the_fastest_attack():
    slow = RelearnResult.from_dict(attacked(3.4, 3.3, 3.2, 2.9, trials=1))
    [fast] = RelearnResult.from_dict(attacked(3.4, 3.04, trials=1)).trials
    both = replace(slow, trials=[*slow.trials, replace(fast, kind="lora")])
    sentences = headline_sentences(run_result(attack=both.to_dict()))
    assert sentences[-2].endswith("back at the level before the method + 0.05 after 3 steps in the only trial.")
    assert sentences[-1].startswith("Fastest back was LoRA fine-tuning on 64 stories at learning rate 0.0002: back at")
    assert "after 1 step in the only trial" in sentences[-1]


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
    assert "lowers the forget loss from" in model[3]


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
        "nats a token."
    ]
    assert cautions(bare_run())[0].lead == "It is not known whether anything was localised"
    assert cautions(stock_result("base")) == []
    assert cautions(stock_result(attack=attacked(3.4, 3.04))) == []  # a control removes nothing that could come back
