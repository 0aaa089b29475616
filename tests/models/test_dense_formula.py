"""Routing against an independent dense formula, in float64 and without any file.

The formula is the paper's: a stock GPT-Neo whose MLP is *widened* in the target layers, and a dense mask `m` of shape
(batch, seq, hidden) in `m * x + (1 - m) * x.detach()` on the input of the down projection. It uses nothing of `hf_era`.

The stock attention casts query and key to fp32, in float64 too, and so do the slow paths, which are compared with it. The
fast paths compute in float64 throughout: they are compared with a formula whose attention does so.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPTNeoForCausalLM

from hf_era import ExpandedGPTNeoForCausalLM, GradientMultipliers

RELATIVE_TOLERANCE = 1e-12
WIDTH, ORIGINAL_WIDTH = 8, 64

SIGNED_MULTIPLIERS = [
    GradientMultipliers(),
    GradientMultipliers(original_forget=0.0, original_retain=1.0, auxiliary_forget=1.0, auxiliary_retain=0.0),
    GradientMultipliers(original_forget=-1.7, original_retain=0.6, auxiliary_forget=2.3, auxiliary_retain=-0.4),
    GradientMultipliers(original_forget=0.3, original_retain=-2.5, auxiliary_forget=-1.1, auxiliary_retain=0.9),
]


def widened_stock_model(
    expanded: ExpandedGPTNeoForCausalLM,
    target_layers: list[int],
    routing_weight: Tensor,
    numbers: dict[str, float],
    casts_attention: bool,
) -> GPTNeoForCausalLM:
    """The same function as `expanded`, built from stock parts, with the dense formula hooked before `c_proj`."""
    state = expanded.state_dict()
    stock = GPTNeoForCausalLM(expanded.config.to_base_config()).double().train()
    stock.load_state_dict({name: value.clone() for name, value in state.items() if "auxiliary" not in name})
    stock.tie_weights()
    retain, forget = routing_weight[..., None], 1 - routing_weight[..., None]
    original = (retain * numbers["original_retain"] + forget * numbers["original_forget"]).expand(
        -1, -1, ORIGINAL_WIDTH
    )
    auxiliary = (retain * numbers["auxiliary_retain"] + forget * numbers["auxiliary_forget"]).expand(-1, -1, WIDTH)
    mask = torch.cat([original, auxiliary], dim=-1)

    def apply_mask(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (activation,) = inputs
        return (mask * activation + (1 - mask) * activation.detach(),)

    for layer in target_layers:
        mlp, prefix = stock.transformer.h[layer].mlp, f"transformer.h.{layer}.mlp"
        added = {part: state[f"{prefix}.auxiliary.forget.{part}"] for part in AUXILIARY_PARTS}
        widened_up = nn.Linear(16, ORIGINAL_WIDTH + WIDTH, dtype=torch.float64)
        widened_down = nn.Linear(ORIGINAL_WIDTH + WIDTH, 16, dtype=torch.float64)
        with torch.no_grad():
            widened_up.weight.copy_(torch.cat([mlp.c_fc.weight, added["up_projection.weight"]], dim=0))
            widened_up.bias.copy_(torch.cat([mlp.c_fc.bias, added["up_projection.bias"]]))
            widened_down.weight.copy_(torch.cat([mlp.c_proj.weight, added["down_projection.weight"]], dim=1))
            widened_down.bias.copy_(mlp.c_proj.bias)
        mlp.c_fc, mlp.c_proj = widened_up, widened_down
        mlp.c_proj.register_forward_pre_hook(apply_mask)
    if not casts_attention:
        for block in stock.transformer.h:
            block.attn.attention._attn = MethodType(attention_without_casting, block.attn.attention)
    return stock


def attention_without_casting(
    self: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None
) -> tuple[Tensor, None]:
    """The stock attention in the dtype of its inputs: (batch, heads, seq, head size) each."""
    length = query.shape[-2]
    distance = torch.arange(length)[:, None] - torch.arange(length)
    seen = (distance >= 0) & (distance < (self.config.window_size if self.attention_type == "local" else length))
    scores = (query @ key.transpose(-1, -2)).masked_fill(~seen, torch.finfo(query.dtype).min)
    if attention_mask is not None:
        scores = scores + attention_mask
    return scores.softmax(dim=-1) @ value, None


AUXILIARY_PARTS = ("up_projection.weight", "up_projection.bias", "down_projection.weight")


def split_gradients(stock: GPTNeoForCausalLM, target_layers: list[int]) -> dict[str, Tensor]:
    """The widened model's gradients under the expanded model's names."""
    gradients: dict[str, Tensor] = {}
    for name, parameter in stock.named_parameters():
        assert parameter.grad is not None, name
        gradients[name] = parameter.grad
    for layer in target_layers:
        prefix = f"transformer.h.{layer}.mlp"
        up, bias = gradients[f"{prefix}.c_fc.weight"], gradients[f"{prefix}.c_fc.bias"]
        down = gradients[f"{prefix}.c_proj.weight"]
        gradients[f"{prefix}.c_fc.weight"] = up[:ORIGINAL_WIDTH]
        gradients[f"{prefix}.c_fc.bias"] = bias[:ORIGINAL_WIDTH]
        gradients[f"{prefix}.c_proj.weight"] = down[:, :ORIGINAL_WIDTH]
        auxiliary = f"{prefix}.auxiliary.forget"
        gradients[f"{auxiliary}.up_projection.weight"] = up[ORIGINAL_WIDTH:]
        gradients[f"{auxiliary}.up_projection.bias"] = bias[ORIGINAL_WIDTH:]
        gradients[f"{auxiliary}.down_projection.weight"] = down[:, ORIGINAL_WIDTH:]
    return gradients


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """In float64; the stock model's own `loss` is computed in fp32."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def assert_same(
    expanded: ExpandedGPTNeoForCausalLM, stock: GPTNeoForCausalLM, batch: dict[str, Tensor], target_layers: list[int]
) -> float:
    """Compares loss and every gradient; returns the largest relative deviation of a gradient.

    The loss of the fast paths is the model's own, in chunks and in float64; the slow one computes its own in fp32.
    """
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    if expanded.fast_paths.chunked_loss:
        loss = expanded(**inputs, labels=batch["labels"], routing_weight=batch["routing_weight"]).loss
    else:
        loss = cross_entropy(expanded(**inputs, routing_weight=batch["routing_weight"]).logits, batch["labels"])
    expected_loss = cross_entropy(stock(**inputs).logits, batch["labels"])
    assert loss.dtype == expected_loss.dtype == torch.float64
    torch.testing.assert_close(loss, expected_loss, rtol=RELATIVE_TOLERANCE, atol=0)
    loss.backward()
    expected_loss.backward()
    expected = split_gradients(stock, target_layers)
    actual = dict(expanded.named_parameters())
    assert sorted(actual) == sorted(expected)
    largest = 0.0
    for name, parameter in actual.items():
        assert parameter.grad is not None, name
        scale = expected[name].abs().max()
        assert scale > 0, f"{name}: a gradient of zero compares nothing"
        largest = max(largest, ((parameter.grad - expected[name]).abs().max() / scale).item())
    assert largest <= RELATIVE_TOLERANCE, largest
    return largest


