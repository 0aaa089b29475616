"""Checks of values that come from outside, and messages about them: the field, the value, the way out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import psutil

from hf_era.utils.suggestions import did_you_mean

LARGEST_COUNT = 1_000_000_000
"""No number of examples, steps or the like is larger. What is too large for this machine's memory is said elsewhere."""

SHOWN_CHARACTERS = 200
REASON_CHARACTERS = 1_000
MAXIMUM_DEPTH = 50


def short_repr(value: object) -> str:
    """`repr` of a value, cut: a message should not repeat a megabyte, and some values have no `repr` at all."""
    try:
        # Of a long text or list the beginning will do; `repr` of the whole could take long.
        short = value[: SHOWN_CHARACTERS + 1] if isinstance(value, (str, bytes, list, tuple)) else value
        text = repr(short)
    except (ValueError, RecursionError):  # an integer of thousands of digits; a value that is nested endlessly
        return f"a value of type {type(value).__name__} that is too large to show"
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def error_text(error: BaseException) -> str:
    """What an error of another library says, cut: some repeat a whole file."""
    text = str(error).strip() or type(error).__name__
    return text if len(text) <= REASON_CHARACTERS else f"{text[:REASON_CHARACTERS]}..."


def check_count(name: str, value: int | None, least: int = 1, most: int = LARGEST_COUNT) -> None:
    """Raises `ValueError` for an integer below `least` or above `most`. `None` is a setting that is not given."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"`{name}` should be an integer, got {short_repr(value)}.")
    if value < least:
        raise ValueError(f"`{name}` should be at least {least}, got {short_repr(value)}.")
    if value > most:
        raise ValueError(f"`{name}` should be at most {most:,}, got {short_repr(value)}.")


def check_positive(name: str, value: float) -> None:
    """Raises `ValueError` for what is no positive, finite number."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"`{name}` should be positive and finite, got {short_repr(value)}.")


def check_share(name: str, value: float) -> None:
    """Raises `ValueError` for a number outside [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"`{name}` should be in [0, 1], got {value}.")


def check_text(name: str, value: str) -> None:
    """Raises `ValueError` for text that cannot be written to a file: half a surrogate pair is no character."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"`{name}` should be valid Unicode, got {short_repr(value)}.") from error


def check_plain(name: str, value: object, depth: int = 0) -> None:
    """Raises `ValueError` for what JSON cannot hold: a date, bytes, a set, a key that is no text, NaN, endless nesting.

    A config goes into result files and checkpoints, and would fail there, after the training.
    """
    if depth > MAXIMUM_DEPTH:
        raise ValueError(f"`{name}` nests deeper than {MAXIMUM_DEPTH} levels. Make it flatter.")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(
                    f"`{name}` should have text as keys, got {short_repr(key)}. Put it in quotation marks."
                )
            check_text(name, key)
            is_plain_key = key.isidentifier() and len(key) <= 60
            check_plain(f"{name}.{key}" if is_plain_key else name, item, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            check_plain(name, item, depth + 1)
    elif isinstance(value, str):
        check_text(name, value)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"`{name}` should hold finite numbers, got {short_repr(value)}.")
    elif isinstance(value, int) and abs(value) >= 2**64:
        raise ValueError(f"`{name}` should hold numbers below 2**64, got {short_repr(value)}.")
    elif value is not None and not isinstance(value, (bool, int, float)):
        raise ValueError(f"`{name}` should hold text, numbers, lists and mappings, got {short_repr(value)}.")


def check_path_text(name: str, value: str | None) -> None:
    """Raises `ValueError` for text that no file system takes as a path: empty, with a NUL, or too long."""
    if value is None:
        return
    check_text(name, value)
    if not value.strip() or "\0" in value:
        raise ValueError(f"`{name}` should be a path or an id, got {short_repr(value)}.")
    if any(len(part.encode()) > 255 for part in value.split("/")):
        raise ValueError(
            f"`{name}` has a part of more than 255 bytes, which no file system takes: {short_repr(value)}."
        )


MAXIMUM_NAME_BYTES = 100


def check_name(name: str, value: str) -> None:
    """Raises `ValueError` for a name that cannot become a part of a file's or directory's name."""
    is_plain = value.isprintable() and not {"/", "\\"} & set(value)
    if not value.strip() or value.startswith(".") or not is_plain:
        raise ValueError(
            f"`{name}` becomes part of a path: letters, digits, '-' and '_' are fine, got {short_repr(value)}."
        )
    check_text(name, value)
    if len(value.encode()) > MAXIMUM_NAME_BYTES:
        raise ValueError(
            f"`{name}` becomes part of a path and should have at most {MAXIMUM_NAME_BYTES} bytes, got {short_repr(value)}."
        )


MAXIMUM_LISTED = 60
"""Names in a message; of more, no one reads one."""


def first_and_more(names: Sequence[str]) -> str:
    """The first of some names of weights, and how many more there are, for a message."""
    more = len(names) - 1
    return names[0] if not more else f"{names[0]} and {more} more weight{'s' if more > 1 else ''}"


def listed(names: Iterable[object]) -> str:
    """Names for a message: in backticks, with commas between them."""
    shown = [f"`{short_repr(name)[1:-1] if isinstance(name, str) else short_repr(name)}`" for name in names]
    return ", ".join(shown[:MAXIMUM_LISTED] + ["..."] * (len(shown) > MAXIMUM_LISTED))


def unknown_value_message(field: str, value: object, known: Iterable[str]) -> str:
    """The message for a value that is none of `known`; it names the field, the value, the nearest name and all names."""
    names = list(known)
    return f"Unknown value for `{field}`: {short_repr(value)}.{_hint(value, names)} Known: {', '.join(names)}."


def unknown_key_message(where: str, key: object, known: Iterable[str], elsewhere: Iterable[str] = ()) -> str:
    """The message for a key that is none of `known`; `where` names the section or file. What is known `elsewhere` may have
    been meant too, and is not listed."""
    names = list(known)
    is_plain = isinstance(key, str) and len(key) <= SHOWN_CHARACTERS and key.isprintable()
    listed = f"Known: {', '.join(names)}."
    if len(names) > MAXIMUM_LISTED:
        listed = "`hf-era fields` lists them all."
    return (
        f"Unknown key `{key if is_plain else short_repr(key)}` in {where}.{_hint(key, [*names, *elsewhere])} {listed}"
    )


def _hint(value: object, names: list[str]) -> str:
    return did_you_mean(value if isinstance(value, str) else short_repr(value), names)


def check_memory(name: str, value: str, needed: float, way_out: str) -> None:
    """Raises `ValueError` if `needed` bytes, a lower bound, are more than this machine has.

    `name` is the setting, or several; `value` its value in words; `way_out` a sentence that says what to do instead.
    """
    available = psutil.virtual_memory().total
    if needed > available:
        raise ValueError(
            f"`{name}`: {value} needs at least {_gigabytes(needed)} of memory, and this machine has "
            f"{_gigabytes(available)}. {way_out}"
        )


def _gigabytes(number: float) -> str:
    return f"{number / 1e9:,.1f} GB" if number < 1e18 else "more than a billion GB"
