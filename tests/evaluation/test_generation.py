"""Generated texts: those of each prompt alone, whatever the batch, and nothing of the caller's is changed."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_era import FastGPTNeoForCausalLM
from hf_era.data.tokenizer import BOS_TOKEN, train_tokenizer
from hf_era.evaluation.generation import SamplingConfig, generate_texts

# 1, 4, 13 and 7 tokens and a BOS: shorter and longer than the window of 4 of the local attention.
PROMPTS = ["a", "abcd", "abcdefghijklm", "hgfedcb"]
NEW_TOKENS = 9
GREEDY = SamplingConfig(prompts=PROMPTS, new_tokens=NEW_TOKENS, temperature=0.0)
SAMPLED = SamplingConfig(prompts=PROMPTS, new_tokens=NEW_TOKENS, temperature=1.0, top_k=20)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte; BOS, EOS and padding are 0, 1 and 2."""
    return train_tokenizer(["abc"], vocab_size=259)


@pytest.fixture(params=["stock", "fast", "expanded", "llama"])
def model(request: pytest.FixtureRequest, make_base: Callable[..., Any], make_expanded: Callable[..., Any]) -> Any:
    """Of several families, in training mode; 259 tokens, 32 positions."""
    if request.param == "llama":
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = LlamaConfig(vocab_size=259, max_position_embeddings=32, initializer_range=0.5, **sizes)
        return LlamaForCausalLM(config).train()
    if request.param == "expanded":
        return make_expanded(vocab_size=259, width=16)
    base = make_base(vocab_size=259)
    return FastGPTNeoForCausalLM.from_stock(base) if request.param == "fast" else base


@torch.no_grad()
def greedy_text(model: Any, tokenizer: Any, prompt: str, front: tuple[int, ...] = (0,), end: int = 1) -> str:
    """The likeliest token again and again: one prompt, no padding, no cache."""
    was_training = model.training
    model.eval()
    ids = [*front, *tokenizer(prompt)["input_ids"]]
    start = len(ids)
    while len(ids) < start + NEW_TOKENS:
        likeliest = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if likeliest == end:
            break
        ids.append(likeliest)
    model.train(was_training)
    return prompt + tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_a_batch_gives_the_greedy_text_of_each_prompt_alone(model: Any, tokenizer: Any) -> None:
    expected = [greedy_text(model, tokenizer, prompt) for prompt in PROMPTS]
    assert len({text[len(prompt) :] for text, prompt in zip(expected, PROMPTS, strict=True)}) == len(PROMPTS)
    for batch_size in (None, 1, 3):
        assert generate_texts(model, tokenizer, GREEDY, batch_size=batch_size) == (expected, NEW_TOKENS)


def test_an_auxiliary_module_takes_part_unless_ablated(make_expanded: Callable[..., Any], tokenizer: Any) -> None:
    model = make_expanded(vocab_size=259, width=16)
    with torch.no_grad():
        for modules in model.auxiliary_modules().values():
            for module in modules.values():
                module.down_projection.weight.mul_(20)
    with_it = generate_texts(model, tokenizer, GREEDY).texts
    assert with_it == [greedy_text(model, tokenizer, prompt) for prompt in PROMPTS]
    with model.ablated():
        without = generate_texts(model, tokenizer, GREEDY).texts
    assert without == generate_texts(model.contract(), tokenizer, GREEDY).texts
    assert without != with_it


def test_samples_depend_on_the_seed_alone(model: Any, tokenizer: Any) -> None:
    torch.manual_seed(1)
    first = generate_texts(model, tokenizer, SAMPLED)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    for batch_size in (None, 1, 3):
        assert generate_texts(model, tokenizer, SAMPLED, batch_size=batch_size) == first
    assert torch.equal(torch.get_rng_state(), before)
    other = SamplingConfig(**{**SAMPLED.to_dict(), "seed": 1})
    assert all(a != b for a, b in zip(generate_texts(model, tokenizer, other).texts, first.texts, strict=True))
    assert all(text.startswith(prompt) for text, prompt in zip(first.texts, PROMPTS, strict=True))


def test_the_same_prompt_twice_gives_two_samples(make_base: Callable[..., Any], tokenizer: Any) -> None:
    config = SamplingConfig(prompts=["ab", "ab"], new_tokens=NEW_TOKENS, temperature=1.0, top_k=0)
    first, second = generate_texts(make_base(vocab_size=259), tokenizer, config).texts
    assert first != second


def test_nothing_of_the_caller_is_changed(model: Any, tokenizer: Any) -> None:
    expected = generate_texts(model, tokenizer, SAMPLED)
    # What a checkpoint may bring along, and what a user may have frozen.
    own = model.generation_config
    own.repetition_penalty, own.min_p, own.max_length, own.suppress_tokens = 5.0, 0.9, 3, list(range(100))
    kept = copy.deepcopy(own).to_dict()
    list(model.modules())[-1].eval()
    modes = [module.training for module in model.modules()]
    tokenizer.padding_side = "right"
    backend, special = tokenizer.backend_tokenizer.to_str(), tokenizer.special_tokens_map
    assert generate_texts(model, tokenizer, SAMPLED) == expected
    assert model.generation_config is own
    assert own.to_dict() == kept
    assert [module.training for module in model.modules()] == modes
    assert len(set(modes)) == 2
    assert (tokenizer.padding_side, tokenizer.special_tokens_map) == ("right", special)
    assert tokenizer.backend_tokenizer.to_str() == backend


@pytest.fixture
def base(make_base: Callable[..., Any]) -> Any:
    return make_base(vocab_size=259)


