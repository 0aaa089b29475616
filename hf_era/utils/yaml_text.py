"""YAML in and out: numbers as everybody else writes them, and no text that became something else on the way.

YAML 1.1 takes `010` for 8, `1_000` for 1000, `1:30` for 90, `2024-11-25` for a date, and `1e-4` for text. Here, as in
YAML 1.2, `1e-4` and `-1e-1` are numbers, and the others are what is written, until the type of a field asks for a number.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from hf_era.utils.checks import MAXIMUM_DEPTH, error_text

MAXIMUM_VALUES = 100_000

_INTEGER, _NUMBER, _DATE = (f"tag:yaml.org,2002:{name}" for name in ("int", "float", "timestamp"))
# An integer in the one form that `str` gives it: the text can be had back from the number.
_INTEGER_FORM = re.compile(r"(?:0|-?[1-9][0-9]*)$")
_NUMBER_FORM = re.compile(
    r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*(?:[eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)|\.[0-9]+(?:[eE][-+]?[0-9]+)?)$"
    r"|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {
        first: [(tag, form) for tag, form in forms if tag not in (_INTEGER, _NUMBER, _DATE)]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _Dumper(yaml.SafeDumper):
    """Puts in quotation marks what either reading of YAML would take for something else than text."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(_INTEGER, _INTEGER_FORM, list("-0123456789"))
    _class.add_implicit_resolver(_NUMBER, _NUMBER_FORM, list("-+.0123456789"))


def parse_yaml(text: str) -> Any:
    """The value of one YAML document. Tags that make Python objects are errors.

    Raises:
        ValueError: if it nests deeper than `MAXIMUM_DEPTH`, or holds more than `MAXIMUM_VALUES` values once every alias
            stands for a copy of its anchor.
        yaml.YAMLError: if it is no YAML.
    """
    _check_size(text)
    try:
        return _value(_Loader(text))
    except (RecursionError, TypeError, KeyError, IndexError, AttributeError) as error:  # tags on values of another kind
        raise ValueError(f"a value that cannot be read ({error_text(error)})") from error


def parse_list_of_texts(text: str) -> list[str] | None:
    """The items of a YAML list in brackets as written: `[007, no]` gives `["007", "no"]`. `None` for any other text."""
    if not text.startswith("["):
        return None
    try:
        _check_size(text)
        items = _value(yaml.BaseLoader(text))
    except (yaml.YAMLError, ValueError):
        return None
    is_list = isinstance(items, list) and all(isinstance(item, str) for item in items)
    return items if is_list else None


def dump_yaml(value: Any, **options: Any) -> str:
    """`value` as YAML, keys in the order given; what was text is read as text again, by `parse_yaml` and by others."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **options))


def _value(loader: Any) -> Any:
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _check_size(text: str) -> None:
    """Counts values with every alias as a copy, without making any of them: nine lines can stand for a billion values."""
    anchors: dict[str, int] = {}
    # One entry for each open list or mapping: its anchor and the values in it so far. The first is the document's.
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]
    # The event parser keeps a stack of its own: depth cannot overflow it.
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        anchor, count = getattr(event, "anchor", None), 1
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((anchor, 1))
            if len(open_nodes) > MAXIMUM_DEPTH:
                raise ValueError(f"lists and mappings nest deeper than {MAXIMUM_DEPTH} levels")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, count = open_nodes.pop()
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == name for name, _ in open_nodes):
                raise ValueError(f"the alias `*{anchor}` stands inside its own anchor")
            count = anchors.get(str(anchor), 1)
        elif not isinstance(event, yaml.ScalarEvent):
            continue
        if anchor is not None and not isinstance(event, yaml.AliasEvent):
            anchors[anchor] = count
        outer, total = open_nodes[-1]
        open_nodes[-1] = (outer, total + count)
        if total + count > MAXIMUM_VALUES:
            raise ValueError(f"more than {MAXIMUM_VALUES:,} values, aliases written out")
