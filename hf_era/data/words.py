"""When two texts are the same, and where words stand in one. Labels, counts and the search for duplicates all ask here.

Texts are the same if their folded forms are (`fold`): canonically equivalent spellings, any case, and the ways in which an
apostrophe or a hyphen is typed are one; what is invisible is not there. A word is a row of letters, digits and the combining
marks on them. Everything else is a border, the underscore and the apostrophe too: `_tree_` and "tree's" hold "tree" (but a
count wants the whole of what stands between spaces, `WordFinder(whole_pieces=True)`, as the reference does). In
scripts that are written without spaces a border stands beside every character, so there a word is found as a substring.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc

# Unicode's Default_Ignorable_Code_Point, without Hangul's fillers and the space of no width, which parts words.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u180b-\u180f\u200c-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
# Apostrophes (the acute accent by itself, the quotation marks, the two modifier letters, the wide one), hyphens, and the
# dotless i: in Turkish it is the small I, elsewhere i is, and a text does not say which language it is in.
_ALIKE = {
    **dict.fromkeys("\u00b4\u2018\u2019\u201b\u02bb\u02bc\uff07", "'"),
    "\u2010": "-",
    "\u2011": "-",
    "\u0131": "i",
}
_ALIKE_PATTERN = re.compile(f"[{''.join(_ALIKE)}]")
# The small form of the capital I with a dot.
_DOTTED_I = re.compile("(i[\u0300-\u036f]*?)\u0307")
# Han, kana and bopomofo; Thai and Lao; Myanmar; Khmer; Tai Le, New Tai Lue, Tai Tham; Balinese, Javanese. Marks and
# digits of theirs as well.
_WITHOUT_SPACES = re.compile(
    "[\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u303c\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00016fe0-\U00018dff\U0001aff0-\U0001b16f\U00020000-\U0003ffff"
    "\u0e00-\u0eff\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u1b00-\u1b7f\ua980-\ua9df]"
)
_SPACES = re.compile(r"\s+")


def fold(text: str) -> str:
    """The form in which texts are compared: Unicode's canonical caseless matching (section 3.13, D145), with the few
    characters that are alike; fully decomposed, so that a mark never hides in a letter."""
    if text.isascii():
        return text.lower()
    visible = _INVISIBLE.sub("", unicodedata.normalize("NFD", text).casefold())
    alike = _ALIKE_PATTERN.sub(lambda match: _ALIKE[match.group()], visible)
    return _DOTTED_I.sub(r"\1", unicodedata.normalize("NFD", alike))


def origins(text: str) -> tuple[Sequence[int], Sequence[int]]:
    """For each character of `fold(text)` where in `text` that begins and ends which it comes from."""
    if text.isascii():
        return range(len(text)), range(1, len(text) + 1)
    starts: list[int] = []
    ends: list[int] = []
    for start, end in _clusters(text):
        length = _folded_length(text[start:end])
        starts += [start] * length
        ends += [end] * length
    return starts, ends


def _clusters(text: str) -> Iterator[tuple[int, int]]:
    """The characters of a text, each with the marks on it, without what is invisible: each is folded by itself."""
    start = end = 0
    for position, part in enumerate(map(_part_in_cluster, text)):
        if part == "begins" and end:
            yield start, end
            start = position
        elif not end:
            start = position
        if part:
            end = position + 1
    if end:
        yield start, end


@lru_cache(maxsize=10_000)
def _part_in_cluster(character: str) -> str:
    """`begins` a cluster, or `goes on` with it; empty for what is invisible."""
    if _INVISIBLE.match(character):
        return ""
    return "goes on" if unicodedata.combining(unicodedata.normalize("NFD", character)[0]) else "begins"


@lru_cache(maxsize=10_000)
def _folded_length(cluster: str) -> int:
    return len(fold(cluster))


class WordFinder:
    """Finds whole words in text; what is the same word, and what a border, is said above.

    Args:
        words (`Sequence[str]`): words or phrases. In a phrase any white space will do: a line may end between its words.
        whole_pieces (`bool`, *optional*, defaults to `False`): find only words that are all of a piece of text between white
            space, up to punctuation: not the tree in "tree-house". In a phrase there may be punctuation between the words.

    Raises:
        ValueError: if a word is blank, or nothing of it is visible.
    """

    def __init__(self, words: Sequence[str], whole_pieces: bool = False) -> None:
        self.words = tuple(word.strip() for word in words)
        self.whole_pieces = whole_pieces
        self._phrases = list(dict.fromkeys(tuple(fold(word).split()) for word in words))
        if () in self._phrases:
            empty = next(word for word in words if not fold(word).strip())
            raise ValueError(f"`words` should hold words, got {empty!r}. Take the empty word out.")
        self._beginnings = _beginnings(parts[0] for parts in self._phrases)
        # In ASCII text a word with other characters never is.
        self._ascii_beginnings = _beginnings(parts[0] for parts in self._phrases if all(map(str.isascii, parts)))

    def places(self, text: str) -> list[tuple[int, int]]:
        """Character spans (start, end) of every word in `text`, also of words within others; by start, the longest first."""
        found = set(self._places(fold(text)))
        if not found:
            return []
        starts, ends = origins(text)
        return sorted({(starts[start], ends[end - 1]) for start, end in found}, key=lambda place: (place[0], -place[1]))

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Character spans (start, end) of the words in `text`, in order; those that overlap are one."""
        spans: list[tuple[int, int]] = []
        for start, end in self.places(text):
            if spans and start < spans[-1][1]:
                start, end = spans[-1][0], max(spans.pop()[1], end)
            spans.append((start, end))
        return spans

    def found_in(self, text: str) -> bool:
        return next(self._places(fold(text)), None) is not None

    def may_be_in(self, texts: pa.ChunkedArray) -> list[bool]:
        """Per text of an Arrow column whether a search is worth while; False says that no word is in it.

        Cheap, as it looks at the column and makes no strings; most examples have no word.
        """
        if not all(map(str.isprintable, self._ascii_beginnings)):
            return [True] * len(texts)
        maybe = pc.invert(pc.string_is_ascii(texts))
        if self._ascii_beginnings:
            pattern = "|".join(map(re.escape, self._ascii_beginnings))
            maybe = pc.or_(maybe, pc.match_substring_regex(texts, pattern, ignore_case=True))
        return maybe.to_pylist()

    def _places(self, folded: str) -> Iterator[tuple[int, int]]:
        # Most texts hold none of the words: fewer strings to look for.
        if not any(map(folded.__contains__, self._beginnings)):
            return
        borders = _PieceBorders(folded) if self.whole_pieces else _WordBorders(folded)
        for parts in self._phrases:
            start = folded.find(parts[0])
            while start != -1:
                end: int | None = start + len(parts[0])
                for part in parts[1:]:
                    end = None if end is None else borders.end_of_next(part, end)
                if end is not None and borders.are_at(start, end):
                    yield start, end
                start = folded.find(parts[0], start + 1)


