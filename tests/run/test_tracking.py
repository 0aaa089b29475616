"""Trackers: one project with one name per phase, the results too; an unknown or missing one is refused at once."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate import tracking as accelerate_tracking

from hf_era import RunConfig, run_pipeline
from hf_era.evaluation import RunResult
from hf_era.evaluation.relearn.result import RelearnCurve, RelearnPoint, RelearnResult, RelearnTrial
from hf_era.run import pipeline
from hf_era.run import tracking as run_tracking
from hf_era.run.context import Run
from hf_era.run.tracking import Tracking, attack_curves

LOGGED: list[tuple[Any, ...]] = []


class FakeTracker(accelerate_tracking.GeneralTracker):
    """Notes what it is told."""

    name = "wandb"
    requires_logging_directory = False

    def __init__(self, run_name: str, **options: Any) -> None:
        super().__init__(_blank=True)
        LOGGED.append(("opened", run_name, options, os.environ.get("WANDB_PROJECT")))

    def start(self) -> None:
        pass

    def log(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        LOGGED.append(("values", step, values))

    def log_table(self, title: str, columns: list[str], data: list[list[Any]]) -> None:
        LOGGED.append(("table", columns, data))

    def finish(self) -> None:
        LOGGED.append(("closed",))


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, ...]]]:
    """A wandb that only notes."""
    LOGGED.clear()
    monkeypatch.setitem(accelerate_tracking.LOGGER_TYPE_TO_CLASS, "wandb", FakeTracker)
    monkeypatch.setattr(run_tracking, "get_available_reporting_integrations", lambda: ["wandb"])
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    yield LOGGED
    assert "WANDB_PROJECT" not in os.environ
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ


def test_figures_curves_and_texts_are_logged_under_a_name_of_their_own(
    finished_copy: tuple[RunConfig, RunResult],
    make_run_config: Callable[..., RunConfig],
    logged: list[tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline, "finish", lambda *parts: None)  # card and report are there
    tracked = {"report_to": ["wandb"], "project": "mine"}
    result = run_pipeline(make_run_config(finished_copy[0].output_path.parent, training=tracked))
    opened, *steps, figures, table, closed = logged
    assert opened == ("opened", "mine", {"name": "tiny-seed0-results"}, "mine")
    assert closed == ("closed",)
    assert [entry[1] for entry in steps] == [0, 1, 2]
    assert figures[2]["final/unlearning"] == result.estimate("unlearning").value
    assert figures[2]["loss_forget/before_ablation"] == result.loss("before_ablation", "forget")
    assert table[1] == ["prompt of", *result.generations["texts"]]
    assert table[2][1][1:] == [texts[1] for texts in result.generations["texts"].values()]


def test_trackers_that_read_the_environment_find_project_and_place(
    make_run_config: Callable[..., RunConfig], tmp_path: Path, logged: list[tuple[Any, ...]]
) -> None:
    config = make_run_config(tmp_path, training={"report_to": "wandb"})
    with Tracking(config).phase("route"):
        assert os.environ["WANDB_PROJECT"] == "hf_era"
        assert os.environ["TENSORBOARD_LOGGING_DIR"] == str(config.output_path / "tracking" / "tiny-seed0-route")


def test_every_phase_that_trains_is_named(make_run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    run = Run.__new__(Run)
    run.config = make_run_config(tmp_path, training={"run_name": "own"})
    run.start = "pretrained"
    arguments = [run.training_arguments("route", "key"), run.stock_arguments("base", "key")]
    assert [(part.run_name, part.project) for part in arguments] == [("own-route", "hf_era"), ("own-base", "hf_era")]
    assert not any(
        getattr(part, "trackio_static_space_id", False) for part in arguments
    )  # or each phase would make a Space


def test_curves_are_means_as_far_as_all_trials_came() -> None:
    trials = [
        RelearnTrial("full", 4, 1e-3, number, number, RelearnCurve([RelearnPoint(*point) for point in points]))
        for number, points in enumerate([[(0, 3.0, 2.0), (1, 2.0, 2.5), (2, 1.0, 3.0)], [(0, 3.0, 2.0), (1, 1.0, 2.0)]])
    ]
    name = "full_4_examples_0.001"
    assert attack_curves(RelearnResult(trials, None)) == {
        0: {f"attack_forget_loss/{name}": 3.0, f"attack_retain_loss/{name}": 2.0},
        1: {f"attack_forget_loss/{name}": 1.5, f"attack_retain_loss/{name}": 2.25},
    }
    assert attack_curves(None) == {}


@pytest.mark.parametrize(
    ("report_to", "message"),
    [
        ("trackioo", r"Unknown value for `training\.report_to`: 'trackioo'\. Did you mean `trackio`\?"),
        (
            ["wandb", "trackio"],
            r"`training\.report_to` names trackio, which is not installed here\. `pip install trackio`",
        ),
    ],
)
def test_unknown_and_missing_trackers_are_refused_first(
    report_to: Any,
    message: str,
    make_run_config: Callable[..., RunConfig],
    tmp_path: Path,
    logged: list[tuple[Any, ...]],
) -> None:
    with pytest.raises(ValueError, match=message):
        run_pipeline(make_run_config(tmp_path, training={"report_to": report_to}))
    assert not list(tmp_path.iterdir())
    assert Tracking(make_run_config(tmp_path, training={"report_to": "none"})).names == []
