"""Routing survives what wraps a model: gradient checkpointing, several forwards, compile, autocast, copies.

Every test uses one check, `assert_same_gradients`, and the last ones show that it notices routing state that is reset
before the backward pass.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoBlock

from hf_era import ExpandedGPTNeoForCausalLM, GradientMultipliers
from hf_era.models.routed_layers import RoutedBlockMixin

MULTIPLIERS = GradientMultipliers(original_forget=-0.75, auxiliary_retain=0.5)
Gradients = dict[str, Tensor | None]


@pytest.fixture
def model(make_expanded: Callable[..., ExpandedGPTNeoForCausalLM]) -> ExpandedGPTNeoForCausalLM:
    model = make_expanded([0, 2])
    model.gradient_multipliers = MULTIPLIERS
    return model


@pytest.fixture
def batch(make_batch: Callable[..., dict[str, Tensor]]) -> dict[str, Tensor]:
    return make_batch(seed=7)


@pytest.fixture
def other_batch(make_batch: Callable[..., dict[str, Tensor]]) -> dict[str, Tensor]:
    return make_batch(seed=8)


def enable_checkpointing(model: ExpandedGPTNeoForCausalLM, use_reentrant: bool) -> None:
    options = {"use_reentrant": use_reentrant}
    # transformers 5.18 and later have a new name, and the old one warns.
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(options)
    else:
        model.gradient_checkpointing_enable(options)
    blocks = model.transformer.h
    assert (
        all(getattr(block, "gradient_checkpointing", False) for block in blocks)
        or model.transformer.gradient_checkpointing
    )


def total_loss(model: Callable[..., Any], batch: dict[str, Tensor], with_l1: bool = False) -> Tensor:
    outputs = model(**batch, output_activation_l1=with_l1)
    return outputs.loss + 0.01 * outputs.activation_l1 if with_l1 else outputs.loss


def gradients_after(model: nn.Module, *losses: Callable[[], Tensor]) -> Gradients:
    """All forward passes first, then one backward pass."""
    model.zero_grad(set_to_none=True)
    torch.stack([loss() for loss in losses]).sum().backward()
    return {name: None if value.grad is None else value.grad.clone() for name, value in model.named_parameters()}


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


def assert_routed(model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor], gradients: Gradients) -> None:
    """The gradients are not those without routing: else a comparison of two unrouted passes would prove nothing."""
    plain = gradients_after(model, lambda: total_loss(model, {**batch, "routing_weight": None}))  # type: ignore[dict-item]
    with pytest.raises(AssertionError):
        assert_same_gradients(gradients, plain, rtol=1e-3, atol=1e-5)


# ---- Gradient checkpointing ----


@pytest.mark.parametrize("with_l1", [False, True])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(
    use_reentrant: bool, with_l1: bool, model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor]
) -> None:
    expected = gradients_after(model, lambda: total_loss(model, batch, with_l1))
    assert_routed(model, batch, expected)
    enable_checkpointing(model, use_reentrant)
    assert_same_gradients(gradients_after(model, lambda: total_loss(model, batch, with_l1)), expected)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_recomputes_at_all(
    use_reentrant: bool, model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor]
) -> None:
    """The tests around compare nothing new if no layer is recomputed: count the calls of a target layer's MLP."""
    calls = []
    model.transformer.h[0].mlp.register_forward_pre_hook(lambda *arguments: calls.append(1))
    gradients_after(model, lambda: total_loss(model, batch))
    assert len(calls) == 1
    enable_checkpointing(model, use_reentrant)
    gradients_after(model, lambda: total_loss(model, batch))
    assert len(calls) == 3


# ---- Two forwards before one backward ----


