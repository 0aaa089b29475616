"""`make gpu`: every part in small on a CPU, so that a slip shows before a GPU is at hand."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from hf_era.utils.files import read_json


def measured(folder: Path, part: str, *options: str) -> dict[str, Any]:
    """What a part writes, made in this process."""
    common = [str(folder), "--device", "cpu", "--small", "--part", part, "--until", str(time.time() + 60)]
    assert gpu.main([*common, *options]) == 0
    found: dict[str, Any] = read_json(folder / f"{part}.json")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("part", ["steps", "llama"])
def test_steps_of_all_kinds_are_timed(part: str, tmp_path: Path) -> None:
    found = measured(tmp_path, part, "--modes", "eager")
    assert list(found["variants"]) == ["stock eager", "routed eager", "ours eager", "parameter eager"]
    assert 0 < found["stock_flops"]["causal"] < found["stock_flops"]["whole"]
    assert (found["failed"], found["left_out"]) == ({}, [])
    assert found["batch"] == [2, 16]
    for figures in found["variants"].values():
        assert figures["token_positions_per_s"] == pytest.approx(32 / figures["median_s"])
        assert figures["flops_per_s"] == pytest.approx(found["stock_flops"]["causal"] / figures["median_s"])
        assert figures["compiler"] == {"graph_breaks": 0, "graphs": 0, "cudagraph_skips": 0}
    assert found["variants"]["stock eager"]["over_stock_eager"] == 1.0


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_a_variant_says_how_it_was_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one graph; a break shows."""
    monkeypatch.setitem(gpu.COMPILED, "compiled", {"backend": "eager"})
    shape = gpu.shape_of("steps", small=True)
    variant = gpu._Variant("routed compiled", shape, torch.device("cpu"))
    assert variant.compiler == {"graph_breaks": 0, "graphs": 1, "cudagraph_skips": 0}
    make_step = gpu.make_step

    def broken(*inputs: Any) -> Any:
        model = inputs[2]

        def breaks(**batch: Any) -> Any:
            torch._dynamo.graph_break()
            return model._orig_mod(**batch)

        return make_step(*inputs[:2], torch.compile(breaks, backend="eager"), *inputs[3:])

    monkeypatch.setattr(gpu, "make_step", broken)
    assert gpu._Variant("routed compiled", shape, torch.device("cpu")).compiler["graph_breaks"] > 0


def test_the_stories_are_where_they_are_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "ROOT", tmp_path / "checkout")
    assert gpu.stories_folder(None) is None
    for folder in (tmp_path / "checkout" / "shared" / "data", tmp_path / "given"):
        (folder / gpu.TOKENIZER).mkdir(parents=True)
        (folder / gpu.STORIES).parent.mkdir()
        (folder / gpu.STORIES).touch()
    assert gpu.stories_folder(None) == tmp_path / "checkout" / "shared" / "data"
    assert gpu.stories_folder(tmp_path / "given") == tmp_path / "given"
    assert gpu.stories_folder(tmp_path / "other") is None


@pytest.mark.slow
@pytest.mark.parametrize("part", ["recipe", "fsdp2"])
def test_the_recipe_leaves_its_loss_curve(part: str, tmp_path: Path) -> None:
    found = measured(tmp_path, part)
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
