"""`contract()`: a stock model, bit for bit, that holds nothing of what was removed; its files neither."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, GPTNeoConfig, GPTNeoForCausalLM

from hf_era import ExpandedGPTNeoForCausalLM, ExpansionConfig

EXPANSION = ExpansionConfig(width=8, target_layers=[0, 2])
# Of the largest logit; the fast paths round in another order.
LOGITS_TOLERANCE = 5e-6
FORBIDDEN_WORDS = (b"auxiliary", b"expan", b"routing", b"hf_era")

MakeBase = Callable[..., GPTNeoForCausalLM]
MakeExpanded = Callable[..., ExpandedGPTNeoForCausalLM]


def inputs_of(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def auxiliary_rows(model: ExpandedGPTNeoForCausalLM) -> Iterator[tuple[str, bytes]]:
    """The raw bytes of every row of every auxiliary weight: a saved view or slice would leave rows behind."""
    for name, value in model.state_dict().items():
        if model.is_auxiliary_parameter(name):
            for index, row in enumerate(value.reshape(-1, value.shape[-1])):
                yield f"{name}[{index}]", row.contiguous().view(torch.uint8).numpy().tobytes()


def leftovers(folder: Path, model: ExpandedGPTNeoForCausalLM) -> list[str]:
    """What a folder's files still hold of the auxiliary module: its words and its weights, byte for byte."""
    found, files = [], [path for path in sorted(folder.rglob("*")) if path.is_file()]
    assert files, "an empty folder proves nothing"
    rows = list(auxiliary_rows(model))
    for path in files:
        content = path.read_bytes()
        found += [f"{path.name}: the word {word.decode()}" for word in FORBIDDEN_WORDS if word in content.lower()]
        found += [f"{path.name}: {name}" for name, row in rows if row in content]
    return found


# ---- The model ----


@pytest.mark.parametrize("tie_word_embeddings", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("source", ["memory", "folder"])
def test_contracting_an_untouched_expansion_gives_the_base_bit_for_bit(
    source: str,
    dtype: torch.dtype,
    tie_word_embeddings: bool,
    make_base: MakeBase,
    make_batch: Callable,
    tmp_path: Path,
) -> None:
    base = make_base(tie_word_embeddings=tie_word_embeddings).to(dtype).eval()
    base.save_pretrained(tmp_path)
    expanded = ExpandedGPTNeoForCausalLM.from_base(base if source == "memory" else tmp_path, EXPANSION)
    contracted = expanded.to(dtype).eval().contract()
    inputs = inputs_of(make_batch())
    with torch.no_grad():
        assert torch.equal(contracted(**inputs).logits, base(**inputs).logits)
        assert contracted(**inputs).logits.dtype == dtype
    assert {parameter.dtype for parameter in contracted.parameters()} == {dtype}
    state = contracted.state_dict()
    assert list(state) == list(base.state_dict())
    assert all(torch.equal(state[name], value) for name, value in base.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_contracting_a_changed_model_equals_ablating_it(
    dtype: torch.dtype, make_expanded: MakeExpanded, make_batch: Callable, paths: Any
) -> None:
    model, inputs = paths.set(make_expanded([0, 2]).to(dtype)).eval(), inputs_of(make_batch())
    with torch.no_grad():
        contracted_logits = paths.reference(model.contract())(**inputs).logits
        on = model(**inputs).logits
        with model.ablated():
            ablated = model(**inputs).logits
    assert torch.equal(contracted_logits, ablated)
    assert not torch.equal(contracted_logits, on)


@torch.no_grad()
def test_the_fast_ablated_model_is_within_rounding_of_the_contracted_one(
    make_expanded: MakeExpanded, make_batch: Callable
) -> None:
    """At real tokens: what stands at padding means nothing in either."""
    model, batch = make_expanded([0, 2]).eval(), make_batch()
    real, expected = batch["attention_mask"].bool(), model.contract()(**inputs_of(batch)).logits
    on = model(**inputs_of(batch)).logits
    with model.ablated():
        ablated = model(**inputs_of(batch)).logits
    assert (ablated - expected)[real].abs().max() <= LOGITS_TOLERANCE * expected.abs().max()
    assert (on - expected)[real].abs().max() > 1000 * LOGITS_TOLERANCE * expected.abs().max()


def test_the_result_is_a_stock_model_with_a_stock_config(make_base: MakeBase) -> None:
    base = make_base(intermediate_size=24)
    contracted = ExpandedGPTNeoForCausalLM.from_base(base, EXPANSION).contract()
    assert type(contracted) is GPTNeoForCausalLM
    assert type(contracted.config) is GPTNeoConfig
    assert contracted.config.model_type == "gpt_neo"
    assert not hasattr(contracted.config, "expansion")
    assert {type(block).__name__ for block in contracted.transformer.h} == {"GPTNeoBlock"}
    assert {type(block.mlp).__name__ for block in contracted.transformer.h} == {"GPTNeoMLP"}
    assert contracted.config.intermediate_size == 24


def test_own_storage(make_expanded: MakeExpanded) -> None:
    model = make_expanded([0, 2])
    contracted = model.contract()
    theirs = {value.untyped_storage().data_ptr() for value in [*model.parameters(), *model.buffers()]}
    for name, value in contracted.state_dict().items():
        assert value.untyped_storage().data_ptr() not in theirs, name
        # No view of something larger: the storage is as long as the tensor.
        assert value.untyped_storage().nbytes() == value.numel() * value.element_size(), name
    before = model.transformer.h[0].mlp.c_fc.weight.clone()
    with torch.no_grad():
        for parameter in contracted.parameters():
            parameter.zero_()
    assert torch.equal(model.transformer.h[0].mlp.c_fc.weight, before)


@pytest.mark.parametrize("tie_word_embeddings", [True, False])
def test_tied_head_stays_tied_and_untied_stays_untied(tie_word_embeddings: bool, make_expanded: MakeExpanded) -> None:
    model = make_expanded([0], tie_word_embeddings=tie_word_embeddings)
    contracted = model.contract()
    assert contracted.config.tie_word_embeddings is tie_word_embeddings
    assert (contracted.lm_head.weight is contracted.transformer.wte.weight) == tie_word_embeddings
    assert torch.equal(contracted.lm_head.weight, model.lm_head.weight)


def test_generation_config_is_carried_over_and_not_shared(make_expanded: MakeExpanded, tmp_path: Path) -> None:
    model = make_expanded([0])
    model.generation_config = GenerationConfig(max_new_tokens=7, do_sample=True, temperature=0.4, bos_token_id=52)
    contracted = model.contract()
    assert contracted.generation_config.to_dict() == model.generation_config.to_dict()
    contracted.generation_config.max_new_tokens = 8
    assert model.generation_config.max_new_tokens == 7
    contracted.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).temperature == 0.4


@pytest.mark.parametrize("training", [True, False])
def test_mode_random_state_and_gradients_are_left_alone(training: bool, make_expanded: MakeExpanded) -> None:
    model = make_expanded([0]).train(training)
    torch.manual_seed(3)
    contracted = model.contract()
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))
    assert contracted.training is training
    assert all(parameter.requires_grad for parameter in contracted.parameters())
    assert model.auxiliary_modules()[0]["forget"].active


