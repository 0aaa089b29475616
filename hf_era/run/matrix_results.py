"""What the cells of a matrix say together.

cells.jsonl            one line per cell, written as soon as it ends: figures, and the curve of its strongest attack. What is
                       in there stays when the run is gone: the rest is made anew from it
table.md, table.json   of each row in each testbed the means over seeds, and how the testbed itself is
plots/                 forget loss after the attack against retain loss, with the reference curves: of testbeds, or with a
                       `base_curve`; with a `frontier` share of filtering and retain loss against compute

A matrix without testbeds has the full comparison of all its results besides: `comparison.*`, a copy of every result, and
data filtering beside each.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from hf_era.evaluation import RunResult
from hf_era.evaluation.cell_lines import Key, Line, cell_line, key_of, read_lines, write_lines
from hf_era.evaluation.cell_table import table_of
from hf_era.evaluation.summary import comparison_values, flat_settings
from hf_era.reporting.comparison import write_comparison_files
from hf_era.reporting.matrix_tables import matrix_markdown
from hf_era.reporting.plots import figure_svg, frontier, reference_curves
from hf_era.run.matrix import Cell, MatrixConfig
from hf_era.run.outputs import write_outputs
from hf_era.utils.files import make_folder, write_json, write_text

CELLS = "cells.jsonl"
PLOT = "plots/reference_curves.svg"
FRONTIER = "plots/frontier.svg"


class CellLines:
    """`cells.jsonl` of a matrix. Several processes may add lines to it."""

    def __init__(self, matrix: MatrixConfig, cells: Sequence[Cell]) -> None:
        self.path = Path(matrix.output_dir) / CELLS
        self._place = {cell.key: number for number, cell in enumerate(cells)}
        self._keys = {cell.key: cell.settings_key for cell in cells}
        self._settings = _differing_settings(cells)
        self._kept = read_lines(self.path)

    def has(self, cell: Cell) -> bool:
        """Whether the file had the line of a cell with these very settings."""
        return self._is_current(self._kept.get(cell.key), cell)

    def add(self, *cells: Cell) -> list[Line]:
        """Puts lines of those cells that have a result in place of their earlier ones, and returns all lines. A result of
        other settings than the cell's does not take the place of a line with these."""
        with self._lock():
            lines = read_lines(self.path)
            for cell in cells:
                result, is_current = cell.result(), cell.is_done()
                if result is not None and (is_current or not self._is_current(lines.get(cell.key), cell)):
                    key, settings = (cell.settings_key if is_current else None), self._settings[cell.key]
                    if not is_current:  # what it was made of, not what it would be made of now
                        own = flat_settings(result.config)
                        settings = {name: json.loads(own[name]) for name in settings if name in own}
                    lines[cell.key] = cell_line(result, cell.testbed, key) | {"settings": settings}
            self._kept = lines
            return self._write(lines.values())

    def write(self, lines: Sequence[Line]) -> None:
        """Writes these lines, and what the file has besides."""
        with self._lock():
            own = {key_of(line): line for line in lines}
            self._write({**read_lines(self.path), **own}.values())

    def stale(self, lines: Sequence[Line], testbed: str) -> str | None:
        """A note on those lines of a testbed that are not of the settings that the matrix has now; `None` if all are."""
        rows: dict[str, list[str]] = {}
        for line in lines:
            if line["testbed"] == testbed and line.get("settings_key") != self._keys.get(key_of(line)):
                rows.setdefault(line["row"], []).append(str(line["seed"]))
        if not rows:
            return None
        told = "; ".join(
            f"{row}, {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(seeds)}" for row, seeds in rows.items()
        )
        return (
            f"Of other settings than the matrix has now, or of seeds that it no longer has: {told}. Their figures need not "
            f"compare with the others': run these cells again, or take their lines out of {CELLS}."
        )

    def _lock(self) -> FileLock:
        folder = self.path.parent / "configs"  # where other files lie that nobody keeps
        make_folder(folder)
        return FileLock(folder / f".{CELLS}.lock")

    def _write(self, lines: Iterable[Line]) -> list[Line]:
        ordered = sorted(lines, key=lambda line: self._place.get(key_of(line), len(self._place)))
        write_lines(self.path, ordered)
        return ordered

    @staticmethod
    def _is_current(line: Mapping[str, Any] | None, cell: Cell) -> bool:
        return line is not None and line.get("settings_key") == cell.settings_key


