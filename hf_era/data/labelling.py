"""Which stories are forget stories: those with a forget word as a whole word in their text, in any case.

Words are looked for in the *text*, not among tokens: " tree", "Tree" and "tree." are all found, whatever the tokenizer
makes of them. (Encoding the bare word and looking for its token id misses " tree", which is another token.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

FORGET, RETAIN, UNLABELLED = 0, 1, -1

# Other letters that a regular expression takes for i, s and k in any case: dotted I, dotless i, long s, Kelvin sign.
_ASCII_IN_ANY_CASE = re.compile("[\u0130\u0131\u017f\u212a]")


class WordFinder:
    """Finds whole words in text, in any case.

    Args:
        words (`Sequence[str]`): words or phrases, none of them blank.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(word.strip() for word in words)
        # In a phrase any white space will do: a line may end between its words.
        patterns = (r"\s+".join(map(re.escape, word.split())) for word in sorted(self.words, key=len, reverse=True))
        # Not \b: a word may begin or end in a character that is no letter. A look-ahead, so that phrases may overlap.
        self._pattern = re.compile(rf"(?<!\w)(?=({'|'.join(patterns)})(?!\w))", re.IGNORECASE)
        self._clues = _clues(self.words)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Character spans (start, end) of the words in `text`, in order; those that overlap are one."""
        spans: list[tuple[int, int]] = []
        for match in self._matches(text):
            start, end = match.span(1)
            if spans and start < spans[-1][1]:
                start, end = spans[-1][0], max(spans.pop()[1], end)
            spans.append((start, end))
        return spans

    def found_in(self, text: str) -> bool:
        return next(self._matches(text), None) is not None

    def may_be_in(self, texts: pa.ChunkedArray) -> list[bool]:
        """Per text of an Arrow column whether a search is worth while; False says that no word is in it.

        Cheap, as it looks at the column and makes no strings; most stories have no word.
        """
        if self._clues is None:
            return [True] * len(texts)
        clue = pc.match_substring_regex(texts, "|".join(map(re.escape, self._clues)), ignore_case=True)
        return pc.or_(clue, pc.invert(pc.string_is_ascii(texts))).to_pylist()

    def _matches(self, text: str) -> Iterator[re.Match[str]]:
        if self._clues is None or not (text.isascii() or _ASCII_IN_ANY_CASE.search(text) is None):
            return self._pattern.finditer(text)
        # To try only the places where a word can begin is ten times as fast.
        starts = sorted(_places(self._clues, text.lower()))
        return filter(None, (self._pattern.match(text, start) for start in starts))


def _places(clues: Sequence[str], lowered: str) -> Iterator[int]:
    for clue in clues:
        start = lowered.find(clue)
        while start != -1:
            yield start
            start = lowered.find(clue, start + 1)


def _clues(words: Sequence[str]) -> tuple[str, ...] | None:
    """Lower-case strings with one of which every word begins in ASCII text; `None` if a word is not ASCII itself."""
    if not all(word.isascii() and part.isprintable() for word in words for part in word.split()):
        return None
    clues: list[str] = []
    # Of a phrase the first part: how long the white space behind it is, is not known.
    for part in sorted({word.lower().split()[0] for word in words}, key=len):
        if not part.startswith(tuple(clues)):  # where "trees" is, "tree" is too
            clues.append(part)
    return tuple(clues)


def tokens_of_spans(spans: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]]) -> list[bool]:
    """For each token, given by its character offsets (start, end), whether it overlaps one of the spans.

    Both are sorted by position; special tokens have the empty offset (0, 0) and overlap nothing.
    """
    hits = [False] * len(offsets)
    if not spans:
        return hits
    remaining = iter(spans)
    start, end = next(remaining)
    for index, (token_start, token_end) in enumerate(offsets):
        while token_start >= end:
            following = next(remaining, None)
            if following is None:
                return hits
            start, end = following
        hits[index] = token_end > start and token_start < end
    return hits


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
