"""What routing does to gradients token by token and layer by layer, and that it does nothing to the forward pass."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_era import ExpandedGPTNeoForCausalLM, GradientMultipliers

SCALE = -0.5  # a power of two, so that scaling rounds nothing


@pytest.mark.parametrize("forget", [0.0, SCALE, -0.75])
def test_concept_scales_the_gradient_of_the_forget_tokens_only(
    forget: float,
    make_expanded: Callable[..., ExpandedGPTNeoForCausalLM],
    routed_gradients: Callable,
    concept_weight: Tensor,
    paths: Any,
) -> None:
    """The up projection's gradient is the sum over tokens of factor * (what the token gives without routing)."""
    model = paths.set(make_expanded([1], tie_word_embeddings=False))
    seen: dict[str, Tensor] = {}

    def note(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        seen["input"] = inputs[0].detach()
        output.register_hook(lambda gradient: seen.update(gradient=gradient))

    up_projection = model.transformer.h[1].mlp.c_fc
    handle = up_projection.register_forward_hook(note)
    routed_gradients(model)
    handle.remove()
    factor = torch.where(concept_weight == 0, forget, 1.0)
    expected = torch.einsum("bs,bsi,bsj->ij", factor, seen["gradient"], seen["input"])
    vanilla = torch.einsum("bsi,bsj->ij", seen["gradient"], seen["input"])
    routed = routed_gradients(model, GradientMultipliers(original_forget=forget, auxiliary_forget=1), concept_weight)[
        "transformer.h.1.mlp.c_fc.weight"
    ]
    torch.testing.assert_close(routed, expected, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(routed, vanilla, rtol=1e-2, atol=1e-3)


def test_several_target_layers_scale_one_after_the_other(
    make_expanded: Callable[..., ExpandedGPTNeoForCausalLM], routed_gradients: Callable, paths: Any
) -> None:
    """The last target layer's up projection is scaled once, exactly; an earlier one mixes paths."""
    model = paths.set(make_expanded([0, 2], tie_word_embeddings=False))
    vanilla, routed = (
        routed_gradients(model),
        routed_gradients(model, GradientMultipliers(original_forget=SCALE, auxiliary_forget=SCALE), torch.zeros(3, 12)),
    )
    last, first = "transformer.h.2.mlp.c_fc.weight", "transformer.h.0.mlp.c_fc.weight"
    assert torch.equal(routed[last], SCALE * vanilla[last])
    assert not torch.allclose(routed[first], SCALE * vanilla[first], rtol=1e-2, atol=1e-4)
    assert torch.equal(routed["transformer.h.2.mlp.c_proj.weight"], vanilla["transformer.h.2.mlp.c_proj.weight"])


def adamw_update(gradient: Tensor) -> Tensor:
    """What one step of AdamW with a learning rate of 1 adds to a parameter."""
    parameter = nn.Parameter(torch.zeros_like(gradient))
    parameter.grad = gradient.clone()
    torch.optim.AdamW([parameter], lr=1.0, weight_decay=0.0, eps=1e-15).step()
    return parameter.detach()


def test_under_adamw_the_sign_of_a_multiplier_acts_and_its_size_in_a_mixture_only(
    make_expanded: Callable[..., ExpandedGPTNeoForCausalLM], routed_gradients: Callable, concept_weight: Tensor
) -> None:
    """As `GradientMultipliers` says it; what a multiplier of 0 leaves learning is in the table of gradients."""
    model = make_expanded([1], tie_word_embeddings=False)
    up, auxiliary = "transformer.h.1.mlp.c_fc.weight", "transformer.h.1.mlp.auxiliary.forget.up_projection.weight"

    def updates(size: float, weight: Tensor) -> list[Tensor]:
        gradients = routed_gradients(model, GradientMultipliers(original_forget=size, auxiliary_forget=size), weight)
        return [adamw_update(gradients[name]) for name in (up, auxiliary)]

    only_forget = torch.zeros(3, 12)
    for whole, tenth, negative in zip(*(updates(size, only_forget) for size in (1.0, 0.1, -0.1)), strict=True):
        torch.testing.assert_close(tenth, whole, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(negative, -whole, rtol=1e-4, atol=1e-5)
        assert whole.abs().max() > 0.9
    for whole, tenth in zip(*(updates(size, concept_weight) for size in (1.0, 0.1)), strict=True):
        assert (whole - tenth).abs().max() > 0.5


@pytest.mark.parametrize("skip_logits", [False, True], ids=["logits", "loss only"])
@pytest.mark.parametrize("width", [8, 5])
@pytest.mark.parametrize("ablated", [False, True], ids=["module on", "ablated"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_is_bit_equal_with_and_without_routing(
    dtype: torch.dtype,
    width: int,
    skip_logits: bool,
    ablated: bool,
    make_expanded: Callable[..., ExpandedGPTNeoForCausalLM],
    make_batch: Callable[..., dict[str, Tensor]],
    paths: Any,
) -> None:
    model, batch = paths.set(make_expanded(width=width).to(dtype)), make_batch()
    model.set_active(None, not ablated)
    inputs = {**batch, "skip_logits": skip_logits}
    plain = model(**{**inputs, "routing_weight": None})
    for with_l1 in (False, True):
        routed = model(**inputs, output_activation_l1=with_l1)
        assert torch.equal(routed.loss, plain.loss)
        if skip_logits and paths.fast:
            assert routed.logits is None
        else:
            assert routed.logits.dtype == dtype
            assert torch.equal(routed.logits, plain.logits)
