"""Text of unknown origin, made fit to be shown in a page: nothing invisible, nothing endless. Escaping is the template's."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence

from markupsafe import Markup, escape

from hf_era.evaluation.text_metrics import target_word_spans

MAXIMUM_TEXT = 4_000
"""Characters of a text that are shown."""
MAXIMUM_NAME = 120
# Joiners and variation selectors belong to emoji and to many scripts; every other format character can mislead.
_HARMLESS_FORMATS = "\u200c\u200d"


def visible(text: object) -> str:
    """The text with control characters, lone surrogates and marks that change the direction of writing spelled out."""
    return "".join(letter if _is_shown(letter) else f"\\u{ord(letter):04x}" for letter in str(text))


def cut(text: object, limit: int = MAXIMUM_TEXT) -> str:
    """The text as `visible` makes it; of a long one the beginning, and how much of it that is."""
    whole = str(text)
    if len(whole) <= limit:
        return visible(whole)
    return f"{visible(whole[:limit])}… (the first {limit:,} of {len(whole):,} characters)"


def name_of(text: object) -> str:
    """A name for a heading or a cell: one line, at most `MAXIMUM_NAME` characters."""
    line = " ".join(visible(text).split())
    return line if len(line) <= MAXIMUM_NAME else f"{line[: MAXIMUM_NAME - 1]}…"


def token_text(token: object) -> str:
    """A token in quotation marks, so that a leading space shows."""
    return visible(json.dumps(str(token), ensure_ascii=False))[:MAXIMUM_NAME]


def continuation(text: str, prompt: str, words: Sequence[str]) -> Markup:
    """A generated text as HTML: its prompt set apart, the target words marked, everything escaped.

    Args:
        text (`str`): with the prompt. Beyond `MAXIMUM_TEXT` characters it is cut, and says so.
        prompt (`str`): what the text starts with; where it does not, nothing is set apart.
        words: the target words.
    """
    shown = text[:MAXIMUM_TEXT]
    prompt_end = min(len(prompt), len(shown)) if text.startswith(prompt) else 0
    spans = target_word_spans(shown, list(words))
    html = Markup("")
    for start, end, in_prompt in ((0, prompt_end, True), (prompt_end, len(shown), False)):
        if start < end:
            part = _marked(shown, start, end, spans)
            html += Markup('<span class="prompt">{}</span>').format(part) if in_prompt else part
    if len(text) > MAXIMUM_TEXT:
        html += Markup('<span class="cut">… (the first {:,} of {:,} characters)</span>').format(MAXIMUM_TEXT, len(text))
    return html


def _marked(text: str, start: int, end: int, spans: Sequence[tuple[int, int]]) -> Markup:
    """The part from `start` to `end`; a word across its border is marked on both sides."""
    html, at = Markup(""), start
    for first, last in sorted(spans):
        first, last = max(first, at), min(last, end)
        if first < last:
            html += escape(visible(text[at:first])) + Markup("<mark>{}</mark>").format(visible(text[first:last]))
            at = last
    return html + escape(visible(text[at:end]))


def _is_shown(letter: str) -> bool:
    if letter in "\n\t" or letter in _HARMLESS_FORMATS:
        return True
    return unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
