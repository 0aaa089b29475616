"""What the cells of a matrix say together: the comparison of all results, with data filtering beside each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_era.evaluation import RunResult
from hf_era.evaluation.summary import comparison_values
from hf_era.reporting.comparison import write_comparison_files
from hf_era.run.matrix import Cell, MatrixConfig
from hf_era.run.outputs import write_outputs


def aggregate_cells(matrix: MatrixConfig, cells: Sequence[Cell]) -> Path:
    """Puts data filtering beside every result of the same seed, writes their reports anew, with the means over seeds, and
    the comparison of all.

    Returns: the folder of the comparison. It also holds a copy of every result, `seed0/NAME.json` and so on, so that it can
    be kept or passed on by itself.

    Raises:
        ValueError: if no cell has a result yet.
    """
    rows = [run.name for run in matrix.runs]
    ordered = sorted(cells, key=lambda cell: (rows.index(cell.row), cell.seed))
    results = {(cell.row, cell.seed): result for cell in ordered if (result := cell.result()) is not None}
    if not results:
        raise ValueError(f"None of the {len(cells)} cells has a result yet. Run the matrix first.")
    folder = Path(matrix.output_dir)
    folders = {(cell.row, cell.seed): cell.config.output_path for cell in cells}
    for (row, seed), result in results.items():
        filtered = results.get((str(matrix.data_filtering), seed))
        if filtered is not None and row != matrix.data_filtering:
            result.data_filtering = _control_values_for(result, filtered)
    for (row, seed), result in results.items():
        seeds = [other for (name, _), other in results.items() if name == row]
        if len(seeds) > 1 or result.data_filtering is not None:
            write_outputs(result, folders[row, seed], seeds)
        result.save(folder / f"seed{seed}" / f"{row}.json")
    write_comparison_files(list(results.values()), folder)
    return folder


def _control_values_for(result: RunResult, filtered: RunResult) -> dict[str, Any] | None:
    """The figures of data filtering, if they were measured on the same examples."""
    same = result.data.get("fingerprint") == filtered.data.get("fingerprint")
    return comparison_values(filtered) if same else None
