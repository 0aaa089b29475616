"""Numbers, losses and names as text for Markdown: escaped, with their sign, "not measured" where there is nothing."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from hf_era.evaluation.intervals import Estimate

NOT_MEASURED = "not measured"
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;"}
_MARKDOWN = set("\\`*[]#~$")
# An underscore between letters or digits is no markup; "://" and "www." would become links.
_MARKDOWN_IN_CONTEXT = re.compile(r"(?<![^\W_])_|_(?![^\W_])|(?<=:/)/|(?i:(?<=\bwww)\.)")


def is_number(value: object) -> bool:
    """Whether it is a finite number (`bool` is none)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def format_number(value: Any, digits: int = 3) -> str:
    """`1.234`; "not measured" for `None`, "not finite" for NaN and infinity."""
    if value is None:
        return NOT_MEASURED
    return f"{value:.{digits}f}" if is_number(value) else "not finite"


def format_difference(value: Any, digits: int = 3) -> str:
    """`+0.123`; "not measured" for `None`."""
    return f"{value:+.{digits}f}" if is_number(value) else format_number(value)


def format_count(value: Any) -> str:
    """`12,345`; "not measured" for `None`."""
    return f"{value:,}" if is_number(value) else format_number(value)


def format_loss(estimate: dict[str, Any] | None) -> str:
    """A `LossEstimate` as a dict -> `1.234 [1.210, 1.260]`, without the brackets where there is no interval."""
    if not estimate:
        return NOT_MEASURED
    text = format_number(estimate.get("loss"))
    return f"{text} [{estimate['low']:.3f}, {estimate['high']:.3f}]" if has_interval(estimate) else text


def format_token(token: Any) -> str:
    """A token in quotation marks, so that a leading space shows; control characters as in JSON."""
    return escape_markdown(json.dumps(str(token), ensure_ascii=False))


def escape_markdown(value: Any) -> str:
    """Text that Markdown and HTML show as it is, on one line, in a paragraph as in a table cell."""
    text = "".join(character if character.isprintable() else " " for character in str(value))
    escaped = "".join(
        f"\\{character}" if character in _MARKDOWN else _HTML.get(character, character) for character in text
    )
    return _MARKDOWN_IN_CONTEXT.sub(lambda match: f"\\{match.group()}", escaped)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """A Markdown table of cells that are escaped already.

    Args:
        header (`Sequence[str]`): column titles.
        rows: as many cells each as the header.
        text_columns (`int`, *optional*, defaults to `1`): so many columns on the left are text; the others are aligned
            on the right.
    """
    rule = ["---" if index < text_columns else "---:" for index in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def has_interval(estimate: dict[str, Any]) -> bool:
    """Whether a `LossEstimate` as a dict has an interval."""
    return is_number(estimate.get("low")) and is_number(estimate.get("high"))


def format_estimate(estimate: Estimate | None, signed: bool = False, digits: int = 3) -> str:
    """`+0.201 [+0.150, +0.252]`; "not measured" for `None`."""
    spelled: Callable[[Any, int], str] = format_difference if signed else format_number
    if estimate is None or estimate.value is None:
        return NOT_MEASURED
    text = spelled(estimate.value, digits)
    if is_number(estimate.low) and is_number(estimate.high):
        text += f" [{spelled(estimate.low, digits)}, {spelled(estimate.high, digits)}]"
    return text