def test_the_contracted_model_trains(make_expanded: MakeExpanded, make_batch: Callable) -> None:
    contracted, batch = make_expanded([0]).contract().train(), make_batch()
    before = {name: value.clone() for name, value in contracted.named_parameters()}
    optimizer = torch.optim.AdamW(contracted.parameters(), lr=1e-2)
    contracted(**inputs_of(batch), labels=batch["labels"]).loss.backward()
    optimizer.step()
    assert all(not torch.equal(before[name], value) for name, value in contracted.named_parameters())


def test_contracting_works_from_a_loaded_model(make_expanded: MakeExpanded, tmp_path: Path) -> None:
    model = make_expanded([0, 2])
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    state, expected = loaded.contract().state_dict(), model.contract().state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], value) for name, value in expected.items())


# ---- Its files ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_files_hold_nothing_of_the_auxiliary_module(
    dtype: torch.dtype, make_expanded: MakeExpanded, tmp_path: Path
) -> None:
    model = make_expanded([0, 2]).to(dtype)
    model.contract().save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}
    assert leftovers(tmp_path, model) == []
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["GPTNeoForCausalLM"]


def test_saved_files_hold_nothing_after_a_detour_over_disk(make_expanded: MakeExpanded, tmp_path: Path) -> None:
    """Saved expanded, loaded (perhaps memory-mapped) and then contracted."""
    model = make_expanded([0, 2])
    model.save_pretrained(tmp_path / "expanded")
    AutoModelForCausalLM.from_pretrained(tmp_path / "expanded").contract().save_pretrained(tmp_path / "contracted")
    assert leftovers(tmp_path / "contracted", model) == []


def test_the_byte_check_fails_on_the_expanded_model(make_expanded: MakeExpanded, tmp_path: Path) -> None:
    model = make_expanded([0, 2])
    model.save_pretrained(tmp_path)
    found = leftovers(tmp_path, model)
    assert "config.json: the word expan" in found
    assert "model.safetensors: the word auxiliary" in found
    assert sum("[" in line for line in found) == len(list(auxiliary_rows(model)))


def widened_up_projection(model: ExpandedGPTNeoForCausalLM) -> Tensor:
    mlp = model.transformer.h[0].mlp
    return torch.cat([mlp.c_fc.weight, mlp.auxiliary["forget"].up_projection.weight]).detach()


def test_the_byte_check_fails_on_a_saved_view(make_expanded: MakeExpanded, tmp_path: Path) -> None:
    """Planted: what the reference does. The view is the original part alone, the file holds all of its storage."""
    model = make_expanded([0, 2])
    view = widened_up_projection(model)[:64]
    assert torch.equal(view, model.transformer.h[0].mlp.c_fc.weight)
    torch.save({"transformer.h.0.mlp.c_fc.weight": view}, tmp_path / "pytorch_model.bin")
    found = leftovers(tmp_path, model)
    assert found == [
        f"pytorch_model.bin: transformer.h.0.mlp.auxiliary.forget.up_projection.weight[{index}]" for index in range(8)
    ]


def test_the_byte_check_fails_on_safetensors_with_one_view_too_wide(
    make_expanded: MakeExpanded, tmp_path: Path
) -> None:
    """Planted: a stock name, a stock file, and a view that is a single row too long."""
    model = make_expanded([0, 2])
    weight = widened_up_projection(model)
    save_file({"transformer.h.0.mlp.c_fc.weight": weight[:64]}, tmp_path / "model.safetensors")
    assert leftovers(tmp_path, model) == []
    save_file({"transformer.h.0.mlp.c_fc.weight": weight[:65]}, tmp_path / "model.safetensors")
    assert leftovers(tmp_path, model) == [
        "model.safetensors: transformer.h.0.mlp.auxiliary.forget.up_projection.weight[0]"
    ]
