"""What a config can hold, and what one holds, in words: every field with its type, default and help."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator
from typing import Any

from hf_era.methods import METHODS
from hf_era.routing.router import ROUTERS
from hf_era.run.config import SECTIONS, RunConfig, without_secrets
from hf_era.run.parsing import spelled
from hf_era.utils.checks import unknown_value_message
from hf_era.utils.fields import default_of
from hf_era.utils.yaml_text import dump_yaml

TOP_LEVEL = "run"
"""What the section of the fields without a section is called where one has to be named."""


def describe_fields(section: str | None = None) -> str:
    """Every field of a config, or of one section: its option, its type, its default, and below them its help.

    Raises:
        ValueError: for an unknown section, with those that are known.
    """
    names = [TOP_LEVEL, *filter(None, SECTIONS), "router", "method_settings"]
    if section is not None and section not in names:
        raise ValueError(unknown_value_message("SECTION", section, names))
    lines = []
    for name in names if section is None else [section]:
        for option, item, kind, owner in _fields(name):
            lines.append(f"--{option} ({owner}{spelled(kind)}; default: {_default(item)})\n      {_help(item)}")
    return "\n".join(lines) or f"None of the methods {', '.join(METHODS)} has settings of its own."


def describe_config(config: RunConfig) -> str:
    """A config as YAML, each value with what it is beside it. Loading that gives the same config, but for hub tokens."""
    values = without_secrets(config.to_dict())
    lines = []
    for section, kind in SECTIONS.items():
        given = values[section] if section else {key: value for key, value in values.items() if key not in SECTIONS}
        if section:
            lines += ["", f"{section}:" if given else f"{section}: {{}}"]
        helps = {item.name: _help(item).partition(". ")[0].rstrip(" .,") for item in dataclasses.fields(kind)}
        for key, value in given.items():
            text = dump_yaml([value], default_flow_style=True, width=math.inf).rstrip("\n")[1:-1]
            lines.append(f"{'  ' * bool(section)}{key}: {text}{'  # ' * bool(helps[key])}{helps[key]}")
    return "\n".join(lines)


def _fields(section: str) -> Iterator[tuple[str, dataclasses.Field[Any], Any, str]]:
    """Option, field, type and whose field it is, of every field that a config can set in a section."""
    owners: list[tuple[str, type | None]]
    if section == "router":
        owners = [(f"of `{name}`: ", router) for name, router in ROUTERS.items()]
    elif section == "method_settings":
        owners = [(f"of `{name}`: ", method.settings_class) for name, method in METHODS.items()]
    else:
        owners = [("", SECTIONS["" if section == TOP_LEVEL else section])]
    for owner, kind in owners:
        hints = typing.get_type_hints(kind) if kind is not None else {}
        for item in dataclasses.fields(kind) if kind is not None else ():
            if item.init and not (section == TOP_LEVEL and item.name in SECTIONS):
                option = item.name if section == TOP_LEVEL else f"{section}.{item.name}"
                yield option, item, hints[item.name], owner


def _default(item: dataclasses.Field[Any]) -> str:
    value = default_of(item)
    return "none, it has to be given" if value is dataclasses.MISSING else repr(value)


def _help(item: dataclasses.Field[Any]) -> str:
    # argparse-style help texts write a percent sign twice.
    return " ".join(str(item.metadata.get("help", "")).replace("%%", "%").split())
