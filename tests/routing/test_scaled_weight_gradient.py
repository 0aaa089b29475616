"""`linear_with_scaled_weight_gradient`: a plain linear layer forward, and backward what each token may teach."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_era.models.layers import RoutedLinearMixin
from hf_era.models.mixing import mixed_class
from hf_era.models.running_call import LayerCall
from hf_era.routing import PartRouting, TokenRouting, linear_with_scaled_weight_gradient

Linear = tuple[Tensor, Tensor, Tensor | None, Tensor]


@pytest.fixture(params=[True, False], ids=["bias", "no bias"])
def make_linear(request: pytest.FixtureRequest) -> Callable[..., Linear]:
    """Inputs (3, 5, 4), weight (6, 4), bias (6,) or none, and a signed factor (3, 5)."""

    def make(dtype: torch.dtype = torch.float64, requires_grad: bool = True) -> Linear:
        generator = torch.Generator().manual_seed(0)
        inputs, weight, bias = (
            torch.randn(shape, generator=generator).to(dtype).requires_grad_(requires_grad)
            for shape in ((3, 5, 4), (6, 4), (6,))
        )
        factor = 2 * torch.randn((3, 5), generator=generator)
        factor[0, 0], factor[0, 1], factor[0, 2] = 0.0, 1.0, -0.75
        return inputs, weight, bias if request.param else None, factor

    return make


def formula(inputs: Tensor, weight: Tensor, bias: Tensor | None, factor: Tensor) -> Tensor:
    """Each token has a copy of the parameters, of which only the part `factor` can learn."""
    m = factor.to(inputs.dtype)[..., None]
    own = m[..., None] * weight + (1 - m[..., None]) * weight.detach()
    output = torch.einsum("btoi,bti->bto", own, inputs)
    return output if bias is None else output + m * bias + (1 - m) * bias.detach()


def gradients(function: Callable[..., Tensor], linear: Linear) -> list[Tensor]:
    """Of inputs, weight and bias, for an upstream gradient that differs from token to token."""
    wanted = [part for part in linear[:3] if part is not None]
    return list(torch.autograd.grad(function(*linear).sin().pow(2).sum(), wanted))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_forward_is_the_plain_linear_bit_for_bit(dtype: torch.dtype, make_linear: Callable[..., Linear]) -> None:
    inputs, weight, bias, factor = make_linear(dtype)
    output = linear_with_scaled_weight_gradient(inputs, weight, bias, factor)
    assert torch.equal(output, F.linear(inputs, weight, bias))
    assert output.dtype == dtype


def test_gradients_are_those_of_a_copy_of_the_parameters_for_every_token(make_linear: Callable[..., Linear]) -> None:
    linear = make_linear()
    found, expected = gradients(linear_with_scaled_weight_gradient, linear), gradients(formula, linear)
    assert len(found) == len(expected) == (2 if linear[2] is None else 3)
    for value, other in zip(found, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-12, atol=1e-12)
    plain = gradients(lambda inputs, weight, bias, factor: F.linear(inputs, weight, bias), linear)
    torch.testing.assert_close(found[0], plain[0], rtol=1e-12, atol=1e-12)  # what flows on is whole
    assert not torch.allclose(found[1], plain[1])


def test_a_factor_of_one_is_the_gradient_of_the_function(make_linear: Callable[..., Linear]) -> None:
    inputs, weight, bias, factor = make_linear()
    assert torch.autograd.gradcheck(linear_with_scaled_weight_gradient, (inputs, weight, bias, torch.ones_like(factor)))
    # The check does see a factor: the scaled gradient is deliberately not the function's own.
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(linear_with_scaled_weight_gradient, (inputs, weight, bias, factor))


def test_the_gradient_of_the_inputs_is_the_functions_own_whatever_the_factor(
    make_linear: Callable[..., Linear],
) -> None:
    inputs, weight, bias, factor = make_linear()
    frozen = [None if part is None else part.detach() for part in (weight, bias)]
    assert torch.autograd.gradcheck(linear_with_scaled_weight_gradient, (inputs, *frozen, factor))


def test_a_factor_of_one_for_all_tokens_scales_numerical_gradients(make_linear: Callable[..., Linear]) -> None:
    """With one factor for all tokens, what the parameters learn is it times the numerical gradient."""
    inputs, weight, bias, factor = make_linear()

    def scaled(weight: Tensor, *bias: Tensor) -> Tensor:
        return 0.5 * F.linear(inputs.detach(), weight, *bias)

    parameters = [part for part in (weight, bias) if part is not None]
    assert torch.autograd.gradcheck(scaled, tuple(parameters))
    half = linear_with_scaled_weight_gradient(inputs, weight, bias, torch.full_like(factor, 0.5))
    upstream = torch.randn(half.shape, dtype=half.dtype, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad(half, parameters, upstream)
    expected = torch.autograd.grad(scaled(*parameters), parameters, upstream)
    for value, other in zip(found, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-12, atol=1e-12)


def test_each_gradient_is_made_only_where_it_is_wanted(make_linear: Callable[..., Linear]) -> None:
    everything = gradients(linear_with_scaled_weight_gradient, make_linear())
    for wanted in range(3):
        inputs, weight, bias, factor = make_linear(requires_grad=False)
        part = (inputs, weight, bias)[wanted]
        if part is None:
            continue
        part.requires_grad_()
        output = linear_with_scaled_weight_gradient(inputs, weight, bias, factor)
        (found,) = torch.autograd.grad(output.sin().pow(2).sum(), part)
        assert torch.equal(found, everything[wanted])


@pytest.mark.parametrize("shape", [(3, 4), (5, 3), (3,), (3, 5, 4), (1, 5), ()])
def test_a_factor_of_another_shape_is_an_error(shape: tuple[int, ...], make_linear: Callable[..., Linear]) -> None:
    inputs, weight, bias, _ = make_linear()
    with pytest.raises(ValueError, match=r"one value per token, shape \(3, 5\), got") as caught:
        linear_with_scaled_weight_gradient(inputs, weight, bias, torch.ones(shape))
    assert str(shape) in str(caught.value)


def test_the_factor_gets_no_gradient_and_a_second_derivative_is_refused(make_linear: Callable[..., Linear]) -> None:
    inputs, weight, bias, factor = make_linear()
    output = linear_with_scaled_weight_gradient(inputs, weight, bias, factor.requires_grad_())
    (gradient,) = torch.autograd.grad(output.pow(2).sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
    assert factor.grad is None


def test_autocast_makes_the_product_in_its_dtype_and_fp32_gradients(make_linear: Callable[..., Linear]) -> None:
    linear = make_linear(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = linear_with_scaled_weight_gradient(*linear)
        assert torch.equal(output, F.linear(*linear[:3]))
    assert output.dtype == torch.bfloat16
    found = torch.autograd.grad(output.float().sum(), [part for part in linear[:3] if part is not None])
    expected = torch.autograd.grad(formula(*linear).sum(), [part for part in linear[:3] if part is not None])
    for value, other in zip(found, expected, strict=True):
        assert value.dtype == torch.float32
        assert (value - other).norm() <= 0.02 * other.norm()


@pytest.mark.parametrize("layer_class", [nn.Linear, Conv1D])
def test_a_routed_layer_scales_whatever_layout_its_weight_has(
    layer_class: Any, make_linear: Callable[..., Linear]
) -> None:
    """A `Conv1D`, as GPT-2 has it, holds its weight as (in, out), and always has a bias."""
    inputs, weight, bias, factor = make_linear()
    if layer_class is Conv1D:
        layer = Conv1D(6, 4).double()
        bias = layer.bias
    else:
        layer = nn.Linear(4, 6, bias=bias is not None, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(weight.T if layer_class is Conv1D else weight)
        if bias is not None:
            layer.bias.copy_(torch.arange(6.0))
    plain = layer(inputs)
    layer.__class__ = mixed_class(RoutedLinearMixin, layer_class)
    call: Any = LayerCall()
    layer.call = call
    assert torch.equal(layer(inputs), plain)  # not routed
    call.routing = TokenRouting(PartRouting(parameter_multiplier=factor))
    routed = layer(inputs)
    torch.testing.assert_close(routed, plain, rtol=1e-14, atol=1e-14)
    routed.sin().pow(2).sum().backward()
    own_bias = None if bias is None else torch.arange(6.0, dtype=torch.float64).requires_grad_()
    expected = gradients(formula, (inputs, weight, own_bias, factor))
    found = [inputs.grad, layer.weight.grad.T if layer_class is Conv1D else layer.weight.grad]
    found += [] if bias is None else [layer.bias.grad]
    for value, other in zip(found, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-12, atol=1e-12)
