"""The size of a model is counted on the meta device: what it holds, number for number, and nothing is allocated for it."""

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_era.models import size
from hf_era.models.loading import load_causal_lm
from hf_era.models.size import check_model_fits


def llama() -> LlamaForCausalLM:
    """Of no family that hf_era knows, with tied embeddings, which count once."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=53, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            tie_word_embeddings=True,
        )
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["stock", "expanded", "llama"])
def test_it_is_what_the_model_holds(
    kind: str, make_base: Callable[..., Any], make_expanded: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {"stock": make_base, "expanded": make_expanded, "llama": llama}[kind]()
    needed: list[float] = []
    monkeypatch.setattr(size, "check_memory", lambda field, sizes, bytes_needed, way_out: needed.append(bytes_needed))
    built = check_model_fits("model.base", model.config)
    held = sum(tensor.nbytes for tensor in chain(model.parameters(), model.buffers()))
    constants = sum(tensor.nbytes for tensor in model.buffers())
    check_model_fits("model.base", model.config, torch.bfloat16)
    assert needed == [held, constants + (held - constants) / 2]
    assert {tensor.device.type for tensor in chain(built.parameters(), built.buffers())} == {"meta"}
    assert {name: value.shape for name, value in built.state_dict().items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }


def test_a_checkpoint_whose_values_do_not_go_together(base_folder: Path) -> None:
    values = json.loads((base_folder / "config.json").read_text())
    (base_folder / "config.json").write_text(json.dumps({**values, "num_heads": 3}))
    with pytest.raises(ValueError, match=r"^`model\.base` cannot be built: .*divisible"):
        load_causal_lm(base_folder)
