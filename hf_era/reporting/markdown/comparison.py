"""A comparison of results as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from hf_era.evaluation.results import AnyResult
from hf_era.evaluation.summary import aggregate
from hf_era.reporting import comparison_tables
from hf_era.reporting.markdown.tables import markdown_table
from hf_era.reporting.tables import Table


def comparison_markdown(results: Sequence[AnyResult]) -> str:
    """The tables: every result, over seeds where a name has several, and the attacks. Raises `ValueError` if there is no
    result."""
    rows = aggregate(results)
    blocks = ["# Comparison", *_block(comparison_tables.results_table(results))]
    if any(len(row["seeds"]) > 1 for row in rows):
        blocks += ["## Over seeds", *_block(comparison_tables.differences_over_seeds(rows))]
        blocks += _block(comparison_tables.losses_over_seeds(rows))
    attacks = comparison_tables.strongest_attacks_table(results), comparison_tables.attacks_over_seeds(rows)
    if any(attacks):
        blocks += ["## Relearn attacks", *(block for table in attacks for block in _block(table))]
    return "\n\n".join(blocks) + "\n"


def _block(table: Table | None) -> list[str]:
    return [] if table is None else [table.caption, markdown_table(table)]
