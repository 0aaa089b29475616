"""One attention layer alone: sdpa against the stock layer, for every kind of mask."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention

from hf_era.models.fast.gpt_neo import FastGPTNeoSelfAttention

TOLERANCE = 2e-6  # of the largest value or gradient, fp32
WINDOW = 4
LOWEST = torch.finfo(torch.float32).min


def layers_of(make_config: Callable[..., Any], attention_type: str) -> tuple[Any, Any]:
    """The fast and the stock layer with the same weights."""
    torch.manual_seed(0)
    stock = GPTNeoSelfAttention(make_config(attn_implementation="eager"), attention_type, 0)
    fast = copy.deepcopy(stock)
    fast.__class__ = FastGPTNeoSelfAttention
    fast.config._attn_implementation_internal = "sdpa"
    assert stock.config._attn_implementation == "eager"
    return fast, stock


def hidden_states(length: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn((2, length, 16), generator=generator).requires_grad_()


def seen_mask(kind: str, length: int) -> tuple[Tensor | None, Tensor]:
    """A bool mask (2, 1, length, length) or none, and which positions are real: (2, length)."""
    real = torch.ones(2, length, dtype=torch.bool)
    if kind == "left":
        real[1, : length // 2] = False
    elif kind == "right":
        real[1, length // 2 :] = False
    elif kind == "middle":
        real[1, 1 : length - 1] = False
    if kind == "none":
        return None, real
    mask = real[:, None, None, :].expand(2, 1, length, length)
    return (mask if kind.startswith("not causal") else mask & torch.ones(length, length).tril().bool()), real


def additive(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else torch.zeros(mask.shape).masked_fill(~mask, LOWEST)


def output_and_gradients(layer: Any, states: Tensor, mask: Tensor | None, real: Tensor) -> list[Tensor]:
    """At real positions: what stands at padding means nothing."""
    output, _ = layer(states, attention_mask=mask)
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)) * real[..., None]
    gradients = torch.autograd.grad((output * upstream).sum(), [states, *layer.parameters()])
    return [output[real], gradients[0], *gradients[1:]]


def assert_close(actual: list[Tensor], expected: list[Tensor]) -> None:
    for value, reference in zip(actual, expected, strict=True):
        assert value.isfinite().all()
        assert (value - reference).abs().max() <= TOLERANCE * max(reference.abs().max().item(), 1e-3)


LENGTHS = [2, WINDOW - 1, WINDOW, WINDOW + 1, 12]


@pytest.mark.parametrize("form", ["bool", "additive"])
@pytest.mark.parametrize("kind", ["none", "full", "left", "right", "middle", "not causal"])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("attention_type", ["global", "local"])
def test_output_and_gradients_equal_those_of_the_stock_layer(
    attention_type: str, length: int, kind: str, form: str, make_config: Callable[..., Any]
) -> None:
    """A mask of a user's own need not be causal; the layer is."""
    fast, stock = layers_of(make_config, attention_type)
    states, (mask, real) = hidden_states(length), seen_mask(kind, length)
    expected = output_and_gradients(stock, states, additive(mask), real)
    given = mask if form == "bool" else additive(mask)
    assert_close(output_and_gradients(fast, states, given, real), expected)


@pytest.mark.parametrize("mistake", ["window", "causality", "padding", "scale"])
def test_the_comparison_notices(mistake: str, make_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    fast, stock = layers_of(make_config, "local")
    states, (mask, real) = hidden_states(12), seen_mask("left", 12)
    expected = output_and_gradients(stock, states, additive(mask), real)
    if mistake == "window":
        fast.bias = torch.ones(32, 32).tril().bool().view(1, 1, 32, 32)
    elif mistake == "causality":
        fast.bias = torch.ones(1, 1, 32, 32, dtype=torch.bool)
        mask = real[:, None, None, :].expand(2, 1, 12, 12)
    elif mistake == "padding":
        mask = None
    else:
        scaled = F.scaled_dot_product_attention
        monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *args, scale, **kwargs: scaled(*args, **kwargs))
    with pytest.raises(AssertionError):
        assert_close(output_and_gradients(fast, states, mask, real), expected)


@pytest.mark.parametrize("form", ["none", "bool", "additive"])
@pytest.mark.parametrize("attention_type", ["global", "local"])
def test_weights_when_asked_are_those_of_the_eager_form_bit_for_bit(
    attention_type: str, form: str, make_config: Callable[..., Any]
) -> None:
    fast, stock = layers_of(make_config, attention_type)
    mask, _ = seen_mask("middle" if form != "none" else "none", 12)
    given = additive(mask) if form == "additive" else mask
    with torch.no_grad():
        states = hidden_states(12)
        output, weights = fast(states, attention_mask=given, output_attentions=True)
        expected_output, expected_weights = stock(states, attention_mask=additive(mask), output_attentions=True)
        _, afterwards = fast(states, attention_mask=given)
    assert torch.equal(weights, expected_weights)
    assert torch.equal(output, expected_output)
    assert afterwards is None


def test_where_no_mask_is_needed_none_is_made(make_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are fastest without one: global layers, and local ones of at most the window."""
    calls: list[dict[str, Any]] = []
    attention = F.scaled_dot_product_attention

    def spy(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(kwargs)
        return attention(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    for attention_type, length in (("global", 12), ("local", WINDOW), ("local", WINDOW + 1)):
        layers_of(make_config, attention_type)[0](hidden_states(length))
    assert [(call["attn_mask"] is None, call["is_causal"]) for call in calls] == [
        (True, True),
        (True, True),
        (False, False),
    ]
