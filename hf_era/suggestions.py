"""Error texts for something unknown: "Did you mean ...? Known: ..."."""

import difflib
from collections.abc import Iterable


def unknown_value_message(field: str, value: object, known: Iterable[str]) -> str:
    """The message for a value that is none of `known`; it names the field, the value, the nearest name and all names."""
    names = list(known)
    close = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f" Did you mean `{close[0]}`?" if close else ""
    return f"Unknown value for `{field}`: {value!r}.{hint} Known: {', '.join(names)}."


def unknown_key_message(where: str, key: object, known: Iterable[str]) -> str:
    """The message for a key that is none of `known`; `where` names the section or file."""
    names = list(known)
    close = difflib.get_close_matches(str(key), names, n=1, cutoff=0.5)
    hint = f" Did you mean `{close[0]}`?" if close else ""
    return f"Unknown key `{key}` in {where}.{hint} Known: {', '.join(names)}."