class _WordBorders:
    """Where words of a folded text may begin and end, and how the words of a phrase follow each other."""

    def __init__(self, folded: str) -> None:
        self.folded = folded

    def are_at(self, start: int, end: int) -> bool:
        first, after = self.folded[start], self.folded[end : end + 1]
        if _is_mark(after) or (start and _is_mark(first)):
            return False  # a letter with a mark on it is another letter, in every script
        return not (_goes_on(first, self.before(start)) or _goes_on(self.folded[end - 1], self.after(end)))

    def before(self, start: int) -> str:
        """The character of a word with which the one that begins at `start` would be one; empty if there is none."""
        return self.folded[start - 1 : start]

    def after(self, end: int) -> str:
        """The same for the word that ends at `end`."""
        return self.folded[end : end + 1]

    def end_of_next(self, part: str, end: int) -> int | None:
        """Where `part` ends if it is the next word of a phrase after `end`."""
        spaces = _SPACES.match(self.folded, end)
        return spaces.end() + len(part) if spaces and self.folded.startswith(part, spaces.end()) else None


class _PieceBorders(_WordBorders):
    """The same where a word has to be all of a piece between white space, up to what is of no word."""

    def __init__(self, folded: str) -> None:
        super().__init__(folded)
        self._words = [position for position, character in enumerate(folded) if _is_of_a_word(character)]
        self._spaces = [position for position, character in enumerate(folded) if character.isspace()]

    def before(self, start: int) -> str:
        word, space = (_last_below(positions, start) for positions in (self._words, self._spaces))
        return self.folded[word] if word > space else ""

    def after(self, end: int) -> str:
        word, space = self._next(end)
        return self.folded[word] if word < space else ""

    def end_of_next(self, part: str, end: int) -> int | None:
        word, space = self._next(end)
        spaces = _SPACES.match(self.folded, space)
        if word < space or spaces is None:
            return None
        word, space = self._next(spaces.end())
        start = self.folded.find(part, spaces.end(), min(word, space) + len(part))
        return None if start == -1 else start + len(part)

    def _next(self, end: int) -> tuple[int, int]:
        """Where from `end` on the first character of a word is, and the first white space; the text's end without one."""
        word, space = (_first_from(positions, end, len(self.folded)) for positions in (self._words, self._spaces))
        return word, space


def _first_from(positions: Sequence[int], limit: int, otherwise: int) -> int:
    index = bisect_left(positions, limit)
    return positions[index] if index < len(positions) else otherwise


def _last_below(positions: Sequence[int], limit: int) -> int:
    index = bisect_left(positions, limit)
    return positions[index - 1] if index else -1


def _goes_on(inside: str, outside: str) -> bool:
    """Whether a word goes on from its character `inside` to the one beside it; that may be empty, at an end of the text."""
    return _is_of_a_word(outside) and not (_WITHOUT_SPACES.match(inside) or _WITHOUT_SPACES.match(outside))


def _is_of_a_word(character: str) -> bool:
    return character.isalnum() or _is_mark(character)


def _is_mark(character: str) -> bool:
    return character > "\x7f" and unicodedata.category(character).startswith("M")


def _beginnings(words: Iterable[str]) -> list[str]:
    """Strings with one of which each of the words begins."""
    found: list[str] = []
    for word in sorted(set(words), key=len):
        if not word.startswith(tuple(found)):  # where "trees" is, "tree" is too
            found.append(word)
    return found
