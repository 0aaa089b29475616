"""Writes `docs/api.md` from docstrings, from the fields of configs and from the command line.

python docs/make_api.py            # --check only says whether the page is up to date
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import sys
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from transformers import Trainer

import hf_era
import hf_era.cli
from hf_era.evaluation.metrics import METRIC_NAMES, load
from hf_era.methods import METHODS
from hf_era.models import FAMILIES
from hf_era.models.layers import MODULE_KINDS
from hf_era.routing.router import ROUTERS
from hf_era.run.config import SECTIONS
from hf_era.utils.fields import default_of

PAGE = Path(__file__).with_name("api.md")
HEAD = """# API reference

Written by `make docs` from the docstrings, the fields of the configs and the command line; `make quality` says when it is
out of date. How to use it by task: [data](my_data.md), [labels](my_labels.md), [model](my_model.md),
[cluster](my_cluster.md), [evaluation](my_evaluation.md).

[Python](#python) · [config sections](#config-sections) · [what can be named in a config](#what-can-be-named-in-a-config) ·
[metrics](#metrics) · [commands](#commands)
"""
# What `hf_era.__all__` does not hold and programs use all the same.
ALSO = ("hf_era.evaluation.load", "hf_era.reporting.verdict.verdict")
BLOCK = re.compile(r"(Args|Attributes|Example|Raises|Returns|Warns):(.*)")
ENTRY = re.compile(r"    (\S.*)")
SHOWN_PARAMETERS = 12


# ---- Docstrings ----


def as_markdown(docstring: str | None) -> str:
    """A docstring with its blocks (`Args:`, ...) as lists; what is indented otherwise is code."""
    parts = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(docstring or "")):
        lines = paragraph.split("\n")
        block = BLOCK.fullmatch(lines[0])
        if block is None:
            is_code = all(line.startswith("    ") for line in lines)
            parts.append("\n".join(["```python", *(line[4:] for line in lines), "```"]) if is_code else paragraph)
        elif any(line.strip().startswith(">>>") for line in lines):
            parts.append("\n".join(["```python", *(line[4:] for line in lines[1:]), "```"]))
        elif block[2] or block[1] in ("Returns", "Warns"):
            parts.append("\n".join([f"*{block[1]}:*{block[2]}", *(line.strip() for line in lines[1:])]))
        else:
            parts.append(f"*{block[1]}:*\n{_entries(lines[1:])}")
    return "\n\n".join(parts)


def _entries(lines: Iterable[str]) -> str:
    """The entries of a block, a list item each, with its continuation lines joined to it."""
    items: list[str] = []
    for line in lines:
        entry = ENTRY.fullmatch(line)
        if entry is not None and not entry[1].startswith(" ") and not line.startswith("     "):
            name, mark, text = entry[1].partition(":")
            items.append(f"- **{name}**:{text}" if mark and " " not in name else f"- {entry[1]}")
        else:
            items[-1:] = [f"{items[-1] if items else '-'} {line.strip()}"]
    return "".join(f"\n{item}" for item in items)


def first_paragraph(thing: Any) -> str:
    return inspect.cleandoc(getattr(thing, "__doc__", None) or "").split("\n\n")[0].replace("\n", " ")


# ---- Python ----


def signature(thing: Any) -> str:
    """Names and defaults; types stand in the docstring. `(...)` of many, which transformers declares."""
    if inspect.isclass(thing) and issubclass(thing, Exception):
        return ""
    parameters = [one for one in inspect.signature(thing).parameters.values() if one.name != "self"]
    if len(parameters) > SHOWN_PARAMETERS:
        return "(...)"
    return f"({', '.join(str(one.replace(annotation=inspect.Parameter.empty)) for one in parameters if one.name != 'cls')})"


def is_ours(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).startswith("hf_era")


def public_methods(kind: type) -> Iterator[tuple[str, Any]]:
    """Methods of this package with a docstring, in the order in which they are declared; the nearest declaration counts."""
    seen = set()
    # Much of what our trainers override is transformers' own and documented there.
    for owner in [kind] if issubclass(kind, Trainer) else kind.__mro__:
        for name, value in vars(owner).items():
            function = getattr(value, "__func__", getattr(value, "fget", value))
            is_method = inspect.isfunction(function) or isinstance(value, property)
            if is_method and is_ours(owner) and not name.startswith("_") and name not in seen:
                seen.add(name)
                if function.__doc__:
                    yield name, value


def python_part(name: str, thing: Any) -> str:
    if thing.__name__ != name.rpartition(".")[2]:
        return f"### {name}\n\nAnother name of `{thing.__name__}`."
    if not inspect.isclass(thing):
        return f"### {name}\n\n`{name}{signature(thing)}`\n\n{as_markdown(thing.__doc__)}"
    section = next((section for section, kind in SECTIONS.items() if kind is thing and section), None)
    lines = [f"### {name}", "", f"`{name}{signature(thing)}`", ""]
    if section is not None:
        lines += [f"{first_paragraph(thing)} Its fields: [`{section}`](#{section})."]
    else:
        lines += [as_markdown(thing.__doc__)]
    methods = [] if issubclass(thing, Exception) else list(public_methods(thing))
    for method, value in methods:
        call = "" if isinstance(value, property) else signature(getattr(value, "__func__", value))
        lines.append(f"- `.{method}{call}`: {first_paragraph(value)}")
    if methods:
        lines.insert(len(lines) - len(methods), "")
    return "\n".join(lines)


def exported() -> dict[str, Any]:
    found = {name: getattr(hf_era, name) for name in hf_era.__all__}
    for path in ALSO:
        module, _, name = path.rpartition(".")
        found[path] = getattr(__import__(module, fromlist=[name]), name)
    return {name: thing for name, thing in found.items() if callable(thing)}


# ---- Configs ----


def type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")


def own_fields(kind: type) -> list[dataclasses.Field[Any]]:
    """Fields that this package declares, or gives another default."""
    ours = {name for owner in kind.__mro__ if is_ours(owner) for name in vars(owner).get("__annotations__", {})}
    return [item for item in dataclasses.fields(kind) if item.init and item.name in ours]


def fields_table(kind: type) -> str:
    hints, rows = typing.get_type_hints(kind), []
    for item in own_fields(kind):
        default = default_of(item)
        shown = "" if default is dataclasses.MISSING or dataclasses.is_dataclass(default) else f"`{default!r}`"
        text = " ".join(str(item.metadata.get("help", "")).replace("%%", "%").split())
        if item.name in SECTIONS and kind is SECTIONS[""]:
            continue  # a section of its own
        rows.append([f"`{item.name}`", f"`{type_name(hints[item.name])}`", shown, text])
    return table(["field", "type", "default", "what it is"], rows) if rows else ""


def table(columns: list[str], rows: Iterable[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def sections_part() -> Iterator[str]:
    yield (
        "## Config sections\n\nOf a run's YAML, and of the command line: `--data.max_tokens 128`; a bare name is a field of "
        "`training`. `hf-era fields SECTION` says the same."
    )
    for section, kind in SECTIONS.items():
        if section == "pretraining":
            yield "### pretraining\n\nThe fields of [`training`](#training), for a base that is pretrained here."
            continue
        whole = (
            f"\n\nAnd everything that transformers' `{kind.__mro__[2].__name__}` takes."
            if section == "training"
            else ""
        )
        yield f"### {section or 'Without a section'}\n\n{first_paragraph(kind)}{whole}\n\n{fields_table(kind)}"


def registered_part() -> Iterator[str]:
    yield "## What can be named in a config\n\nHow to add one of each: [CONTRIBUTING.md](../CONTRIBUTING.md)."
    kinds: dict[str, dict[str, Any]] = {
        "Routers": ROUTERS,
        "Methods": {name: type(method) for name, method in METHODS.items()},
        "Module kinds": MODULE_KINDS,
    }
    for title, known in kinds.items():
        parts = [f"### {title}", *(f"**`{name}`**: {first_paragraph(kind)}" for name, kind in known.items())]
        yield "\n\n".join(parts)
        yield from (fields_table(kind) for kind in known.values() if dataclasses.is_dataclass(kind))
    rows = [[f"`{name}`", f"`{family.model_class.__name__}`", "yes" if family.fast_path else "no"]
            for name, family in FAMILIES.items()]  # fmt: skip
    yield "### Families\n\n" + table(["model type", "expanded class", "fast path"], rows)


def metrics_part() -> Iterator[str]:
    yield "## Metrics\n\n`hf_era.evaluation.load(NAME).compute(...)`, without a network."
    for name in METRIC_NAMES:
        metric = load(name)
        yield f"### {name}\n\n{metric.description.strip()}\n\n{as_markdown(metric.inputs_description)}"


# ---- Commands ----


def commands_part() -> Iterator[str]:
    parser = hf_era.cli._parser()
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    yield f"## Commands\n\n{parser.description}"
    for name, command in commands.choices.items():
        actions = [action for action in command._actions if action.dest != "help"]
        rows = [[_option(action), (action.help or "").replace("%%", "%")] for action in actions]
        yield f"### hf-era {name}\n\n{command.description}\n\n{table(['argument', 'what it is'], rows)}"


def _option(action: argparse.Action) -> str:
    value = action.metavar or action.dest.upper()
    if not action.option_strings:
        return f"`{value}`"
    return f"`{', '.join(action.option_strings)}{'' if action.nargs == 0 else f' {value}'}`"


def render() -> str:
    parts = [HEAD, "## Python", *(python_part(name, thing) for name, thing in exported().items())]
    parts += [*sections_part(), *registered_part(), *metrics_part(), *commands_part()]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the page is out of date")
    options = parser.parse_args()
    text = render()
    is_stale = not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text
    if options.check:
        print(f"{PAGE} is out of date: run `make docs`." if is_stale else f"{PAGE} is up to date.")
        return int(is_stale)
    PAGE.write_text(text, encoding="utf-8")
    print(f"Wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
