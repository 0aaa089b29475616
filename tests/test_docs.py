"""The pages lead where they say, name what there is, and are no older than the code."""

import ast
import dataclasses
import importlib
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from hf_era import cli
from hf_era.methods import METHODS
from hf_era.routing import make_router
from hf_era.run.config import SECTIONS
from hf_era.run.parsing import parse_overrides

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks/results/README.md", *ROOT.glob("docs/*.md")]
LINK = re.compile(r"(?:\]\(|src(?:set)?=\")([^)\s\"]+)")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
WITH_OVERRIDES = ("run", "eval", "relearn", "generate")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.M)}


def dead_links(page: Path) -> Iterator[str]:
    for link in LINK.findall(BLOCK.sub("", page.read_text(encoding="utf-8"))):
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        is_dead = not path.exists() or (bool(anchor) and path.suffix == ".md" and anchor not in anchors(path))
        if not link.startswith(("https://", "http://")) and is_dead:
            yield link


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == language]


def check_command(line: str) -> None:
    """Raises `SystemExit` or `ValueError` for a command that the command line does not take."""
    words = shlex.split(line, comments=True)[1:]
    known, overrides = cli._parser().parse_known_args(words)
    assert not overrides or known.command in WITH_OVERRIDES, line
    sections = parse_overrides(overrides, SECTIONS, default="training" if known.command == "run" else "relearn")
    for section, values in sections.items():
        if section == "router":
            make_router(values)
            continue
        fields = set(SECTIONS[section].__dataclass_fields__) if section in SECTIONS else set()
        if section == "method_settings":
            owners = (method.settings_class for method in METHODS.values())
            fields = {item.name for owner in owners if owner is not None for item in dataclasses.fields(owner)}
        assert not isinstance(values, dict) or set(values) <= fields, line


def test_every_link_leads_somewhere(tmp_path: Path) -> None:
    assert {name_of(page): list(dead_links(page)) for page in PAGES if list(dead_links(page))} == {}
    (tmp_path / "page.md").write_text("# One\n[a](gone.md) [b](#one) [c](#two) [d](page.md#one) [e](https://x.org)")
    assert list(dead_links(tmp_path / "page.md")) == ["gone.md", "#two"]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_names_of_the_pages_exist(page: Path) -> None:
    for text in blocks(page, "bash"):
        for line in text.replace("\\\n", " ").splitlines():
            if line.startswith("hf-era "):
                check_command(line)
    for text in blocks(page, "python"):
        for node in ast.walk(ast.parse(text)) if not text.startswith(">>>") else ():
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("hf_era"):
                module = importlib.import_module(str(node.module))
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@pytest.mark.parametrize(
    "line", ["hf-era run demo --data.trian x", "hf-era card runs/a --nonsense", "hf-era runn demo"]
)
def test_a_command_that_does_not_exist_is_found(line: str) -> None:
    with pytest.raises((SystemExit, ValueError, AssertionError)):
        check_command(line)


def test_the_api_page_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("make_api", ROOT / "docs" / "make_api.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.render(), "run `make docs`"


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(lines) <= 160
    assert len(table) == 2 + 6, "one table, of six rows"
    assert {line.count("|") for line in table} == {5}, "of four columns"
    assert lines.index("## Two commands") < 50, "what it does not do better comes first"
