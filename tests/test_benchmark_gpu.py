"""`make gpu`: every part in small on a CPU, so that a slip shows before a GPU is at hand."""

import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu
from hf_era.utils.files import read_json


def measured(folder: Path, part: str, *options: str) -> dict[str, Any]:
    """What a part writes, made in this process."""
    common = [str(folder), "--device", "cpu", "--small", "--part", part, "--until", str(time.time() + 60)]
    assert gpu.main([*common, *options]) == 0
    found: dict[str, Any] = read_json(folder / f"{part}.json")
    return found


@pytest.mark.parametrize("part", ["steps", pytest.param("llama", marks=pytest.mark.slow)])
def test_steps_of_all_kinds_are_timed(part: str, tmp_path: Path) -> None:
    found = measured(tmp_path, part, "--modes", "eager")
    assert list(found["variants"]) == ["stock eager", "routed eager", "ours eager", "parameter eager"]
    assert (found["failed"], found["left_out"]) == ({}, [])
    assert found["batch"] == [2, 16]
    for figures in found["variants"].values():
        assert figures["token_positions_per_s"] == pytest.approx(32 / figures["median_s"])
        assert figures["flops_per_s"] == pytest.approx(found["flops"] / figures["median_s"])
    assert found["variants"]["stock eager"]["over_stock_eager"] == 1.0


@pytest.mark.slow
def test_the_recipe_leaves_its_loss_curve(tmp_path: Path) -> None:
    found = measured(tmp_path, "recipe")
    assert list(found["curve"]) == ["1", "2", "3", "4"]
    assert found["seconds"]["route"] > 0


def test_a_part_that_fails_is_said_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--device", "cpu", "--small", "--parts", "matmul"]
    assert gpu.main([str(tmp_path), *options, "--limit", "1"]) == 1
    assert read_json(tmp_path / "gpu.json")["parts"]["matmul"] == {"error": "left out: no time was left"}
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    assert gpu.main([str(tmp_path)]) == 2
    assert "There is no CUDA GPU here. `--device cpu --small` tries every part out." in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_command(tmp_path: Path) -> None:
    """Compiled variants too, each part in a process of its own."""
    assert gpu.main([str(tmp_path), "--device", "cpu", "--small"]) == 0
    found = read_json(tmp_path / "gpu.json")
    assert set(found["parts"]) == set(gpu.PARTS)
    assert found["machine"]
    assert found["date"]
    assert found["parts"]["matmul"]["bf16_flops_per_s"] > 0
    assert "routed graphs" in found["parts"]["steps"]["variants"]
    assert "skipped" in found["parts"]["tests"]["summary"]
