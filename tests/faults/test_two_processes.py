"""Two processes on a CPU: one of them gets the signal or is killed, and the launch is continued exactly."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from hf_era.evaluation import RunResult

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


@pytest.mark.slow
def test_the_life_cycle_under_fsdp2_is_that_of_one_process(faulty_run: Callable[..., Any], tmp_path: Path) -> None:
    """Pretraining, routing, contraction, coherence, evaluation and attack; the weights are saved whole after each."""
    # AdamW's usual epsilon makes steps of the rounding of gradients that happen to be near zero.
    shared = {"train_sampling_strategy": "sequential", "adam_epsilon": 1e-4}
    runs = {}
    for name, size in (("one", 4), ("two", 2)):
        runs[name] = faulty_run(tmp_path / name, training={**shared, "per_device_train_batch_size": size})
        values = yaml.safe_load(runs[name].config.read_text())
        values["model"]["architecture"]["resid_dropout"] = 0.0  # each process draws its own
        runs[name].config.write_text(yaml.safe_dump(values))
    assert runs["one"].start() == 0, runs["one"].stderr
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    worker = Path(__file__).with_name("fsdp2_worker.py")
    assert runs["two"].start(command=launch, worker=worker) == 0, runs["two"].stderr
    assert runs["two"].stderr.count("sharded trainings: 3") == 2  # base, routing and coherence, in both processes
    for folder in ("base/model", "expanded", "contracted", "model"):
        first, second = (load_file(run.output / folder / "model.safetensors") for run in runs.values())
        assert first.keys() == second.keys()
        assert all((second[name] - value).abs().max() < 1e-6 for name, value in first.items()), folder
    results = [RunResult.load(run.output / "result.json") for run in runs.values()]
    for stage, kinds in results[0].losses.items():
        for kind, estimate in kinds.items():
            assert results[1].losses[stage][kind]["loss"] == pytest.approx(estimate["loss"], abs=1e-5)
