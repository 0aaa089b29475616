"""Two processes on a CPU: one of them gets the signal or is killed, and the launch is continued exactly."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LAUNCH = ("-m", "accelerate.commands.launch", "--config_file", "recipes/accelerate/cpu_ddp.yaml")


@pytest.mark.slow
def test_a_signal_or_kill_of_one_process_loses_nothing(faulty_run: Callable[..., Any], tmp_path: Path) -> None:
    # Several epochs: in a later one, the order of the stories has to be the epoch's own again.
    training = {"max_steps": 40, "eval_strategy": "no", "save_steps": 10, "train_sampling_strategy": "group_by_length"}
    whole = faulty_run(tmp_path / "whole", training=training)
    assert whole.start(command=LAUNCH) == 0, whole.stderr
    run = faulty_run(tmp_path / "disturbed", training=training)
    # The second process has few events in a phase, since it does not save: two for a forward pass, two for a step.
    # The launcher reports a process that ends with 75 as failed, with a status of its own.
    assert run.start("route", "any", 90, "SIGTERM", command=LAUNCH, rank=1) != 0
    assert run.stderr.count("Give the same command again to go on from there.") == 1  # said once, not by every process
    (checkpoints,) = (run.output / "checkpoints").glob("route-*")
    assert len(list(checkpoints.glob("checkpoint-*"))) >= 2
    assert run.start("route", "any", 14, "SIGKILL", command=LAUNCH, rank=1) != 0
    assert run.start(command=LAUNCH) == 0, run.stderr
    assert run.outcome() == whole.outcome()
