"""`torch.compile` takes a routed training step as one graph, and its gradients are those of the eager one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_era import ExpandedGPTNeoForCausalLM
from hf_era.models.fast import causal_lm

# Dynamo itself instantiates an autograd function while it traces one; torch warns of that, as it would of a user.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


@pytest.fixture
def inputs(make_inputs: Callable[..., dict[str, Tensor]]) -> dict[str, Any]:
    weight = torch.rand((3, 12), generator=torch.Generator().manual_seed(0))
    return {**make_inputs("right", prompt=4), "routing_weight": weight, "output_activation_l1": True}


def test_one_graph_with_the_eager_gradients(
    expanded: ExpandedGPTNeoForCausalLM, inputs: dict[str, Any], compare: Any
) -> None:
    """With a number of items, as the Trainer gives it; without one: `routing_under_wrappers` and `families`."""
    inputs["num_items_in_batch"] = torch.tensor(17)
    assert (inputs["labels"][:, 1:] != -100).sum() != 17
    expected = compare.result(expanded, inputs)
    torch.compiler.reset()
    try:
        compiled: Any = torch.compile(expanded, fullgraph=True, backend="aot_eager")  # a graph break is an error
        assert compiled(**inputs).logits is None
        actual = compare.gradients(expanded, compare.loss(compiled, inputs))
    finally:
        torch.compiler.reset()
    compare.assert_same(actual, expected)


def test_a_graph_break_would_be_an_error(
    expanded: ExpandedGPTNeoForCausalLM, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: the values of the mask are read while compiling, as the eager forward pass does."""
    original = causal_lm.mask_for_attention

    def breaks(model: Any, inputs: dict[str, Any]) -> Any:
        assert int((inputs["attention_mask"] == 0).sum()) > 0
        return original(model, inputs)

    monkeypatch.setattr(causal_lm, "mask_for_attention", breaks)
    torch.compiler.reset()
    try:
        with pytest.raises(torch._dynamo.exc.TorchDynamoException, match="data-dependent"):
            torch.compile(expanded, fullgraph=True, backend="aot_eager")(**inputs)
    finally:
        torch.compiler.reset()


def test_the_second_step_is_not_compiled_again(expanded: ExpandedGPTNeoForCausalLM, inputs: dict[str, Any]) -> None:
    """A forward pass may leave nothing behind that the compiled code was not compiled for."""
    graphs = []

    def count(graph: Any, _example: Any) -> Any:
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    try:
        compiled: Any = torch.compile(expanded, backend=count)
        compiled(**inputs)
        first = len(graphs)
        for _ in range(3):
            compiled(**inputs)
    finally:
        torch.compiler.reset()
    assert first > 0
    assert len(graphs) == first
