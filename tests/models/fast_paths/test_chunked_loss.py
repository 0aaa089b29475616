"""LM head and cross entropy in chunks against whole logits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_era.models.fast import chunked_loss

VOCABULARY, HIDDEN = 53, 16
FLOAT64_TOLERANCE = 1e-12  # of the loss, and of the largest value of a gradient
# Of a bf16 gradient's error against float64, next to that of whole bf16 logits.
BF16_RATIO, BF16_EPS = 1.5, 1e-3

Form = Callable[..., Tensor]


@pytest.fixture(params=[(False, 1), (True, 1), (True, 64)], ids=["bf16 emulated", "bf16 units", "padded head"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Form:
    """`linear_cross_entropy` with 16 rows in a chunk, as on a CPU that multiplies bf16 itself, and on one that does not; and
    with a head that is filled up to a multiple of 64 rows, as on a GPU."""
    has_units, multiple = request.param
    monkeypatch.setattr(chunked_loss, "BYTES_PER_CHUNK", 1)
    monkeypatch.setattr(chunked_loss, "HEAD_MULTIPLES", {"cpu": multiple})
    monkeypatch.setattr(chunked_loss, "cpu_has_bf16_units", lambda: has_units)
    assert chunked_loss.rows_per_chunk(torch.empty(VOCABULARY, HIDDEN)) == 16
    return chunked_loss.linear_cross_entropy


def whole_logits(hidden: Tensor, weight: Tensor, targets: Tensor, reduction: str) -> Tensor:
    return F.cross_entropy(
        (hidden @ weight.T).float() if hidden.dtype != torch.float64 else hidden @ weight.T,
        targets,
        ignore_index=-100,
        reduction=reduction,
    )


def targets_of(kind: str) -> Tensor:
    count = {"none at all": 0, "one": 1}.get(kind, 50)  # 50 rows are 4 chunks, the last one short
    targets = torch.randint(0, VOCABULARY, (count,), generator=torch.Generator().manual_seed(1))
    if kind == "scattered":
        targets[torch.tensor([0, 3, 15, 16, 17, 40, 49])] = -100
    if kind == "a whole chunk ignored":
        targets[16:32] = -100
    return torch.full_like(targets, -100) if kind == "all ignored" else targets


def tensors(targets: Tensor, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn((len(targets), HIDDEN), generator=generator, dtype=torch.float64)
    weight = torch.randn((VOCABULARY, HIDDEN), generator=generator, dtype=torch.float64)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()


def loss_and_gradients(function: Form, hidden: Tensor, weight: Tensor, targets: Tensor, reduction: str) -> list[Any]:
    """The loss, and gradients of a weighted sum of it (`None` for what is frozen)."""
    loss = function(hidden, weight, targets, reduction)
    scale = torch.linspace(-1, 2, loss.numel(), dtype=loss.dtype) if reduction == "none" else -1.5
    wanted = [value for value in (hidden, weight) if value.requires_grad]
    gradients = dict(zip(map(id, wanted), torch.autograd.grad((loss * scale).sum(), wanted), strict=True))
    return [loss.detach(), gradients.get(id(hidden)), gradients.get(id(weight))]


def assert_close(actual: list[Any], expected: list[Any], tolerance: float) -> None:
    for value, reference in zip(actual, expected, strict=True):
        assert (value is None) == (reference is None)
        if reference is not None:
            assert value.shape == reference.shape
            limit = tolerance * reference.abs().max() if reference.numel() else 0.0
            assert ((value - reference).abs() <= limit).all()


KINDS = ["all counted", "scattered", "a whole chunk ignored", "all ignored", "one", "none at all"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_loss_and_gradients_in_float64(reduction: str, kind: str, form: Form) -> None:
    targets = targets_of(kind)
    hidden, weight = tensors(targets)
    actual = loss_and_gradients(form, hidden, weight, targets, reduction)
    expected = loss_and_gradients(whole_logits, hidden, weight, targets, reduction)
    assert actual[0].dtype == torch.float64
    assert actual[0].shape == (() if reduction == "sum" else targets.shape)
    assert_close(actual, expected, FLOAT64_TOLERANCE)
    if reduction == "none":
        assert torch.count_nonzero(actual[0][targets == -100]) == 0


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_loss_and_gradients_in_fp32(reduction: str, form: Form) -> None:
    targets = targets_of("scattered")
    exact = loss_and_gradients(whole_logits, *tensors(targets), targets, reduction)
    actual = loss_and_gradients(form, *tensors(targets, torch.float32), targets, reduction)
    assert {value.dtype for value in actual} == {torch.float32}
    assert_close(actual[:1], exact[:1], 1e-6)
    assert_close(actual[1:], exact[1:], 1e-6)


def test_the_comparison_notices_a_chunk_that_is_left_out(form: Form) -> None:
    targets = targets_of("all counted")
    hidden, weight = tensors(targets)
    expected = loss_and_gradients(whole_logits, hidden, weight, targets, "sum")
    one_less = targets.clone()
    one_less[-1] = -100
    with pytest.raises(AssertionError):
        assert_close(loss_and_gradients(form, hidden, weight, one_less, "sum"), expected, FLOAT64_TOLERANCE)


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_what_is_frozen_gets_no_gradient_and_the_other_its_own(reduction: str, frozen: str, form: Form) -> None:
    targets = targets_of("scattered")
    hidden, weight = tensors(targets)
    (hidden if frozen == "hidden" else weight).requires_grad_(False)
    expected = loss_and_gradients(whole_logits, hidden, weight, targets, reduction)
    assert sum(value is None for value in expected) == 1
    assert_close(loss_and_gradients(form, hidden, weight, targets, reduction), expected, FLOAT64_TOLERANCE)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_without_gradients(reduction: str, form: Form) -> None:
    targets = targets_of("scattered")
    hidden, weight = tensors(targets)
    with torch.no_grad():
        loss = form(hidden, weight, targets, reduction)
    assert not loss.requires_grad
    assert_close([loss], [whole_logits(hidden, weight, targets, reduction)], FLOAT64_TOLERANCE)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=["autocast", "bf16 weights"])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_bf16_is_as_near_to_float64_as_whole_bf16_logits(reduction: str, weights: torch.dtype, form: Form) -> None:
    """The loss is fp32, the gradients of fp32 weights too."""
    targets = targets_of("scattered")
    hidden, weight = tensors(targets, weights)
    exact = [value.detach().double().requires_grad_() for value in (hidden, weight)]
    truth = loss_and_gradients(whole_logits, *exact, targets, reduction)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=weights == torch.float32):
        chunked = loss_and_gradients(form, hidden, weight, targets, reduction)
        whole = loss_and_gradients(whole_logits, hidden, weight, targets, reduction)
    assert [value.dtype for value in chunked] == [torch.float32, weights, weights]
    for value, reference, expected in zip(chunked, whole, truth, strict=True):
        errors = [((tensor - expected).norm() / expected.norm()).item() for tensor in (value, reference)]
        assert errors[0] <= BF16_RATIO * errors[1] + BF16_EPS, errors
    assert (chunked[1] - truth[1]).abs().max() > 1e-4 * truth[1].abs().max()  # it was bf16 indeed


@pytest.mark.parametrize("label", [VOCABULARY, -1])
def test_a_label_outside_the_vocabulary_is_an_error(label: int, form: Form) -> None:
    targets = targets_of("all counted")
    targets[20] = label
    if (
        chunked_loss.HEAD_MULTIPLES["cpu"] > 1 and label == VOCABULARY
    ):  # an entry of the padding: impossible, and so said
        assert torch.isinf(form(*tensors(targets), targets))
        return
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        form(*tensors(targets), targets)


def test_two_losses_before_one_backward(form: Form) -> None:
    first, second = targets_of("scattered"), targets_of("all counted")
    hidden, weight = tensors(first)

    def both(function: Form) -> list[Any]:
        loss = function(hidden, weight, first, "sum") + 2 * function(hidden, weight, second, "sum")
        return [loss.detach(), *torch.autograd.grad(loss, [hidden, weight])]

    assert_close(both(form), both(whole_logits), FLOAT64_TOLERANCE)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_two_backward_passes_through_one_loss(reduction: str, form: Form) -> None:
    targets = targets_of("scattered")
    hidden, weight = tensors(targets)
    loss = form(hidden, weight, targets, reduction).sum()
    first = torch.autograd.grad(loss, [hidden, weight], retain_graph=True)
    second = torch.autograd.grad(3 * loss, [hidden, weight])
    assert_close(list(second), [3 * gradient for gradient in first], FLOAT64_TOLERANCE)


def test_a_label_that_is_all_but_certain_keeps_its_small_gradient(form: Form) -> None:
    """In bf16, p - 1 of a p near 1 that was rounded first is 0."""
    hidden = torch.tensor([[4.0]], dtype=torch.bfloat16, requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0]], dtype=torch.bfloat16, requires_grad=True)
    targets = torch.tensor([0])
    exact = [value.detach().double().requires_grad_() for value in (hidden, weight)]
    actual = loss_and_gradients(form, hidden, weight, targets, "sum")
    expected = loss_and_gradients(whole_logits, *exact, targets, "sum")
    for value, reference in zip(actual, expected, strict=True):
        torch.testing.assert_close(value.double(), reference, rtol=1e-2, atol=0)


def test_gradients_of_many_chunks_are_summed_in_fp32(form: Form) -> None:
    """125 chunks in bf16: a sum in bf16 would be several times as far from float64 as the product of all rows is."""
    generator = torch.Generator().manual_seed(3)
    targets = torch.randint(0, VOCABULARY, (2000,), generator=generator)
    hidden, weight = tensors(targets, torch.bfloat16)
    exact = [value.detach().double().requires_grad_() for value in (hidden, weight)]
    truth = loss_and_gradients(whole_logits, *exact, targets, "sum")
    results = [loss_and_gradients(function, hidden, weight, targets, "sum") for function in (form, whole_logits)]
    for index in range(3):
        chunked, whole = (((result[index] - truth[index]).norm() / truth[index].norm()).item() for result in results)
        assert chunked <= BF16_RATIO * whole + BF16_EPS, (index, chunked, whole)


def test_chunks_are_of_like_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as memory asks for, the last one not a rest; and of whole multiples where the device likes them."""
    monkeypatch.setattr(chunked_loss, "BYTES_PER_CHUNK", 100 * VOCABULARY * 4)
    weight = torch.empty(VOCABULARY, HIDDEN)
    assert chunked_loss.rows_per_chunk(weight) == 100
    assert [chunked_loss.rows_per_chunk(weight, rows) for rows in (0, 1, 100, 101, 210)] == [100, 1, 100, 51, 70]
    monkeypatch.setattr(chunked_loss, "HEAD_MULTIPLES", {"cpu": 64})
    assert chunked_loss.rows_per_chunk(weight, 210) == 128
