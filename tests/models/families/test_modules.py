"""Modules as files, and modules that stay in a stock model, in every family."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from hf_era import ExpansionConfig, attach_module, expand_base
from hf_era.models import FAMILIES
from hf_era.models.fast.causal_lm import ALL_SLOW

# Half of the layers, all of them and one; together they are not of one width in any two layers.
MODULES = [
    {"name": "biology", "width": 4, "target_layers": [0]},
    {"name": "chemistry", "width_ratio": 0.25, "target_layers": [0, 2]},
    {"name": "forget", "width": 3},
]


def logits(model: Any, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=batch["input_ids"]).logits


TESTED_ALWAYS = ("gemma2", "gpt2", "gpt_neo", "gpt_neox", "llama")
"""One of each form of MLP; the MLPs of the others are Llama's."""


@pytest.fixture(
    params=[pytest.param(name, marks=() if name in TESTED_ALWAYS else pytest.mark.slow) for name in sorted(FAMILIES)]
)
def model_type(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def dtype(model_type: str) -> torch.dtype:
    """Some in half precision: one family of each form of MLP among them."""
    return torch.bfloat16 if model_type in ("gpt2", "gemma2", "llama") else torch.float32


def test_the_contracted_model_and_the_files_are_the_expanded_model_bit_for_bit(
    dtype: torch.dtype, make_base: Callable[..., Any], batch: dict[str, Tensor], tmp_path: Path
) -> None:
    # A cast model has its constants cast too, and one that is loaded in that dtype has not.
    make_base().save_pretrained(tmp_path / "base")
    model = expand_base(tmp_path / "base", ExpansionConfig(modules=MODULES), dtype=dtype)
    model.set_dial("chemistry", 0.5)
    folders = [tmp_path / name for name in model.module_names]
    for name, folder in zip(model.module_names, folders, strict=True):
        model.save_module(name, folder)
    model.contract().save_pretrained(tmp_path / "contracted")
    again = attach_module(tmp_path / "contracted", *folders)
    assert again.module_names == model.module_names
    assert {value.dtype for value in again.parameters()} == {dtype}
    assert torch.equal(logits(again, batch), logits(model, batch))
    for name in ("biology", "forget", "chemistry"):
        again.detach_module(name)
    assert again.module_names == []
    with model.ablated():
        assert torch.equal(logits(again, batch), logits(model, batch))


def test_kept_modules_are_folded_into_a_wider_stock_mlp(
    make_base: Callable[..., Any], batch: dict[str, Tensor], tmp_path: Path
) -> None:
    """Against the expanded model with these modules on, in float64; GPT-Neo's own attention is in fp32 in part, as is the
    stock one, so that neither path is compared with the other."""
    keep = ["forget", "chemistry"]
    model = expand_base(make_base().double(), ExpansionConfig(modules=MODULES))
    model.set_fast_paths(ALL_SLOW)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("up_projection.bias"):
                value.fill_(0.3)
    model.set_dial("chemistry", 0.3)
    with model.ablated("biology"):
        expected = logits(model, batch)
    contracted = model.contract(keep=keep)
    assert type(contracted) is type(model).stock_class
    assert (logits(contracted, batch) - expected).abs().max() <= 1e-12
    assert (logits(model.contract(), batch) - expected).abs().max() > 1e-3
    contracted.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64, attn_implementation="eager")
    assert type(loaded) is type(contracted)
    torch.testing.assert_close(logits(loaded, batch), expected, rtol=0, atol=1e-5)  # constants are fp32 in it
    assert model.family.mlp_width(loaded.config) == 24 + 6 + 3
