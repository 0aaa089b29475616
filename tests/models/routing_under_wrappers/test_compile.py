"""Compiled code routes as eager code does, and keeps no routing weight from an earlier call."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_era import ExpandedGPTNeoForCausalLM

# Dynamo itself instantiates an autograd function while it traces one; torch warns of that, as it would of a user.
dynamo_warning = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


def check_compiled(
    check: Any, model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor], other_batch: dict[str, Tensor], backend: str
) -> None:
    """First routed, then with another routing weight, then without: compiled code must not keep the first one."""
    plain: dict[str, Any] = {**batch, "routing_weight": None}
    inputs = (batch, {**batch, "routing_weight": other_batch["routing_weight"]}, plain)
    expected = [
        check.gradients_after(model, lambda values=values: check.total_loss(model, values)) for values in inputs
    ]
    check.assert_routed(model, batch, expected[0])
    torch.compiler.reset()
    try:
        compiled = torch.compile(model, backend=backend)
        for values, reference in zip(inputs, expected, strict=True):
            actual = check.gradients_after(model, lambda values=values: check.total_loss(compiled, values))
            check.assert_same_gradients(actual, reference, rtol=1e-4, atol=1e-6)
    finally:
        torch.compiler.reset()


@pytest.fixture(params=[True, pytest.param(False, marks=pytest.mark.slow)], ids=["fast", "slow"])
def paths(request: pytest.FixtureRequest, paths_of: Any) -> Any:
    """As everywhere, but compiling twice takes long."""
    return paths_of(request.param)


@dynamo_warning
def test_compile_aot_eager(
    model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor], other_batch: dict[str, Tensor], check: Any
) -> None:
    check_compiled(check, model, batch, other_batch, "aot_eager")


@dynamo_warning
# Importing inductor runs `torch.jit.script`, which torch itself has deprecated.
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.slow
def test_compile_inductor(
    model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor], other_batch: dict[str, Tensor], check: Any
) -> None:
    check_compiled(check, model, batch, other_batch, "inductor")


@dynamo_warning
# Dynamo reads `.grad` of an intermediate tensor where its graph is cut.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.slow
def test_compile_with_gradient_checkpointing(
    model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor], other_batch: dict[str, Tensor], check: Any
) -> None:
    check.enable_checkpointing(model, use_reentrant=False)
    check_compiled(check, model, batch, other_batch, "aot_eager")
