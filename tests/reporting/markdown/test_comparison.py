"""Results side by side: one row each, and means with intervals over seeds."""

import csv
import io
import json

import pytest

from hf_era.evaluation.results import ModelResult
from hf_era.evaluation.summary import aggregate
from hf_era.reporting.comparison import comparison_csv, comparison_json, comparison_markdown, comparison_rows
from hf_era.reporting.comparison_tables import (
    over_seeds_table,
    results_table,
    strongest_attack_over_seeds,
    strongest_attacks_table,
)


def with_gap(make_result, seed, gap, **overrides):
    """A run whose ablation gap is `gap`."""
    differences = {"ablation_gap": {"value": gap, "low": gap - 0.1, "high": gap + 0.1}}
    return make_result(seed=seed, differences=differences, **overrides)


def a_model(**overrides):
    estimate = {"loss": 2.5, "low": 2.4, "high": 2.6, "tokens": 10, "stories": 2}
    values = {
        "name": "rmu", "model": "some/rmu", "created": "2026-11-23T00:00:00+00:00", "versions": {}, "machine": {},
        "data": {"fingerprint": "abc"}, "losses": {"forget": estimate, "retain": estimate},
    }  # fmt: skip
    return ModelResult(**{**values, **overrides})


def test_mean_and_interval_over_seeds(make_result):
    (row,) = aggregate([with_gap(make_result, seed, gap) for seed, gap in ((0, 0.1), (1, 0.2), (2, 0.6))])
    assert row["seeds"] == [0, 1, 2]
    # Mean 0.3; squared deviations 0.04 + 0.01 + 0.09, over 2: standard deviation 0.264575; t of 2 degrees 4.302653.
    half = 4.302653 * 0.264575 / 3**0.5
    assert row["figures"]["ablation_gap"] == pytest.approx(
        {"value": 0.3, "low": 0.3 - half, "high": 0.3 + half}, abs=1e-5
    )


def test_one_seed_has_no_interval_over_seeds(make_result):
    (row,) = aggregate([with_gap(make_result, 0, 0.1)])
    assert row["figures"]["ablation_gap"] == {"value": 0.1, "low": None, "high": None}
    assert "Over seeds" not in comparison_markdown([with_gap(make_result, 0, 0.1)])


def test_a_figure_that_one_seed_lacks_has_no_mean(make_result):
    lacking = make_result(seed=1, attack=None)
    (row,) = aggregate([make_result(), lacking])
    assert row["figures"]["robust_unlearning"]["value"] is None
    assert row["figures"]["unlearning"]["value"] == pytest.approx(0.601)


def test_attacks_are_averaged_over_seeds_each_by_itself(make_result):
    (row,) = aggregate([make_result(), make_result(seed=1)])
    assert row["attacks"]["full 4 5e-05"]["value"] == pytest.approx(1.32)  # of 1.24 and 1.4, in both seeds
    assert row["attacks"]["lora 4 0.001"]["value"] == pytest.approx(1.6)
    assert (row["recovered"], row["attacked"]) == (2, 2)


def test_figures_under_attack_stand_beside_those_of_the_same_stories(make_result):
    """The evaluation's retain loss, 1.29 on 200 stories, and the attack's, 1.3 to 1.33 on 64, are never in one table."""
    rows = aggregate([make_result(), make_result(seed=1)])
    attack = strongest_attack_over_seeds(rows)
    shown = dict(zip(attack.header, attack.rows[0], strict=True))
    assert shown["Forget before"].startswith("1.200 ")
    assert shown["Forget at its start"].startswith("1.800 ")
    assert shown["Forget under attack"].startswith("≤ 1.320 ")
    assert shown["Retain before"].startswith("1.270 ")
    assert shown["Retain at its start"].startswith("1.300 ")
    assert shown["Retain there"].startswith("1.325 ")
    assert shown["Unlearning at its start"].startswith("+0.600 ")
    assert shown["Robust unlearning"].startswith("≤ +0.120 ")
    assert shown["Lowest at the edge in"] == "steps, examples, learning rate"
    evaluated = [over_seeds_table(rows), results_table([make_result()])]
    for table in evaluated:  # of the attack only the difference stands there, with a word on it
        assert [name for name in table.header if "attack" in name.lower() or "obust" in name] == ["Robust unlearning"]
        assert "Robust unlearning is measured on the examples of the attack" in table.caption


