"""`scale_gradient`: identity forward, scaled backward."""

import pytest
import torch
from torch import Tensor

from hf_era.routing import scale_gradient


def random_activation(dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((3, 5, 7), generator=generator).to(dtype).requires_grad_()


def random_factor(seed: int = 1) -> Tensor:
    """Signed values of several sizes, 0 and 1 among them."""
    factor = 3 * torch.randn((3, 5), generator=torch.Generator().manual_seed(seed))
    factor[0, 0], factor[0, 1], factor[0, 2] = 0.0, 1.0, -0.75
    return factor


def detach_expression(activation: Tensor, factor: Tensor) -> Tensor:
    """The paper's way to write it: `m * x + (1 - m) * x.detach()`."""
    dense = factor.unsqueeze(-1)
    return dense * activation + (1 - dense) * activation.detach()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_forward_is_the_identity_bit_for_bit(dtype: torch.dtype) -> None:
    activation = random_activation(dtype)
    scaled = scale_gradient(activation, random_factor())
    assert torch.equal(scaled, activation)
    assert scaled.dtype == dtype
    assert scaled.shape == activation.shape


def test_forward_copies_nothing() -> None:
    activation = random_activation()
    scaled = scale_gradient(activation, random_factor())
    assert scaled.data_ptr() == activation.data_ptr()
    assert scaled is not activation


def test_an_in_place_change_of_the_result_cannot_bypass_the_scaling() -> None:
    """The result is a view made inside a custom function: torch refuses to write to it rather than lose the factor."""
    scaled = scale_gradient(random_activation() * 1, random_factor())
    with pytest.raises(RuntimeError, match="view"):
        scaled.mul_(2)


def test_special_values_pass_forward_unchanged() -> None:
    special = torch.tensor([float("inf"), -float("inf"), float("nan"), -0.0, 1e-45, 3.4e38]).view(1, 2, 3)
    scaled = scale_gradient(special.requires_grad_(), torch.zeros(1, 2))
    assert torch.equal(scaled.view(torch.int32), special.view(torch.int32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_multiplies_each_token_by_its_factor(dtype: torch.dtype) -> None:
    activation, factor = random_activation(dtype), random_factor()
    upstream = torch.randn(activation.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    scale_gradient(activation, factor).backward(upstream)
    assert activation.grad is not None
    assert activation.grad.dtype == dtype
    # Token by token, in plain indexing.
    for row in range(3):
        for position in range(5):
            expected = upstream[row, position] * factor[row, position].to(dtype)
            assert torch.equal(activation.grad[row, position], expected)


def test_a_factor_of_zero_stops_the_gradient_and_one_leaves_it_alone() -> None:
    activation, factor = random_activation(), torch.zeros(3, 5)
    factor[1] = 1.0
    upstream = torch.randn(activation.shape, generator=torch.Generator().manual_seed(2))
    scale_gradient(activation, factor).backward(upstream)
    assert activation.grad is not None
    assert torch.equal(activation.grad[1], upstream[1])
    assert torch.count_nonzero(activation.grad[[0, 2]]) == 0


def test_gradient_is_the_factor_times_the_numerical_gradient() -> None:
    """As `torch.autograd.gradcheck` does it: central differences of the function, times the factor."""
    activation, factor = random_activation(torch.float64), random_factor().double()
    weight = torch.randn(7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def function(values: Tensor) -> Tensor:
        return (torch.sin(values) @ weight).pow(2).sum()

    function(scale_gradient(activation, factor)).backward()
    step = 1e-6
    numerical = torch.empty_like(activation)
    flat = activation.detach().reshape(-1)
    for index in range(flat.numel()):
        above, below = flat.clone(), flat.clone()
        above[index] += step
        below[index] -= step
        difference = function(above.view(3, 5, 7)) - function(below.view(3, 5, 7))
        numerical.view(-1)[index] = difference.detach() / (2 * step)
    assert activation.grad is not None
    torch.testing.assert_close(activation.grad, factor.unsqueeze(-1) * numerical.detach(), rtol=1e-6, atol=1e-7)
    # The scaled gradient is deliberately not the function's own gradient: gradcheck has to refuse it.
    assert not torch.allclose(activation.grad, numerical.detach(), rtol=1e-3, atol=1e-3)


def test_same_gradient_as_the_detach_expression_which_is_not_the_identity() -> None:
    """Why the expression of the paper is not used: same gradient, but it changes the forward values."""
    activation, other = random_activation(), random_activation()
    factor = random_factor()
    upstream = torch.randn(activation.shape, generator=torch.Generator().manual_seed(2))
    scale_gradient(activation, factor).backward(upstream)
    by_expression = detach_expression(other, factor)
    by_expression.backward(upstream)
    assert torch.equal(activation.grad, other.grad)  # type: ignore[arg-type]
    changed = (by_expression != other).float().mean().item()
    assert changed > 0.1
    torch.testing.assert_close(by_expression, other)


def test_none_means_no_routing() -> None:
    activation = random_activation()
    assert scale_gradient(activation, None) is activation


def test_two_forwards_before_one_backward_keep_their_own_factors() -> None:
    activation, first, second = random_activation(), random_factor(1), random_factor(2)
    upstream = torch.randn(activation.shape, generator=torch.Generator().manual_seed(4))
    (scale_gradient(activation, first) * upstream + 2 * scale_gradient(activation, second) * upstream).sum().backward()
    expected = upstream * first.unsqueeze(-1) + (2 * upstream) * second.unsqueeze(-1)
    torch.testing.assert_close(activation.grad, expected, rtol=1e-6, atol=1e-6)


def test_the_factor_itself_gets_no_gradient() -> None:
    activation, factor = random_activation(), random_factor().requires_grad_()
    scale_gradient(activation, factor).sum().backward()
    assert factor.grad is None


def test_only_the_small_factor_is_kept_for_the_backward_pass() -> None:
    saved: list[tuple[int, ...]] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tuple(tensor.shape))
        return tensor

    activation = random_activation()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        scale_gradient(activation, random_factor())
        assert saved == [(3, 5)]
        detach_expression(activation, random_factor())
    assert len(saved) > 1  # the hook does see what the other way keeps


def test_a_second_derivative_is_refused_and_not_silently_wrong() -> None:
    activation = random_activation()
    (gradient,) = torch.autograd.grad(
        scale_gradient(activation, random_factor()).pow(2).sum(), activation, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("shape", [(3, 4), (5, 3), (3,), (3, 5, 7), (1, 5), ()])
def test_a_factor_of_another_shape_is_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"one value per token, shape \(3, 5\), got") as caught:
        scale_gradient(random_activation(), torch.ones(shape))
    assert str(shape) in str(caught.value)
    assert "Pass a `routing_weight` of the same (batch, seq) shape as `input_ids`." in str(caught.value)
