"""A life cycle of a few steps on generated stories with a tiny model, and one that went through."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pytest

from hf_era import RunConfig, run_pipeline
from hf_era.evaluation import RunResult
from hf_era.methods import Phase
from hf_era.run.pipeline import PhaseRunner
from hf_era.training import GradientRoutingTrainer

ARCHITECTURE = {
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "attention_types": [[["global", "local"], 1]],
    "max_position_embeddings": 64,
    "window_size": 32,
}


@pytest.fixture(autouse=True)
def _own_data_set_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The tests neither read nor fill the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")


@pytest.fixture
def _no_localisation_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps localise nothing, and warnings are errors."""
    monkeypatch.setattr(GradientRoutingTrainer, "_warn_if_nothing_was_localised", lambda self: None)


@pytest.fixture
def replace_work() -> Callable[..., None]:
    """Puts another work, of a phase and its key, in place of that of the phases named, or of all."""

    def replace_work(patch: pytest.MonkeyPatch, work: Callable[[Phase, str], Any], *names: str) -> None:
        original = PhaseRunner.run

        def run(runner: PhaseRunner, phase: Phase, *args: Any) -> Any:
            changed = replace(phase, work=partial(work, phase)) if phase.name in (names or (phase.name,)) else phase
            return original(runner, changed, *args)

        patch.setattr(PhaseRunner, "run", run)

    return replace_work


@pytest.fixture(scope="session")
def make_run_config() -> Callable[..., RunConfig]:
    """A life cycle of a few steps; `changes` are sections whose values go over these."""

    def make(folder: Path, **changes: Any) -> RunConfig:
        values: dict[str, Any] = {
            "name": "tiny",
            "output_dir": str(folder / "run"),
            "model": {"architecture": ARCHITECTURE, "vocabulary_size": 300},
            "expansion": {"width": 4, "target_layers": [0]},
            "data": {
                "generator_stories": 120,
                "max_tokens": 48,
                "forget_validation_stories": 5,
                "retain_validation_stories": 6,
                "attack_stories": 3,
                "coherence_validation_stories": 4,
            },
            "training": {
                "max_steps": 4,
                "per_device_train_batch_size": 4,
                "warmup_steps": 1,
                "eval_strategy": "steps",
                "eval_steps": 2,
                "save_steps": 2,
                "disable_tqdm": True,
                "minimum_ablation_gap": 0.0,
            },
            "coherence": {"steps": 2, "stories": 4},
            "evaluation": {"bootstrap_samples": 50},
            "generation": {"prompts": ["One day", "The tree"], "new_tokens": 4},
            "relearn": {
                "stories": [1, 3],
                "trials": 1,
                "steps": 2,
                "sweep_learning_rates": [1e-3],
                "lora": False,
                "attack_before": False,
            },
        }
        for section, fields in changes.items():
            values[section] = {**values.get(section, {}), **fields} if isinstance(fields, dict) else fields
        return RunConfig.from_dict(values)

    return make


@pytest.fixture(scope="session")
def finished(
    make_run_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunConfig, RunResult]:
    """One posttrain run, base pretrained here, that went through. To be read only: all tests share it."""
    # What a glob, a chain of archives or YAML would take for something else is a name here.
    config = make_run_config(tmp_path_factory.mktemp("finished") / "runs #1 [a]*?::b")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GradientRoutingTrainer, "_warn_if_nothing_was_localised", lambda self: None)
        return config, run_pipeline(config)


@pytest.fixture
def finished_copy(
    finished: tuple[RunConfig, RunResult], make_run_config: Callable[..., RunConfig], tmp_path: Path
) -> tuple[RunConfig, RunResult]:
    """The finished run in a directory of the test's own, to be continued."""
    config, result = finished
    copy = make_run_config(tmp_path / "finished")
    shutil.copytree(config.output_path, copy.output_path)
    return copy, result
