"""Numbers as text, for every kind of report: with their sign, "not measured" where there is nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from hf_era.evaluation.intervals import Estimate

NOT_MEASURED = "not measured"


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


def format_share(value: Any) -> str:
    """A share in [0, 1] as `12.5 %`, to three digits."""
    return f"{100 * value:.3g} %" if is_number(value) else format_number(value)


def format_estimate(
    estimate: Estimate | None,
    signed: bool = False,
    digits: int = 3,
    missing: str = NOT_MEASURED,
    at_most: bool = False,
) -> str:
    """`+0.201 [+0.150, +0.252]`, without the brackets where there is no interval, `≤ +0.201` where it is an upper bound;
    `missing` where there is no value."""
    spelled: Callable[[Any, int], str] = format_difference if signed else format_number
    if estimate is None or estimate.value is None:
        return missing
    value, low, high = (spelled(part, digits) for part in (estimate.value, estimate.low, estimate.high))
    value = f"≤ {value}" if at_most else value
    return f"{value} [{low}, {high}]" if _has_interval(estimate) else value


def _has_interval(estimate: Estimate) -> bool:
    return is_number(estimate.low) and is_number(estimate.high)


def any_interval(estimates: list[Estimate]) -> bool:
    """Whether one of them has an interval."""
    return any(map(_has_interval, estimates))


def counted(number: Any, noun: str, nouns: str) -> str:
    """`1 example`, `1,200 examples`."""
    return f"{format_count(number)} {noun if number == 1 else nouns}"