def test_dropout_is_off(make_base: Callable[..., Any], tokenizer: Any) -> None:
    model = make_base(vocab_size=259, resid_dropout=0.5)
    assert generate_texts(model, tokenizer, GREEDY).texts == [greedy_text(model, tokenizer, text) for text in PROMPTS]
    assert model.training


def test_one_bos_never_two(base: Any, tokenizer: Any) -> None:
    expected = [greedy_text(base, tokenizer, prompt) for prompt in PROMPTS]
    # A tokenizer that adds a BOS, and an EOS that no prompt should end with, by itself.
    adding = copy.deepcopy(tokenizer)
    around = [(adding.bos_token, 0), (adding.eos_token, 1)]
    adding.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{around[0][0]} $A {around[1][0]}", special_tokens=around
    )
    assert adding("a")["input_ids"] == [0, *tokenizer("a")["input_ids"], 1]
    assert generate_texts(base, adding, GREEDY).texts == expected
    written = SamplingConfig(prompts=[BOS_TOKEN + PROMPTS[1]], new_tokens=NEW_TOKENS, temperature=0.0)
    assert generate_texts(base, tokenizer, written).texts == [BOS_TOKEN + expected[1]]


def test_no_bos_without_one(base: Any, tokenizer: Any) -> None:
    tokenizer.bos_token = None
    expected = [greedy_text(base, tokenizer, prompt, front=()) for prompt in PROMPTS]
    assert generate_texts(base, tokenizer, GREEDY).texts == expected
    assert expected != [greedy_text(base, tokenizer, prompt) for prompt in PROMPTS]
    empty = SamplingConfig(prompts=["a", ""])
    with pytest.raises(ValueError, match=r"`generation.prompts`: '' has no token, and the tokenizer no BOS"):
        generate_texts(base, tokenizer, empty)


def test_a_text_ends_at_eos(base: Any, tokenizer: Any) -> None:
    """Its EOS is a token that a greedy text has: that text ends before it, the others where they did or at theirs."""
    with torch.no_grad():
        ids = torch.tensor([[0, *tokenizer(PROMPTS[1])["input_ids"]]])
        end = int(base.eval()(ids).logits[0, -1].argmax())
    whole = generate_texts(base, tokenizer, GREEDY).texts
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    expected = [greedy_text(base, tokenizer, prompt, end=end) for prompt in PROMPTS]
    assert expected[1] == PROMPTS[1]
    assert expected != whole
    assert any(len(text) > len(prompt) for text, prompt in zip(expected, PROMPTS, strict=True))
    assert generate_texts(base, tokenizer, GREEDY).texts == expected


@pytest.mark.parametrize("kind", ["as EOS", "neither", "beyond the model"])
def test_any_padding_will_do(kind: str, base: Any, tokenizer: Any) -> None:
    expected = [greedy_text(base, tokenizer, prompt) for prompt in PROMPTS]
    assert all(len(text) > len(prompt) for text, prompt in zip(expected, PROMPTS, strict=True))
    tokenizer.pad_token = None
    if kind == "neither":
        tokenizer.eos_token = None
    elif kind == "beyond the model":
        tokenizer.add_special_tokens({"pad_token": "<new>"})
        assert tokenizer.pad_token_id == 259
    assert generate_texts(base, tokenizer, GREEDY).texts == expected


def test_fewer_tokens_where_the_model_has_no_room(base: Any, tokenizer: Any) -> None:
    # The longest prompt has 13 tokens and a BOS: 32 - 14 = 18 positions are left, for all prompts alike.
    asked = SamplingConfig(prompts=PROMPTS, new_tokens=200, temperature=0.0)
    texts, allowed = generate_texts(base, tokenizer, asked)
    assert allowed == 18
    assert texts == generate_texts(base, tokenizer, SamplingConfig(**{**asked.to_dict(), "new_tokens": 18})).texts
    one = SamplingConfig(prompts=["x" * 30], new_tokens=200)
    assert generate_texts(base, tokenizer, one).new_tokens == 32 - 31
    base.config.max_position_embeddings = -1  # as some families write that there is no limit
    assert generate_texts(base, tokenizer, GREEDY).new_tokens == NEW_TOKENS


def test_what_cannot_be_continued_is_named(base: Any, tokenizer: Any, make_base: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"has 32 tokens, which leaves no room in the model's 32 positions. Shorten"):
        generate_texts(base, tokenizer, SamplingConfig(prompts=["a", "x" * 31]))
    with pytest.raises(ValueError, match=r"'abcd' has the token \d+, but the model has 53 tokens. Pass the tokenizer"):
        generate_texts(make_base(), tokenizer, SamplingConfig(prompts=["abcd"]))
    with pytest.raises(ValueError, match="`batch_size` should be at least 1, got 0"):
        generate_texts(base, tokenizer, GREEDY, batch_size=0)


@pytest.mark.parametrize("config", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite(value: float, config: SamplingConfig, base: Any, tokenizer: Any) -> None:
    own = base.generation_config
    with torch.no_grad():
        base.transformer.ln_f.bias[0] = value
    with pytest.raises(ValueError, match=r"logits are not finite.*Look for NaN in its weights"):
        generate_texts(base, tokenizer, config)
    assert base.training
    assert base.generation_config is own


def test_device_and_dtype(base: Any, tokenizer: Any) -> None:
    texts, _ = generate_texts(base.bfloat16(), tokenizer, SAMPLED, device="cpu")
    assert len(texts) == len(PROMPTS)
    assert base.dtype == torch.bfloat16
