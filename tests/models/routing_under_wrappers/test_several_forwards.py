"""Each forward pass keeps its own routing until its backward pass, whatever happens in between."""

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_era import ExpandedGPTNeoForCausalLM, GradientMultipliers


@pytest.mark.parametrize("checkpointing", [None, "non-reentrant", "reentrant"])
@pytest.mark.parametrize("second_is_routed", [True, False])
def test_two_forwards_before_one_backward(
    second_is_routed: bool,
    checkpointing: str | None,
    model: ExpandedGPTNeoForCausalLM,
    batch: dict[str, Tensor],
    other_batch: dict[str, Tensor],
    check: Any,
) -> None:
    second: dict[str, Any] = other_batch if second_is_routed else {**other_batch, "routing_weight": None}
    first_alone = check.gradients_after(model, lambda: check.total_loss(model, batch))
    second_alone = check.gradients_after(model, lambda: check.total_loss(model, second))
    expected = {name: first_alone[name] + second_alone[name] for name in first_alone}  # type: ignore[operator]
    if checkpointing is not None:
        check.enable_checkpointing(model, use_reentrant=checkpointing == "reentrant")
    together = check.gradients_after(
        model, lambda: check.total_loss(model, batch), lambda: check.total_loss(model, second)
    )
    # The sum over the two passes is taken in another order: rounding of fp32.
    check.assert_same_gradients(together, expected, rtol=1e-5, atol=1e-6)
    swapped = check.gradients_after(
        model, lambda: check.total_loss(model, second), lambda: check.total_loss(model, batch)
    )
    check.assert_same_gradients(swapped, expected, rtol=1e-5, atol=1e-6)


def test_changing_the_multipliers_between_forward_and_backward_changes_nothing(
    model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor], check: Any
) -> None:
    expected = check.gradients_after(model, lambda: check.total_loss(model, batch))
    check.enable_checkpointing(model, use_reentrant=False)
    model.zero_grad(set_to_none=True)
    loss = check.total_loss(model, batch)
    model.gradient_multipliers = GradientMultipliers(0.0, 0.0, 0.0, 0.0)
    loss.backward()
    check.assert_same_gradients({name: value.grad for name, value in model.named_parameters()}, expected)


def test_a_failed_forward_leaves_no_routing_behind(
    model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor], check: Any
) -> None:
    plain: dict[str, Any] = {**batch, "routing_weight": None}
    expected = check.gradients_after(model, lambda: check.total_loss(model, plain))

    def fail(*arguments: Any) -> None:
        assert model.transformer.h[2].mlp.call.routing is not None  # the routing had arrived
        raise ValueError("in the middle of the last layer")

    hook = model.transformer.h[2].mlp.c_fc.register_forward_hook(fail)
    with pytest.raises(ValueError, match="in the middle of the last layer"):
        model(**batch)
    hook.remove()
    assert model.routing_channel.routing is None
    assert all(block.mlp.call.routing is None for block in (model.transformer.h[0], model.transformer.h[2]))
    check.assert_same_gradients(check.gradients_after(model, lambda: check.total_loss(model, plain)), expected)


def test_a_deep_copy_routes_on_its_own(model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor], check: Any) -> None:
    expected = check.gradients_after(model, lambda: check.total_loss(model, batch))
    plain: dict[str, Any] = {**batch, "routing_weight": None}
    expected_plain = check.gradients_after(model, lambda: check.total_loss(model, plain))
    twin = copy.deepcopy(model)
    assert twin.routing_channel is not model.routing_channel
    for block in (twin.transformer.h[0], twin.transformer.h[2]):
        assert block.routing_channel is twin.routing_channel
    model.zero_grad(set_to_none=True)
    twin.zero_grad(set_to_none=True)
    routed_loss, plain_loss = check.total_loss(twin, batch), check.total_loss(model, plain)
    (routed_loss + plain_loss).backward()
    check.assert_same_gradients({name: value.grad for name, value in twin.named_parameters()}, expected)
    check.assert_same_gradients({name: value.grad for name, value in model.named_parameters()}, expected_plain)
    with torch.no_grad():
        twin.transformer.h[0].mlp.auxiliary["forget"].up_projection.weight.zero_()
    assert torch.count_nonzero(model.transformer.h[0].mlp.auxiliary["forget"].up_projection.weight) > 0
    twin.set_active(None, False)
    assert model.transformer.h[0].mlp.auxiliary["forget"].active


def test_two_threads_call_one_model_at_once(
    model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor], other_batch: dict[str, Tensor], check: Any
) -> None:
    """One runs whole in the middle of the other's MLP: neither adds, nor routes by, what is the other's."""
    plain = {**other_batch, "routing_weight": None}
    expected = check.gradients_after(model, lambda: check.total_loss(model, batch, with_l1=True))
    with torch.no_grad():
        expected_plain = model(**plain, skip_logits=False).logits
    found = []

    def run_another(*arguments: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=lambda: found.append(model(**plain, skip_logits=False).logits))
            thread.start()
            thread.join()

    hooks = [block.mlp.c_fc.register_forward_hook(run_another) for block in model.transformer.h]
    check.assert_same_gradients(
        check.gradients_after(model, lambda: check.total_loss(model, batch, with_l1=True)), expected
    )
    assert len(found) == len(hooks)
    assert all(torch.equal(logits, expected_plain) for logits in found)
