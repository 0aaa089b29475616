"""Two processes on a CPU: one of them gets the signal or is killed, and the launch is continued exactly."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LAUNCH = ("-m", "accelerate.commands.launch", "--config_file", "recipes/accelerate/cpu_ddp.yaml")


@pytest.mark.slow
def test_a_signal_or_kill_of_one_process_loses_nothing(faulty_run: Callable[..., Any], tmp_path: Path) -> None:
    whole = faulty_run(tmp_path / "whole")
    assert whole.start(command=LAUNCH) == 0, whole.stderr
    run = faulty_run(tmp_path / "disturbed")
    # The second process has few events in a phase, since it does not save: two for a forward pass, two for a step.
    # The launcher reports a process that ends with 75 as failed, with a status of its own.
    assert run.start("route", "any", 25, "SIGTERM", command=LAUNCH, rank=1) != 0
    assert run.stderr.count("Give the same command again to go on from there.") == 1  # said once, not by every process
    (checkpoints,) = (run.output / "checkpoints").glob("route-*")
    assert len(list(checkpoints.glob("checkpoint-*"))) >= 2
    assert run.start("route", "any", 8, "SIGKILL", command=LAUNCH, rank=1) != 0
    assert run.start(command=LAUNCH) == 0, run.stderr
    assert run.outcome() == whole.outcome()
