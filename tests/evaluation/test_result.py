"""The result file: derived figures, round trip, refusal of what is none."""

import json
from pathlib import Path
from typing import Any

import pytest

from hf_era.evaluation import RunResult
from hf_era.evaluation.results import ModelResult, load_result, upgraded


def make_result(**changes: object) -> RunResult:
    def stage(forget: float, retain: float) -> dict[str, dict[str, float]]:
        return {"forget": {"loss": forget}, "retain": {"loss": retain}}

    values: dict[str, object] = {
        "name": "tiny",
        "seed": 0,
        "created": "2026-01-01T00:00:00+00:00",
        "config": {},
        "versions": {},
        "machine": {},
        "git_revision": None,
        "data": {},
        "routing_table": [],
        "before_kind": "pretrained",
        "losses": {
            "before": stage(2.0, 2.1),
            "before_ablation": stage(1.5, 1.6),
            "after_ablation": stage(2.5, 1.7),
            "after_coherence": stage(2.4, 1.65),
        },
        "selectivity": {},
        "coherence": {},
        "training": {"minimum_ablation_gap": 0.05},
    }
    values |= changes
    return RunResult(**upgraded({"schema_version": 2, **values}))


def test_derived_figures() -> None:
    result = make_result()
    assert result.ablation_gap == pytest.approx(1.0)
    assert result.retain_ablation_gap == pytest.approx(0.1)
    assert result.unlearning == pytest.approx(0.4)  # from the final stage, against the model before the method
    assert result.retain_tax == pytest.approx(-0.45)
    assert result.localised is True
    assert make_result(training={"minimum_ablation_gap": 2.0}).localised is False


def test_without_a_model_before_nothing_is_made_up() -> None:
    result = make_result()
    del result.losses["before"]
    assert result.unlearning is None
    assert result.retain_tax is None


def test_round_trip_and_refusals(tmp_path: Path) -> None:
    path = make_result().save(tmp_path / "result.json")
    assert RunResult.load(path) == make_result()
    values = json.loads(path.read_text())
    assert values["derived"]["ablation_gap"] == pytest.approx(1.0)
    path.write_text(json.dumps({**values, "schema_version": 99}))
    with pytest.raises(ValueError, match="schema version 99, this hf_era reads 2 to 5"):
        RunResult.load(path)
    path.write_text(json.dumps({"schema_version": 4, "name": "x"}))
    with pytest.raises(ValueError, match="lacks fields of a result file"):
        RunResult.load(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="is no result file of hf_era"):
        RunResult.load(path)


# ---- Files of schema version 2 ----

ADDED = ("method_title", "method_role", "method_texts", "stages")
STAGES_OF = {
    "gradient_routing": ["before", "before_ablation", "after_ablation", "after_coherence"],
    "data_filtering": ["before", "after_training"],
    "base": ["before"],
}


def earlier(method: str, **changes: object) -> dict[str, Any]:
    """The values of a file of version 2."""
    values = make_result(method=method, losses={stage: {} for stage in STAGES_OF[method]}, **changes).to_dict()
    return {**{name: value for name, value in values.items() if name not in ADDED}, "schema_version": 2}


@pytest.mark.parametrize(
    ("method", "title", "role", "has_module", "has_checkpoint"),
    [
        ("gradient_routing", "gradient routing", "method", True, True),
        ("data_filtering", "data filtering", "control", False, True),
        ("base", "the model before the method", "untouched", False, False),
    ],
)
def test_a_run_of_version_2_says_what_its_method_is(
    method: str, title: str, role: str, has_module: bool, has_checkpoint: bool, tmp_path: Path
) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(earlier(method)))
    result = RunResult.load(path)
    assert (result.schema_version, result.method, result.method_title, result.method_role) == (5, method, title, role)
    assert list(result.stage_titles) == STAGES_OF[method]
    assert result.final_stage == STAGES_OF[method][-1]
    assert (result.has_module, result.has_checkpoint) == (has_module, has_checkpoint)
    assert result.method_texts == {}  # prose that such a file did not hold
    assert RunResult.load(result.save(path)) == result  # and from then on as the present version


def test_stages_of_version_2_follow_what_was_measured() -> None:
    losses = {"before_ablation": {}, "after_ablation": {}}
    values = upgraded({**earlier("gradient_routing"), "losses": losses})
    assert [stage["name"] for stage in values["stages"]] == ["before_ablation", "after_ablation"]
    assert upgraded(values) == values  # the present one is left alone
    old = earlier("gradient_routing")
    del old["method"]  # files from before there were others
    assert upgraded(old)["method_title"] == "gradient routing"


def test_a_model_of_version_2_needs_nothing(tmp_path: Path) -> None:
    model = ModelResult(name="x", model="x", created="", versions={}, machine={}, data={}, losses={})
    path = tmp_path / "result.json"
    path.write_text(json.dumps({**model.to_dict(), "schema_version": 2}))
    assert load_result(path) == model
    assert list(model.stage_titles) == ["final"]


@pytest.mark.parametrize("method", ["rmu", ["data_filtering"], None])
def test_a_method_that_version_2_did_not_have_is_refused(method: object, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps({**earlier("base"), "method": method}))
    with pytest.raises(ValueError, match=r"result\.json: Unknown value for `method`.*Known: gradient_routing"):
        RunResult.load(path)
