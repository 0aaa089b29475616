"""What a forward pass tells its target layers, and the L1 norm."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch.distributed.utils import _apply_to_tensors

from hf_era.routing import (
    ActivationRouter,
    GradientMultipliers,
    PartRouting,
    Router,
    RoutingBatch,
    TokenRouting,
    activation_l1,
    build_token_routing,
    routed_gelu,
    scale_gradient,
)

MULTIPLIERS = GradientMultipliers(original_forget=-0.5, auxiliary_retain=0.25)
ROUTER = ActivationRouter(MULTIPLIERS)


def test_nothing_to_do_is_none() -> None:
    assert build_token_routing(None, ROUTER) is None
    assert build_token_routing(None, ROUTER, ["forget"], attention_mask=torch.ones(2, 3)) is None


def test_factors_follow_the_multipliers_in_fp32() -> None:
    weight = torch.rand(2, 3).bfloat16()
    routing = build_token_routing(weight, ROUTER, ["forget"])
    assert routing is not None
    original, auxiliary = (routing.of(part).activation_multiplier for part in (None, "forget"))
    assert original is not None
    assert auxiliary is not None
    assert original.dtype == auxiliary.dtype == torch.float32
    assert torch.equal(original, MULTIPLIERS.original_factor(weight.float()))
    assert torch.equal(auxiliary, MULTIPLIERS.auxiliary_factor(weight.float()))
    assert all(routing.of(part).parameter_multiplier is None for part in (None, "forget"))
    assert routing.measure_activation_l1 is False
    assert routing.activation_mask is None


def test_fsdp_finds_no_tensors_to_cast() -> None:
    """FSDP2's mixed precision calls this on a block's arguments; it walks lists, dicts and dataclasses."""
    routing = build_token_routing(
        torch.tensor([[0.2, 1.0]]), ActivationRouter(), ["forget"], torch.ones(1, 1), torch.ones(1, 2), True
    )
    found: list[torch.Tensor] = []
    _apply_to_tensors(found.append, {"routing": routing, "hidden_states": torch.zeros(1)})
    assert [tuple(value.shape) for value in found] == [(1,)]


def test_l1_alone_does_not_route() -> None:
    routing = build_token_routing(
        None, ROUTER, ["forget"], attention_mask=torch.ones(2, 3, dtype=torch.long), measure_activation_l1=True
    )
    assert routing is not None
    assert all(routing.of(part).activation_multiplier is None for part in (None, "forget"))
    assert routing.activation_mask is not None
    assert routing.activation_mask.dtype == torch.float32


def test_a_four_dimensional_attention_mask_says_nothing_about_padding() -> None:
    routing = build_token_routing(None, ROUTER, attention_mask=torch.ones(2, 1, 3, 3), measure_activation_l1=True)
    assert routing is not None
    assert routing.activation_mask is None


def test_l1_is_the_sum_of_absolute_values() -> None:
    activation = torch.tensor([[[1.0, -2.0], [3.0, 0.5]], [[-4.0, 0.0], [0.25, -0.25]]])
    assert activation_l1(activation).item() == 11.0
    mask = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    assert activation_l1(activation, mask).item() == 7.5


def test_gradient_of_the_l1_is_the_sign_on_real_tokens() -> None:
    activation = torch.tensor([[[1.0, -2.0], [3.0, 0.5]], [[-4.0, 0.0], [0.25, -0.25]]], requires_grad=True)
    activation_l1(activation, torch.tensor([[1.0, 0.0], [1.0, 1.0]])).backward()
    assert activation.grad is not None
    assert activation.grad.tolist() == [[[1.0, -1.0], [0.0, 0.0]], [[-1.0, 0.0], [1.0, -1.0]]]


def test_gradient_of_the_l1_is_not_scaled_when_it_is_taken_before_the_scaling_point() -> None:
    activation = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    norm = activation_l1(activation)
    language_model_loss = 2 * scale_gradient(activation, torch.zeros(2, 3)).sum()
    (norm + language_model_loss).backward()
    assert torch.equal(activation.grad, activation.detach().sign())  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_l1_is_summed_in_fp32(dtype: torch.dtype) -> None:
    activation = torch.full((1, 1, 4096), 1.0, dtype=dtype)
    activation = torch.cat([activation, torch.full((1, 1, 1), 0.125, dtype=dtype)], dim=-1)
    norm = activation_l1(activation)
    assert norm.dtype == torch.float32
    assert norm.item() == 4096.125  # bf16 would stop growing at 256, fp16 would lose the last summand


@pytest.mark.parametrize("mask", [None, torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])], ids=["whole", "padded"])
def test_l1_of_fp64_is_fp64_and_so_is_its_gradient(mask: torch.Tensor | None) -> None:
    inputs = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    plain = torch.nn.functional.gelu(inputs, approximate="tanh")
    by_hand = (plain.abs().sum(-1) * (1 if mask is None else mask)).sum()
    for norm in (activation_l1(plain, mask), routed_gelu(inputs, measure_l1=True, mask=mask)[1]):
        assert norm is not None
        assert norm.dtype == torch.float64
        torch.testing.assert_close(norm, by_hand, rtol=1e-15, atol=0)
        gradients = [torch.autograd.grad(0.1 * value, inputs, retain_graph=True)[0] for value in (norm, by_hand)]
        torch.testing.assert_close(*gradients, rtol=1e-14, atol=1e-15)


@dataclass(frozen=True)
class OneForAll(Router):
    """Gives every module the same object, which it keeps."""

    name = "one for all"

    def route(self, batch: RoutingBatch) -> TokenRouting:
        return TokenRouting(modules=dict.fromkeys(batch.modules, SHARED))


SHARED = PartRouting(parameter_multiplier=torch.zeros(2, 3), dial=torch.tensor([1.0, 0.5]))


def test_a_dial_is_of_the_module_it_names_alone_and_of_this_forward_pass() -> None:
    arguments: Any = (torch.ones(2, 3), OneForAll(), ["forest", "sea"])
    routing = build_token_routing(*arguments, torch.tensor([[1.0, 0.5], [1.0, 0.5]]))
    assert routing is not None
    dials = [routing.of(name).dial for name in ("sea", "forest")]
    assert [dial.tolist() for dial in dials if dial is not None] == [[0.5, 0.25], [1.0, 0.5]]
    assert routing.of("sea").parameter_multiplier is SHARED.parameter_multiplier
    assert SHARED.dial is not None
    assert SHARED.dial.tolist() == [1.0, 0.5]


def test_the_l1_norm_leaves_out_examples_that_a_module_is_off_for() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    activity = torch.tensor([[1.0, 0.5], [1.0, 0.0]])
    for attention_mask, whole in ((mask, mask), (None, None)):
        routing = build_token_routing(None, ROUTER, ["forest", "sea"], activity, attention_mask, True)
        assert routing is not None
        assert routing.activation_mask is None or torch.equal(routing.activation_mask, mask.float())
        counted = {name: routing.l1_mask(name, torch.Size((2, 3))) for name in (None, "forest", "sea")}
        assert counted[None] is routing.activation_mask
        assert torch.equal(counted["forest"], torch.ones(2, 3) if whole is None else mask.float())  # type: ignore
        assert counted["sea"].tolist() == [[1.0, 1.0, float(whole is None)], [0.0, 0.0, 0.0]]  # type: ignore


def test_a_router_may_treat_tokens_without_a_label_apart() -> None:
    """One that does not is not told apart from one for retain examples."""

    @dataclass(frozen=True)
    class Apart(Router):
        name: ClassVar[str] = "apart"

        def route(self, batch: RoutingBatch) -> TokenRouting:
            assert batch.is_unassigned is not None
            return TokenRouting(PartRouting(torch.where(batch.is_unassigned, 0.5, batch.routing_weight)))

    weights = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    unlabelled = torch.tensor([[False, False], [True, True]])
    routed = build_token_routing(weights, Apart(), is_unassigned=unlabelled)
    assert routed is not None
    assert routed.original.activation_multiplier.tolist() == [[0.0, 1.0], [0.5, 0.5]]
    routers = {
        given: build_token_routing(weights, ActivationRouter(), is_unassigned=given) for given in (None, unlabelled)
    }
    multipliers = [made.original.activation_multiplier for made in routers.values() if made is not None]
    assert torch.equal(*multipliers)
