"""A dry run says what a run would take, and leaves nothing behind."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from rich.console import Console

from hf_era import RunConfig
from hf_era.cli import main
from hf_era.evaluation import RunResult
from hf_era.run import dry_run as dry_run_module
from hf_era.run import memory_estimate
from hf_era.run.dry_run import _takes_adapters, dry_run
from hf_era.run.inputs import load_inputs


@pytest.fixture
def screen() -> Console:
    return Console(file=io.StringIO(), width=160)


def test_it_measures_and_writes_nothing(
    make_run_config: Callable[..., RunConfig], tmp_path: Path, screen: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry_run_module, "STEPS", 2)
    config = make_run_config(tmp_path, data={"labelled_fraction": 0.5}, routing={"weighting": "uniform"})
    found = dry_run(config, screen)
    assert not list(tmp_path.iterdir())
    data = load_inputs(config).data
    rows = {(row["part"], row["label"]): row for row in found.data}
    assert {name: rows["train", name]["examples"] for name in ("forget", "retain", "unlabelled")} == {
        "forget": data.summary["train_forget_labelled"],
        "retain": data.summary["train_retain"],
        "unlabelled": data.summary["train_forget_unlabelled"],
    }
    assert sum(row["tokens"] for row in found.data if row["part"] == "train") == data.summary["train_tokens"]
    assert rows["train", "forget"]["routed"] == data.summary["train_tokens_routed_as_forget"] > 0
    assert rows["train", "retain"]["routed"] == rows["train", "unlabelled"]["routed"] == 0
    assert rows["attack", "forget"]["examples"] == 3
    # 16 x 4 up, 4 down, 4 biases: in one layer
    assert found.parameters["auxiliary"] == 16 * 4 + 4 * 16 + 4
    parts = ("weights", "gradients", "optimizer", "activations", "logits", "buffers")
    assert sum(found.memory[name] for name in parts) == found.memory["estimate"] < found.memory["machine"]
    assert found.memory["peak"] > 0
    assert found.memory["weights"] * 2 == found.memory["optimizer"] == 8 * found.parameters["total"]
    seconds = {phase["name"]: phase["seconds"] for phase in found.phases}
    assert list(seconds) == ["base", "route", "contract", "coherence", "evaluation", "generation", "attack"]
    assert all(value > 0 for name, value in seconds.items() if name != "contract")
    assert found.seconds == sum(seconds.values())
    files = {entry["path"]: entry["bytes"] for entry in found.files}
    assert files[str(config.output_path / "expanded")] == 4 * found.parameters["total"]
    assert files[str(config.output_path / "model")] == 4 * (found.parameters["total"] - found.parameters["auxiliary"])
    said = screen.file.getvalue()
    assert "Forget words without a token of their own" in said
    assert "Nothing was trained, and nothing was written there." in said


def test_what_does_not_fit_is_not_made(
    make_run_config: Callable[..., RunConfig], tmp_path: Path, screen: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry_run_module, "memory_of", lambda device, processes: 1e5)
    monkeypatch.setattr(dry_run_module._Speed, "_time_training", lambda self: pytest.fail("a model was made"))
    training = {"lora": {"rank": 2}, "per_device_train_batch_size": 6}
    found = dry_run(make_run_config(tmp_path, training=training), screen)
    assert found.seconds is None
    # in one layer 16 x 4 up, 4 down, 4 biases, and adapters of rank 2 on 16 -> 64 and 64 -> 16
    assert found.parameters["trained"] == 16 * 4 + 4 * 16 + 4 + 2 * 2 * (16 + 64)
    assert found.memory["gradients"] == 4 * found.parameters["trained"] < found.memory["weights"]
    said = " ".join(screen.file.getvalue().split())
    assert "That does not fit: nothing was measured." in said
    assert "`training.per_device_train_batch_size: 3` with `training.gradient_accumulation_steps: 2`" in said
    assert "activation_checkpointing: true`" in said or "gradient_checkpointing: true`" in said
    assert "`training.lora: {}`" not in said  # it is set
    assert "The whole run: not known: nothing was measured." in said


class NoSpeed:
    """In place of what is measured: every phase but one that says nothing takes a minute."""

    memory: dict[str, float] = {}
    advice: list[str] = []
    parameters = {"total": 1_000_000, "auxiliary": 0, "trained": 1_000_000}

    def __init__(self, *parts: Any) -> None:
        pass

    def seconds_of(self, phase: Any) -> float | None:
        return None if phase.name == "attack" else 60.0


def test_what_is_done_takes_no_time_and_what_is_not_known_is_said(
    finished_copy: tuple[RunConfig, RunResult],
    make_run_config: Callable[..., RunConfig],
    screen: Console,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dry_run_module, "_Speed", NoSpeed)
    output = finished_copy[0].output_path
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    found = dry_run(make_run_config(output.parent, coherence={"steps": 1}), screen)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before
    assert [phase["done"] for phase in found.phases] == [True, True, True, False, False, False, False]
    assert found.seconds is None
    assert "The whole run: not known: a phase does not say what it computes." in screen.file.getvalue()
    assert dry_run(finished_copy[0], screen).seconds == 0


def test_bad_input_is_refused_as_by_a_run(make_run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").touch()
    with pytest.raises(ValueError, match="is not empty and holds no run of hf_era"):
        dry_run(make_run_config(tmp_path))


def test_the_option_asks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(dry_run_module, "dry_run", lambda config: asked.append(config.name))
    (tmp_path / "mine.yaml").write_text("seed: 1\ndata: {forget_words: [tree]}\n")
    assert main(["run", str(tmp_path / "mine.yaml"), "--dry-run"]) == 0
    assert asked == ["mine"]


def test_processes_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And none has more than the container: what does not fit there would be said to fit."""
    limit, without = tmp_path / "memory.max", tmp_path / "unlimited"
    without.write_text("max\n")
    cpu, whole = torch.device("cpu"), float(psutil.virtual_memory().total)
    monkeypatch.setattr(memory_estimate, "LIMITS", (without, tmp_path / "not_there"))
    assert memory_estimate.memory_of(cpu) == whole
    assert memory_estimate.memory_of(cpu, 4) == whole / 4
    limit.write_text("2000000\n")
    monkeypatch.setattr(memory_estimate, "LIMITS", (without, limit))
    assert memory_estimate.memory_of(cpu, 2) == 1e6


def test_adapters_are_advised_where_the_method_takes_them(
    tmp_path: Path, make_run_config: Callable[..., RunConfig]
) -> None:
    assert _takes_adapters(make_run_config(tmp_path))
    assert not _takes_adapters(make_run_config(tmp_path, method="noise_and_route"))
    assert not _takes_adapters(make_run_config(tmp_path, model={"start": "scratch"}))
