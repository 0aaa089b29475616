"""Gradient checkpointing recomputes a routed forward pass with its routing, and the check notices when it does not."""

from typing import Any

import pytest
from torch import Tensor
from torch.utils.checkpoint import CheckpointError
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoBlock

from hf_era import ExpandedGPTNeoForCausalLM
from hf_era.models.layers import RoutedBlockMixin


@pytest.mark.parametrize("with_l1", [False, True])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(
    use_reentrant: bool, with_l1: bool, model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor], check: Any
) -> None:
    expected = check.gradients_after(model, lambda: check.total_loss(model, batch, with_l1))
    check.assert_routed(model, batch, expected)
    check.enable_checkpointing(model, use_reentrant)
    check.assert_same_gradients(check.gradients_after(model, lambda: check.total_loss(model, batch, with_l1)), expected)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_recomputes_at_all(
    use_reentrant: bool, model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor], check: Any
) -> None:
    """The tests around compare nothing new if no layer is recomputed: count the calls of a target layer's MLP."""
    calls = []
    model.transformer.h[0].mlp.register_forward_pre_hook(lambda *arguments: calls.append(1))
    check.gradients_after(model, lambda: check.total_loss(model, batch))
    assert len(calls) == 1
    check.enable_checkpointing(model, use_reentrant)
    check.gradients_after(model, lambda: check.total_loss(model, batch))
    assert len(calls) == 3


# ---- The check notices routing state that is reset too early ----


class LeakyBlock(RoutedBlockMixin, GPTNeoBlock):
    """Planted: reads the channel inside `forward`, where a recomputation finds it empty."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return GPTNeoBlock.__call__(self, *args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, routing=self.routing_channel.routing, **kwargs)


def plant_leak(model: ExpandedGPTNeoForCausalLM) -> None:
    for layer in (0, 2):
        model.transformer.h[layer].__class__ = LeakyBlock


def test_the_planted_leak_does_no_harm_without_checkpointing(
    model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor], check: Any
) -> None:
    """So what the next test catches is the early reset and nothing else."""
    expected = check.gradients_after(model, lambda: check.total_loss(model, batch))
    plant_leak(model)
    check.assert_same_gradients(check.gradients_after(model, lambda: check.total_loss(model, batch)), expected)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_routing_state_that_is_reset_too_early_is_caught(
    use_reentrant: bool, model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor], check: Any
) -> None:
    expected = check.gradients_after(model, lambda: check.total_loss(model, batch))
    plant_leak(model)
    check.enable_checkpointing(model, use_reentrant)
    # Non-reentrant checkpointing may notice by itself that the recomputation saved other tensors.
    with pytest.raises((AssertionError, CheckpointError)):
        check.assert_same_gradients(
            check.gradients_after(model, lambda: check.total_loss(model, batch)), expected, rtol=1e-3, atol=1e-5
        )


def test_the_leak_gives_the_gradients_without_routing_in_silence(
    model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor], check: Any
) -> None:
    """What it would do to a training run under reentrant checkpointing: no error, and forget gradient everywhere."""
    plain = check.gradients_after(model, lambda: check.total_loss(model, {**batch, "routing_weight": None}))  # type: ignore
    plant_leak(model)
    check.enable_checkpointing(model, use_reentrant=True)
    check.assert_same_gradients(check.gradients_after(model, lambda: check.total_loss(model, batch)), plain)
