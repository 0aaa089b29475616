"""DeepSpeed trains like one process, where it is installed: ZeRO 1 to 3 on two processes of a CPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoForCausalLM

pytest.importorskip("deepspeed", reason="needs deepspeed: pip install --no-build-isolation deepspeed")

SETTINGS = {"max_steps": 5, "adam_epsilon": 1e-4}


def zero(stage: int) -> dict[str, Any]:
    """torch's AdamW, so that the steps are those of the other ways to launch."""
    return {
        "zero_optimization": {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": 0.0,
    }


@pytest.mark.slow
def test_weights_are_those_of_one_process(
    run_several: Callable[..., Any], run_one: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    two = {**SETTINGS, "per_device_train_batch_size": 2}
    for stage in (1, 2, 3):  # a launch each: the engine keeps state of its own in a process
        case = {
            "name": f"zero{stage}", "way": "deepspeed", "stories": 9, "save": True,
            "settings": {**two, "deepspeed": zero(stage)},
        }  # fmt: skip
        result = run_several(tmp_path, [case])[case["name"]]
        expected = run_one(stories=9, settings={**SETTINGS, "per_device_train_batch_size": 4})
        for name, value in expected["weights"].items():
            assert (result["weights"][name] - value).norm() <= 2e-6 * value.norm(), (stage, name)
        losses = [[line["loss"] for line in run["logs"] if "loss" in line] for run in (result, expected)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
        stock = AutoModelForCausalLM.from_pretrained(tmp_path / f"zero{stage}-contracted")
        assert type(stock) is GPTNeoForCausalLM
        kept = {name: result["weights"][name] for name in stock.state_dict()}
        assert all(torch.equal(value, kept[name]) for name, value in stock.state_dict().items())
