"""The scale of the chunked loss, and backward passes that come twice."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_era.models.fast import chunked_loss
from hf_era.models.fast.chunked_loss import linear_cross_entropy

TARGETS = torch.tensor([3, -100, 7, 1, 0, 12, 9] * 6)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_loss, "BYTES_PER_CHUNK", 1)


def leaves(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((len(TARGETS), 8), (13, 8))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("scale", [1.0, 1 / 36, torch.tensor(1 / 36)], ids=["1", "number", "tensor"])
@pytest.mark.parametrize("upstream", [1.0, -2.5])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_scale_and_upstream_gradient(scale: float | Tensor, upstream: float, reduction: str) -> None:
    hidden, weight = leaves()
    loss = linear_cross_entropy(hidden, weight, TARGETS, reduction, scale=scale)
    gradients = torch.autograd.grad(upstream * loss.sum(), [hidden, weight])
    expected = F.cross_entropy(hidden @ weight.T, TARGETS, reduction=reduction) * scale
    torch.testing.assert_close(loss, expected, rtol=1e-7, atol=1e-9)
    for one, other in zip(gradients, torch.autograd.grad(upstream * expected.sum(), [hidden, weight]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def test_in_half_precision_the_scale_is_not_rounded() -> None:
    """1/36 in bf16 is off by 0.2 %, which would be the error of every gradient at once."""
    scale = torch.tensor(1 / 36)
    plain, scaled = ([leaf.bfloat16().detach().requires_grad_() for leaf in leaves(torch.float32)] for _ in range(2))
    linear_cross_entropy(*plain, TARGETS).backward()
    linear_cross_entropy(*scaled, TARGETS, scale=scale).backward()
    for one, other in zip(scaled, plain, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        large = other.grad.float().abs() > 0.05
        ratios = one.grad.float()[large] / (other.grad.float()[large] * scale)
        assert abs(float(ratios.mean()) - 1) < 5e-4


@pytest.mark.parametrize("is_tied", [False, True], ids=["head alone", "tied to the embedding"])
def test_several_backward_passes_through_a_kept_graph(is_tied: bool) -> None:
    """The saved gradients are handed out as they are where the upstream gradient is 1; nothing may add to them in place."""
    hidden, weight = leaves()
    loss = linear_cross_entropy(hidden, weight, TARGETS)
    if is_tied:
        loss = loss + (F.embedding(TARGETS.clamp(min=0), weight) ** 2).sum()
    first = torch.autograd.grad(3.0 * loss, [hidden, weight], retain_graph=True)
    for times in (1, 2, 3, 4):
        loss.backward(retain_graph=True)
        for leaf, gradient in zip((hidden, weight), first, strict=True):
            torch.testing.assert_close(leaf.grad, times * gradient / 3, rtol=1e-12, atol=1e-15)


def test_gradients_add_up_over_micro_batches() -> None:
    hidden, weight = leaves()
    linear_cross_entropy(hidden, weight, TARGETS).backward()
    for _ in range(2):
        linear_cross_entropy(hidden.detach(), weight, TARGETS).backward()
    alone = leaves()[1]
    linear_cross_entropy(hidden.detach(), alone, TARGETS).backward()
    torch.testing.assert_close(weight.grad, 3 * alone.grad, rtol=1e-12, atol=0)  # type: ignore[operator]


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="torch has it from 2.13 on")
def test_torchs_own_form_agrees_in_fp32() -> None:
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=16, chunking_method=None)
    results = []
    for form in (linear_cross_entropy, lambda *given: F.linear_cross_entropy(*given, reduction="sum", options=options)):
        hidden, weight = leaves(torch.float32)
        loss = form(hidden, weight, TARGETS)
        results.append([loss.detach(), *torch.autograd.grad(loss, [hidden, weight])])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
