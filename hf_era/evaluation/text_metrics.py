"""Target words: how often the forget words stand in texts, counted as the reference counts them.

A text is split at white space; what is left of a piece without the non-word characters at both ends is a word if it is the
same as a forget word. So " tree", "Tree.", "_tree_" and "(trees)" count, "treehouse", "tree-house" and "tree's" do not. What
is the same, and what belongs to a word, is said in `hf_era.data.words`, for the labels too; these are also made where
"tree-house" stands, because there a miss would be the worse mistake.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from hf_era.data.words import WordFinder


@dataclass(frozen=True)
class TargetWordCounts:
    """Forget words, summed over texts: all in the whole texts, prompts included, and those that end beyond their text's
    prompt; None where no prompts were given. Both are None where nothing was counted."""

    all: int | None
    without_prompt: int | None


def count_target_words(
    texts: Sequence[str], words: Sequence[str], prompts: Sequence[str] | None = None
) -> TargetWordCounts:
    """Counts the forget words in texts, with and without what their prompts brought along.

    Args:
        texts: whole texts, each beginning with its prompt where there are prompts.
        words: forget words or phrases, in any case and spelling. A phrase counts wherever its words stand in a row, and a
            word within it is not counted again.
        prompts (*optional*): one per text. A word that begins in the prompt and ends beyond it was completed by the
            model, so it counts in `without_prompt`.

    Raises:
        ValueError: if there are no words, a word is blank, the numbers of texts and prompts differ, or a text does not
            begin with its prompt.
    """
    _check_list("texts", texts)
    _check_list("words", words)
    if not words:
        raise ValueError("`words` is empty, so nothing can be counted. Pass the forget words, e.g. ['tree', 'trees'].")
    finder = WordFinder(words, whole_pieces=True)
    found = [_counted_spans(finder, text) for text in texts]
    total = sum(map(len, found))
    if prompts is None:
        return TargetWordCounts(total, None)
    _check_list("prompts", prompts)
    if len(texts) != len(prompts):
        raise ValueError(f"`prompts` should hold one prompt per text, got {len(prompts)} for {len(texts)} texts.")
    for number, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
        if not text.startswith(prompt):
            raise ValueError(
                f"`texts[{number}]` should begin with its prompt {prompt!r}, got {text[: len(prompt) + 20]!r}. "
                "Pass whole texts, prompt included, or leave the prompts out."
            )
    beyond = (end > len(prompt) for spans, prompt in zip(found, prompts, strict=True) for _, end in spans)
    return TargetWordCounts(total, sum(beyond))


def target_word_spans(text: str, words: Sequence[str]) -> list[tuple[int, int]]:
    """The character spans (start, end) of the counted words in `text`, in order, without punctuation around them.

    Only phrases can overlap: in "tree tree tree" the phrase "tree tree" stands twice. Without words there are no spans.
    Raises `ValueError` if a word is blank.
    """
    return _counted_spans(WordFinder(words, whole_pieces=True), text)


def _counted_spans(finder: WordFinder, text: str) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    for start, end in finder.places(text):
        if not spans or end > spans[-1][1]:  # "oak tree" is one find, not also "tree"
            spans.append((start, end))
    return spans


def _check_list(name: str, values: Sequence[str]) -> None:
    if isinstance(values, str):
        raise ValueError(f"`{name}` should be a list of strings, got the string {values!r}. Pass [{values!r}].")


def trigram_repetition(text: str) -> float:
    """1 - distinct / all word trigrams, in [0, 1): 0 where no three words in a row come twice.

    Words are what stands between white space, as written: "Tree." and "tree" differ, two spellings that Unicode calls the
    same do not. A text of fewer than three words has no trigram, so it repeats nothing: 0; so has one in a script without
    spaces.
    """
    words = unicodedata.normalize("NFC", text).split()
    trigrams = list(zip(words, islice(words, 1, None), islice(words, 2, None), strict=False))
    return 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0


def mean_repetition(texts: Sequence[str]) -> float:
    """The plain mean of `trigram_repetition` over texts; each text counts the same, however long. Raises `ValueError` if
    there is no text, or one string is given instead of several."""
    _check_list("texts", texts)
    if not texts:
        raise ValueError("`texts` is empty, so there is no mean. Pass at least one text.")
    return sum(map(trigram_repetition, texts)) / len(texts)
