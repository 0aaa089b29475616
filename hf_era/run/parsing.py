"""YAML and command line -> dataclasses, with messages that name the key, the value and what is known.

The type hint of a field decides. On the command line text is taken as it is typed (`010`, `no`, `Chapter 1 #intro`), and
everything else is read as YAML.

jsonargparse was tried in its place (4.53, with the YAML reader and the bare names of this package): it takes neither several
words for a list nor a field without a section, gives every field a value where a run has to know which ones were set, names
no way out, and has to import every class, and so torch, to print a help text.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from hf_era.run.recipes import find_config
from hf_era.utils.checks import (
    check_plain,
    check_text,
    error_text,
    short_repr,
    unknown_key_message,
)
from hf_era.utils.files import check_encoding, read_text
from hf_era.utils.yaml_text import parse_list_of_texts, parse_yaml

MAXIMUM_BYTES = 1_000_000


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The content of a YAML file, or of the packaged config of that name.

    Raises:
        ValueError: if it is missing, too large, no YAML, no mapping, or more than `parse_yaml` takes; it names the file.
    """
    path = find_config(path)
    size = path.stat().st_size
    if size > MAXIMUM_BYTES:
        raise ValueError(f"{path} has {size:,} bytes, a config at most {MAXIMUM_BYTES:,}. Did you mean another file?")
    check_encoding(path, "config")
    try:
        content = parse_yaml(read_text(path))
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


def parse_overrides(arguments: Iterable[str], sections: Mapping[str, type], default: str) -> dict[str, Any]:
    """Command-line overrides -> a nested mapping.

    `--data.train x` sets a field of a section; `--learning_rate 3e-4` sets a top-level field where there is one, else a
    field of the `default` section. `--learning-rate` is the same. Several values make a list; no value means true. What a
    word means: `_typed`.

    Args:
        arguments: e.g. `["--data.train", "x.jsonl", "--expansion.target_layers", "0", "1"]`.
        sections: section name -> the dataclass of its fields; the top level's own, if any, stands under the empty name.
        default: the section that bare names belong to.

    Raises:
        ValueError: for a word that belongs to no option, or an option that nobody knows.
    """
    kinds = {section: _kinds(section_class) for section, section_class in sections.items()}
    top = {name: kind for name, kind in kinds.pop("", {}).items() if name not in kinds}
    overrides: dict[str, Any] = {}
    for name, words in _options(arguments):
        path = name.replace("-", "_").split(".")
        if path[0] not in top and path[0] not in kinds:
            if path[0] not in kinds[default]:
                known = _option_names(top, kinds, default, with_section="." in name)
                raise ValueError(unknown_key_message("the command line", f"--{name}", known))
            path = [default, *path]
        # Of what lies inside a field, such as `multipliers.original_forget`, nothing says the type.
        kind = top.get(".".join(path), Any) if path[0] in top else kinds[path[0]].get(".".join(path[1:]), Any)
        value = _typed(words, kind)
        for key in reversed(path):
            value = {key: value}
        overrides = merge(overrides, value)
    return overrides


def _option_names(
    top: Mapping[str, Any], kinds: Mapping[str, Mapping[str, Any]], default: str, with_section: bool
) -> list[str]:
    """What a name without a section may have meant, those that need none first, or what one with a section may have."""
    if with_section:
        names = [f"{section}.{field}" for section in kinds for field in kinds[section]]
    else:
        # A section with the same fields as the default one, `pretraining`, would only say everything twice.
        others = [section for section in kinds if kinds[section] != kinds[default]]
        names = [*top, *kinds[default], *(f"{section}.{field}" for section in others for field in kinds[section])]
    return [f"--{name}" for name in names]


def _kinds(section_class: type) -> dict[str, Any]:
    hints = typing.get_type_hints(section_class)
    return {item.name: hints[item.name] for item in dataclasses.fields(section_class) if item.init}


