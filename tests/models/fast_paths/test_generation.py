"""Greedy generation: token for token that of the stock class, with and without cache, batched and one by one."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, GPTNeoForCausalLM

from hf_era import ExpandedGPTNeoForCausalLM, FastGPTNeoForCausalLM
from hf_era.models.fast.causal_lm import CACHE_NAME

NEW_TOKENS = 9
PAD = 50

Pair = tuple[Any, GPTNeoForCausalLM]


@pytest.fixture(params=["fast", "expanded"])
def pair(
    request: pytest.FixtureRequest,
    fast: FastGPTNeoForCausalLM,
    stock: GPTNeoForCausalLM,
    expanded: ExpandedGPTNeoForCausalLM,
) -> Pair:
    """A model with fast paths and the stock one that generates the same."""
    if request.param == "fast":
        return fast.eval(), stock.eval()
    contracted = expanded.eval().contract()
    expanded.set_active(None, False)
    return expanded, contracted


def generate(model: Any, prompts: list[list[int]], use_cache: bool = True) -> Tensor:
    """The new tokens: (prompts, NEW_TOKENS). Prompts of different lengths are padded on the left."""
    longest = max(map(len, prompts))
    rows = [[PAD] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    tokens = model.generate(
        torch.tensor(rows),
        attention_mask=torch.tensor(mask),
        min_new_tokens=NEW_TOKENS,  # no early end
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        use_cache=use_cache,
        pad_token_id=PAD,
    )
    return tokens[:, longest:]


# Shorter than the window of 4, as long, longer; each grows beyond it.
PROMPTS = [[1, 2], [3, 4, 5, 6], [7, 8, 9, 10, 11, 12, 13], [14, 15, 16, 17, 18]]


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_text_is_that_of_the_stock_class(prompt: list[int], use_cache: bool, pair: Pair) -> None:
    model, stock = pair
    text = generate(model, [prompt], use_cache)
    assert text.shape == (1, NEW_TOKENS)
    assert torch.equal(text, generate(stock, [prompt]))


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_batch_padded_on_the_left_equals_its_prompts_one_by_one(use_cache: bool, pair: Pair) -> None:
    model, stock = pair
    together = generate(model, PROMPTS, use_cache)
    alone = torch.cat([generate(model, [prompt], use_cache) for prompt in PROMPTS])
    assert torch.equal(together, alone)
    assert torch.equal(together, generate(stock, PROMPTS, use_cache))
    assert len({tuple(row.tolist()) for row in together}) == len(PROMPTS)  # each prompt matters


def test_cached_steps_see_the_window_and_nothing_else(pair: Pair) -> None:
    """Planted: without the window the text is another one."""
    model, stock = pair
    expected = generate(stock, [PROMPTS[2]])
    attention = model.transformer.h[1].attn.attention
    attention.bias = model.transformer.h[0].attn.attention.bias
    assert not torch.equal(generate(model, [PROMPTS[2]]), expected)


@torch.no_grad()
@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_prompt_in_several_pieces(pair: Pair, compare: Any, name: str) -> None:
    """Several queries on top of a cache, under its old and its new name: the mask is then no square."""
    model, stock = pair
    ids = torch.randint(0, 50, (2, 14), generator=torch.Generator().manual_seed(0))
    expected, cache, pieces = stock(ids).logits, None, []
    for piece in ids.split([3, 1, 5, 5], dim=1):
        outputs = model(piece, **{name: cache}, use_cache=True)
        cache = outputs[CACHE_NAME]
        pieces.append(outputs.logits)
    compare.assert_same_at_real_tokens(torch.cat(pieces, dim=1), expected, None)


def test_a_cache_under_both_of_its_names_is_refused(pair: Pair) -> None:
    with pytest.raises(ValueError, match="`cache` and `past_key_values` are two names of the same"):
        pair[0](torch.tensor([PROMPTS[2]]), cache=DynamicCache(), past_key_values=DynamicCache())


@torch.no_grad()
def test_logits_to_keep(pair: Pair, compare: Any) -> None:
    model, stock = pair
    ids = torch.tensor([PROMPTS[2]])
    kept = model(ids, logits_to_keep=1).logits
    assert kept.shape == (1, 1, 53)
    compare.assert_same_at_real_tokens(kept, stock(ids).logits[:, -1:], None)
