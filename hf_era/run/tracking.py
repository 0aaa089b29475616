"""Trackers (`training.report_to`: trackio, wandb, tensorboard, ...): one project, and in it one name per phase.

What a training logs goes there through transformers' own callbacks, under `{name}-{phase}`; figures, attack curves and texts
follow under `{name}-results`, through the trackers of accelerate. `{name}` is that of the recipe with its seed, or
`training.run_name`; the project is `training.project`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from hf_era.evaluation import RunResult
from hf_era.evaluation.relearn.result import RelearnResult
from hf_era.evaluation.summary import figure_values, summary_of
from hf_era.run.config import RunConfig
from hf_era.utils.checks import error_text, unknown_value_message

PROJECT = "hf_era"
RESULTS = "results"
FOLDER = "tracking"
"""In the output directory: files of trackers that write files."""

# Trackers whose project transformers takes from the environment alone.
_PROJECT_VARIABLES = (
    "WANDB_PROJECT",
    "MLFLOW_EXPERIMENT_NAME",
    "COMET_PROJECT_NAME",
    "CLEARML_PROJECT",
    "SWANLAB_PROJECT",
)
_TENSORBOARD_VARIABLE = "TENSORBOARD_LOGGING_DIR"
# What accelerate's trackers call the name of a run, which they hand on to the tracker's own `init`.
_NAME_ARGUMENTS = {
    "trackio": "name", "wandb": "name", "mlflow": "run_name", "swanlab": "experiment_name", "clearml": "task_name",
}  # fmt: skip


class Tracking:
    """The trackers of a run.

    Args:
        config (`RunConfig`): of the run. writes (`bool`): whether this process speaks to them (the main process does).

    Attributes:
        names (`list[str]`): of the trackers, as transformers calls them; empty if there are none.

    Raises:
        ValueError: for a tracker that is not known, or whose package is not installed.
    """

    def __init__(self, config: RunConfig, writes: bool = True) -> None:
        self.config, self.writes = config, writes
        self.names = tracker_names(config.training.get("report_to"))
        if "report_to" in config.pretraining:
            tracker_names(config.pretraining["report_to"], "pretraining")
        root = os.environ.get(_TENSORBOARD_VARIABLE)
        self.folder = Path(root) if root else config.output_path / FOLDER

    @contextmanager
    def phase(self, phase: str) -> Iterator[None]:
        """Within this context trackers that read the environment find project and place; afterwards no run is open."""
        if not self.names:
            yield
            return
        values = dict.fromkeys(_PROJECT_VARIABLES, tracked_project(self.config.training))
        changed = {name: value for name, value in values.items() if name not in os.environ}
        changed[_TENSORBOARD_VARIABLE] = str(self.folder / tracked_name(self.config, phase))
        before = {name: os.environ.get(name) for name in changed}
        os.environ.update(changed)
        try:
            yield
        finally:
            _close_open_runs()
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value

    def log_result(self, result: RunResult) -> list[str]:
        """Logs figures, attack curves and texts of a run. Returns what to say of trackers that did not take them: the run is
        done, and an error of theirs would hide that."""
        said = []
        for name in self.names if self.writes else []:
            if name not in LOGGER_TYPE_TO_CLASS:
                said.append(f"Figures and texts are not logged to {name}: accelerate has no tracker for it.")
                continue
            try:
                with self.phase(RESULTS):
                    self._log_to(name, result)
            except Exception as error:  # of the network, of the service: each a class of its own
                said.append(f"Figures and texts could not be logged to {name}: {error_text(error)}")
        return said

    def _log_to(self, name: str, result: RunResult) -> None:
        training, own = self.config.training, tracked_name(self.config, RESULTS)
        project = tracked_project(training)
        options: dict[str, Any] = {_NAME_ARGUMENTS[name]: own} if name in _NAME_ARGUMENTS else {}
        if name == "trackio":
            options |= {"resume": "allow", "space_id": training.get("trackio_space_id")}
            options |= {"private": training.get("hub_private_repo")}
        if LOGGER_TYPE_TO_CLASS[name].requires_logging_directory:
            options["logging_dir"] = str(self.folder)
        tracker = LOGGER_TYPE_TO_CLASS[name](own if name == "tensorboard" else project, **options)
        tracker.start()
        for step, values in attack_curves(result.relearning).items():
            tracker.log(values, step=step)
        tracker.log(final_figures(result))
        _log_texts(name, tracker, result.generations)
        tracker.finish()


def tracker_names(report_to: Any, section: str = "training") -> list[str]:
    """The trackers that a setting `report_to` names.

    Raises:
        ValueError: for one that is not known, or whose package is not installed.
    """
    given = report_to if isinstance(report_to, list) else [] if report_to is None else [report_to]
    if given in ([], ["none"]):
        return []
    available = get_available_reporting_integrations()
    if given == ["all"]:
        return available
    for name in given:
        if name not in INTEGRATION_TO_CALLBACK:
            raise ValueError(
                unknown_value_message(f"{section}.report_to", name, [*INTEGRATION_TO_CALLBACK, "all", "none"])
            )
        if name not in available and name != "flyte":  # which transformers does not list
            raise ValueError(
                f"`{section}.report_to` names {name}, which is not installed here. `pip install {name}`, or leave it out."
            )
    return given


def tracked_name(config: RunConfig, phase: str) -> str:
    """What a phase of a run is called in a tracker."""
    return f"{config.training.get('run_name') or f'{config.name}-seed{config.seed}'}-{phase}"


def tracked_project(training: Mapping[str, Any]) -> str:
    """The project of all phases."""
    return str(training.get("project") or PROJECT)


def _close_open_runs() -> None:
    """The next phase is another run: wandb's callback would go on in an open one, and trackio's opens one again for what is
    logged after the last step."""
    trackio, wandb, swanlab = (sys.modules.get(name) for name in ("trackio", "wandb", "swanlab"))
    if trackio is not None and trackio.context_vars.current_run.get() is not None:
        trackio.finish()
    if wandb is not None and wandb.run is not None:
        wandb.finish()
    if swanlab is not None and swanlab.get_run() is not None:
        swanlab.finish()


# ---- What is logged ----


def final_figures(result: RunResult) -> dict[str, float]:
    """All figures of a result (`figure_values`) and the losses at each stage, by name."""
    found = {f"final/{name}": value for name, value in figure_values(summary_of(result)).items() if value is not None}
    for stage, losses in result.losses.items():
        found |= {f"loss_{kind}/{stage}": part["loss"] for kind, part in losses.items() if part.get("loss") is not None}
    for stage, accuracies in result.accuracies.items():
        found |= {f"{name}/{stage}": part["value"] for name, part in accuracies.items()}
    return found


def attack_curves(relearning: RelearnResult | None) -> dict[int, dict[str, float]]:
    """Step -> forget and retain loss under each attack, means over its trials, as far as all of them came."""
    groups: dict[str, list[dict[int, Any]]] = {}
    for trial in relearning.trials if relearning is not None else []:
        name = trial.attack.name.replace(" ", "_").replace(f"_{trial.stories}_", f"_{trial.stories}_examples_", 1)
        groups.setdefault(name, []).append({point.step: point for point in trial.curve.points})
    found: dict[int, dict[str, float]] = {}
    for name, trials in groups.items():
        for step in sorted(set.intersection(*map(set, trials))):
            for kind in ("forget", "retain"):
                losses = [getattr(points[step], f"{kind}_loss") for points in trials]
                found.setdefault(step, {})[f"attack_{kind}_loss/{name}"] = sum(losses) / len(losses)
    return dict(sorted(found.items()))


def _log_texts(name: str, tracker: Any, generations: Mapping[str, Any]) -> None:
    texts = generations.get("texts") or {}
    if not texts:
        return
    labels = generations.get("prompt_labels") or [None] * len(generations["prompts"])
    rows = [list(row) for row in zip(labels, *texts.values(), strict=True)]
    columns = ["prompt of", *texts]
    if hasattr(tracker, "log_table"):
        tracker.log_table("texts", columns=columns, data=rows)
    elif name == "trackio":
        import pandas
        import trackio

        tracker.log({"texts": trackio.Table(dataframe=pandas.DataFrame(rows, columns=columns))})
    else:
        for number, row in enumerate(rows):
            tracker.log({f"texts/{stage}": text for stage, text in zip(texts, row[1:], strict=True)}, step=number)
