"""Markdown: text that stays text, and the tables of a result."""

from __future__ import annotations

import re
from typing import Any

from hf_era.evaluation.results import RunResult
from hf_era.reporting import tables
from hf_era.reporting.tables import Table

_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;"}
_MARKDOWN = set("\\`*[]#~$")
# An underscore between letters or digits is no markup; "://" and "www." would become links.
_MARKDOWN_IN_CONTEXT = re.compile(r"(?<![^\W_])_|_(?![^\W_])|(?<=:/)/|(?i:(?<=\bwww)\.)")
# What a method's prose may hold: emphasis, and links to papers.
_MARKUP = re.compile(r"(\*{1,2})(?=\S)([^*]+)(?<=\S)\1|\[([^\[\]]+)\]\((https://(?:arxiv|doi)\.org/[\w./-]+)\)")
# A list, a rule or a heading at the start of a paragraph.
_BLOCK_START = re.compile(r"^(\d*)([-+=.)])")
# A figure with its interval at the start of a cell is left as it is; a link cannot begin there.
_FIGURE = re.compile(r"(?:≤ )?[-+]?[\d.,]+ \[[-+]?[\d.,]+, [-+]?[\d.,]+\](?=$| \()")


def escape_markdown(value: Any) -> str:
    """Text that Markdown and HTML show as it is, on one line, in a paragraph as in a table cell."""
    text = "".join(character if character.isprintable() else " " for character in str(value))
    escaped = "".join(
        f"\\{character}" if character in _MARKDOWN else _HTML.get(character, character) for character in text
    )
    return _MARKDOWN_IN_CONTEXT.sub(lambda match: f"\\{match.group()}", escaped)


def markdown_prose(text: object) -> str:
    """Paragraphs of a method's prose, each on one line: emphasis and links to arXiv and DOIs stay, all else is escaped."""
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", str(text))]
    return "\n\n".join(_BLOCK_START.sub(r"\1\\\2", _paragraph(part)) for part in paragraphs if part)


def _paragraph(text: str) -> str:
    parts, at = [], 0
    for found in _MARKUP.finditer(text):
        stars, emphasised, label, address = found.groups()
        parts.append(escape_markdown(text[at : found.start()]))
        link = address and f"[{escape_markdown(label)}]({address})"
        parts.append(link or f"{stars}{escape_markdown(emphasised)}{stars}")
        at = found.end()
    return "".join([*parts, escape_markdown(text[at:])])


def markdown_table(table: Table | None) -> str:
    """A table without its caption, its cells escaped, rows that stand out in bold; empty for `None`."""
    if table is None:
        return ""
    rule = ["---" if index < table.text_columns else "---:" for index in range(len(table.header))]
    rows = [[_cell(cell) for cell in row] for row in (table.header, *table.rows)]
    for number in table.strong:
        rows[number + 1][0] = f"**{rows[number + 1][0]}**"
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (rows[0], rule, *rows[1:]))


def _cell(text: str) -> str:
    figure = _FIGURE.match(text)
    start = figure.end() if figure else 0
    return text[:start] + escape_markdown(text[start:])


# ---- Tables of a run ----


def losses_table(result: RunResult) -> str:
    """One row per stage, one column per kind of token: `1.234 [1.210, 1.260]`."""
    return markdown_table(tables.losses_table(result))


def selectivity_table(result: RunResult) -> str:
    """One row per target layer: activation of the auxiliary module on forget examples over that on retain examples."""
    return markdown_table(tables.selectivity_table(result))


def routing_table(result: RunResult, rows: int = 10) -> str:
    """The frequency rule's tokens, most strongly routed first, at most `rows` of them; frequencies are per 10,000 tokens.
    Empty if the result has no such table, as with other rules. Raises `ValueError` if `rows` is below 1.
    """
    if rows < 1:
        raise ValueError(f"`rows` should be at least 1, got {rows}.")
    return markdown_table(tables.routing_table(result, rows))
