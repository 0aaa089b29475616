"""The verdict: its rules over planted results, and that no rendering of a result says anything else."""

import io
import math
import re
from dataclasses import replace

import pytest
from rich.console import Console

from hf_era.evaluation.relearn.result import RelearnCurve, RelearnPoint, RelearnResult, RelearnTrial
from hf_era.evaluation.summary import is_localised, localised_lines
from hf_era.reporting import render_model_card
from hf_era.reporting.comparison import comparison_markdown, comparison_rows
from hf_era.reporting.html.comparison import render_comparison
from hf_era.reporting.html.report import render_report
from hf_era.reporting.tables import attacks_table, losses_table
from hf_era.reporting.terminal import print_result
from hf_era.reporting.verdict import LEVELS, verdict
from hf_era.training.gradient_routing_trainer import nothing_localised_message

from .html.test_report import Page
from .samples import bare_run, estimate, model_result, run_result, stage, stock_result


@pytest.fixture(autouse=True)
def _without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second each, and nothing is looked for in them."""
    for page in ("report", "comparison"):
        monkeypatch.setattr(f"hf_era.reporting.html.{page}.plots_of", lambda results, names: [])


def attacked(*losses, before=3.0, rates=(1e-5, 2e-4, 1e-3), steps=40):
    """Trials whose forget losses these are, at the middle rate; the others reach less, so that the attack is converged."""
    made = []
    for rate in rates:
        reached = losses if rate == 2e-4 else (losses[0], max(losses))
        curve = RelearnCurve([RelearnPoint(step, loss, 3.0) for step, loss in enumerate(reached)])
        made += [RelearnTrial("full", 64, rate, number, number, curve) for number in range(2)]
    settings = {"steps": steps, "patience": 1, "evaluate_every": 1}
    return RelearnResult(made, {"forget": before, "retain": 3.0}, settings).to_dict()


def planted(attack=None, control=None, edges=(), **differences):
    """A run with these differences; `control`: unlearning and robust unlearning of data filtering."""
    values = {"ablation_gap": 0.4, "retain_ablation_gap": 0.02, "unlearning": 0.4, "retain_tax": 0.01, **differences}
    found = {name: estimate(value) for name, value in values.items() if value is not None}
    filtering = None
    if control is not None:
        kept = {
            name: estimate(value) for name, value in zip(("unlearning", "retain_tax"), (control[0], 0.0), strict=True)
        }
        attack_of_control = {"robust_unlearning": {"value": control[1]}, "lowest_forget": {"value": 3.0 + control[1]}}
        strongest = attack_of_control | {"edges": edges}
        filtering = {"name": "filtered", "seed": 0, "differences": kept, "strongest": strongest}
    return run_result(differences=found, attack=attack, data_filtering=filtering)


AT_ONCE = attacked(3.4, 3.02, 3.2)
HELD = attacked(3.4, 3.38, 3.39)
LAST_STEP = attacked(3.4, 3.3, 3.2, steps=2)
BROKEN = {**run_result().losses, "after_coherence": stage(math.nan, 3.0, 3.0)}
NO_REFERENCE = {name: part for name, part in run_result().losses.items() if name != "before"}

# Planted result, its three answers with their levels, and what none of its renderings may say; where nothing is named, it is
# not rendered.
CASES = {
    "not localised": (
        planted(ablation_gap=0.01, unlearning=0.04, attack=attacked(3.02, 3.01, 3.2)),
        ("bad: No: nothing was localised", "good: Next to none", "bad: Nothing to come back"),
        ("brings back", "Robust: yes", "Yes", "As if never seen"),
    ),
    "not localised, but the loss rose": (
        planted(ablation_gap=0.01, unlearning=0.3, attack=HELD),
        ("bad: No: nothing was localised", "good: Next to none", "bad: Nothing to come back"),
        (),
    ),
    "localised and back at once": (
        planted(attack=AT_ONCE),
        ("good: Yes", "good: Next to none", "bad: Yes, in 1 step"),
        ("nothing to bring back", "Nothing to come back", "already at the start", "NOTHING WAS LOCALISED"),
    ),
    "robust": (
        planted(attack=HELD, control=(0.45, 0.3)),
        ("good: Yes", "good: Next to none", "good: No"),
        ("brings back", "does not hold", "Nothing to come back", "not converged:"),
    ),
    "comes back as to a model that never saw it": (
        planted(attack=attacked(3.4, 3.2, 3.3), control=(0.45, 0.18)),
        ("good: Yes", "good: Next to none", "good: As if never seen"),
        (),
    ),
    "comes back in part": (
        planted(attack=attacked(3.4, 3.2, 3.3), control=(0.45, 0.3)),
        ("good: Yes", "good: Next to none", "mixed: Partly: 50 %"),
        (),
    ),
    "not converged": (
        planted(attack=LAST_STEP),
        ("good: Yes", "good: Next to none", "mixed: At least 50 %"),
        ("brings back", "does not hold", "As if never seen"),
    ),
    "not attacked": (
        planted(),
        ("good: Yes", "good: Next to none", "unknown: Not tested"),
        (),
    ),
    "never known": (
        run_result(losses=NO_REFERENCE, before_kind=None, differences={}, attack=None, data_filtering=None),
        ("unknown: Localised, not compared", "unknown: Not known", "unknown: Not tested"),
        ("not removed", "brings back", "Yes"),
    ),
    "general damage": (
        planted(retain_tax=0.5, attack=AT_ONCE),
        ("bad: No: general damage", "bad: High", "unknown: Cannot be told"),
        ("brings back", "Nothing to come back"),
    ),
    "not removed": (
        planted(unlearning=-0.3, retain_tax=-0.5, forget_words_unlearning=-0.1, attack=attacked(2.7, 2.6, 2.8)),
        ("bad: No", "mixed: Unclear: kept learning", "bad: Nothing to come back"),
        (),
    ),
    "only the words": (
        planted(unlearning=0.01, retain_tax=0.02, forget_words_unlearning=4.0, attack=attacked(3.0, 2.9, 3.1)),
        ("mixed: Only the words", "good: Next to none", "unknown: Not known"),
        (),
    ),
    "a part, at a cost": (
        planted(unlearning=0.15, retain_tax=0.06, control=(0.4, 0.3)),
        ("mixed: Partly", "mixed: Some", "unknown: Not tested"),
        (),
    ),
    "more than forgotten": (
        planted(unlearning=0.6, retain_tax=0.4, control=(0.4, 0.3)),
        ("mixed: Yes, and more", "bad: High", "unknown: Not tested"),
        (),
    ),
    "too little at the start of the attack": (
        planted(unlearning=0.06, attack=attacked(3.04, 3.02, 3.2)),
        ("good: Yes", "good: Next to none", "mixed: Too little to tell"),
        (),
    ),
    "not finite": (
        run_result(losses=BROKEN, differences={}, attack=AT_ONCE),
        ("bad: Unknown: not finite",) * 3,
        ("Next to none", "brings back"),
    ),
    "a control": (
        stock_result(attack=AT_ONCE, differences={"unlearning": estimate(0.3), "retain_tax": estimate(0.0)}),
        ("good: Never learnt", "good: Next to none", "unknown: The yardstick"),
        (),
    ),
    "a control of a trained model, which is judged as a method is": (
        replace(stock_result(attack=AT_ONCE, differences={"unlearning": estimate(-0.2)}), before_kind="pretrained"),
        ("bad: No", "mixed: Unclear: kept learning", "bad: Nothing to come back"),
        ("Never learnt", "Hardly differs"),
    ),
    "the model before": (
        stock_result("base"), ("unknown: Untouched",) * 3, ("Not tested", "No relearn attack was made: how")
    ),
}  # fmt: skip


def answers(result, seeds=()):
    return tuple(f"{line.level}: {line.answer}" for line in verdict(result, seeds))


def renderings(result):
    """What a reader sees, as plain text on one line."""
    console = Console(file=io.StringIO(), width=5_000)
    print_result(result, console)
    shown = {
        "terminal": console.file.getvalue(),
        "report": Page(render_report(result)).text,
        "comparison page": Page(render_comparison([result])).text,
        "comparison": comparison_markdown([result]),
    }
    if result.has_checkpoint:
        shown["card"] = render_model_card(result).replace("\\", "").replace("**", "")
    return {name: " ".join(text.split()) for name, text in shown.items()}


@pytest.mark.parametrize("name", CASES)
def test_the_rules(name):
    result, expected, _ = CASES[name]
    assert answers(result) == expected


@pytest.mark.parametrize("name", [name for name, (_, _, contradictions) in CASES.items() if contradictions])
def test_every_rendering_says_the_verdict_and_nothing_else(name):
    result, _, contradictions = CASES[name]
    for rendering, text in renderings(result).items():
        for line in verdict(result):
            assert line.answer in text, (rendering, line.answer)
            if "comparison" not in rendering:
                assert re.search(f"{re.escape(line.question)} +{re.escape(line.answer)}", text), rendering
                assert line.text in text, (rendering, line.text)
        for phrase in contradictions:
            assert not re.search(rf"(^|[^\w-]){re.escape(phrase)}([^\w-]|$)", text), (rendering, phrase)


def test_answers_are_short_and_levels_known():
    for result, *_ in CASES.values():
        for line in verdict(result):
            assert 1 <= len(line.answer.split()) <= 4
            assert line.level in LEVELS
            assert line.text.endswith(".")
            assert line.text.count(". ") == 0, line.text  # one sentence


def test_the_numbers_behind_the_answers():
    removed, cost, back = (line.text for line in verdict(planted(attack=LAST_STEP, control=(0.45, 0.3))))
    assert (
        removed
        == "The forget loss is +0.400 nats a token against the pretrained base; a model that never saw it: +0.450."
    )
    assert (
        cost == "The retain loss is +0.010 nats a token against the pretrained base; a model that never saw it: +0.000."
    )
    assert back == (
        "The strongest of 3 attacks, full fine-tuning on 64 examples at learning rate 0.0002, takes the forget loss from "
        "+0.400 to at most +0.200 nats a token against the pretrained base; a model that never saw it: +0.300; not "
        "converged: not turned at its last step; no share of filtering, for the model before was not attacked; not tested: "
        "LoRA, cosine schedules, mixed examples, retain examples, more than 64 examples."
    )
    assert verdict(CASES["not localised"][0])[0].text == (
        "Ablating the auxiliary module changes the forget loss by +0.010 nats a token, less than the minimum of 0.05; the "
        "forget loss is +0.040 nats a token against the pretrained base."
    )


def test_the_share_of_filtering_where_all_three_were_attacked():
    made = RelearnResult.from_dict(attacked(3.4, 3.27, 3.3))
    before = [replace(trial, learning_rate=2e-4) for trial in RelearnResult.from_dict(attacked(3.0, 2.95, 2.96)).trials]
    attack = replace(made, before_trials=before[2:4]).to_dict()
    # Forget losses under attack: the run's 3.27, that of the model before 2.95, data filtering's 3.35.
    back = verdict(planted(attack=attack, control=(0.45, 0.35)))[2].text
    assert "; share of filtering 0.80, not at equal retain loss; not tested: LoRA" in back
    one = planted(attack=attack, control=(0.45, 0.35), edges=["steps"])
    assert "; share of filtering at least 0.80" in verdict(one)[2].text
    other = replace(planted(attack=attack, control=(0.45, 0.75)), seed=1)
    assert "; share of filtering at least 0.60" in verdict(one, [other])[2].text  # the mean of 0.80 and 0.40
    open_one = replace(RelearnResult.from_dict(LAST_STEP), before_trials=before[2:4]).to_dict()
    assert "; share of filtering at most 0.63" in verdict(planted(attack=open_one, control=(0.45, 0.35)))[2].text
    # Whatever the answer is: here that of a run that removed nothing.
    none = verdict(planted(unlearning=0.01, attack=attack, control=(0.45, 0.35)))[2]
    assert none.answer == "Nothing to come back"
    assert "; share of filtering 0.80, not at equal retain loss; not tested: LoRA" in none.text
    for control in (None, (0.45, -0.03)):  # not known; no range
        assert "share of filtering" not in verdict(planted(attack=attack, control=control))[2].text
    tried = [*made.trials, replace(made.trials[0], kind="lora"), replace(made.trials[0], mixture="retain")]
    everything = planted(attack=replace(made, trials=tried).to_dict())
    assert "; not tested: cosine schedules, mixed examples, more than 64 examples." in verdict(everything)[2].text
    from_retain = planted(
        attack=replace(made, trials=[replace(trial, mixture="retain") for trial in made.trials]).to_dict()
    )
    assert (
        "; not tested: LoRA, cosine schedules, forget examples alone, mixed examples," in verdict(from_retain)[2].text
    )


def test_no_share_of_a_filtering_that_was_attacked_in_other_ways():
    made = RelearnResult.from_dict(attacked(3.4, 3.27, 3.3))
    before = [replace(trial, learning_rate=2e-4) for trial in RelearnResult.from_dict(attacked(3.0, 2.95, 2.96)).trials]
    attack = replace(made, before_trials=before[2:4])
    result = planted(attack=attack.to_dict(), control=(0.45, 0.35))
    other_ways = "; no share of filtering, which was attacked in other ways; not tested: LoRA"
    for number, expected in ((64, "; share of filtering 0.80"), (128, other_ways)):
        control = [one.attack._replace(learning_rate=1.0, stories=number) for one in attack.summaries()]
        result.data_filtering["attacks"] = [{**one._asdict(), "robust_unlearning": estimate(0.35)} for one in control]
        assert expected in verdict(result)[2].text


def test_an_interval_that_holds_zero_is_not_certain():
    result = planted()
    result.differences["unlearning"] = estimate(0.1, half=0.2)
    line = verdict(result)[0]
    assert (line.answer, line.level) == ("Not certain", "mixed")
    assert "(95 % interval [-0.100, +0.300])" in line.text


def test_a_model_that_was_evaluated_names_the_one_before_it_without_its_folder():
    before = {"model": "/home/somebody/base", "losses": stage(3.036, 3.137, 3.431)}
    line = verdict(model_result(before=before))[0]
    assert "against base; a model that never saw it: +0.364" in line.text
    assert losses_table(model_result(before=before)).rows[0][0] == "Before the method (base)"
    line = verdict(model_result(before=None, differences={}))[0]
    assert line.text == (
        "No model from before the method was measured to compare with; the forget loss is 3.290 nats a token, that of a "
        "model that never saw it 3.400."
    )
    assert answers(bare_run()) == ("unknown: Not known", "unknown: Not known", "unknown: Not tested")


def test_over_seeds_the_means_are_judged():
    one = planted(unlearning=0.4, attack=HELD)
    two = replace(planted(unlearning=0.2, attack=AT_ONCE), seed=1)
    assert answers(one, [one]) == answers(one)
    line, _, back = verdict(one, [two])
    # Mean 0.3, deviation 0.141, t(1) = 12.706: 12.706 * 0.141 / sqrt(2) = 1.271.
    assert (line.answer, line.level) == ("Not certain", "mixed")
    assert (
        "+0.300 nats a token against the pretrained base (mean of 2 seeds, 95 % interval [-0.971, +1.571]; here +0.400)"
        in line.text
    )
    assert (back.answer, back.level) == ("In some seeds", "mixed")
    lacking = verdict(one, [replace(planted(), seed=1)])[2]
    assert (lacking.answer, lacking.level) == ("Not known", "unknown")
    assert "; not every seed was attacked and compared;" in lacking.text
    nothing = replace(planted(ablation_gap=0.0), seed=2)
    sure = [replace(planted(), seed=seed) for seed in (0, 1)]
    line = verdict(sure[0], [*sure, nothing])[0]
    assert line.answer == "In some seeds"
    assert "anything was localised in 2 of 3 seeds only" in line.text
    assert answers(nothing, [replace(nothing, seed=3)])[0] == "bad: No: nothing was localised"


def test_a_comparison_has_one_row_per_recipe():
    one, other = planted(), replace(planted(), name="other")
    text = comparison_markdown([one, replace(one, seed=1), other])
    assert "| posttrain_fullseq | 0, 1 | the pretrained base | Yes | Next to none | Not tested |" in text
    assert "| other | 0 | the pretrained base | Yes | Next to none | Not tested |" in text
    assert comparison_rows([one])[0]["removed"] == "Yes"


def test_the_model_before_lost_nothing_that_it_could_recover():
    made = RelearnResult.from_dict(HELD)
    result = planted(attack=replace(made, before_trials=made.trials[2:4]).to_dict())
    row = attacks_table(result).rows[-1]
    assert row[0] == "the strongest, on the model before the method"
    assert row[7:9] == ["-", "-"]


def test_names_from_a_result_are_not_read_as_markup():
    console = Console(file=io.StringIO(), width=500)
    print_result(model_result(before={"model": "[red]x", "losses": stage(3.0, 3.0, 3.0)}), console)
    assert "against [red]x" in console.file.getvalue()


def test_two_lines_after_training():
    metrics = {"eval_ablation_gap": 0.4123, "eval_retain_ablation_gap": 0.02}
    assert localised_lines(metrics, 0.05) == [
        "Ablating the auxiliary module changes the forget loss by +0.412 nats a token, the retain loss by +0.020.",
        "Localised: yes. The forget loss rises by at least the minimum of 0.05.",
    ]
    assert localised_lines(metrics, 0.5)[1] == "Localised: no. The forget loss changes by less than the minimum of 0.5."
    assert localised_lines({**metrics, "eval_retain_ablation_gap": 0.5}, 0.05)[1].startswith(
        "Localised: not selectively."
    )
    first, second = localised_lines({"test_ablation_gap": math.nan}, 0.05, prefix="test")
    assert first.endswith("by +nan nats a token, the retain loss was not measured.")
    assert second.startswith("Localised: no.")
    assert "`eval_dataset={" in localised_lines({}, 0.05)[1]


def test_several_modules_are_ablated_together() -> None:
    lines = localised_lines({"eval_ablation_gap": 0.1}, 0.05, modules=["acids", "boats"])
    assert lines[0].startswith(
        "Ablating the auxiliary modules (acids, boats) together changes the forget loss by +0.100"
    )
    text = nothing_localised_message(0.01, 0.05, ["acids", "boats"])
    assert text.startswith("NOTHING WAS LOCALISED: ablating the auxiliary modules (acids, boats) together changes")
    assert "ablating the auxiliary module changes" in nothing_localised_message(0.01, 0.05, ["acids"])
    assert is_localised(0.05, 0.05)
