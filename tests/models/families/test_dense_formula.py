"""Routing against an independent dense formula, in float64, for every family.

The formula is the paper's: a stock model whose MLP is *widened* by hand in the target layers, and a dense mask `m` of shape
(batch, seq, hidden) in `m * a + (1 - m) * a.detach()` on the input of the down projection. It uses nothing of `hf_era`.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

Batch = dict[str, Tensor]
Gradients = dict[str, Tensor]

TARGETS = [0, 2]
# The norms of most families are computed in fp32, of inputs that agree in float64.
RELATIVE_TOLERANCE = 1e-9
# GPT-Neo's own attention is computed in fp32, and that of its fast path is not: `test_dense_formula.py` of the folder above
# has the formula for it.
OTHER_TOLERANCES = {("gpt_neo", True): 1e-5}

# Path of the blocks, and in a block's MLP what goes up (the gate last) and down.
SWIGLU = ("model.layers", ("up_proj", "gate_proj"), "down_proj")
MLPS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "gpt2": ("transformer.h", ("c_fc",), "c_proj"),
    "gpt_neo": ("transformer.h", ("c_fc",), "c_proj"),
    "gpt_neox": ("gpt_neox.layers", ("dense_h_to_4h",), "dense_4h_to_h"),
}
AUXILIARY = ("auxiliary.forget.up_projection", "auxiliary.forget.gate_projection")
AUXILIARY_DOWN = "auxiliary.forget.down_projection"


def wider(layer: Any, weight: Tensor, bias: Tensor | None, dimension: int) -> Any:
    """A layer of the same class with the weights (out, in) appended: more outputs (dimension 0), or more inputs (1)."""
    is_conv = isinstance(layer, Conv1D)
    joined = torch.cat([layer.weight.T if is_conv else layer.weight, weight], dim=dimension).detach()
    made: Any = Conv1D(*joined.shape) if is_conv else nn.Linear(*joined.T.shape, bias=layer.bias is not None)
    made = made.double()
    made.weight = nn.Parameter((joined.T if is_conv else joined).contiguous())
    if layer.bias is not None:
        added = [] if dimension == 1 else [torch.zeros(len(weight)).double() if bias is None else bias]
        made.bias = nn.Parameter(torch.cat([layer.bias, *added]).detach())
    return made


def widened(
    stock: Any, state: dict[str, Tensor], model_type: str, routing_weight: Tensor, numbers: dict[str, float]
) -> tuple[Any, list[Tensor]]:
    """The stock model with the weights of an expanded one's `state`, wider MLPs, and the formula before `down`.

    Returns it and a list that fills up with the sum of |a| of each row and token, (batch, seq), of every target layer.
    """
    stock = stock.double().train()
    stock.load_state_dict({name: value.clone() for name, value in state.items() if "auxiliary" not in name})
    stock.tie_weights()
    blocks, ups, down = MLPS.get(model_type, SWIGLU)
    retain, forget = routing_weight.double()[..., None], 1 - routing_weight.double()[..., None]
    original, auxiliary = (
        retain * numbers[f"{part}_retain"] + forget * numbers[f"{part}_forget"] for part in ("original", "auxiliary")
    )
    norms: list[Tensor] = []

    def route(_module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (a,) = inputs
        norms.append(a.abs().sum(-1))
        m = torch.cat([original.expand(-1, -1, 24), auxiliary.expand(-1, -1, a.shape[-1] - 24)], dim=-1)
        return (m * a + (1 - m) * a.detach(),)

    for layer in TARGETS:
        mlp, prefix = stock.get_submodule(f"{blocks}.{layer}.mlp"), f"{blocks}.{layer}.mlp"
        for own, added in zip(ups, AUXILIARY, strict=False):
            weight, bias = state[f"{prefix}.{added}.weight"], state.get(f"{prefix}.{added}.bias")
            setattr(mlp, own, wider(getattr(mlp, own), weight, bias, 0))
        setattr(mlp, down, wider(getattr(mlp, down), state[f"{prefix}.{AUXILIARY_DOWN}.weight"], None, 1))
        getattr(mlp, down).register_forward_pre_hook(route)
    return stock, norms


def split(stock: Any, gradients: Gradients, names: list[str], model_type: str) -> Gradients:
    """The widened model's gradients under the expanded model's names."""
    blocks, ups, down = MLPS.get(model_type, SWIGLU)
    found = dict(gradients)
    for layer in TARGETS:
        prefix = f"{blocks}.{layer}.mlp"
        is_conv = isinstance(stock.get_submodule(f"{prefix}.{down}"), Conv1D)
        for own, added, dimension in [*zip(ups, AUXILIARY, [0, 0], strict=False), (down, AUXILIARY_DOWN, 1)]:
            gradient = gradients[f"{prefix}.{own}.weight"]
            first, second = (gradient.T if is_conv else gradient).tensor_split([24], dim=dimension)
            found[f"{prefix}.{own}.weight"] = first.T if is_conv else first
            found[f"{prefix}.{added}.weight"] = second
            if dimension == 0 and f"{prefix}.{own}.bias" in gradients:
                first, second = gradients[f"{prefix}.{own}.bias"].tensor_split([24])
                found[f"{prefix}.{own}.bias"] = first
                if f"{prefix}.{added}.bias" in names:
                    found[f"{prefix}.{added}.bias"] = second
    return found


class Formula:
    """The formula beside an expanded model in float64.

    Attributes:
        loss (`float`), gradients: of the formula, under the names of the model.
    """

    def __init__(
        self, check: Any, model: Any, stock: Any, batch: Batch, numbers: dict[str, float], l1_mask: Tensor | None = None
    ) -> None:
        model_type = stock.config.model_type
        stock.set_attn_implementation(model.config._attn_implementation if model_type != "gpt_neo" else "eager")
        stock, norms = widened(stock, model.state_dict(), model_type, batch["routing_weight"], numbers)
        mask = batch["attention_mask"] if l1_mask is None else l1_mask

        def loss() -> Tensor:
            value = check.cross_entropy(stock(**check.inputs(batch)).logits, batch["labels"])
            return value + check.l1_coefficient * sum((norm * mask).sum() for norm in norms)

        gradients = check.gradients_after(stock, loss)
        norms.clear()
        self.loss = loss().item()
        self.gradients = split(stock, gradients, [name for name, _ in model.named_parameters()], model_type)


def compare(
    model_type: str, paths: Any, check: Any, make_base: Any, make_expanded: Any, batch: Batch, overrides: dict[str, Any]
) -> None:
    model = paths.set(make_expanded(TARGETS, **overrides).double())
    numbers = model.gradient_multipliers.to_dict()
    formula = Formula(check, model, make_base(**overrides), batch, numbers)
    tolerance = OTHER_TOLERANCES.get((model_type, paths.fast), RELATIVE_TOLERANCE)
    assert check.total_loss(model, batch).item() == pytest.approx(formula.loss, rel=tolerance)
    found = check.gradients_after(model, lambda: check.total_loss(model, batch))
    assert len(found) == len(list(model.parameters()))
    assert check.largest_deviation(found, formula.gradients) <= tolerance


@pytest.mark.parametrize("tie_word_embeddings", [True, False])
def test_loss_and_gradients_equal_the_dense_formula(
    tie_word_embeddings: bool,
    model_type: str,
    paths: Any,
    check: Any,
    make_base: Callable[..., Any],
    make_expanded: Callable[..., Any],
    batch: Batch,
) -> None:
    """With the L1 term; multipliers that are all different, and tokens of all weights."""
    overrides = {"tie_word_embeddings": tie_word_embeddings}
    compare(model_type, paths, check, make_base, make_expanded, batch, overrides)


@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [
        ("gpt_neox", {"use_parallel_residual": False}),
        ("gpt_neox", {"hidden_act": "relu"}),  # one that is not fused
        ("gpt2", {"activation_function": "gelu"}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}),
        ("llama", {"mlp_bias": True, "attention_bias": True}),
        ("llama", {"hidden_act": "gelu_pytorch_tanh", "num_key_value_heads": 4}),
        ("gemma2", {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 1.0}),
        ("gemma3_text", {"final_logit_softcapping": 2.0}),
    ],
    indirect=["model_type"],
    ids=str,
)
def test_what_a_config_may_choose_is_the_familys_own_too(
    model_type: str,
    overrides: dict[str, Any],
    paths: Any,
    check: Any,
    make_base: Callable[..., Any],
    make_expanded: Callable[..., Any],
    batch: Batch,
) -> None:
    compare(model_type, paths, check, make_base, make_expanded, batch, overrides)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"], indirect=True)
@pytest.mark.parametrize("mistake", ["original_forget", "auxiliary_retain", "shift", "l1"])
def test_the_formula_notices_a_small_mistake(
    mistake: str,
    model_type: str,
    check: Any,
    make_base: Callable[..., Any],
    make_expanded: Callable[..., Any],
    batch: Batch,
) -> None:
    """Planted: a multiplier off by 1e-6, the weights of the neighbouring tokens, or an L1 term that counts padding."""
    model = make_expanded(TARGETS).double()
    numbers = model.gradient_multipliers.to_dict()
    found = check.gradients_after(model, lambda: check.total_loss(model, batch))
    if mistake in numbers:
        numbers[mistake] += 1e-6
    if mistake == "shift":
        batch = {**batch, "routing_weight": batch["routing_weight"].roll(1, dims=1)}
    l1_mask = torch.ones(3, 12) if mistake == "l1" else None
    formula = Formula(check, model, make_base(), batch, numbers, l1_mask)
    assert check.largest_deviation(found, formula.gradients) > 100 * RELATIVE_TOLERANCE
