"""Target words: how often the forget words stand in texts, counted as the reference counts them.

A text is split at white space; what is left of a piece without the non-word characters at both ends is a word if it equals
a forget word, in any case. So " tree", "Tree." and "(trees)" count, "treehouse", "tree-house" and "tree's" do not. (Labels
are made by `hf_era.data`, which also finds the tree in "tree-house": there a miss would be the worse mistake.)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

_NOT_SPACE = re.compile(r"\S+")
_EDGES = re.compile(r"^(\W*)(.*?)(\W*)$", re.DOTALL)


@dataclass(frozen=True)
class TargetWordCounts:
    """Forget words, summed over texts: all in the whole texts, prompts included, and those that end beyond their text's
    prompt; None where no prompts were given."""

    all: int
    without_prompt: int | None


class _Piece(NamedTuple):
    """A piece of text between white space: its core in any case (casefolded), what is around it, and where the core is."""

    before: str
    core: str
    after: str
    start: int
    end: int

    def holds(self, word: _Piece) -> bool:
        """Whether this is `word`, up to non-word characters at its ends; those that the word itself has must be there."""
        return self.core == word.core and self.before.endswith(word.before) and self.after.startswith(word.after)


def count_target_words(
    texts: Sequence[str], words: Sequence[str], prompts: Sequence[str] | None = None
) -> TargetWordCounts:
    """Counts the forget words in texts, with and without what their prompts brought along.

    Args:
        texts: whole texts, each beginning with its prompt where there are prompts.
        words: forget words or phrases, in any case. A phrase counts wherever its words stand in a row, and a word within
            it is not counted again.
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
    found = [target_word_spans(text, words) for text in texts]
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
    phrases = _by_core(words)
    pieces = [_piece(match.group(), match.start()) for match in _NOT_SPACE.finditer(text)]
    spans: list[tuple[int, int]] = []
    reached = 0
    for index, piece in enumerate(pieces):
        # The longest first: "oak tree" is one find, not also "tree".
        for phrase in phrases.get(piece.core, ()):
            row = pieces[index : index + len(phrase)]
            if len(row) == len(phrase) and all(part.holds(word) for part, word in zip(row, phrase, strict=True)):
                if index + len(phrase) > reached:
                    reached = index + len(phrase)
                    spans.append((piece.start - len(phrase[0].before), row[-1].end + len(phrase[-1].after)))
                break
    return spans


def _by_core(words: Sequence[str]) -> dict[str, list[list[_Piece]]]:
    """Core of the first word -> the phrases (words are phrases of one) that begin with it, the longest first."""
    found: dict[str, list[list[_Piece]]] = {}
    for word in words:
        phrase = [_piece(part, 0) for part in word.split()]
        if not phrase:
            raise ValueError(f"`words` should hold words, got {word!r}. Take the empty word out.")
        found.setdefault(phrase[0].core, []).append(phrase)
    for phrases in found.values():
        phrases.sort(
            key=lambda phrase: (len(phrase), sum(len(part.before + part.after) for part in phrase)), reverse=True
        )
    return found


def _piece(text: str, start: int) -> _Piece:
    match = _EDGES.match(text)
    assert match is not None  # every text has such a form
    before, core, after = match.groups()
    return _Piece(before, core.casefold(), after, start + match.start(2), start + match.end(2))


def _check_list(name: str, values: Sequence[str]) -> None:
    if isinstance(values, str):
        raise ValueError(f"`{name}` should be a list of strings, got the string {values!r}. Pass [{values!r}].")


def trigram_repetition(text: str) -> float:
    """1 - distinct / all word trigrams, in [0, 1): 0 where no three words in a row come twice.

    Words are what stands between white space, as written: "Tree." and "tree" differ. A text of fewer than three words has
    no trigram, so it repeats nothing: 0.
    """
    words = text.split()
    trigrams = list(zip(words, islice(words, 1, None), islice(words, 2, None), strict=False))
    return 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0


def mean_repetition(texts: Sequence[str]) -> float:
    """The plain mean of `trigram_repetition` over texts; each text counts the same, however long. Raises `ValueError` if
    there is no text, or one string is given instead of several."""
    _check_list("texts", texts)
    if not texts:
        raise ValueError("`texts` is empty, so there is no mean. Pass at least one text.")
    return sum(map(trigram_repetition, texts)) / len(texts)
