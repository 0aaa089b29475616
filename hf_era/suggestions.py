"""Error texts for something unknown: "Did you mean ...? Known: ..."."""

import difflib
from collections.abc import Iterable

from hf_era.checks import SHOWN_CHARACTERS, shown

MAXIMUM_LISTED = 60
"""Names in a message; of more, no one reads one."""


def unknown_value_message(field: str, value: object, known: Iterable[str]) -> str:
    """The message for a value that is none of `known`; it names the field, the value, the nearest name and all names."""
    names = list(known)
    return f"Unknown value for `{field}`: {shown(value)}.{_hint(value, names)} Known: {', '.join(names)}."


def unknown_key_message(where: str, key: object, known: Iterable[str]) -> str:
    """The message for a key that is none of `known`; `where` names the section or file."""
    names = list(known)
    is_plain = isinstance(key, str) and len(key) <= SHOWN_CHARACTERS and key.isprintable()
    return f"Unknown key `{key if is_plain else shown(key)}` in {where}.{_hint(key, names)} {_listed(names)}"


def _listed(names: list[str]) -> str:
    if len(names) > MAXIMUM_LISTED:
        return f"`hf-era fields` lists all {len(names)} settings."
    return f"Known: {', '.join(names)}."


def _hint(value: object, names: list[str]) -> str:
    # A long text is near to no name, and comparing it takes long.
    text = value if isinstance(value, str) else shown(value)
    close = difflib.get_close_matches(text, names, n=1, cutoff=0.5) if len(text) <= SHOWN_CHARACTERS else []
    return f" Did you mean `{close[0]}`?" if close else ""
