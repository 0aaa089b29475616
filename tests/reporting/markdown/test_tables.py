"""Tables of results: layout, missing values, escaping."""

import math

import pytest
from markdown_it import MarkdownIt

from hf_era.reporting.markdown.formatting import (
    escape_markdown,
    format_difference,
    format_loss,
    format_token,
    markdown_table,
)
from hf_era.reporting.markdown.tables import differences_table, losses_table, routing_table, selectivity_table


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_losses_table_has_a_row_per_stage_and_a_column_per_kind(make_result):
    lines = losses_table(make_result()).splitlines()
    assert cells(lines[0]) == ["Stage", "Forget stories", "Retain stories", "Forget words"]
    assert cells(lines[2])[:2] == ["Before the method (pretrained base)", "1.201 [1.176, 1.226]"]
    assert cells(lines[5]) == [
        "After coherence",
        "1.802 [1.777, 1.827]",
        "1.291 [1.260, 1.322]",
        "6.030 [5.930, 6.130]",
    ]


def test_missing_stage_kind_and_interval(make_result):
    estimate = {"loss": 1.5, "low": None, "high": None, "tokens": 10, "stories": 2}
    table = losses_table(make_result(losses={"after_ablation": {"forget": estimate}}, before_kind=None))
    assert "| Before the method | not measured | not measured | not measured |" in table
    assert "| After ablation | 1.500 | not measured | not measured |" in table


def test_the_base_control_is_named(make_result):
    assert "| Before the method (base control) |" in losses_table(make_result(before_kind="base_control"))


def test_selectivity_is_ordered_by_layer_number(make_result):
    values = {"10": {"value": 2.0, "low": 1.5, "high": 2.5}, "9": {"value": None}, "0": {"value": 1.25}}
    table = selectivity_table(make_result(selectivity=values))
    rows = [["0", "1.25"], ["9", "not measured"], ["10", "2.00 [1.50, 2.50]"]]
    assert [cells(line) for line in table.splitlines()[2:]] == rows
    assert "| all | not measured |" in selectivity_table(make_result(selectivity={}))


def test_routing_table_starts_with_the_most_strongly_routed(make_result):
    lines = routing_table(make_result(), rows=1).splitlines()
    assert len(lines) == 3
    assert cells(lines[2]) == ['" tree"', "0.000", "99.4", "0.0"]
    assert routing_table(make_result(routing_table=[])) == ""
    with pytest.raises(ValueError, match="`rows` should be at least 1, got 0"):
        routing_table(make_result(), rows=0)


def test_differences_have_their_interval_and_data_filtering_beside_them(make_result):
    lines = differences_table(make_result()).splitlines()
    assert cells(lines[0]) == ["Difference, nats a token", "This run"]
    assert cells(lines[2])[1] == "+0.760 [+0.720, +0.800]"
    assert cells(lines[3])[1] == "+0.226"  # from the losses, where no interval was stored
    filtered = {"differences": {"unlearning": {"value": 0.3, "low": 0.2, "high": 0.4}}}
    lines = differences_table(make_result(data_filtering=filtered)).splitlines()
    assert cells(lines[4])[1:] == ["+0.601 [+0.550, +0.650]", "+0.300 [+0.200, +0.400]"]
    assert cells(lines[5])[2] == "not measured"


def test_numbers():
    assert format_difference(-0.0312) == "-0.031"
    assert format_difference(None) == "not measured"
    assert format_difference(math.nan) == "not finite"
    assert format_loss({"loss": math.inf, "low": None, "high": None}) == "not finite"
    assert format_loss(None) == "not measured"


HOSTILE = [
    "<script>alert(1)</script>",
    "a|b",
    "`code`",
    "**bold** and _emphasis_ and __more__",
    "[link](http://example.org)",
    "![image](x.png)",
    "&lt;",
    "back\\slash\\|pipe",
    "$x$",
    "https://example.org www.example.org",
    "~~gone~~",
    "# title",
    "snake_case",
]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("escape", [escape_markdown, format_token])
def test_escaped_text_stays_text_in_a_table(text, escape):
    shown = text if escape is escape_markdown else format_token_as_shown(text)
    rows = _rendered_rows(markdown_table(["Token", "Weight"], [[escape(text), "1.0"]]))
    assert rows == [["Token", "Weight"], [shown, "1.0"]]


def test_the_check_on_escaping_can_fail():
    with pytest.raises(AssertionError, match="html_inline"):
        _rendered_rows(markdown_table(["Token", "Weight"], [["<script>", "1.0"]]))
    assert _rendered_rows(markdown_table(["Token", "Weight"], [["a|b", "1.0"]]))[1] == ["a", "b"]


def test_line_breaks_and_control_characters_stay_on_one_line():
    assert escape_markdown("a\nb\r\x00c\u2028d") == "a b  c d"
    assert format_token("\n") == '"\\\\n"'


def format_token_as_shown(text):
    return '"' + text.replace("\\", "\\\\") + '"'


def _rendered_rows(table):
    """The cells of a Markdown table as a reader sees them; fails if one of them holds anything but text."""
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    rows = []
    for token in parser.parse(table):
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline":
            kinds = {child.type for child in token.children}
            assert kinds <= {"text", "text_special"}, kinds
            rows[-1].append("".join(child.content for child in token.children))
    return rows