@pytest.fixture
def double_batch(make_batch: Callable[..., dict[str, Tensor]]) -> dict[str, Tensor]:
    batch = make_batch(seed=5)
    batch["routing_weight"] = batch["routing_weight"].double()
    batch["routing_weight"][0, :4] = 0.0
    batch["routing_weight"][1] = 1.0
    # Factors are fp32 on their way to the layers: values of at most 8 bits pass exactly.
    batch["routing_weight"] = (batch["routing_weight"] * 256).round() / 256
    return batch


def exact(multipliers: GradientMultipliers) -> dict[str, float]:
    """The multipliers rounded to 1/64, for the same reason."""
    return {name: round(value * 64) / 64 for name, value in multipliers.to_dict().items()}


@pytest.mark.parametrize("tie_word_embeddings", [True, False])
@pytest.mark.parametrize("multipliers", SIGNED_MULTIPLIERS, ids=["seed", "default", "signed", "mirrored"])
@pytest.mark.parametrize("target_layers", [[0], [2], [0, 2], [0, 1, 2]], ids=str)
def test_loss_and_gradients_equal_the_dense_formula(
    target_layers: list[int],
    multipliers: GradientMultipliers,
    tie_word_embeddings: bool,
    make_expanded: Callable[..., ExpandedGPTNeoForCausalLM],
    double_batch: dict[str, Tensor],
    paths: Any,
) -> None:
    numbers = exact(multipliers)
    model = paths.set(make_expanded(target_layers, width=WIDTH, tie_word_embeddings=tie_word_embeddings).double())
    model.gradient_multipliers = GradientMultipliers(**numbers)
    stock = widened_stock_model(
        model, target_layers, double_batch["routing_weight"], numbers, casts_attention=not paths.fast
    )
    print(f"largest relative deviation {assert_same(model, stock, double_batch, target_layers):.1e}")


@pytest.mark.parametrize(
    "violation",
    ["original_forget", "original_retain", "auxiliary_forget", "auxiliary_retain", "weights", "layer", "casting"],
)
def test_the_comparison_notices_a_small_mistake(
    violation: str,
    make_expanded: Callable[..., ExpandedGPTNeoForCausalLM],
    double_batch: dict[str, Tensor],
    paths: Any,
) -> None:
    """Planted: one multiplier off by 1e-6, weights shifted by one position, one layer not routed, or fp32 attention
    where the model has none (and the other way round)."""
    numbers: dict[str, float] = exact(SIGNED_MULTIPLIERS[2])
    routing_weight = double_batch["routing_weight"]
    model = paths.set(make_expanded([0, 2], width=WIDTH).double())
    model.gradient_multipliers = GradientMultipliers(**numbers)
    if violation == "weights":
        routing_weight = routing_weight.roll(1, dims=1)
    elif violation in numbers:
        numbers = {**numbers, violation: numbers[violation] + 1e-6}
    casts_attention = paths.fast if violation == "casting" else not paths.fast
    stock = widened_stock_model(model, [0, 2], routing_weight, numbers, casts_attention)
    if violation == "layer":
        hooks: dict[int, Any] = stock.transformer.h[2].mlp.c_proj._forward_pre_hooks
        hooks.clear()
    with pytest.raises(AssertionError):
        assert_same(model, stock, double_batch, [0, 2])
