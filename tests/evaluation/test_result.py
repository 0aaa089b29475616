"""The result file: derived figures, round trip, refusal of what is none."""

import json
from pathlib import Path

import pytest

from hf_era.evaluation import RunResult


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
    return RunResult(**{**values, **changes})  # type: ignore[arg-type]


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
    with pytest.raises(ValueError, match="schema version 99, this hf_era reads 2"):
        RunResult.load(path)
    path.write_text(json.dumps({"schema_version": 2, "name": "x"}))
    with pytest.raises(ValueError, match="lacks fields of a result file"):
        RunResult.load(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="is no result file of hf_era"):
        RunResult.load(path)
