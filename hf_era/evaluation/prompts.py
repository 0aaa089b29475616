"""Prompts for generations: what forget and retain examples that were not trained on begin with.

A model that still has the capability goes on with the subject of a forget prompt; on retain prompts nothing should have
changed. So each prompt keeps the label of its example, and texts can be shown and counted by label.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from datasets import Dataset

from hf_era.evaluation.sampling import SamplingConfig


class LabelledPrompts(NamedTuple):
    """The settings with their prompts filled in, and what each prompt is of: `forget`, `retain`, or None where it was
    given."""

    settings: SamplingConfig
    labels: list[str | None]


def prompts_for(config: SamplingConfig, tokenizer: Any, examples: Mapping[str, Dataset]) -> LabelledPrompts:
    """The prompts of the settings or, where they give none, the first tokens of held-out examples.

    Args:
        config (`SamplingConfig`): `prompts`, or `prompt_examples`, `prompt_tokens` and the `seed` of the choice.
        tokenizer: a fast tokenizer.
        examples: `forget`, `retain` -> examples with `text` and `length`; prompts come in this order.

    Returns: the same for the same examples, whatever the model. A prompt ends with a whole word and before its example does;
        none comes twice. There are fewer than asked for where the examples are fewer or begin alike.

    Raises:
        ValueError: if no example is long enough to begin a text.
    """
    if config.prompts is not None:
        return LabelledPrompts(config, [None] * len(config.prompts))
    found: dict[str, str | None] = {}
    for label, part in examples.items():
        order = random.Random(f"prompts-{config.seed}").sample(range(len(part)), len(part))
        wanted = len(found) + config.prompt_examples
        for index in order:
            if len(found) == wanted:
                break
            row = part[index]
            prompt = _beginning(row["text"], row["length"], tokenizer, config.prompt_tokens)
            if prompt:
                found.setdefault(prompt, label)
    if not found:
        raise ValueError(
            "No held-out example has more than two tokens, so there is nothing that texts could begin with. Give "
            "`generation.prompts`, or set `generation.enabled` to false."
        )
    return LabelledPrompts(replace(config, prompts=list(found)), list(found.values()))


def _beginning(text: str, length: int, tokenizer: Any, tokens: int) -> str:
    """The first tokens of an example, half of it at most, and the rest of the word that they end in; empty if it has too
    few. `length`: that the example is cut to."""
    # verbose: a text that is longer than the model is none to warn of, for its beginning alone is taken
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    words, offsets = encoding.word_ids(), encoding["offset_mapping"]
    last = min(len(offsets), length - 2)  # with a BOS, and one token that is left to predict
    end = min(tokens, last // 2)
    if end < 1:
        return ""
    # In a script without spaces a "word" may be the whole text: no more than as much again.
    longest = min(2 * end, last)
    while end < longest and words[end] is not None and words[end] == words[end - 1]:
        end += 1
    return text[: offsets[end - 1][1]]