@pytest.mark.parametrize("checkpointing", [None, "non-reentrant", "reentrant"])
@pytest.mark.parametrize("second_is_routed", [True, False])
def test_two_forwards_before_one_backward(
    second_is_routed: bool,
    checkpointing: str | None,
    model: ExpandedGPTNeoForCausalLM,
    batch: dict[str, Tensor],
    other_batch: dict[str, Tensor],
) -> None:
    second: dict[str, Any] = other_batch if second_is_routed else {**other_batch, "routing_weight": None}
    first_alone = gradients_after(model, lambda: total_loss(model, batch))
    second_alone = gradients_after(model, lambda: total_loss(model, second))
    expected = {name: first_alone[name] + second_alone[name] for name in first_alone}  # type: ignore[operator]
    if checkpointing is not None:
        enable_checkpointing(model, use_reentrant=checkpointing == "reentrant")
    together = gradients_after(model, lambda: total_loss(model, batch), lambda: total_loss(model, second))
    # The sum over the two passes is taken in another order: rounding of fp32.
    assert_same_gradients(together, expected, rtol=1e-5, atol=1e-6)
    swapped = gradients_after(model, lambda: total_loss(model, second), lambda: total_loss(model, batch))
    assert_same_gradients(swapped, expected, rtol=1e-5, atol=1e-6)


def test_changing_the_multipliers_between_forward_and_backward_changes_nothing(
    model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor]
) -> None:
    expected = gradients_after(model, lambda: total_loss(model, batch))
    enable_checkpointing(model, use_reentrant=False)
    model.zero_grad(set_to_none=True)
    loss = total_loss(model, batch)
    model.gradient_multipliers = GradientMultipliers(0.0, 0.0, 0.0, 0.0)
    loss.backward()
    assert_same_gradients({name: value.grad for name, value in model.named_parameters()}, expected)


def test_a_failed_forward_leaves_no_routing_behind(model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor]) -> None:
    plain: dict[str, Any] = {**batch, "routing_weight": None}
    expected = gradients_after(model, lambda: total_loss(model, plain))
    with pytest.raises(ValueError, match=r"one value per token, shape \(3, 12\), got \(3, 11\)"):
        model(**{**batch, "routing_weight": batch["routing_weight"][:, 1:]})
    assert model.routing_channel.routing is None
    assert all(block.mlp.routing is None for block in (model.transformer.h[0], model.transformer.h[2]))
    assert_same_gradients(gradients_after(model, lambda: total_loss(model, plain)), expected)


# ---- torch.compile ----


# Dynamo itself instantiates an autograd function while it traces one; torch warns of that, as it would of a user.
dynamo_warning = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


def check_compiled(
    model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor], other_batch: dict[str, Tensor], backend: str
) -> None:
    """First routed, then with another routing weight, then without: compiled code must not keep the first one."""
    plain: dict[str, Any] = {**batch, "routing_weight": None}
    inputs = (batch, {**batch, "routing_weight": other_batch["routing_weight"]}, plain)
    expected = [gradients_after(model, lambda values=values: total_loss(model, values)) for values in inputs]
    assert_routed(model, batch, expected[0])
    torch.compiler.reset()
    try:
        compiled = torch.compile(model, backend=backend)
        for values, reference in zip(inputs, expected, strict=True):
            actual = gradients_after(model, lambda values=values: total_loss(compiled, values))
            assert_same_gradients(actual, reference, rtol=1e-4, atol=1e-6)
    finally:
        torch.compiler.reset()


@dynamo_warning
def test_compile_aot_eager(
    model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor], other_batch: dict[str, Tensor]
) -> None:
    check_compiled(model, batch, other_batch, "aot_eager")


@dynamo_warning
# Importing inductor runs `torch.jit.script`, which torch itself has deprecated.
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.slow
def test_compile_inductor(
    model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor], other_batch: dict[str, Tensor]
) -> None:
    check_compiled(model, batch, other_batch, "inductor")


@dynamo_warning
# Dynamo reads `.grad` of an intermediate tensor where its graph is cut.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.slow
def test_compile_with_gradient_checkpointing(
    model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor], other_batch: dict[str, Tensor]
) -> None:
    enable_checkpointing(model, use_reentrant=False)
    check_compiled(model, batch, other_batch, "aot_eager")


