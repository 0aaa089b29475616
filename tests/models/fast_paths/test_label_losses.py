"""`label_losses`: the negative log-likelihood of each label, without ever making the logits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPTNeoForCausalLM

from hf_era import ExpandedGPTNeoForCausalLM, FastGPTNeoForCausalLM

Inputs = dict[str, Tensor]
TOLERANCE = 1e-5  # nats


def expected_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Of a model's whole logits: (batch, seq - 1)."""
    return F.cross_entropy(logits[:, :-1].transpose(1, 2).float(), labels[:, 1:], reduction="none")


@torch.no_grad()
def test_it_is_the_cross_entropy_of_the_stock_logits(
    padding: str,
    fast: FastGPTNeoForCausalLM,
    stock: GPTNeoForCausalLM,
    make_inputs: Callable[..., Inputs],
) -> None:
    inputs = make_inputs(padding, prompt=3)
    labels = inputs.pop("labels")
    losses = fast.eval().label_losses(labels, **inputs)
    expected = expected_losses(stock.eval()(**inputs).logits, labels)
    assert losses.shape == (3, 11)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, expected, rtol=0, atol=TOLERANCE)
    ignored = labels[:, 1:] == -100
    assert ignored.any()
    assert torch.count_nonzero(losses[ignored]) == 0
    assert (losses[~ignored] > 0).all()


@torch.no_grad()
def test_of_an_expanded_model_with_the_module_on_and_off(
    expanded: ExpandedGPTNeoForCausalLM, make_inputs: Callable[..., Inputs]
) -> None:
    inputs = make_inputs("right")
    labels = inputs.pop("labels")
    on = expanded.eval().label_losses(labels, **inputs)
    torch.testing.assert_close(on, expected_losses(expanded(**inputs).logits, labels), rtol=0, atol=TOLERANCE)
    with expanded.ablated():
        off = expanded.label_losses(labels, **inputs)
    expected = expected_losses(expanded.contract()(**inputs).logits, labels)
    torch.testing.assert_close(off, expected, rtol=0, atol=TOLERANCE)
    assert (on - off).abs().max() > 0.1


@torch.no_grad()
def test_the_mean_over_labels_is_the_loss(fast: FastGPTNeoForCausalLM, make_inputs: Callable[..., Inputs]) -> None:
    inputs = make_inputs("middle")
    losses = fast.label_losses(**inputs)
    assert (losses.sum() / (losses > 0).sum()).item() == pytest.approx(fast(**inputs).loss.item(), rel=1e-6)


def test_its_gradient_is_that_of_the_loss(
    fast: FastGPTNeoForCausalLM, make_inputs: Callable[..., Inputs], compare: Any
) -> None:
    inputs = make_inputs("middle", prompt=3)
    count = (inputs["labels"][:, 1:] != -100).sum()
    by_label = compare.gradients(fast, fast.label_losses(**inputs).sum() / count)
    compare.assert_same(by_label, compare.result(fast, inputs))


@torch.no_grad()
@pytest.mark.parametrize("training", [True, False])
def test_without_the_fast_paths_it_is_the_same(
    training: bool, fast: FastGPTNeoForCausalLM, make_inputs: Callable[..., Inputs], compare: Any
) -> None:
    inputs = make_inputs("middle", prompt=3)
    losses = fast.train(training).label_losses(**inputs)
    torch.testing.assert_close(compare.slow(fast).label_losses(**inputs), losses, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_without_any_label_it_is_zero(fast: FastGPTNeoForCausalLM, make_inputs: Callable[..., Inputs]) -> None:
    inputs = make_inputs("none")
    losses = fast.label_losses(torch.full_like(inputs["labels"], -100), input_ids=inputs["input_ids"])
    assert torch.equal(losses, torch.zeros(3, 11))


def test_logits_are_made_at_labelled_positions_only(
    fast: FastGPTNeoForCausalLM, make_inputs: Callable[..., Inputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head is not called, and what takes its place sees the labelled positions."""
    heads: list[int] = []
    rows: list[int] = []
    fast.lm_head.register_forward_hook(lambda *arguments: heads.append(1))
    from hf_era.models.fast import causal_lm as fast_model

    function = fast_model.linear_cross_entropy

    def spy(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        rows.append(len(hidden))
        return function(hidden, *args, **kwargs)

    monkeypatch.setattr(fast_model, "linear_cross_entropy", spy)
    inputs = make_inputs("right", prompt=8)
    counted = int((inputs["labels"][:, 1:] != -100).sum())
    assert 0 < counted < 33
    fast.label_losses(**inputs)
    fast(**inputs)
    assert (heads, rows) == ([], [counted, counted])
    fast(**inputs, skip_logits=False)
    assert heads == [1]  # the hook does see a call


@torch.no_grad()
def test_under_autocast_losses_are_fp32_and_near(
    fast: FastGPTNeoForCausalLM, stock: GPTNeoForCausalLM, make_inputs: Callable[..., Inputs]
) -> None:
    """As near to fp32 as those of the stock class's bf16 logits."""
    inputs = make_inputs("right")
    labels = inputs.pop("labels")
    exact = expected_losses(stock.eval()(**inputs).logits, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = fast.eval().label_losses(labels, **inputs)
        slow = expected_losses(stock(**inputs).logits, labels)
    assert losses.dtype == torch.float32
    errors = [(value - exact).norm().item() for value in (losses, slow)]
    assert 0 < errors[0] <= 1.5 * errors[1] + 1e-3, errors
