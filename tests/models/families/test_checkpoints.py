"""Saved and loaded, or copied, every family is the same model: through the Auto classes, in shards, dtypes, on devices."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from hf_era import ExpansionConfig, expand_base

EXPANSION = ExpansionConfig(width=8, target_layers=[0, 2])
Batch = dict[str, Tensor]


@torch.no_grad()
@pytest.mark.parametrize("tie_word_embeddings", [True, False], ids=["tied", "untied"])
def test_the_auto_classes_read_a_saved_model(
    tie_word_embeddings: bool,
    model_type: str,
    family: Any,
    check: Any,
    make_expanded: Callable[..., Any],
    batch: Batch,
    tmp_path: Path,
) -> None:
    model = make_expanded(tie_word_embeddings=tie_word_embeddings).eval()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == f"expanded_{model_type}"
    assert type(AutoConfig.from_pretrained(tmp_path)) is family.model_class.config_class
    for dtype in (torch.float32, torch.bfloat16):
        loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype, output_loading_info=True)
        assert type(loaded) is family.model_class
        assert not any(report.values()), report
        assert loaded.config.expansion_config == EXPANSION
        assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
        found = {name: value.to(dtype) for name, value in model.state_dict().items()}
        assert all(torch.equal(value, found[name]) for name, value in loaded.state_dict().items())
        same = loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
        assert same == tie_word_embeddings
        if dtype == torch.float32:
            assert torch.equal(loaded(**check.inputs(batch)).logits, model(**check.inputs(batch)).logits)


@torch.no_grad()
def test_shards_and_a_device_map_change_nothing(
    family: Any,
    check: Any,
    make_base: Callable[..., Any],
    make_expanded: Callable[..., Any],
    batch: Batch,
    tmp_path: Path,
) -> None:
    base, model = make_base().eval(), make_expanded().eval()
    for saved, folder in ((base, tmp_path / "base"), (model, tmp_path / "expanded")):
        saved.save_pretrained(folder, max_shard_size="10KB")
        assert len(list(folder.glob("*.safetensors"))) > 1
    options: dict[str, Any] = {"device_map": "auto", "dtype": torch.float32}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "expanded", **options)
    assert torch.equal(loaded(**check.inputs(batch)).logits, model(**check.inputs(batch)).logits)
    expanded = family.model_class.from_base(tmp_path / "base", EXPANSION, **options)
    kept = expanded.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in base.state_dict().items())
    assert len(kept) > len(base.state_dict())
    expanded.contract().save_pretrained(tmp_path / "contracted", max_shard_size="10KB")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "contracted")
    assert torch.equal(again(**check.inputs(batch)).logits, base(**check.inputs(batch)).logits)


def test_auxiliary_weights_start_at_the_expansions_scale(make_base: Callable[..., Any], tmp_path: Path) -> None:
    base, expansion = make_base(), ExpansionConfig(width=64, target_layers=[1], initialization_scale=0.5)
    base.save_pretrained(tmp_path)
    scale = base.config.initializer_range * 0.5
    for source in (base, tmp_path):
        for name, parameter in expand_base(source, expansion).auxiliary_modules()[1]["forget"].named_parameters():
            expected = 0.0 if name.endswith("bias") else scale
            assert parameter.std().item() == pytest.approx(expected, rel=0.15), name


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["llama", "gpt2"], indirect=True)
def test_a_model_that_is_offloaded_to_the_disk_computes_the_same(
    check: Any, make_expanded: Callable[..., Any], batch: Batch, tmp_path: Path
) -> None:
    """accelerate loads each layer when it is called; its weights are on the meta device in between."""
    model, inputs = make_expanded().eval(), check.inputs(batch)
    model.save_pretrained(tmp_path / "model")
    options: dict[str, Any] = {
        "device_map": "auto",
        "max_memory": {"cpu": 12_000},
        "offload_folder": tmp_path / "offload",
    }
    offloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", **options)
    assert "disk" in offloaded.hf_device_map.values()
    assert offloaded.get_output_embeddings().weight.is_meta
    assert torch.equal(offloaded(**inputs).logits, model(**inputs).logits)
    expected = model.label_losses(batch["labels"], **inputs)
    torch.testing.assert_close(offloaded.label_losses(batch["labels"], **inputs), expected)
    with offloaded.ablated(), model.ablated():
        assert torch.equal(offloaded(**inputs).logits, model(**inputs).logits)
    with pytest.raises(
        ValueError, match=r"^The weight .* is offloaded \(`device_map`\), so that the model cannot be contract"
    ):
        offloaded.contract()


def test_a_copy_routes_on_its_own(
    family: Any, check: Any, make_expanded: Callable[..., Any], batch: Batch, tmp_path: Path
) -> None:
    """Copied, and pickled: the twin has its own channel, and what it computes and learns is the same."""
    model = make_expanded()
    expected = check.gradients_after(model, lambda: check.total_loss(model, batch))
    torch.save(model, tmp_path / "model.pt")
    for twin in (copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)):
        assert twin.gradient_multipliers == model.gradient_multipliers
        blocks = family.get_blocks(twin)
        assert type(blocks[0]) is type(family.get_blocks(model)[0])
        for block in (blocks[0], blocks[2]):
            assert block.routing_channel is twin.routing_channel is not model.routing_channel
            mlp = family.get_mlp(block)
            assert block.layer_call is mlp.call is family.get_down_projection(mlp).call
        found = check.gradients_after(twin, lambda twin=twin: check.total_loss(twin, batch))
        assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
        twin.set_active(None, False)
        assert model.auxiliary_modules()[0]["forget"].active