# ---- bf16 autocast ----


def autocast_loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(**batch)
    assert outputs.logits.dtype == torch.bfloat16
    return outputs.loss


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_autocast_with_checkpointing_is_bit_equal_to_autocast_without(
    use_reentrant: bool, model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor]
) -> None:
    expected = gradients_after(model, lambda: autocast_loss(model, batch))
    enable_checkpointing(model, use_reentrant)
    assert_same_gradients(gradients_after(model, lambda: autocast_loss(model, batch)), expected)


def test_autocast_forward_does_not_depend_on_routing(
    model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor]
) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routed, plain = model(**batch), model(**{**batch, "routing_weight": None})
    assert torch.equal(routed.logits, plain.logits)


def test_autocast_scales_by_exactly_the_factor(
    make_expanded: Callable[..., ExpandedGPTNeoForCausalLM], batch: dict[str, Tensor]
) -> None:
    """In the last layer, with a power of two: the scaled gradient is exact in bf16 too."""
    model = make_expanded([2])
    model.gradient_multipliers = GradientMultipliers(original_forget=-0.5, auxiliary_forget=0.25)
    forget = {**batch, "routing_weight": torch.zeros(3, 12)}
    plain = gradients_after(model, lambda: autocast_loss(model, {**batch, "routing_weight": None}))
    routed = gradients_after(model, lambda: autocast_loss(model, forget))
    prefix = "transformer.h.2.mlp"
    assert torch.equal(routed[f"{prefix}.c_fc.weight"], -0.5 * plain[f"{prefix}.c_fc.weight"])  # type: ignore
    auxiliary = f"{prefix}.auxiliary.forget"
    assert torch.equal(
        routed[f"{auxiliary}.up_projection.weight"],  # type: ignore[arg-type]
        0.25 * plain[f"{auxiliary}.up_projection.weight"],  # type: ignore[operator]
    )
    for name in (f"{prefix}.c_proj.weight", f"{prefix}.c_proj.bias", f"{auxiliary}.down_projection.weight"):
        assert torch.equal(routed[name], plain[name])  # type: ignore[arg-type]


def test_autocast_is_near_fp32(model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor]) -> None:
    exact = gradients_after(model, lambda: total_loss(model, batch))
    rounded = gradients_after(model, lambda: autocast_loss(model, batch))
    for name, gradient in exact.items():
        difference = (rounded[name] - gradient).norm() / gradient.norm()  # type: ignore[operator, union-attr]
        assert difference < 0.05, f"{name}: {difference:.3f}"


# ---- Routing that changes nothing, and copies ----


@pytest.mark.parametrize("ablated", [False, True])
def test_multipliers_of_one_equal_no_routing_bit_for_bit(
    ablated: bool, model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor]
) -> None:
    model.set_ablated(ablated)
    plain = gradients_after(model, lambda: total_loss(model, {**batch, "routing_weight": None}))  # type: ignore
    model.gradient_multipliers = GradientMultipliers(1.0, 1.0, 1.0, 1.0)
    for weight in (torch.ones(3, 12), torch.zeros(3, 12)):
        inputs = {**batch, "routing_weight": weight}
        assert_same_gradients(gradients_after(model, lambda inputs=inputs: total_loss(model, inputs)), plain)


def test_retain_weights_equal_no_routing_bit_for_bit(
    model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor]
) -> None:
    plain = gradients_after(model, lambda: total_loss(model, {**batch, "routing_weight": None}))  # type: ignore
    model.gradient_multipliers = GradientMultipliers()  # both 1 on retain tokens, whatever forget tokens get
    retain = {**batch, "routing_weight": torch.ones(3, 12)}
    assert_same_gradients(gradients_after(model, lambda: total_loss(model, retain)), plain)


