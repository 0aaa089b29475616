"""What the tests of methods have."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState
from rich.console import Console

from hf_era import RunConfig
from hf_era.run.pipeline import RunPlan, prepare_run

from ..run.conftest import _own_data_set_cache, make_run_config

__all__ = ["_own_data_set_cache", "make_run_config"]


@pytest.fixture(scope="session")
def make_models(
    make_run_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """Takes a tiny config through the phases of a method, without those that measure: the run, and what each phase reported.
    All share one base."""
    base = tmp_path_factory.mktemp("base")
    training = {"eval_strategy": "no", "save_strategy": "no", "logging_steps": 1}

    def make(folder: Path, **changes: Any) -> tuple[Any, dict[str, Any]]:
        config = make_run_config(folder, **{"model": {"base_dir": str(base)}, "training": training, **changes})
        ready = prepare_run(config, Console(quiet=True), PartialState())
        run, plan = ready.run, RunPlan(ready.run)
        if not run.folder("base").exists():
            ready.shared.claim(run.base_key, run.control_settings)
            plan.base[0].work(run.base_key)
        return run, {phase.name: phase.work(phase.key) for phase in plan.own}

    return make
