"""bf16 autocast: bit-equal under checkpointing, scaled by exactly the factor, near fp32."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_era import ExpandedGPTNeoForCausalLM, GradientMultipliers


def autocast_loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    dtypes: set[torch.dtype] = set()
    activation = model.get_submodule("transformer.h.2.mlp.c_proj")
    handle = activation.register_forward_hook(
        lambda module, inputs, output: dtypes.update((inputs[0].dtype, output.dtype))
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**batch).loss
    handle.remove()
    assert dtypes == {torch.bfloat16}
    assert loss.dtype == torch.float32
    return loss


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_autocast_with_checkpointing_is_bit_equal_to_autocast_without(
    use_reentrant: bool, model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor], check: Any
) -> None:
    expected = check.gradients_after(model, lambda: autocast_loss(model, batch))
    check.enable_checkpointing(model, use_reentrant)
    check.assert_same_gradients(check.gradients_after(model, lambda: autocast_loss(model, batch)), expected)


def test_autocast_forward_does_not_depend_on_routing(
    model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor]
) -> None:
    for skip_logits in (False, True):
        inputs = {**batch, "skip_logits": skip_logits}
        with torch.autocast("cpu", dtype=torch.bfloat16):
            routed, plain = model(**inputs), model(**{**inputs, "routing_weight": None})
        assert torch.equal(routed.loss, plain.loss)
        if not skip_logits:
            assert routed.logits.dtype == torch.bfloat16
            assert torch.equal(routed.logits, plain.logits)


def test_autocast_scales_by_exactly_the_factor(
    make_expanded: Callable[..., ExpandedGPTNeoForCausalLM], batch: dict[str, Tensor], check: Any, paths: Any
) -> None:
    """In the last layer, with a power of two: the scaled gradient is exact in bf16 too."""
    model = paths.set(make_expanded([2]))
    model.gradient_multipliers = GradientMultipliers(original_forget=-0.5, auxiliary_forget=0.25)
    forget = {**batch, "routing_weight": torch.zeros(3, 12)}
    plain = check.gradients_after(model, lambda: autocast_loss(model, {**batch, "routing_weight": None}))
    routed = check.gradients_after(model, lambda: autocast_loss(model, forget))
    prefix = "transformer.h.2.mlp"
    assert torch.equal(routed[f"{prefix}.c_fc.weight"], -0.5 * plain[f"{prefix}.c_fc.weight"])  # type: ignore
    auxiliary = f"{prefix}.auxiliary.forget"
    assert torch.equal(
        routed[f"{auxiliary}.up_projection.weight"],  # type: ignore[arg-type]
        0.25 * plain[f"{auxiliary}.up_projection.weight"],  # type: ignore[operator]
    )
    for name in (f"{prefix}.c_proj.weight", f"{prefix}.c_proj.bias", f"{auxiliary}.down_projection.weight"):
        assert torch.equal(routed[name], plain[name])  # type: ignore[arg-type]


def test_autocast_is_near_fp32(model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor], check: Any) -> None:
    exact = check.gradients_after(model, lambda: check.total_loss(model, batch))
    rounded = check.gradients_after(model, lambda: autocast_loss(model, batch))
    for name, gradient in exact.items():
        difference = (rounded[name] - gradient).norm() / gradient.norm()  # type: ignore[operator, union-attr]
        assert difference < 0.05, f"{name}: {difference:.3f}"
