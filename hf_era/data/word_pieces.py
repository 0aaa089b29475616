"""Forget words that the tokenizer cuts into pieces which stand in everything: routing them harms more than the words."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from hf_era.data.columns import arrow_batches, flat_column
from hf_era.utils.checks import short_repr

LEAST_SHARE = 0.01
"""Of all routed tokens: pieces of rarer words do little harm."""
MOST_WORDS = 5
"""In a message; of more, no one reads one."""


class ForgetWordPiecesWarning(UserWarning):
    """A forget word has no token of its own, and its pieces mostly stand in other words."""


def check_words_have_tokens(words: Sequence[str], tokenizer: object) -> None:
    """Raises `ValueError` if the tokenizer turns a forget word into nothing, or into unknown tokens only."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    special = set(getattr(tokenizer, "all_special_ids", []))
    for word in words:
        ids = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]  # type: ignore[operator]
        if not [token for token in ids if token != unknown and token not in special]:
            raise ValueError(
                f"`data.forget_words`: no token of the tokenizer matches {word!r}, so it can never be routed. "
                "Take the word out, or use a tokenizer that knows it."
            )


def word_pieces(train: Dataset, tokenizer: Any, vocabulary_size: int) -> list[dict[str, Any]]:
    """The forget words, as they stand in the training examples, whose tokens mostly stand elsewhere.

    Args:
        train (`Dataset`): `input_ids`, `is_forget_word`.
        vocabulary_size (`int`): more than the largest token id.

    Returns: `text`; `share`, of the tokens of all forget words, in [`LEAST_SHARE`, 1]; and `pieces`, each with its `token`
        and `per_10k_elsewhere`, its number in 10,000 tokens that are of no forget word. The commonest words first.
    """
    everywhere, inside = np.zeros((2, vocabulary_size), dtype=np.int64)
    cut: Counter[tuple[int, ...]] = Counter()
    for table in arrow_batches(train, ["input_ids", "is_forget_word"]):
        ids, lengths = flat_column(table, "input_ids")
        is_word, _ = flat_column(table, "is_forget_word")
        everywhere += np.bincount(ids, minlength=vocabulary_size)
        inside += np.bincount(ids[is_word], minlength=vocabulary_size)
        places = np.flatnonzero(is_word)
        story = np.repeat(np.arange(len(lengths)), lengths)[places]
        begins = np.flatnonzero((np.diff(places) > 1) | (np.diff(story) > 0)) + 1
        cut.update(tuple(word.tolist()) for word in np.split(ids[places], begins) if len(word) > 1)
    elsewhere, all_inside = everywhere - inside, int(inside.sum())
    total = max(int(elsewhere.sum()), 1)
    found = []
    for word, number in cut.most_common():
        share = number * len(word) / all_inside
        if share >= LEAST_SHARE and any(elsewhere[token] > inside[token] for token in word):
            pieces = [
                {"token": _text(tokenizer, token), "per_10k_elsewhere": round(float(elsewhere[token]) * 1e4 / total, 1)}
                for token in word
            ]
            found.append({"text": tokenizer.decode(list(word)).strip(), "share": round(share, 4), "pieces": pieces})
    return found


def warn_of_pieces(summary: dict[str, Any]) -> None:
    """Warns with `ForgetWordPiecesWarning` of the words in `forget_word_pieces` of a summary; of a launch, one process."""
    words = summary.get("forget_word_pieces")
    if not words or os.environ.get("RANK", "0") != "0":
        return
    told = [
        f"{short_repr(word['text'])} is "
        + " ".join(f"{piece['token']!r} ({piece['per_10k_elsewhere']:g})" for piece in word["pieces"])
        for word in words[:MOST_WORDS]
    ]
    more = f"; and {len(words) - MOST_WORDS} more" if words[MOST_WORDS:] else ""
    warnings.warn(
        "`data.forget_words`: the tokenizer has no token of their own for some words, and `routing.rule: concept` routes "
        f"their pieces, which mostly stand in other words (in brackets: how often in 10,000 other tokens): {'; '.join(told)}"
        f"{more}. Take a tokenizer that knows the words (a larger `model.vocabulary_size`), other words, or another rule.",
        ForgetWordPiecesWarning,
        stacklevel=3,
    )


def _text(tokenizer: Any, token: int) -> str:
    text = str(tokenizer.decode([token]))
    # A token may be less than a character.
    return str(tokenizer.convert_ids_to_tokens(token)) if "\ufffd" in text else text