def test_every_format_has_the_differences_first_in_one_order(make_result):
    names = ["unlearning", "retain_tax", "robust_unlearning", "ablation_gap"]
    results = [make_result(), make_result(seed=1)]
    tables = [over_seeds_table(aggregate(results)), results_table(results)]
    for table in tables:
        assert table.header[2:6] == ["Unlearning", "Retain tax", "Robust unlearning", "Ablation gap"]
    assert list(comparison_rows(results)[0])[2:6] == names
    assert comparison_csv(results).splitlines()[0].split(",")[2:6] == names
    assert "| Result | Seed | Unlearning | Retain tax | Robust unlearning | Ablation gap |" in comparison_markdown(
        results
    )


def test_a_level_that_was_never_left_is_not_recovered(make_result):
    def starting_at(loss, **overrides):
        points = [{"step": step, "forget_loss": loss - step / 100, "retain_loss": 1.3} for step in (0, 1, 2)]
        values = make_result().attack
        trials = [{**trial, "curve": {"points": points}} for trial in values["trials"]]
        return make_result(attack={**values, "trials": trials}, **overrides)

    low, high = starting_at(1.22), starting_at(1.262, seed=1)
    cells = [strongest_attack_over_seeds(aggregate(part)).rows[0][-1] for part in ([low], [high], [low, high])]
    assert cells == ["already at the start in 1 of 1 seeds", "1 of 1 seeds",
                     "1 of 2 seeds, already at the start in 1 of 2 seeds"]  # fmt: skip
    assert strongest_attacks_table([low, high]).rows[0][-2:] == ["already at the start", "-"]
    assert comparison_rows([low])[0]["attack_recovery"] == "at the start"


def test_the_row_of_data_filtering_is_set_off(make_result):
    config = {**make_result().config, "model": {"start": "scratch"}}
    filtered = with_gap(make_result, 0, 0.5, name="filtered", method="data_filtering", config=config)
    results = [with_gap(make_result, 0, 0.3), filtered]
    for table in (over_seeds_table(aggregate(results)), results_table(results)):
        assert table.strong == {1}
        assert table.caption.endswith("Set off: the control, a model that never saw the forget examples.")
    assert "Set off" not in results_table(results[:1]).caption


def test_a_control_that_trained_a_pretrained_model_further_is_not_said_to_have_seen_nothing(make_result):
    further = with_gap(make_result, 0, 0.3, name="further", method="data_filtering")  # by its start no such
    for table in (over_seeds_table(aggregate([further])), results_table([further])):
        assert table.strong == {0}
        assert table.caption.endswith(
            "Set off: controls. One that trained a pretrained model further knows what that one knew."
        )


def test_a_figure_that_no_result_has_has_no_column(make_result):
    models = results_table([a_model(), a_model(name="other")])
    assert models.header == ["Result", "Seed", "Forget at the end", "Retain at the end", "Method", "Start"]
    assert models.rows[0][:3] == ["rmu", "0", "2.500 [2.400, 2.600]"]
    assert models.sort_by == {2: [2.5, 2.5], 3: [2.5, 2.5]}
    assert "Unlearning" in results_table([a_model(), make_result()]).header


def test_a_row_per_result_and_a_model_of_somebody_else(make_result):
    rows = comparison_rows([make_result(), a_model()])
    assert [row["name"] for row in rows] == ["posttrain_fullseq", "rmu"]
    assert rows[0]["attack_kind"] == "full"
    assert rows[0]["robust_unlearning"] == pytest.approx(0.12)
    assert rows[1]["method"] == "model"
    assert rows[1]["forget_loss_final"] == 2.5
    assert rows[1]["unlearning"] is None
    with pytest.raises(ValueError, match="`results` is empty"):
        comparison_rows([])


def test_csv_reads_back_and_holds_no_formula(make_result):
    text = comparison_csv([make_result(name="=1+1"), a_model()])
    rows = list(csv.DictReader(io.StringIO(text)))
    assert rows[0]["name"] == "'=1+1"
    assert float(rows[0]["unlearning"]) == pytest.approx(0.601)
    assert rows[1]["unlearning"] == ""


def test_json_is_json(make_result):
    values = json.loads(json.dumps(comparison_json([make_result(), make_result(seed=1)]), allow_nan=False))
    assert len(values["results"]) == 2
    assert values["over_seeds"][0]["seeds"] == [0, 1]


def test_markdown_names_what_is_there(make_result):
    text = comparison_markdown([make_result(), make_result(seed=1), a_model(name="a|b<script>")])
    assert "## Over seeds" in text
    assert "| full, N = 4, 5e-05 | LoRA, N = 4, 0.001 |" in text
    assert "<script>" not in text
    assert "a&#124;b&lt;script&gt;" in text