def _differing_settings(cells: Sequence[Cell]) -> dict[Key, dict[str, Any]]:
    """Cell -> those of its settings, by their dotted names, that not all cells of its testbed have."""
    found: dict[Key, dict[str, Any]] = {}
    for testbed in {cell.testbed for cell in cells}:
        own = {cell.key: flat_settings(cell.config.to_dict()) for cell in cells if cell.testbed == testbed}
        names = dict.fromkeys(name for settings in own.values() for name in settings)
        differing = [name for name in names if len({settings.get(name) for settings in own.values()}) > 1]
        for key, settings in own.items():
            found[key] = {name: json.loads(settings[name]) for name in differing if name in settings}
    return found


def aggregate_cells(matrix: MatrixConfig, cells: Sequence[Cell]) -> Path:
    """Writes what the cells say together, those of which only a line is left too.

    Returns: the page to look at first.

    Raises:
        ValueError: if no cell has a result, or a line, yet.
    """
    kept = CellLines(matrix, cells)
    known = {run.name for run in matrix.runs}
    testbeds = [*matrix.testbeds] or [""]
    lines = [line for line in kept.add(*cells) if line["row"] in known and line["testbed"] in testbeds]
    if not lines:
        raise ValueError(f"None of the {len(cells)} cells has a result yet. Run the matrix first.")
    lines.sort(key=lambda line: testbeds.index(line["testbed"]))
    lines, table = table_of(lines, [run.name for run in matrix.runs], matrix.references)
    kept.write(lines)
    for part in table["testbeds"]:
        if (note := kept.stale(lines, part["name"])) is not None:
            part["notes"].append(note)
    folder = Path(matrix.output_dir)
    write_json(folder / "table.json", table)
    plot = PLOT if matrix.testbeds or matrix.base_curve else None
    frontier_plot = FRONTIER if matrix.frontier else None
    page = write_text(folder / "table.md", matrix_markdown(table, plot, frontier_plot))
    if plot is not None:
        figure = reference_curves.draw(table, [*matrix.base_curve, *matrix.filtering_curve])
        write_text(folder / plot, figure_svg(figure))
    if frontier_plot is not None:
        write_text(folder / frontier_plot, figure_svg(frontier.draw(table, matrix.references.frontier)))
    results = {} if matrix.testbeds else _results(matrix, cells)
    if not results:
        return page
    _write_comparison(matrix, cells, results)
    return folder / "comparison.html"


# ---- The comparison of all results ----


def _results(matrix: MatrixConfig, cells: Sequence[Cell]) -> dict[tuple[str, int], RunResult]:
    """Row and seed -> result, where there is one; row by row."""
    rows = [run.name for run in matrix.runs]
    ordered = sorted(cells, key=lambda cell: (rows.index(cell.row), cell.seed))
    return {(cell.row, cell.seed): result for cell in ordered if (result := cell.result()) is not None}


def _write_comparison(matrix: MatrixConfig, cells: Sequence[Cell], results: dict[tuple[str, int], RunResult]) -> None:
    """Puts data filtering beside every result of the same seed, writes their reports anew, with the means over seeds, and
    the comparison of all. A copy of every result stays beside it, `seed0/NAME.json` and so on, so that it can be kept or
    passed on by itself."""
    folder = Path(matrix.output_dir)
    folders = {(cell.row, cell.seed): cell.config.output_path for cell in cells}
    controls = matrix.references.controls
    for (row, seed), result in results.items():
        filtered = results.get((controls.get(row, ""), seed))
        if filtered is not None and row != controls[row]:
            result.data_filtering = _control_values_for(result, filtered)
    for (row, seed), result in results.items():
        seeds = [other for (name, _), other in results.items() if name == row]
        if len(seeds) > 1 or result.data_filtering is not None:
            write_outputs(result, folders[row, seed], seeds)
        result.save(folder / f"seed{seed}" / f"{row}.json")
    write_comparison_files(list(results.values()), folder)


def _control_values_for(result: RunResult, filtered: RunResult) -> dict[str, Any] | None:
    """The figures of data filtering, if they were measured on the same examples."""
    same = result.data.get("fingerprint") == filtered.data.get("fingerprint")
    return comparison_values(filtered) if same else None