def _typed(words: list[str], kind: Any) -> Any:
    """What the words of an option mean to a field with the type hint `kind`.

    Text is as typed; for a field that may be none, the word `null` is none. A list of text may be one YAML list in brackets,
    `[cat, dog]`. A field that takes text or something else gets the other if that is what the word is in YAML. Where there
    is no text, words are YAML.
    """
    if not words:
        return True
    choices = _choices(kind)
    is_list_of_texts = any(choice == list[str] for choice in choices)
    if str not in choices and not is_list_of_texts:
        values = [_read_word(word) for word in words]
        return values[0] if len(values) == 1 else values
    if len(words) > 1:
        return words
    (word,) = words
    if word == "null" and (type(None) in choices or is_list_of_texts):
        return None
    if is_list_of_texts and (texts := parse_list_of_texts(word)) is not None:
        return texts
    value = _read_word(word)
    if isinstance(value, bool):
        return value if bool in choices and word.lower() in ("true", "false") else word
    others = tuple(typing.get_origin(choice) or choice for choice in choices if choice not in (str, list[str]))
    is_other = isinstance(value, tuple(other for other in others if other in (dict, list, int, float)))
    return value if is_other else word


def _choices(kind: Any) -> tuple[Any, ...]:
    """The types that a hint allows."""
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def _read_word(word: str) -> Any:
    try:
        return parse_yaml(word)
    except (yaml.YAMLError, ValueError, OverflowError):  # a path or a word that only looks like YAML, or a number
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
    """`value` as the type hint wants it: a list of one word, `0,1` for a list of numbers, `1_000` for a number.

    Raises:
        ValueError: if it cannot be read as that type.
    """
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if len(_choices(kind)) > 1:
        if value is None and type(None) in options:
            return None
        for option in options:
            if option is not type(None):
                try:
                    return coerce(value, option, name)
                except ValueError:
                    continue
        raise ValueError(_wrong_type_message(name, kind, value))
    if kind is Any:
        check_plain(name, value)
        return value
    if origin is list and value is None:
        return []
    if origin is list:
        items = value if isinstance(value, (list, tuple)) else [value]
        if options and options[0] in (int, float):
            # `0,1` and `0, 1`, the latter as two words
            items = [part for item in items for part in _parts(item)]
        return [coerce(item, options[0] if options else Any, name) for item in items]
    if origin is dict or kind is dict:
        if isinstance(value, Mapping):
            check_plain(name, value)
            return dict(value)
        raise ValueError(f"`{name}` should be a mapping, got {short_repr(value)}.")
    return _scalar(value, kind, name)


def _parts(item: Any) -> list[Any]:
    return item.removesuffix(",").split(",") if isinstance(item, str) else [item]


def _scalar(value: Any, kind: Any, name: str) -> Any:
    if kind is bool and isinstance(value, bool):
        return value
    if kind is str and isinstance(value, str):
        check_text(name, value)
        return value
    # An integer is read in one form only; of another number nobody knows how it was written.
    if kind is str and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**64:
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
        if isinstance(value, bool) and isinstance(kind, enum.EnumMeta):  # `no` in a YAML file
            raise ValueError(_wrong_type_message(name, kind, value))
        if not isinstance(kind, type) or not isinstance(value, kind):
            check_plain(name, value)
        return value
    raise ValueError(_wrong_type_message(name, kind, value))


def _wrong_type_message(name: str, kind: Any, value: Any) -> str:
    could_be_text = str in _choices(kind) and not isinstance(value, (str, list, tuple, Mapping))
    way_out = " Put it in quotation marks." if could_be_text else ""
    return f"`{name}` should be {spelled(kind)}, got {short_repr(value)}.{way_out}"


def spelled(kind: Any) -> str:
    """A type hint in words: `an integer or null`."""
    choices = _choices(kind)
    # The names of an enum are texts.
    shown = [choice for choice in choices if not (str in choices and isinstance(choice, enum.EnumMeta))]
    words = dict.fromkeys(_spelled_alone(choice) for choice in sorted(shown, key=lambda choice: choice is type(None)))
    return " or ".join(words)


def _spelled_alone(kind: Any) -> str:
    origin = typing.get_origin(kind) or kind
    if kind in _SPELLED:
        return _SPELLED[kind]
    if origin is typing.Literal:
        return " or ".join(
            str(value).lower() if isinstance(value, bool) else str(value) for value in typing.get_args(kind)
        )
    if origin is list:
        return "a list"
    return "a mapping" if origin is dict or dataclasses.is_dataclass(origin) else str(getattr(kind, "__name__", kind))


_SPELLED = {
    int: "an integer", float: "a number", str: "text", bool: "true or false", type(None): "null", Any: "anything",
    list[int]: "a list of integers", list[float]: "a list of numbers", list[str]: "a list of texts",
}  # fmt: skip
