"""`routed_gelu` against the plain expression: `gelu`, `activation_l1` of it, and `scale_gradient` behind."""

import importlib
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_era.routing import activation_l1, routed_gelu, scale_gradient

# The module, not the function of the same name. 15 rows of 7 values: one, a third, a quarter (3.75 blocks), all.
MODULE = importlib.import_module("hf_era.routing.scaling")
ROWS, WIDTH = (3, 5), 7
BLOCKS = [1, 5 * WIDTH, 4 * WIDTH + 3, MODULE.VALUES_PER_BLOCK]
COEFFICIENT = 0.25  # of the L1 norm in the loss; a power of two, since the norm is fp32 on both sides
FLOAT64_TOLERANCE, FP32_TOLERANCE = 1e-12, 1e-6  # of the largest value
BF16_RATIO, BF16_EPS = 1.5, 1e-4


def random_inputs(dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn((*ROWS, WIDTH), generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()


def in_float64(inputs: Tensor) -> Tensor:
    return inputs.detach().double().requires_grad_()


def random_factor() -> Tensor:
    factor = 3 * torch.randn(ROWS, generator=torch.Generator().manual_seed(1))
    factor[0, 0], factor[0, 1], factor[0, 2] = 0.0, 1.0, -0.75
    return factor


def random_upstream(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn((*ROWS, WIDTH), generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)


def padding_mask() -> Tensor:
    return (torch.arange(5) < torch.tensor([5, 2, 4])[:, None]).float()


def plain(
    inputs: Tensor, factor: Tensor | None, approximate: str, with_l1: bool, mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """In the dtype of the inputs, the norm too: written out, since `activation_l1` gives fp32 and takes no float64."""
    activation = F.gelu(inputs, approximate=approximate)
    norm = (activation.abs().sum(-1) * (1 if mask is None else mask)).sum() if with_l1 else None
    return scale_gradient(activation, factor), norm


def gradient_of(inputs: Tensor, activation: Tensor, norm: Tensor | None, upstream: Tensor) -> Tensor:
    loss = (activation * upstream).sum()
    if norm is not None:
        loss = loss + COEFFICIENT * norm
    (gradient,) = torch.autograd.grad(loss, inputs)
    return gradient


def largest_deviation(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


CASES = list(itertools.product([False, True], [None, "all", "padded"], ["tanh", "none"], BLOCKS))


@pytest.mark.parametrize(("routed", "l1", "approximate", "block"), CASES)
def test_value_norm_and_gradient_are_those_of_the_plain_expression_in_float64(
    routed: bool, l1: str | None, approximate: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the norm in float64 on both sides; the norm is fp32, and takes inputs of fp32 at most."""
    monkeypatch.setattr(MODULE, "VALUES_PER_BLOCK", block)
    dtype, tolerance = (torch.float64, FLOAT64_TOLERANCE) if l1 is None else (torch.float32, FP32_TOLERANCE)
    inputs, factor = random_inputs(dtype), random_factor() if routed else None
    exact, mask = in_float64(inputs), padding_mask() if l1 == "padded" else None
    activation, norm = routed_gelu(inputs, factor, approximate=approximate, measure_l1=l1 is not None, mask=mask)
    expected_activation, expected_norm = plain(exact, factor, approximate, l1 is not None, mask)
    assert activation.dtype == dtype
    assert largest_deviation(activation, expected_activation) <= tolerance
    assert (norm is None) == (expected_norm is None)
    if norm is not None and expected_norm is not None:
        assert norm.dtype == torch.float32
        assert norm.shape == ()
        assert norm.item() == pytest.approx(expected_norm.item(), rel=FP32_TOLERANCE)
    actual = gradient_of(inputs, activation, norm, random_upstream(dtype))
    expected = gradient_of(exact, expected_activation, expected_norm, random_upstream(dtype).double())
    assert largest_deviation(actual, expected) <= tolerance


def test_what_each_argument_changes_is_no_rounding() -> None:
    """The comparison above would notice if an argument were ignored."""
    inputs, upstream = random_inputs(), random_upstream()
    variants = [
        plain(inputs, random_factor(), "tanh", True, padding_mask()),
        plain(inputs, None, "tanh", True, padding_mask()),
        plain(inputs, random_factor(), "none", True, padding_mask()),
        plain(inputs, random_factor(), "tanh", True, None),
        plain(inputs, random_factor(), "tanh", False, None),
    ]
    gradients = [gradient_of(inputs, *variant, upstream) for variant in variants]
    for first, second in itertools.combinations(gradients, 2):
        assert largest_deviation(first, second) > 1e-5


@pytest.mark.parametrize("only", ["norm", "activation"])
@pytest.mark.parametrize("routed", [False, True])
def test_gradient_of_one_output_alone(routed: bool, only: str) -> None:
    inputs, factor = random_inputs(torch.float32), random_factor() if routed else None
    exact, index = in_float64(inputs), 1 if only == "norm" else 0
    upstream = torch.tensor(0.5) if only == "norm" else random_upstream(torch.float32)
    fused = routed_gelu(inputs, factor, measure_l1=True, mask=padding_mask())
    separate = plain(exact, factor, "tanh", True, padding_mask())
    (actual,) = torch.autograd.grad(fused[index], inputs, upstream)
    (expected,) = torch.autograd.grad(separate[index], exact, upstream.double())
    assert torch.count_nonzero(expected) > 0
    assert largest_deviation(actual, expected) <= FP32_TOLERANCE


@pytest.mark.parametrize("approximate", ["tanh", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_and_large_inputs(dtype: torch.dtype, approximate: str) -> None:
    """Where the exact GELU underflows to 0 its derivative need not yet: at most 1e-6 of the L1 term, hence `atol`."""
    values = [0.0, -0.0, 1e-30, -1e-30, -5.0, -6.0, -8.0, -30.0, -1e4, 30.0, 1e4, 0.5]
    inputs = torch.tensor(values, dtype=dtype).view(2, 2, 3).requires_grad_()
    factor = torch.tensor([[0.5, -2.0], [0.0, 1.0]])
    upstream = torch.ones(2, 2, 3, dtype=dtype)
    activation, norm = routed_gelu(inputs, factor, approximate=approximate, measure_l1=True)
    expected_activation = F.gelu(inputs, approximate=approximate)
    expected_norm = activation_l1(expected_activation)
    assert torch.equal(activation, expected_activation)
    assert norm is not None
    assert torch.equal(norm, expected_norm)
    actual = gradient_of(inputs, activation, norm, upstream)
    assert actual.isfinite().all()
    torch.testing.assert_close(
        actual,
        gradient_of(inputs, scale_gradient(expected_activation, factor), expected_norm, upstream),
        atol=1e-6,
        rtol=1e-6,
    )


def as_slice(values: Tensor) -> Tensor:
    return torch.cat([values, values], dim=-1)[..., :WIDTH]


def as_transposed(values: Tensor) -> Tensor:
    return values.transpose(0, 1).contiguous().transpose(0, 1)


def as_columns(values: Tensor) -> Tensor:
    return values.permute(2, 0, 1).contiguous().permute(1, 2, 0)


@pytest.mark.parametrize("layout", [as_slice, as_transposed, as_columns])
@pytest.mark.parametrize("block", [2 * WIDTH, 1 << 18])
def test_inputs_and_gradients_that_are_not_contiguous(
    layout: object, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "VALUES_PER_BLOCK", block)
    leaf, factor, mask = random_inputs(torch.float32), random_factor(), padding_mask()
    inputs, upstream = layout(leaf), layout(random_upstream(torch.float32))  # type: ignore[operator]
    assert not inputs.is_contiguous()
    activation, norm = routed_gelu(inputs, factor, measure_l1=True, mask=mask)
    exact = in_float64(leaf)
    expected = gradient_of(exact, *plain(exact, factor, "tanh", True, mask), random_upstream(torch.float32).double())
    assert activation.shape == inputs.shape
    assert largest_deviation(activation, F.gelu(inputs, approximate="tanh")) <= FP32_TOLERANCE
    assert largest_deviation(gradient_of(leaf, activation, norm, upstream), expected) <= FP32_TOLERANCE


# ---- Bit for bit ----


@pytest.mark.parametrize("width", [5, 64, 100])
@pytest.mark.parametrize("block", [1, 333, 1 << 18])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_routing_and_measuring_change_no_forward_bit(
    dtype: torch.dtype, block: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a factor of 1 no bit of the gradient. Where a block's size is no multiple of the vector width, torch computes
    its last values in another way, so what is not routed has to be cut into the same blocks."""
    monkeypatch.setattr(MODULE, "VALUES_PER_BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    inputs = (3 * torch.randn((2, 51, width), generator=generator)).to(dtype).requires_grad_()
    upstream = torch.randn(inputs.shape, generator=generator).to(dtype)
    activation, norm = routed_gelu(inputs)
    assert norm is None
    (gradient,) = torch.autograd.grad(activation, inputs, upstream)
    for measure_l1 in (False, True):
        routed, _ = routed_gelu(inputs, torch.ones(2, 51), measure_l1=measure_l1)
        assert torch.equal(routed, activation)
        assert torch.equal(torch.autograd.grad(routed, inputs, upstream)[0], gradient)
    assert torch.equal(routed_gelu(inputs, measure_l1=True)[0], activation)


def test_bf16_is_as_near_to_float64_as_the_plain_expression() -> None:
    inputs, upstream = random_inputs(torch.bfloat16), random_upstream(torch.bfloat16)
    factor, mask = random_factor(), padding_mask()
    exact = in_float64(inputs)
    truth = gradient_of(exact, *plain(exact, factor, "tanh", True, mask), upstream.double())
    fused = gradient_of(inputs, *routed_gelu(inputs, factor, measure_l1=True, mask=mask), upstream)
    separate = gradient_of(inputs, *plain(inputs, factor, "tanh", True, mask), upstream)
    assert fused.dtype == torch.bfloat16
    deviations = [largest_deviation(gradient.double(), truth) for gradient in (fused, separate)]
    assert deviations[0] <= BF16_RATIO * deviations[1] + BF16_EPS, deviations


def test_the_norm_is_summed_in_fp32() -> None:
    inputs = torch.full((1, 1, 4097), 30.0, dtype=torch.bfloat16)  # GELU(30) = 30
    inputs[..., -1] = 5.0
    _, norm = routed_gelu(inputs, measure_l1=True)
    assert norm is not None
    assert norm.item() == 4096 * 30 + 5


# ---- What is kept, refused and returned ----


def test_only_the_input_and_the_small_factors_are_kept() -> None:
    saved: list[tuple[int, ...]] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tuple(tensor.shape))
        return tensor

    inputs = random_inputs(torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        routed_gelu(inputs, random_factor(), measure_l1=True, mask=padding_mask())
        assert sorted(saved) == sorted([(*ROWS, WIDTH), ROWS, ROWS])
        saved.clear()
        plain(inputs, random_factor(), "tanh", True, padding_mask())
    assert saved.count((*ROWS, WIDTH)) > 1  # the hook does see what the separate operations keep


def test_a_second_derivative_is_refused_and_not_silently_wrong() -> None:
    inputs = random_inputs()
    activation, _ = routed_gelu(inputs, random_factor())
    (gradient,) = torch.autograd.grad(activation.pow(2).sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_without_routing_and_measuring_it_is_the_plain_gelu() -> None:
    activation, norm = routed_gelu(random_inputs())
    assert norm is None
    assert torch.equal(activation, F.gelu(random_inputs(), approximate="tanh"))


@pytest.mark.parametrize("shape", [(3, 4), (5, 3), (3,), (3, 5, 7), (1, 5), ()])
def test_a_factor_of_another_shape_is_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"one value per token, shape \(3, 5\), got") as caught:
        routed_gelu(random_inputs(), torch.ones(shape))
    assert str(shape) in str(caught.value)
    assert "Pass a `routing_weight` of the same (batch, seq) shape as `input_ids`." in str(caught.value)
