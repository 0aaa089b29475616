"""Every family routes the same under gradient checkpointing, autocast and `torch.compile`."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_era.models import FAMILIES

Batch = dict[str, Tensor]


def relative_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Of all gradients together, as norms."""
    differences = [(found[name].float() - value).norm() for name, value in expected.items()]
    return float(torch.stack(differences).norm() / torch.stack([value.norm() for value in expected.values()]).norm())


def error_without_routing(check: Any, model: Any, batch: Batch, routed: dict[str, Tensor]) -> float:
    """How far off the gradients would be that are not routed. A comparison of two unrouted passes would prove nothing."""
    error = relative_error(check.gradients_after(model, lambda: check.total_loss(model, batch, routed=False)), routed)
    assert error > 0.2
    return error


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(
    use_reentrant: bool, family: Any, paths: Any, check: Any, make_expanded: Callable[..., Any], batch: Batch
) -> None:
    model, calls = paths.set(make_expanded()), []
    expected = check.gradients_after(model, lambda: check.total_loss(model, batch))
    error_without_routing(check, model, batch, expected)
    if hasattr(model, "activation_checkpointing_enable"):  # the name since transformers 5.23
        model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    else:
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    family.get_mlp(family.get_blocks(model)[0]).register_forward_pre_hook(lambda *arguments: calls.append(1))
    found = check.gradients_after(model, lambda: check.total_loss(model, batch))
    assert len(calls) == 2  # it is recomputed
    assert sorted(found) == sorted(expected)
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


def test_bf16_autocast_is_near_fp32(
    family: Any, paths: Any, check: Any, make_expanded: Callable[..., Any], batch: Batch
) -> None:
    model, dtypes = paths.set(make_expanded()), set()
    exact = check.gradients_after(model, lambda: check.total_loss(model, batch))
    unrouted = error_without_routing(check, model, batch, exact)
    down = family.get_down_projection(family.get_mlp(family.get_blocks(model)[0]))
    down.register_forward_hook(lambda _module, _inputs, output: dtypes.add(output.dtype))

    def loss() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return check.total_loss(model, batch)

    rounded = check.gradients_after(model, loss)
    assert dtypes == {torch.bfloat16}
    assert {gradient.dtype for gradient in rounded.values()} == {torch.float32}
    assert sorted(rounded) == sorted(exact)
    assert relative_error(rounded, exact) < 0.2 * unrouted


def test_a_model_in_bf16_learns_what_one_in_fp32_does(
    check: Any, make_expanded: Callable[..., Any], batch: Batch
) -> None:
    rounded = make_expanded().bfloat16()
    exact = make_expanded()
    exact.load_state_dict(rounded.state_dict())
    expected = check.gradients_after(exact, lambda: check.total_loss(exact, batch))
    found = check.gradients_after(rounded, lambda: check.total_loss(rounded, batch))
    assert {gradient.dtype for gradient in found.values()} == {torch.bfloat16}
    assert sorted(found) == sorted(expected)
    assert relative_error(found, expected) < 0.2 * error_without_routing(check, exact, batch, expected)


@pytest.mark.parametrize(
    "model_type",
    # An ungated one, GPT-Neo, is compiled in `routing_under_wrappers` in any case; the blocks of the others are Llama's.
    [
        pytest.param(name, marks=() if name == "llama" else pytest.mark.slow)
        for name in sorted(set(FAMILIES) - {"gpt_neo", "mistral", "qwen2", "qwen3"})
    ],
    indirect=True,
)
# Dynamo itself instantiates an autograd function while it traces one; torch warns of that, as it would of a user.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled(check: Any, make_expanded: Callable[..., Any], batch: Batch) -> None:
    """As one graph; then with other weights: compiled code keeps none of the first."""
    model = make_expanded([0], num_hidden_layers=1, layer_types=["full_attention"], attention_types=[[["global"], 1]])
    batches = [batch, {**batch, "routing_weight": 1 - batch["routing_weight"]}]
    expected = [
        check.gradients_after(model, lambda values=values: check.total_loss(model, values)) for values in batches
    ]
    error_without_routing(check, model, batch, expected[0])
    assert relative_error(*expected) > 0.3
    torch.compiler.reset()
    try:
        compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
        for values, reference in zip(batches, expected, strict=True):
            found = check.gradients_after(model, lambda values=values: check.total_loss(compiled, values))
            assert sorted(found) == sorted(reference)
            assert relative_error(found, reference) <= 1e-5
    finally:
        torch.compiler.reset()
