"""Text of unknown origin, made fit to be shown: nothing invisible, nothing endless, no directories of this machine.

Escaping is the renderer's.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

NOT_RECORDED = "not recorded"
MAXIMUM_TEXT = 4_000
"""Characters of a text that are shown."""
MAXIMUM_NAME = 120
# Joiners and variation selectors belong to emoji and to many scripts; every other format character can mislead.
_HARMLESS_FORMATS = "\u200c\u200d"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_DATA_FILE = re.compile(r"\.(jsonl?|ndjson|csv|tsv|txt|parquet|arrow)(\.(gz|bz2|xz|zip))?$", re.IGNORECASE)


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


def recorded(value: Any, otherwise: str = NOT_RECORDED) -> str:
    """A setting as `name_of` shows it; `otherwise` for `None`."""
    return otherwise if value is None else name_of(value)


def pairs_text(values: Any) -> str:
    """`name value, name value` of a dict; empty if there is none."""
    return ", ".join(f"{name_of(name)} {name_of(value)}" for name, value in (values or {}).items())


def token_text(token: object) -> str:
    """A token in quotation marks, so that a leading space shows."""
    return visible(json.dumps(str(token), ensure_ascii=False))[:MAXIMUM_NAME]


def _is_shown(letter: str) -> bool:
    if letter in "\n\t" or letter in _HARMLESS_FORMATS:
        return True
    return unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


# ---- Sources ----

_WRITTEN = "hf_era's built-in example generator (synthetic, written by templates)"
BUILT_IN = {
    "generator": _WRITTEN,
    "topics": _WRITTEN,
    "second_language": "hf_era's built-in second language: a quarter of the texts through a fixed letter substitution",
    "facts": "hf_era's built-in facts about animals and things, among other texts (synthetic)",
}
"""Built-in source -> what it is, in words."""


def source_kind(source: Any) -> tuple[str, str]:
    """`generator`, `hub` or `local`, and a name that can be shown: of something local never its directory.

    A relative folder such as `stories/small` cannot be told from a hub id by its name; it counts as one.
    """
    text = str(source or "")
    if text in BUILT_IN:
        return "generator", text
    if _HUB_ID.fullmatch(text) and not _DATA_FILE.search(text) and ".." not in text:
        return "hub", text
    parts = [part for part in re.split(r"[\\/]", text) if part not in ("", ".", "..", "~")]
    return "local", parts[-1] if parts else NOT_RECORDED


def source_text(source: Any) -> str:
    """Where examples or a model came from, in words."""
    kind, name = source_kind(source)
    if kind == "generator":
        return BUILT_IN[name]
    if name == NOT_RECORDED:
        return NOT_RECORDED
    if source == "given":
        return "a data set that a program handed over"
    return f"{name_of(name)} ({'hub' if kind == 'hub' else 'local'})"
