"""Repetition: the share of word trigrams that a text has said before."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice


def trigram_repetition(text: str) -> float:
    """1 - distinct / all word trigrams, in [0, 1): 0 where no three words in a row come twice.

    Words are what stands between white space, as written: "Tree." and "tree" differ. A text of fewer than three words has
    no trigram, so it repeats nothing: 0.
    """
    words = text.split()
    trigrams = list(zip(words, islice(words, 1, None), islice(words, 2, None), strict=False))
    return 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0


def mean_repetition(texts: Sequence[str]) -> float:
    """The plain mean of `trigram_repetition` over texts; each text counts the same, however long.

    Raises:
        ValueError: if there is no text, or one string is given instead of several.
    """
    if isinstance(texts, str):
        raise ValueError(f"`texts` should be a list of strings, got the string {texts[:40]!r}. Pass a list.")
    if not texts:
        raise ValueError("`texts` is empty, so there is no mean. Pass at least one text.")
    return sum(map(trigram_repetition, texts)) / len(texts)
