"""A page that compares results: means over seeds, all results in one table, plots, attacks, and what each writes.

Rows are sorted without a script, which the page's policy forbids: an arrow at a column's head is a radio button, and while
it is checked, the style sheet gives each row its place in that column as `order`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_era.evaluation.results import AnyResult
from hf_era.evaluation.summary import aggregate
from hf_era.reporting import comparison_tables, module_tables
from hf_era.reporting.html.generations import generation_parts
from hf_era.reporting.html.parts import Folded, Section, Sortable, plots_of, render_page
from hf_era.reporting.numbers import counted
from hf_era.reporting.provenance import data_warnings
from hf_era.reporting.text import name_of
from hf_era.utils.files import write_text
from hf_era.version import __version__

Results = Sequence[AnyResult]


def render_comparison(results: Results, title: str = "Comparison") -> str:
    """The page as text; results of the same recipe (`recipe_of`) count as its seeds. The same results in the same
    order always give the same text. Raises `ValueError` if there is no result."""
    sections = [section for section in _sections(results) if section.parts]
    names = {result.name for result in results}
    return render_page(
        "comparison_template.html",
        title=name_of(title),
        subtitle=f"{counted(len(results), 'result', 'results')} under {counted(len(names), 'name', 'names')}",
        warnings=[*comparison_tables.comparability_warnings(results), *_data_warnings(results)],
        sections=sections,
        sortable_columns=sorted({column for part in _sortable(sections) for column in part.table.sort_by}),
        version=__version__,
    )


def write_comparison(results: Results, path: str | Path, title: str = "Comparison") -> Path:
    """Writes the page to `path`, in one go, and returns it. Arguments and errors: `render_comparison`."""
    return write_text(path, render_comparison(results, title))


def _sections(results: Results) -> list[Section]:
    rows = aggregate(results)
    several = any(len(row["seeds"]) > 1 for row in rows)
    results_table, attacks = comparison_tables.results_table(results), comparison_tables.attack_tables(results, rows)
    over_seeds = [Sortable(comparison_tables.over_seeds_table(rows), "seeds-by")] if several else []
    plots = plots_of(results, ["relearn_curves", "trade_off", "selectivity"])
    return [
        Section("verdict", "Verdict", [comparison_tables.verdict_table(results)]),
        Section("seeds", "Over seeds", over_seeds),
        Section("results", "All results", [Sortable(results_table, "results-by")]),
        Section("plots", "Plots", plots),
        Section("attacks", "Relearn attacks", attacks),
        Section("tasks", "Tasks", [*filter(None, [comparison_tables.tasks_of_results_table(results)])]),
        Section("modules", "Modules", [*filter(None, [module_tables.modules_of_results_table(results)])]),
        Section("generations", "What they write", _generations(results)),
    ]


def _sortable(sections: Sequence[Section]) -> list[Sortable]:
    return [part for section in sections for part in section.parts if isinstance(part, Sortable)]


def _data_warnings(results: Results) -> list[str]:
    return [f"{_name(result)}: {text}" for result in results for text in data_warnings(result)]


def _generations(results: Results) -> list[Any]:
    parts = [(_name(result), generation_parts(result)) for result in results]
    return [Folded(name, part) for name, part in parts if part]


def _name(result: AnyResult) -> str:
    return f"{name_of(result.name)}, seed {name_of(result.seed)}"
