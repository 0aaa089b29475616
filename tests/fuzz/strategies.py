"""What the fuzz tests draw: junk of every type, and text of every kind."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any

from hypothesis import strategies as st

from hf_era.run.config import SECTIONS

STRANGE_TEXTS = (
    "", " ", "\n", "\0", "a\0b", "tree", "Tree.", "...", "!?", "\N{DECIDUOUS TREE}", "\U0001f468‍\U0001f469‍\U0001f467",
    "שלום עץ", "‮tree‬", "\ud800", "tree \udfff tree", "\u017fTREE", "\u212a", "İstanbul forest", "\r\n\f\x1b[31m",
    "﻿", "x" * 5_000,
    "../../x", "/etc/passwd", "~", "null", "1e-4", ".nan", "<script>", "{{ 7 * 7 }}", "%s", "nan", "--x", "generator",
)  # fmt: skip
EXTREME_NUMBERS = (
    0, -1, 1, 2, 3, 16, 2**31, 2**32, 2**63, 2**64, 10**12, -(10**12), 10**400, 0.0, -0.0, 0.5, 1.0, 1.5, 1e-300, 1e300,
    math.nan, math.inf, -math.inf, True, False,
)  # fmt: skip

texts = st.one_of(st.sampled_from(STRANGE_TEXTS), st.text(max_size=20), st.text(st.characters(codec=None), max_size=20))
numbers = st.one_of(st.sampled_from(EXTREME_NUMBERS), st.integers(), st.floats())
scalars = st.one_of(st.none(), numbers, texts, st.binary(max_size=8))
junk = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(texts, st.integers(), st.none()), inner, max_size=4),
        st.tuples(inner, inner),
    ),
    max_leaves=8,
)


def setting_of(kind: Any) -> st.SearchStrategy[Any]:
    """Values for a field with this type hint, many of them fit for it."""
    options = typing.get_args(kind)
    if typing.get_origin(kind) is list:
        return st.lists(setting_of(options[0] if options else Any), max_size=5)
    if typing.get_origin(kind) is dict or kind is dict:
        return st.dictionaries(texts, junk, max_size=3)
    if options:
        return st.one_of([setting_of(option) for option in options])
    plain: dict[Any, st.SearchStrategy[Any]] = {
        int: st.integers(0, 300),
        float: st.floats(0, 2),
        bool: st.booleans(),
        str: texts,
        type(None): st.none(),
    }
    return plain.get(kind, junk)


@st.composite
def config_values(draw: Any) -> dict[str, Any]:
    """A config as YAML could hold it: a few fields of a few sections; values that fit, extremes, and junk."""
    kinds = SECTIONS
    values: dict[str, Any] = {}
    for section in draw(st.lists(st.sampled_from(sorted(kinds)), min_size=1, max_size=3, unique=True)):
        hints = typing.get_type_hints(kinds[section])
        names = [item.name for item in dataclasses.fields(kinds[section]) if item.init and item.name not in kinds]
        chosen = draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))
        part = {name: draw(st.one_of(setting_of(hints[name]), numbers, junk)) for name in chosen}
        if section:
            values[section] = part
        else:
            values.update(part)
    return values
