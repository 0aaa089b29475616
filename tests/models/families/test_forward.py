"""What every family computes: the same with and without routing, and used as any causal LM is."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

Batch = dict[str, Tensor]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_forward_pass_does_not_depend_on_the_routing(
    dtype: torch.dtype, paths: Any, make_expanded: Callable[..., Any], batch: Batch
) -> None:
    model = paths.set(make_expanded().to(dtype))
    for skip_logits in (False, True):
        plain = model(**{**batch, "routing_weight": None}, skip_logits=skip_logits)
        routed = model(**batch, skip_logits=skip_logits, output_activation_l1=True)
        assert torch.equal(routed.loss, plain.loss)
        assert plain.activation_l1 is None
        assert (plain.logits is None) == (skip_logits and paths.fast)
        if plain.logits is not None:
            assert torch.equal(routed.logits, plain.logits)
            assert routed.logits.dtype == dtype


@torch.no_grad()
def test_fast_and_slow_paths_agree(paths_of: Any, make_expanded: Callable[..., Any], batch: Batch) -> None:
    """In float64, where GPT-Neo's slow attention is in fp32."""
    found = [paths_of(fast).set(make_expanded().double())(**batch, skip_logits=False).logits for fast in (True, False)]
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(found[0][real], found[1][real], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_hidden_states_are_those_of_the_stock_model_whatever_is_measured(
    paths: Any, check: Any, make_expanded: Callable[..., Any], batch: Batch
) -> None:
    model = paths.set(make_expanded()).eval()
    model.set_active(None, False)
    options = {**check.inputs(batch), "output_hidden_states": True}
    expected = paths.reference(model.contract())(**options).hidden_states
    for routing in ({}, {"routing_weight": batch["routing_weight"]}, {"output_activation_l1": True}):
        found = model(**options, **routing).hidden_states
        assert len(found) == len(expected) == 4
        assert all(torch.equal(own, other) for own, other in zip(found, expected, strict=True))


def test_generation_with_cache_and_left_padding_equals_the_stock_models(make_expanded: Callable[..., Any]) -> None:
    model = make_expanded(width=64).eval()
    prompt = torch.tensor([[0, 0, 1, 2, 3], [4, 5, 6, 7, 8], [0, 9, 10, 11, 12]])
    options = {
        "attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]]),
        "max_new_tokens": 4,
        "do_sample": False,
        "pad_token_id": 0,
    }
    expected = model.contract().generate(prompt, use_cache=False, **options)
    with model.ablated():
        for use_cache in (False, True):
            assert torch.equal(model.generate(prompt, use_cache=use_cache, **options), expected)
    assert expected.shape[1] > prompt.shape[1]
    assert not torch.equal(model.generate(prompt, use_cache=True, **options), expected)


@torch.no_grad()
def test_label_losses_are_those_of_the_logits(
    paths: Any, check: Any, make_expanded: Callable[..., Any], batch: Batch
) -> None:
    model, labels = paths.set(make_expanded().double()), batch["labels"]
    logits = model(**check.inputs(batch)).logits
    expected = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
    tolerance = 1e-12 if paths.fast else 1e-6
    for training in (True, False):
        found = model.train(training).label_losses(labels, **check.inputs(batch))
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=1e-12)
    assert torch.count_nonzero(expected[labels[:, 1:] == -100]) == 0


def test_nobody_is_told_to_pass_the_mask_that_was_passed(
    check: Any, make_expanded: Callable[..., Any], batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding on the right is dropped before attention; GPT-2 looks for padding without a mask."""
    said: list[str] = []
    monkeypatch.setattr("transformers.modeling_utils.logger.warning_once", said.append)
    model, inputs = make_expanded(pad_token_id=0), check.inputs(batch)
    inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 0)
    model(**inputs)
    assert not said
