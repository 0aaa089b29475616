"""Which attention a model takes: transformers' own switch, at loading and at run time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, GPTNeoForCausalLM

from hf_era import ExpandedGPTNeoForCausalLM, ExpansionConfig, FastGPTNeoForCausalLM
from hf_era.models.fast.causal_lm import ALL_SLOW

EXPANSION = ExpansionConfig(width=8, target_layers=[0, 2])


@pytest.fixture
def uses_sdpa(
    monkeypatch: pytest.MonkeyPatch, make_inputs: Callable[..., dict[str, Tensor]]
) -> Callable[[Any], list[bool]]:
    """Whether a model's forward pass took sdpa in all of its three layers."""
    calls: list[int] = []
    attention = F.scaled_dot_product_attention

    def spy(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        return attention(*args, **kwargs)

    def used(model: Any) -> bool:
        calls.clear()
        model(make_inputs()["input_ids"])
        assert len(calls) in (0, 3)
        return bool(calls)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    return used


def load(kind: str, folder: Path, **options: Any) -> Any:
    if kind == "fast":
        return FastGPTNeoForCausalLM.from_pretrained(folder, **options)
    expanded = ExpandedGPTNeoForCausalLM.from_base(folder, EXPANSION, **options)
    if kind == "expanded base":
        return expanded
    expanded.save_pretrained(folder / "expanded")
    return (ExpandedGPTNeoForCausalLM if kind == "expanded" else AutoModelForCausalLM).from_pretrained(
        folder / "expanded", **options
    )


KINDS = ["fast", "expanded base", "expanded", "expanded, auto class"]


@pytest.mark.parametrize("kind", KINDS)
def test_sdpa_is_the_default_and_eager_is_honoured(
    kind: str, stock: GPTNeoForCausalLM, tmp_path: Path, uses_sdpa: Callable[[Any], bool]
) -> None:
    stock.save_pretrained(tmp_path)
    for options, expected in (({}, "sdpa"), ({"attn_implementation": "eager"}, "eager")):
        model = load(kind, tmp_path, **options)
        assert model.config._attn_implementation == expected
        assert uses_sdpa(model) == (expected == "sdpa")


def test_the_stock_class_is_left_as_it_was(stock: GPTNeoForCausalLM, uses_sdpa: Callable[[Any], bool]) -> None:
    FastGPTNeoForCausalLM.from_stock(stock)
    assert stock.config._attn_implementation == "eager"
    assert not uses_sdpa(stock)
    assert type(stock.transformer.h[0].attn.attention).__name__ == "GPTNeoSelfAttention"


@pytest.mark.parametrize("kind", ["fast", "expanded"])
def test_switched_at_run_time(
    kind: str,
    fast: FastGPTNeoForCausalLM,
    expanded: ExpandedGPTNeoForCausalLM,
    make_inputs: Callable[..., dict[str, Tensor]],
    uses_sdpa: Callable[[Any], bool],
) -> None:
    model = (fast if kind == "fast" else expanded).eval()
    inputs = make_inputs("left")
    before = model(**inputs).logits
    assert uses_sdpa(model)
    model.set_attn_implementation("eager")
    assert not uses_sdpa(model)
    assert not torch.equal(model(**inputs).logits, before)
    model.set_attn_implementation("sdpa")
    assert uses_sdpa(model)
    assert torch.equal(model(**inputs).logits, before)


def test_eager_and_no_fast_paths_is_the_stock_class_bit_for_bit(
    padding: str, fast: FastGPTNeoForCausalLM, stock: GPTNeoForCausalLM, make_inputs: Callable[..., dict[str, Tensor]]
) -> None:
    """At padding too."""
    fast.set_fast_paths(ALL_SLOW)
    fast.set_attn_implementation("eager")
    inputs = make_inputs(padding)
    outputs, expected = fast(**inputs), stock(**inputs)
    assert torch.equal(outputs.logits, expected.logits)
    assert torch.equal(outputs.loss, expected.loss)
    outputs.loss.backward()
    expected.loss.backward()
    theirs = dict(stock.named_parameters())
    assert all(torch.equal(value.grad, theirs[name].grad) for name, value in fast.named_parameters())


def test_attention_weights_when_asked(
    padding: str,
    fast: FastGPTNeoForCausalLM,
    stock: GPTNeoForCausalLM,
    make_inputs: Callable[..., dict[str, Tensor]],
    compare: Any,
) -> None:
    inputs = make_inputs(padding)
    outputs, expected = (model(**inputs, output_attentions=True, skip_logits=False) for model in (fast, stock))
    mask = inputs.get("attention_mask")
    real = torch.ones(3, 12, dtype=torch.bool) if mask is None else mask.bool()
    assert len(outputs.attentions) == len(expected.attentions) == 3
    for weights, reference in zip(outputs.attentions, expected.attentions, strict=True):
        assert weights.shape == (3, 2, 12, 12)
        difference = (weights - reference).abs().transpose(1, 2)[real]
        assert difference.max() <= 1e-5
    compare.assert_same_at_real_tokens(outputs.logits, expected.logits, mask)


def test_the_choice_is_not_saved(fast: FastGPTNeoForCausalLM, tmp_path: Path) -> None:
    fast.set_attn_implementation("eager")
    fast.save_pretrained(tmp_path)
    assert "attn_implementation" not in (tmp_path / "config.json").read_text()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "gpt_neo"
    assert FastGPTNeoForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"
