"""A result on the terminal: the verdict as three coloured lines, then its losses as a table."""

from __future__ import annotations

from rich.console import Console
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hf_era.evaluation.results import AnyResult
from hf_era.evaluation.summary import summary_of
from hf_era.reporting import tables
from hf_era.reporting.provenance import data_warnings
from hf_era.reporting.verdict import verdict

STYLES = {"good": "bold green", "mixed": "bold yellow", "bad": "bold red", "unknown": "dim"}
"""Level of a verdict's line -> how its answer is shown."""
WIDEST = 240
"""Columns of a table, whatever the terminal."""
TITLE = "Losses, nats a token; in brackets 95 % intervals, over examples"
TASKS_TITLE = "Tasks of lm-evaluation-harness; in brackets 95 % intervals, over examples"


def print_result(result: AnyResult, console: Console) -> None:
    """Prints what is odd about the data, the verdict, the losses and tasks; without losses the tasks alone. No name or text
    is read as markup."""
    if summary_of(result).losses:
        _print_losses(result, console)
    tasks = tables.tasks_table(result)
    if tasks is not None:
        _print_table(tasks, TASKS_TITLE, console)


def _print_losses(result: AnyResult, console: Console) -> None:
    for warning in data_warnings(result):
        console.print(Text(warning, style=STYLES["bad"]))
    lines = Table.grid(padding=(0, 2))
    lines.add_column(no_wrap=True)
    lines.add_column(no_wrap=True)
    lines.add_column()
    for line in verdict(result):
        lines.add_row(Text(line.question), Text(line.answer, style=STYLES[line.level]), Text(line.text))
    console.print(Padding(lines, (1, 0)))
    _print_table(tables.losses_table(result), TITLE, console)


def _print_table(shown: tables.Table, title: str, console: Console) -> None:
    table = Table(box=None, pad_edge=False, title=Text(title, style="dim"), title_justify="left")
    for number, name in enumerate(shown.header):
        is_text = number < shown.text_columns
        table.add_column(Text(name), justify="left" if is_text else "right", no_wrap=number > 0)
    for row in shown.rows:
        table.add_row(*map(Text, row))
    # As wide as it is: a terminal that is narrower breaks its lines, and would otherwise lose the stages' names.
    table.width = Measurement.get(console, console.options.update(width=WIDEST), table).maximum
    console.print(table, crop=False)
