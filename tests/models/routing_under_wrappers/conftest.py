"""A routed model, its batches, and the one check of all tests here: `assert_same_gradients`.

`test_checkpointing.py` shows that the check notices routing state that is reset before the backward pass.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_era import ExpandedGPTNeoForCausalLM, GradientMultipliers

MULTIPLIERS = GradientMultipliers(original_forget=-0.75, auxiliary_retain=0.5)
Gradients = dict[str, Tensor | None]


class RoutingCheck:
    """What the tests of this folder do with a model: take gradients of its losses, and compare them."""

    @staticmethod
    def enable_checkpointing(model: ExpandedGPTNeoForCausalLM, use_reentrant: bool) -> None:
        options = {"use_reentrant": use_reentrant}
        # transformers 5.23 and later have a new name, and the old one warns.
        if hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable(options)
        else:
            model.gradient_checkpointing_enable(options)
        blocks = model.transformer.h
        assert (
            all(getattr(block, "gradient_checkpointing", False) for block in blocks)
            or model.transformer.gradient_checkpointing
        )

    @staticmethod
    def total_loss(model: Callable[..., Any], batch: dict[str, Tensor], with_l1: bool = False) -> Tensor:
        outputs = model(**batch, output_activation_l1=with_l1)
        return outputs.loss + 0.01 * outputs.activation_l1 if with_l1 else outputs.loss

    @staticmethod
    def gradients_after(model: nn.Module, *losses: Callable[[], Tensor]) -> Gradients:
        """All forward passes first, then one backward pass."""
        model.zero_grad(set_to_none=True)
        torch.stack([loss() for loss in losses]).sum().backward()
        return {name: None if value.grad is None else value.grad.clone() for name, value in model.named_parameters()}

    @staticmethod
    def assert_same_gradients(actual: Gradients, expected: Gradients, rtol: float = 0.0, atol: float = 0.0) -> None:
        """Bit for bit, unless a tolerance is given."""
        assert sorted(actual) == sorted(expected)
        for name, gradient in expected.items():
            value = actual[name]
            assert (value is None) == (gradient is None), name
            if gradient is not None and value is not None:
                torch.testing.assert_close(
                    value, gradient, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
                )

    @staticmethod
    def assert_routed(model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor], gradients: Gradients) -> None:
        """The gradients are not those without routing: else a comparison of two unrouted passes would prove nothing."""
        plain = RoutingCheck.gradients_after(
            model, lambda: RoutingCheck.total_loss(model, {**batch, "routing_weight": None})
        )
        with pytest.raises(AssertionError):
            RoutingCheck.assert_same_gradients(gradients, plain, rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="session")
def check() -> type[RoutingCheck]:
    """A fixture because test modules cannot import this file."""
    return RoutingCheck


@pytest.fixture
def model(make_expanded: Callable[..., ExpandedGPTNeoForCausalLM], paths: Any) -> ExpandedGPTNeoForCausalLM:
    model = paths.set(make_expanded([0, 2]))
    model.gradient_multipliers = MULTIPLIERS
    return model


@pytest.fixture
def batch(make_batch: Callable[..., dict[str, Tensor]]) -> dict[str, Tensor]:
    return make_batch(seed=7)


@pytest.fixture
def other_batch(make_batch: Callable[..., dict[str, Tensor]]) -> dict[str, Tensor]:
    return make_batch(seed=8)
