"""This machine's memory, and whether something fits in it: said before it is taken, not by the kernel."""

from __future__ import annotations

import psutil


def machine_memory() -> int:
    """Bytes of main memory that this machine has."""
    return int(psutil.virtual_memory().total)


def check_memory(name: str, value: str, needed: float, way_out: str) -> None:
    """Raises `ValueError` if `needed` bytes are more than this machine has.

    Args:
        name (`str`): the setting, or several.
        value (`str`): its value, in words.
        needed (`float`): bytes, a lower bound.
        way_out (`str`): what to do instead, a sentence.
    """
    available = machine_memory()
    if needed > available:
        raise ValueError(
            f"`{name}`: {value} needs at least {_gigabytes(needed)} of memory, and this machine has "
            f"{_gigabytes(available)}. {way_out}"
        )


def _gigabytes(number: float) -> str:
    return f"{number / 1e9:,.1f} GB" if number < 1e18 else "more than a billion GB"
