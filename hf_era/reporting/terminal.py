"""A result on the terminal: the verdict as three coloured lines, then its losses as a table; of several modules each."""

from __future__ import annotations

from rich.console import Console
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hf_era.evaluation.results import AnyResult
from hf_era.evaluation.summary import summary_of
from hf_era.reporting import module_tables, tables
from hf_era.reporting.provenance import data_warnings
from hf_era.reporting.text import name_of
from hf_era.reporting.verdict import VerdictLine, is_judged, verdict

STYLES = {"good": "bold green", "mixed": "bold yellow", "bad": "bold red", "unknown": "dim"}
"""Level of a verdict's line -> how its answer is shown."""
WIDEST = 240
"""Columns of a table, whatever the terminal."""
TITLE = "Losses, nats a token; in brackets 95 % intervals, over examples"
TASKS_TITLE = "Tasks of lm-evaluation-harness; in brackets 95 % intervals, over examples"
ACCURACY_TITLE = "Accuracy of completions; in brackets 95 % intervals, over examples"
CROSSTALK = "What switching one module off adds to the loss, all others on"
PROFILES = "Losses with each combination of modules on"


def print_result(result: AnyResult, console: Console) -> None:
    """Prints what is odd about the data, the verdict, of several modules where theirs differs, the losses and tasks; without
    losses the tasks alone. No name or text is read as markup."""
    if summary_of(result).losses:
        _print_losses(result, console)
    tasks = tables.tasks_table(result)
    if tasks is not None:
        _print_table(tasks, TASKS_TITLE, console)


def _print_losses(result: AnyResult, console: Console) -> None:
    for warning in data_warnings(result):
        console.print(Text(warning, style=STYLES["bad"]))
    if is_judged(result):
        _print_verdict({"": verdict(result), **module_tables.differing_verdicts(result)}, console)
        _print_table(tables.losses_table(result), TITLE, console)
        accuracy = tables.accuracy_table(result)
        if accuracy is not None:
            console.print()
            _print_table(accuracy, ACCURACY_TITLE + tables.chance_text(result), console)
    for table, title in (
        (module_tables.crosstalk_table(result), CROSSTALK),
        (module_tables.profiles_table(result), PROFILES),
    ):
        if table is not None:
            console.print()
            _print_table(table, title, console)


def _print_verdict(verdicts: dict[str, list[VerdictLine]], console: Console) -> None:
    """The lines of the whole result (without a name), and of modules under theirs."""
    lines = Table.grid(padding=(0, 2))
    lines.add_column(no_wrap=True)
    lines.add_column(no_wrap=True)
    lines.add_column()
    for name, part in verdicts.items():
        of_module = f"{name_of(name)}: " if name else ""
        for line in part:
            answer = Text(line.answer, style=STYLES[line.level])
            lines.add_row(Text(f"{of_module}{line.question}"), answer, Text(line.text))
    console.print(Padding(lines, (1, 0)))


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
