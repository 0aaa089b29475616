"""Texts that a model continues from prompts, the same way for every model, so that stages can be compared.

Prompts are padded on the left, and each samples with random numbers of its own, so that a batch gives the text of each
prompt alone (to the rounding of the logits). Nothing that a checkpoint brings along in its generation config takes part: a
stage with another one would be measured differently.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from transformers import GenerationConfig, LogitsProcessorList

from hf_era.data.collator import padding_token_id
from hf_era.evaluation.batch_halving import halving_batches
from hf_era.evaluation.prompts import LabelledPrompts
from hf_era.evaluation.sampling import SamplingConfig, choice_of_tokens
from hf_era.evaluation.text_metrics import TargetWordCounts, count_target_words, mean_repetition
from hf_era.utils.processes import share_out

BATCHES, SMALLEST_BATCH = 8, 4
"""Prompts are generated in at most so many batches of at least so many: several processes have a share, and the texts do not
depend on how many processes there are."""


class GeneratedTexts(NamedTuple):
    """Whole texts, prompt included, and how many new tokens each could have at most."""

    texts: list[str]
    new_tokens: int


def generate_texts(
    model: Any,
    tokenizer: Any,
    config: SamplingConfig,
    device: torch.device | str | None = None,
    batch_size: int | None = None,
    state: PartialState | None = None,
) -> GeneratedTexts:
    """Continues each prompt. The model's modes and settings, the tokenizer and the random state are left as they were.

    A BOS is put in front if the tokenizer has one, never a second one; a text ends at the tokenizer's EOS.

    Args:
        model: a causal LM of transformers. tokenizer: its tokenizer.
        config (`SamplingConfig`): prompts, length, temperature, top-k, seed.
        device (*optional*): the model is moved there. Not given: it stays where it is.
        batch_size (`int`, *optional*): prompts at a time. Not given: an eighth of them, but at least 4. It changes the speed
            only, and is halved where memory does not suffice.
        state (`PartialState`, *optional*): of this process among the launched ones, which share the batches out and all
            get all texts. Not given: this process does it all.

    Returns: the texts, in the order of the prompts, each beginning with its prompt to the letter, without special tokens;
        and `config.new_tokens`, or what the longest prompt leaves of the model's positions, if that is less.

    Raises:
        ValueError: without prompts; if one has no token or leaves no room in the model's positions, if the tokenizer is not
            the model's, or if the model's logits are not finite.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"`batch_size` should be at least 1, got {batch_size}.")
    if device is not None:
        model.to(device)
    if config.prompts is None:
        raise ValueError(
            "`generation.prompts` is not given. Give some, or take them from examples: `hf_era.evaluation.prompts_for`."
        )
    prompts = config.prompts
    rows = _encode(prompts, tokenizer, model)
    new_tokens = _room(model, rows, prompts, config.new_tokens)
    settings = _generation_config(model, tokenizer, new_tokens)

    def continue_batch(numbers: range) -> list[list[int]]:
        return _continue(model, [rows[number] for number in numbers], settings, choice_of_tokens(config, numbers))

    def continue_all(size: int) -> list[list[int]]:
        batches = [range(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]
        return [new for batch in share_out(batches, continue_batch, state) for new in batch]

    with _left_as_it_was(model, settings):
        continued, _ = halving_batches(
            continue_all,
            batch_size or max(SMALLEST_BATCH, math.ceil(len(rows) / BATCHES)),
            doing="Generating",
            setting="the `batch_size` of `generate_texts`",
            state=state,
        )
    texts = [prompt + _new_text(tokenizer, row, new) for prompt, row, new in zip(prompts, rows, continued, strict=True)]
    return GeneratedTexts(texts, new_tokens)


def describe_generations(
    texts_by_stage: Mapping[str, Sequence[str]],
    prompts: LabelledPrompts,
    words: Sequence[str],
    new_tokens: int | None = None,
    trained_tokens: int | None = None,
) -> dict[str, Any]:
    """The texts of several stages with their target words and repetition, as JSON.

    Args:
        texts_by_stage: stage -> whole texts, one per prompt.
        prompts (`LabelledPrompts`): what they begin with, and how they were made.
        words: see `count_target_words`. Without any nothing is counted.
        new_tokens (`int`, *optional*): how many there could be at most, from `generate_texts`. Not given: as in `settings`.
        trained_tokens (`int`, *optional*): of the longest example in training, where texts may reach beyond it.

    Returns: `settings` (`new_tokens`, `temperature`, `top_k`, `seed`, and `trained_tokens` if given), `prompts`,
        `prompt_labels` (of each: `forget`, `retain`, or `None` where it was given), and by stage `texts`, `target_words`
        (`all`, `without_prompt`: sums over the texts, or `None`) and `repetition` (mean over the texts).
    """
    settings = prompts.settings
    begun = settings.prompts or []
    counts = {
        stage: count_target_words(texts, words, begun) if words else TargetWordCounts(None, None)
        for stage, texts in texts_by_stage.items()
    }
    return {
        "settings": {
            "new_tokens": settings.new_tokens if new_tokens is None else new_tokens,
            **{name: getattr(settings, name) for name in ("temperature", "top_k", "seed")},
            **({} if trained_tokens is None else {"trained_tokens": trained_tokens}),
        },
        "prompts": list(begun),
        "prompt_labels": list(prompts.labels),
        "texts": {stage: list(texts) for stage, texts in texts_by_stage.items()},
        "target_words": {stage: asdict(found) for stage, found in counts.items()},
        "repetition": {stage: mean_repetition(texts) for stage, texts in texts_by_stage.items()},
    }


# ---- Prompts in ----


def longest_prompt(prompts: Sequence[str], tokenizer: Any) -> int:
    """The most tokens of a prompt, with the BOS that is put in front."""
    return max(len(_tokens_of(prompt, tokenizer)) for prompt in prompts)


def _tokens_of(prompt: str, tokenizer: Any) -> list[int]:
    # The special tokens are ours: what a tokenizer adds by itself may double the BOS, or end the text.
    row = list(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    bos = tokenizer.bos_token_id
    return row if bos is None or row[:1] == [bos] else [bos, *row]


def _encode(prompts: Sequence[str], tokenizer: Any, model: Any) -> list[list[int]]:
    """The token ids of each prompt, with one BOS in front if there is one."""
    vocabulary = _vocabulary_size(model)
    rows = []
    for prompt in prompts:
        row = _tokens_of(prompt, tokenizer)
        if not row:
            raise ValueError(
                f"`generation.prompts`: {prompt!r} has no token, and the tokenizer no BOS, so there is nothing to "
                "continue. Take the prompt out."
            )
        if max(row) >= vocabulary:
            raise ValueError(
                f"`generation.prompts`: {prompt!r} has the token {max(row)}, but the model has {vocabulary} tokens. "
                "Pass the tokenizer that the model was trained with."
            )
        rows.append(row)
    return rows


def _room(model: Any, rows: list[list[int]], prompts: Sequence[str], new_tokens: int) -> int:
    """How many tokens the longest prompt can be given, at most as many as asked for."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not positions or positions < 0:  # no limit, as some families write it
        return new_tokens
    for prompt, row in zip(prompts, rows, strict=True):
        if len(row) >= positions:
            raise ValueError(
                f"`generation.prompts`: {prompt[:60]!r} has {len(row)} tokens, which leaves no room in the model's "
                f"{positions} positions. Shorten the prompt."
            )
    return min(new_tokens, positions - max(map(len, rows)))


def _vocabulary_size(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


# ---- Generation ----


def _generation_config(model: Any, tokenizer: Any, new_tokens: int) -> GenerationConfig:
    return GenerationConfig(
        do_sample=False,  # sampling is in the noise
        max_new_tokens=new_tokens,
        use_cache=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=padding_token_id(tokenizer, _vocabulary_size(model)),
    )


def _continue(
    model: Any, rows: list[list[int]], settings: GenerationConfig, choice: LogitsProcessorList
) -> list[list[int]]:
    """The new tokens of each row, up to its EOS."""
    longest = max(map(len, rows))
    padded = [[settings.pad_token_id] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    tokens = model.generate(
        torch.tensor(padded, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        generation_config=settings,
        logits_processor=choice,
    )
    end, new = settings.eos_token_id, tokens[:, longest:].tolist()
    return [row[: row.index(end)] if end in row else row for row in new]


def _new_text(tokenizer: Any, row: list[int], new: list[int]) -> str:
    """The text of the new tokens as it follows that of the row: alone, some tokenizers drop the space in front."""
    before, whole = (
        tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for tokens in (row, row + new)
    )
    if whole.startswith(before):
        return whole[len(before) :]
    return tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@contextmanager
def _left_as_it_was(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """The model in evaluation mode and with no other generation config; then each module as before."""
    # `generate` takes what `settings` leave open from the model's own config (penalties, `min_p`, ...), so that is
    # exchanged; a wrapper such as peft's keeps it in the model inside.
    configs = [
        (module, module.__dict__["generation_config"])
        for module in model.modules()
        if "generation_config" in module.__dict__
    ]
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in configs:
        module.generation_config = settings
    model.eval()
    try:
        yield
    finally:
        for module, own in configs:
            module.generation_config = own
        for module, mode in modes:
            module.training = mode
