"""YAML of unknown origin: plain values only, and nothing that grows or nests beyond all measure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from hf_era.checks import reason

MAXIMUM_BYTES = 1_000_000
MAXIMUM_VALUES = 100_000
MAXIMUM_DEPTH = 50


def read_yaml_file(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        ValueError: if it is too large, no YAML, or more than `parse_yaml` takes; the message names the file.
    """
    size = path.stat().st_size
    if size > MAXIMUM_BYTES:
        raise ValueError(f"{path} has {size:,} bytes, a config at most {MAXIMUM_BYTES:,}. Did you mean another file?")
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # ValueError: also a date or number that is none
        raise ValueError(f"{path} is no valid YAML: {reason(error)}") from error


def parse_yaml(text: str) -> Any:
    """The value of one YAML document. Tags that make Python objects are errors.

    Raises:
        ValueError: if it nests deeper than `MAXIMUM_DEPTH`, or holds more than `MAXIMUM_VALUES` values once every alias
            stands for a copy of its anchor.
        yaml.YAMLError: if it is no YAML.
    """
    _check_size(text)
    try:
        return yaml.safe_load(text)
    except (RecursionError, TypeError, KeyError, IndexError, AttributeError) as error:  # tags on values of another kind
        raise ValueError(f"a value that cannot be read ({reason(error)})") from error


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
