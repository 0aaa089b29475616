"""YAML and command line -> dataclasses, with messages that name the key, the value and what is known."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from hf_era.utils.checks import (
    MAXIMUM_DEPTH,
    check_path_text,
    check_plain,
    check_text,
    error_text,
    short_repr,
    unknown_key_message,
)

MAXIMUM_BYTES = 1_000_000
MAXIMUM_VALUES = 100_000


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The content of a YAML file.

    Raises:
        ValueError: if it is missing, too large, no YAML, no mapping, or more than `parse_yaml` takes; it names the file.
    """
    check_path_text("config", str(path))
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"The config file {path} does not exist. Pass a YAML file such as recipes/configs/demo.yaml.")
    size = path.stat().st_size
    if size > MAXIMUM_BYTES:
        raise ValueError(f"{path} has {size:,} bytes, a config at most {MAXIMUM_BYTES:,}. Did you mean another file?")
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # ValueError: also a date or number that is none
        raise ValueError(f"{path} is no valid YAML: {error_text(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} should hold a mapping such as `seed: 0`, got {type(content).__name__}.")
    return content


def merge(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `overlay` over it; mappings are merged key by key, everything else is replaced."""
    merged = dict(base)
    for key, value in overlay.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def parse_overrides(arguments: Iterable[str], sections: Mapping[str, Iterable[str]], default: str) -> dict[str, Any]:
    """Command-line overrides -> a nested mapping.

    `--data.train x` sets a field of a section; `--learning_rate 3e-4` sets a top-level field where there is one, else a
    field of the `default` section. Values are read as YAML; several values make a list; no value means true.

    Args:
        arguments: e.g. `["--data.train", "x.jsonl", "--expansion.target_layers", "0", "1"]`.
        sections: section name -> its field names; the top level's own fields stand under the empty name.
        default: the section that bare names belong to.

    Raises:
        ValueError: for a word that belongs to no option, or an option that nobody knows.
    """
    overrides: dict[str, Any] = {}
    for name, words in _options(arguments):
        path = name.split(".")
        if path[0] not in sections[""] and path[0] not in sections:
            if path[0] not in sections[default]:
                known = sorted(
                    {*sections[""], *(f"{key}.{field}" for key in sections if key for field in sections[key])}
                )
                raise ValueError(unknown_key_message("the command line", f"--{name}", [f"--{key}" for key in known]))
            path = [default, *path]
        values = [_read_word(word) for word in words]
        value: Any = True if not values else values[0] if len(values) == 1 else values
        for key in reversed(path):
            value = {key: value}
        overrides = merge(overrides, value)
    return overrides


def _read_word(word: str) -> Any:
    try:
        return parse_yaml(word)
    except (yaml.YAMLError, ValueError, OverflowError):  # a path or a word that only looks like YAML, a date, a number
        return word


def _options(arguments: Iterable[str]) -> list[tuple[str, list[str]]]:
    options: list[tuple[str, list[str]]] = []
    for word in arguments:
        if word.startswith("--") and len(word) > 2:
            name, separator, value = word[2:].partition("=")
            options.append((name, [value] if separator else []))
        elif not options:
            raise ValueError(f"Unexpected argument {short_repr(word)}. Overrides look like `--learning_rate 3e-4`.")
        else:
            options[-1][1].append(word)
    return options


def build(cls: type, values: Any, section: str) -> Any:
    """Makes a dataclass of a mapping; nested dataclasses too. Raises `ValueError` for unknown keys and wrong types."""
    fields = {item.name: item for item in dataclasses.fields(cls) if item.init}
    where = f"section `{section}`" if section else "the config"
    if not isinstance(values, Mapping):
        raise ValueError(f"`{section}` should be a mapping, got {short_repr(values)}.")
    hints = typing.get_type_hints(cls)
    arguments = {}
    for key, value in values.items():
        if key not in fields:
            raise ValueError(unknown_key_message(where, key, sorted(fields)))
        name = f"{section}.{key}" if section else str(key)
        if dataclasses.is_dataclass(hints[key]):
            arguments[key] = build(typing.cast(type, hints[key]), value if value is not None else {}, name)
        elif value is None and typing.get_origin(hints[key]) is dict:  # a section with nothing under its name
            arguments[key] = {}
        else:
            arguments[key] = coerce(value, hints[key], name)
    return cls(**arguments)


def coerce(value: Any, kind: Any, name: str) -> Any:
    """`value` as the type hint wants it: YAML reads `1e-4` as text, and the command line one word as no list.

    Raises:
        ValueError: if it cannot be read as that type.
    """
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        for option in options:
            if option is not type(None):
                try:
                    return coerce(value, option, name)
                except ValueError:
                    continue
        raise ValueError(f"`{name}` should be {_spelled(kind)}, got {short_repr(value)}.")
    if kind is Any:
        check_plain(name, value)
        return value
    if origin is list:
        items = value if isinstance(value, (list, tuple)) else [value]
        return [coerce(item, options[0] if options else Any, name) for item in items]
    if origin is dict or kind is dict:
        if isinstance(value, Mapping):
            check_plain(name, value)
            return dict(value)
        raise ValueError(f"`{name}` should be a mapping, got {short_repr(value)}.")
    return _scalar(value, kind, name)


def _scalar(value: Any, kind: Any, name: str) -> Any:
    if kind is bool and isinstance(value, bool):
        return value
    if kind is str and isinstance(value, str):
        check_text(name, value)
        return value
    if kind is str and isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**64:
        return str(value)
    if kind in (int, float) and not isinstance(value, bool):
        try:
            number = kind(value)
        except (TypeError, ValueError, OverflowError):
            number = None
        if number is not None and (kind is float or not isinstance(value, float) or number == value):
            if kind is int:  # text and floats were no integers when they were looked at
                check_plain(name, number)
            return number
    if kind not in (bool, str, int, float):  # an enum or the like, made of its value; its own class checks that
        if not isinstance(kind, type) or not isinstance(value, kind):
            check_plain(name, value)
        return value
    raise ValueError(f"`{name}` should be {_spelled(kind)}, got {short_repr(value)}.")


def _spelled(kind: Any) -> str:
    names = {int: "an integer", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    options = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    return " or ".join(names.get(option, str(option)) for option in options)


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
        raise ValueError(f"a value that cannot be read ({error_text(error)})") from error


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
