"""Every text in a result may be hostile: in a card it stays text, and its metadata stays what it is."""

from collections.abc import Callable
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from hf_era.evaluation.results import RunResult
from hf_era.reporting.comparison import comparison_markdown
from hf_era.reporting.markdown.model_card import render_model_card

from .samples import module_values, profile_values

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "a|b|c",
    "a\n\n# Heading\n\n---\nlicense: evil\n---\n",
    "---\nlicense: evil\n---",
    "key: value\nlicense: evil",
    "[click](javascript:alert(1))",
    "x]( http://evil.example ) ![y](http://evil.example/z.png)",
    "`code` ``` \n```python\nimport os\n```",
    "{{ 7 * 7 }}{% raw %}{% include 'x' %}",
    "- item\n> quote\n| a | b |\n|---|---|",
    "&lt;script&gt; &amp; <!-- comment --> <![CDATA[",
    "!!python/object/apply:os.system [x]",
    "*a &a %TAG @x `y",
    "\u202egpj.exe\u0000\ud800",
    "https://evil.example www.evil.example evil@evil.example",
]
# Texts that decide what a card says or that are keys; hostile ones there are other tests' affair.
KEPT = {"kind", "method", "before_kind", "start", "rule", "weighting", "created"}


def hostile(value: Any, text: str, key: str = "") -> Any:
    """The value with every text in it replaced."""
    if isinstance(value, dict):
        return {name: hostile(item, text, name) for name, item in value.items()}
    if isinstance(value, list):
        return [hostile(item, text, key) for item in value]
    return text if isinstance(value, str) and key not in KEPT else value


def hostile_result(make_result: Callable[..., RunResult], text: str) -> RunResult:
    names = (text, "biology")
    values = vars(make_result(modules=module_values(names), profiles=profile_values(names)))
    stages = [{**stage, "title": text} for stage in values["stages"]]  # their names are keys of other fields
    return RunResult(**{**hostile(values, text), "kind": "run", "stages": stages})


def parts_of(card: str) -> tuple[dict[str, Any], str]:
    _, front, body = card.split("\n---\n", 1)[0], *card.removeprefix("---\n").split("\n---\n", 1)
    return yaml.safe_load(front), body


def rendered(markdown: str) -> Any:
    """Tokens of CommonMark with tables; HTML and links show as tokens of their own."""
    return MarkdownIt("commonmark").enable("table").parse(markdown)


def shape(markdown: str) -> list[str]:
    """The headings, code blocks and raw HTML of a text: what a hostile value must not add to."""
    kinds = []
    for token in rendered(markdown):
        if token.type == "heading_open":
            kinds.append(token.tag)
        if token.type in ("fence", "code_block", "html_block"):
            kinds.append(token.type)
    return kinds


def inline(markdown: str) -> list[tuple[str, str]]:
    """Links, pictures and raw HTML within lines."""
    found = []
    for token in rendered(markdown):
        for child in token.children or []:
            if child.type == "link_open":
                found.append(("link", str(child.attrGet("href"))))
            if child.type in ("image", "html_inline"):
                found.append((child.type, child.content))
    return found


@pytest.mark.parametrize("text", HOSTILE)
def test_a_card_keeps_its_shape(text: str, make_result: Callable[..., RunResult]) -> None:
    plain_front, plain_body = parts_of(render_model_card(hostile_result(make_result, "plain")))
    card = render_model_card(hostile_result(make_result, text))
    card.encode("utf-8")  # it can be written
    front, body = parts_of(card)
    assert set(front) == set(plain_front)
    assert "license" not in front
    assert shape(body) == shape(plain_body)
    assert inline(body) == inline(plain_body)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_licence_stays_in_its_field(text: str, make_result: Callable[..., RunResult]) -> None:
    front, body = parts_of(render_model_card(make_result(), license=f"other:{text}"))
    assert front["license"] == "other"
    assert set(front) - {"license", "license_name"} == set(parts_of(render_model_card(make_result()))[0])
    assert body == parts_of(render_model_card(make_result()))[1]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_comparison_keeps_its_shape(text: str, make_result: Callable[..., RunResult]) -> None:
    plain = comparison_markdown([hostile_result(make_result, "plain")])
    found = comparison_markdown([hostile_result(make_result, text)])
    assert shape(found) == shape(plain)
    assert inline(found) == inline(plain)


def test_the_check_sees_what_is_not_escaped() -> None:
    for text in ("<b>x</b>", "[x](http://y.z)", "![x](y)", "<script>"):
        assert inline(f"a {text}") or shape(text)
    assert shape("a\n\n# b\n\n```\nc\n```\n") == ["h1", "fence"]
