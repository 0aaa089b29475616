"""Routing that changes nothing is bit-equal to no routing, and the L1 term's gradient is not routed."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_era import ExpandedGPTNeoForCausalLM, GradientMultipliers


@pytest.mark.parametrize("ablated", [False, True])
def test_multipliers_of_one_equal_no_routing_bit_for_bit(
    ablated: bool, model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor], check: Any
) -> None:
    model.set_active(None, not ablated)
    plain = check.gradients_after(model, lambda: check.total_loss(model, {**batch, "routing_weight": None}))  # type: ignore
    model.gradient_multipliers = GradientMultipliers(1.0, 1.0, 1.0, 1.0)
    for weight in (torch.ones(3, 12), torch.zeros(3, 12)):
        inputs = {**batch, "routing_weight": weight}
        check.assert_same_gradients(
            check.gradients_after(model, lambda inputs=inputs: check.total_loss(model, inputs)), plain
        )


def test_retain_weights_equal_no_routing_bit_for_bit(
    model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor], check: Any
) -> None:
    plain = check.gradients_after(model, lambda: check.total_loss(model, {**batch, "routing_weight": None}))  # type: ignore
    model.gradient_multipliers = GradientMultipliers()  # both 1 on retain tokens, whatever forget tokens get
    retain = {**batch, "routing_weight": torch.ones(3, 12)}
    check.assert_same_gradients(check.gradients_after(model, lambda: check.total_loss(model, retain)), plain)


def test_l1_adds_its_own_gradient_which_routing_does_not_scale(
    model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor], check: Any
) -> None:
    with_l1 = check.gradients_after(model, lambda: check.total_loss(model, batch, with_l1=True))
    without = check.gradients_after(model, lambda: check.total_loss(model, batch))

    def l1_alone() -> Tensor:
        plain: dict[str, Any] = {**batch, "routing_weight": None}
        return 0.01 * model(**plain, output_activation_l1=True).activation_l1

    # `lm_head` is tied and has no L1 gradient of its own; parameters behind the last activation have none at all.
    norm = check.gradients_after(model, l1_alone)
    last = {name for name, gradient in norm.items() if gradient is None}
    assert "transformer.ln_f.weight" in last
    for name, gradient in without.items():
        # What lies before a *later* target layer gets that layer's L1 gradient through an earlier one's scaled path, so
        # the plain sum holds for the last target layer's own up projection and normalisation.
        if name in ("transformer.h.2.mlp.c_fc.weight", "transformer.h.2.ln_2.weight", "transformer.ln_f.weight"):
            added = norm[name] if norm[name] is not None else torch.zeros_like(gradient)  # type: ignore[arg-type]
            torch.testing.assert_close(with_l1[name], gradient + added, rtol=1e-4, atol=1e-6)  # type: ignore
            assert (norm[name] is None) == (name == "transformer.ln_f.weight")