def test_l1_adds_its_own_gradient_which_routing_does_not_scale(
    model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor]
) -> None:
    with_l1 = gradients_after(model, lambda: total_loss(model, batch, with_l1=True))
    without = gradients_after(model, lambda: total_loss(model, batch))

    def l1_alone() -> Tensor:
        plain: dict[str, Any] = {**batch, "routing_weight": None}
        return 0.01 * model(**plain, output_activation_l1=True).activation_l1

    # `lm_head` is tied and has no L1 gradient of its own; parameters behind the last activation have none at all.
    norm = gradients_after(model, l1_alone)
    last = {name for name, gradient in norm.items() if gradient is None}
    assert "transformer.ln_f.weight" in last
    for name, gradient in without.items():
        # What lies before a *later* target layer gets that layer's L1 gradient through an earlier one's scaled path, so
        # the plain sum holds for the last target layer's own up projection and normalisation.
        if name in ("transformer.h.2.mlp.c_fc.weight", "transformer.h.2.ln_2.weight", "transformer.ln_f.weight"):
            added = norm[name] if norm[name] is not None else torch.zeros_like(gradient)  # type: ignore[arg-type]
            torch.testing.assert_close(with_l1[name], gradient + added, rtol=1e-4, atol=1e-6)  # type: ignore
            assert (norm[name] is None) == (name == "transformer.ln_f.weight")


def test_a_deep_copy_routes_on_its_own(model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor]) -> None:
    expected = gradients_after(model, lambda: total_loss(model, batch))
    plain: dict[str, Any] = {**batch, "routing_weight": None}
    expected_plain = gradients_after(model, lambda: total_loss(model, plain))
    twin = copy.deepcopy(model)
    assert twin.routing_channel is not model.routing_channel
    for block in (twin.transformer.h[0], twin.transformer.h[2]):
        assert block.routing_channel is twin.routing_channel
    model.zero_grad(set_to_none=True)
    twin.zero_grad(set_to_none=True)
    routed_loss, plain_loss = total_loss(twin, batch), total_loss(model, plain)
    (routed_loss + plain_loss).backward()
    assert_same_gradients({name: value.grad for name, value in twin.named_parameters()}, expected)
    assert_same_gradients({name: value.grad for name, value in model.named_parameters()}, expected_plain)
    with torch.no_grad():
        twin.transformer.h[0].mlp.auxiliary["forget"].up_projection.weight.zero_()
    assert torch.count_nonzero(model.transformer.h[0].mlp.auxiliary["forget"].up_projection.weight) > 0
    twin.set_ablated(True)
    assert model.transformer.h[0].mlp.auxiliary["forget"].active


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
    model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor]
) -> None:
    """So what the next test catches is the early reset and nothing else."""
    expected = gradients_after(model, lambda: total_loss(model, batch))
    plant_leak(model)
    assert_same_gradients(gradients_after(model, lambda: total_loss(model, batch)), expected)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_routing_state_that_is_reset_too_early_is_caught(
    use_reentrant: bool, model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor]
) -> None:
    expected = gradients_after(model, lambda: total_loss(model, batch))
    plant_leak(model)
    enable_checkpointing(model, use_reentrant)
    # Non-reentrant checkpointing may notice by itself that the recomputation saved other tensors.
    with pytest.raises((AssertionError, CheckpointError)):
        assert_same_gradients(gradients_after(model, lambda: total_loss(model, batch)), expected, rtol=1e-3, atol=1e-5)


def test_the_leak_gives_the_gradients_without_routing_in_silence(
    model: ExpandedGPTNeoForCausalLM, batch: dict[str, Tensor]
) -> None:
    """What it would do to a training run under reentrant checkpointing: no error, and forget gradient everywhere."""
    plain = gradients_after(model, lambda: total_loss(model, {**batch, "routing_weight": None}))  # type: ignore
    plant_leak(model)
    enable_checkpointing(model, use_reentrant=True)
    assert_same_gradients(gradients_after(model, lambda: total_loss(model, batch)), plain)
