"""Tables of results: layout, missing values, escaping."""

import math

import pytest
from markdown_it import MarkdownIt

from hf_era.evaluation.intervals import Estimate
from hf_era.reporting import tables
from hf_era.reporting.markdown.tables import (
    escape_markdown,
    losses_table,
    markdown_prose,
    markdown_table,
    routing_table,
    selectivity_table,
)
from hf_era.reporting.numbers import format_difference, format_estimate, format_share
from hf_era.reporting.tables import Table
from hf_era.reporting.text import token_text


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_losses_table_has_a_row_per_stage_and_a_column_per_kind(make_result):
    lines = losses_table(make_result()).splitlines()
    assert cells(lines[0]) == ["Stage", "Forget examples", "Retain examples", "Forget words"]
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
    assert "| Before ablation | not measured | not measured |\n" in table
    assert "Before the method" not in table  # the run had none
    assert "| After ablation | 1.500 | not measured |" in table
    assert "Forget words" not in table  # in none


def test_the_base_control_is_named(make_result):
    assert "| Before the method (base control) |" in losses_table(make_result(before_kind="base_control"))


def test_accuracies_stand_beside_the_chance_level_where_completions_were_measured(make_result):
    asked = {"forget_accuracy": {"value": 0.25, "low": 0.1, "high": 0.4, "examples": 150}}
    kept = {"retain_accuracy": {"value": 1.0, "low": 1.0, "high": 1.0, "examples": 50}}
    accuracies = {"before": asked | kept, "after_coherence": asked}
    table = tables.accuracy_table(make_result(accuracies=accuracies, data={"chance_accuracy": 0.125}))
    assert table.header == ["Stage", "Forget examples", "Retain examples"]
    assert table.rows == [
        ["Before the method (pretrained base)", "0.25 [0.10, 0.40]", "1.00 [1.00, 1.00]"],
        ["After coherence", "0.25 [0.10, 0.40]", "not measured"],
    ]
    assert "(150 forget)" in table.caption
    assert table.caption.endswith("; guessing gives 0.125.")
    assert "guessing" not in tables.accuracy_table(make_result(accuracies=accuracies)).caption
    assert tables.accuracy_table(make_result()) is None


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
    table = tables.differences_table(make_result())
    assert table.header == ["Difference, nats a token", "This result"]
    assert table.rows[0][1] == "+0.760 [+0.720, +0.800]"
    assert table.rows[1][1] == "+0.226"  # from the losses, where no interval was stored
    filtered = {"name": "filtered", "differences": {"unlearning": {"value": 0.3, "low": 0.2, "high": 0.4}}}
    table = tables.differences_table(make_result(data_filtering=filtered))
    assert table.header[2] == "Data filtering (filtered)"
    assert table.rows[2][1:] == ["+0.601 [+0.550, +0.650]", "+0.300 [+0.200, +0.400]"]
    assert table.rows[3][2] == "not measured"


def test_only_the_differences_that_a_run_has_are_listed(make_result):
    losses = {"before": make_result().losses["before"], "after_training": make_result().losses["after_coherence"]}
    control = make_result(method="data_filtering", losses=losses, differences={})
    assert not [row for row in tables.differences_table(control).rows if "blation" in row[0]]
    nothing = make_result(method="base", losses={"before": losses["before"]}, differences={}, attack=None)
    assert tables.differences_table(nothing) is None
    assert markdown_table(None) == ""


def test_numbers():
    assert format_difference(-0.0312) == "-0.031"
    assert format_difference(None) == "not measured"
    assert format_difference(math.nan) == "not finite"
    assert format_estimate(Estimate(math.inf)) == "not finite"
    assert format_estimate(None) == "not measured"
    assert format_estimate(Estimate(None), missing="-") == "-"
    assert [format_share(value) for value in (0.5, 0.00912, 1, None)] == ["50 %", "0.912 %", "100 %", "not measured"]


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


def table_of(text):
    return Table("", [text, "Weight"], [[text, text]], strong=frozenset({0}))


@pytest.mark.parametrize("text", HOSTILE)
def test_every_cell_stays_text(text):
    shown = text.replace("  ", " ")
    assert _rendered_rows(markdown_table(table_of(text)).replace("**", "")) == [[shown, "Weight"], [shown, shown]]
    token = token_text(text)
    assert _rendered_rows(markdown_table(Table("", ["Token", "Weight"], [[token, "1.0"]])))[1] == [token, "1.0"]


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("1.250 [1.200, 1.300]", "1.250 [1.200, 1.300]"),
        ("+0.2 [+0.1, +0.3] (data filtering -0.1)", "+0.2 [+0.1, +0.3] (data filtering -0.1)"),
        ("1.2 [1.1, 1.3](http://evil.example)", "1.2 \\[1.1, 1.3\\](http:/\\/evil.example)"),
        ("1.2 [1.1, 1.3] ([x](y))", "1.2 [1.1, 1.3] (\\[x\\](y))"),
        ("[1.1, 1.3]", "\\[1.1, 1.3\\]"),
    ],
)
def test_a_figure_keeps_its_brackets_and_nothing_else_does(cell, expected):
    assert markdown_table(Table("", ["a"], [[cell]])).splitlines()[2] == f"| {expected} |"


def test_the_check_on_escaping_can_fail():
    head = "| Token | Weight |\n| --- | ---: |\n"
    with pytest.raises(AssertionError, match="html_inline"):
        _rendered_rows(f"{head}| <script> | 1.0 |")
    assert _rendered_rows(f"{head}| a|b | 1.0 |")[1] == ["a", "b"]


def test_line_breaks_and_control_characters_stay_on_one_line():
    assert escape_markdown("a\nb\r\x00c\u2028d") == "a b  c d"
    assert token_text("\n") == '"\\n"'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("with **two words**, *one*.", "with **two words**, *one*."),
        ("[arXiv](https://arxiv.org/abs/2410.04332)", "[arXiv](https://arxiv.org/abs/2410.04332)"),
        ("one\nline\n\n \nanother", "one line\n\nanother"),
        ("2 * 3 * 4", "2 \\* 3 \\* 4"),
        ("**<b>**", "**&lt;b&gt;**"),
        ("- no list", "\\- no list"),
        ("1. no list", "1\\. no list"),
        ("text\n\n---", "text\n\n\\---"),
        ("[x](http://evil.example)", "\\[x\\](http:/\\/evil.example)"),
        ("[x](https://arxiv.org.evil.example/)", "\\[x\\](https:/\\/arxiv.org.evil.example/)"),
        ("[<b>](https://doi.org/10.1/2)", "[&lt;b&gt;](https://doi.org/10.1/2)"),
    ],
)
def test_prose_keeps_emphasis_and_links_to_papers(text, expected):
    assert markdown_prose(text) == expected


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
