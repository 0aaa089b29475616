"""Several results side by side, as files: Markdown, CSV, JSON, HTML and plots."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_era.evaluation.results import AnyResult
from hf_era.evaluation.summary import DIFFERENCES, aggregate, figure_values, summary_of
from hf_era.reporting import comparison_tables, module_tables
from hf_era.reporting.html.comparison import write_comparison
from hf_era.reporting.labels import edges_text
from hf_era.reporting.markdown.tables import markdown_table
from hf_era.reporting.plots import save_plots
from hf_era.reporting.tables import Table
from hf_era.reporting.verdict import verdict
from hf_era.utils.files import write_json, write_text


def write_comparison_files(results: Sequence[AnyResult], folder: str | Path) -> list[Path]:
    """Writes `comparison.md`, `.csv`, `.json`, `.html` and `plots/` into a folder and returns their paths. Raises
    `ValueError` if there is no result."""
    folder = Path(folder)
    return [
        write_text(folder / "comparison.md", comparison_markdown(results)),
        write_text(folder / "comparison.csv", comparison_csv(results)),
        write_json(folder / "comparison.json", comparison_json(results)),
        write_comparison(results, folder / "comparison.html"),
        *save_plots(results, folder / "plots"),
    ]


def comparison_markdown(results: Sequence[AnyResult]) -> str:
    """The tables: over seeds where a recipe has several, every result, and the attacks. Raises `ValueError` if there is no
    result."""
    rows = aggregate(results)
    warnings = [f"**{text}**" for text in comparison_tables.comparability_warnings(results)]
    blocks = ["# Comparison", *warnings, *_block(comparison_tables.verdict_table(results))]
    if any(len(row["seeds"]) > 1 for row in rows):
        blocks += ["## Over seeds", *_block(comparison_tables.over_seeds_table(rows))]
    blocks += ["## All results", *_block(comparison_tables.results_table(results))]
    attacks = comparison_tables.attack_tables(results, rows)
    if attacks:
        blocks += ["## Relearn attacks", *(block for table in attacks for block in _block(table))]
    if of_tasks := _block(comparison_tables.tasks_of_results_table(results)):
        blocks += ["## Tasks", *of_tasks]
    if of_modules := _block(module_tables.modules_of_results_table(results)):
        blocks += ["## Modules", *of_modules]
    return "\n\n".join(blocks) + "\n"


def _block(table: Table | None) -> list[str]:
    return [] if table is None else [table.caption, markdown_table(table)]


def comparison_rows(results: Sequence[AnyResult]) -> list[dict[str, Any]]:
    """One flat dict per result, in the order given: what CSV and JSON hold, differences first. Raises
    `ValueError` if there is no result."""
    if not results:
        raise ValueError("`results` is empty. Pass at least one result.")
    attack = ("kind", "stories", "learning_rate", "trials", "lowest_step", "recovered", "recovery", "steps_to_recover")
    rows = []
    for result in results:
        figures = summary_of(result)
        row: dict[str, Any] = {"name": result.name, "seed": result.seed}
        row |= {name: figures.differences[name].value for name in comparison_tables.FIRST}
        row |= figure_values(figures)
        for name in DIFFERENCES:
            row |= {f"{name}_low": figures.differences[name].low, f"{name}_high": figures.differences[name].high}
        row |= {f"attack_{name}": getattr(figures.strongest, name, None) for name in attack}
        row |= {"attack_edges": edges_text(figures.strongest.edges) if figures.strongest else None}
        row |= {
            name: line.answer for name, line in zip(("removed", "cost", "comes_back"), verdict(result), strict=True)
        }
        row |= {"method": result.method, "rule": figures.rule, "start": figures.start, "before": figures.before_name}
        rows.append(row | {"stories": str(result.data.get("fingerprint") or "")[:8]})
    return rows


def comparison_csv(results: Sequence[AnyResult]) -> str:
    """One line per result. A cell that a spreadsheet would take for a formula is prefixed with an apostrophe."""
    rows = comparison_rows(results)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _harmless(value) for name, value in row.items()} for row in rows)
    return file.getvalue()


def _harmless(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def comparison_json(results: Sequence[AnyResult]) -> dict[str, Any]:
    """`results`: the rows; `over_seeds`: one entry per recipe; `tasks`, where some were measured: one entry for each figure;
    `modules`, where a result has several: one entry each."""
    found = {"results": comparison_rows(results), "over_seeds": aggregate(results)}
    more = {"tasks": comparison_tables.task_rows(results), "modules": module_tables.module_rows(results)}
    return {**found, **{name: rows for name, rows in more.items() if rows}}
