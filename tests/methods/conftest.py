"""What the tests of methods have."""

from collections.abc import Callable
from typing import Any

import pytest
from accelerate import PartialState
from rich.console import Console

from hf_era import RunConfig
from hf_era.run.pipeline import RunPlan, prepare_run

from ..run.conftest import _own_data_set_cache, make_run_config

__all__ = ["_own_data_set_cache", "make_run_config"]


@pytest.fixture(scope="session")
def make_models() -> Callable[[RunConfig], tuple[Any, dict[str, Any]]]:
    """Takes a config through the phases of its base and its method, without those that measure: the run, and what each
    phase reported."""

    def make(config: RunConfig) -> tuple[Any, dict[str, Any]]:
        run = prepare_run(config, Console(quiet=True), PartialState()).run
        plan = RunPlan(run)
        return run, {phase.name: phase.work(phase.key) for phase in (*plan.base, *plan.own)}

    return make
