"""`hf-era matrix CONFIG`: testbeds x recipes x seeds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hf_era.utils.checks import unknown_value_message

if TYPE_CHECKING:
    from hf_era.run.matrix import Cell, MatrixConfig


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "matrix",
        help="run recipes with several seeds and compare them",
        description="Runs every cell of a matrix (testbeds x recipes x seeds), each in a process of its own, and compares "
        "all results. "
        "What is done already is skipped; give the same command again to go on.",
        allow_abbrev=False,
    )
    parser.add_argument("config", help="YAML file, or the name of a packaged one, e.g. matrix_small")
    parser.add_argument("--list", action="store_true", help="only list the cells and which are done")
    parser.add_argument("--cell", type=int, metavar="N", help="run only cell N, from 0: for SLURM arrays")
    parser.add_argument("--aggregate", action="store_true", help="run nothing, only compare what is there")
    parser.add_argument(
        "--again",
        action="store_true",
        help="also run cells of which a line of results is left, but no run on this machine",
    )
    parser.add_argument("--seeds", nargs="+", help="other seeds than those of the file")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="run or list only these rows")
    parser.add_argument("--testbeds", nargs="+", metavar="TESTBED", help="run or list only these testbeds")


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from rich.console import Console

    from hf_era.run.matrix import load_matrix
    from hf_era.run.matrix_results import CellLines, aggregate_cells
    from hf_era.run.matrix_running import run_cells, start_paths

    console = Console(stderr=True, soft_wrap=True)
    changes = {} if options.seeds is None else {"seeds": options.seeds}
    matrix, cells = load_matrix(options.config, changes)
    lines = CellLines(matrix, cells)

    def finished() -> list[bool]:
        return [lines.has(cell) or cell.result() is not None for cell in cells]

    chosen = _chosen(options, matrix, cells)
    if options.list:
        for number, (cell, is_done) in enumerate(zip(cells, finished(), strict=True)):
            if cell not in chosen:
                continue
            testbed = f"{cell.testbed}  " if cell.testbed else ""
            done = "done" if is_done else "    "
            print(f"{number:3d}  {done}  {testbed}{cell.row}  seed {cell.seed}  {cell.result_file}")
        return 0
    failed = []
    if not options.aggregate:
        rows, seeds = len(matrix.runs), ", ".join(map(str, matrix.seeds))
        testbeds = f"testbeds {', '.join(matrix.testbeds)}, " if matrix.testbeds else ""
        console.print(
            f"{len(cells)} cells: {testbeds}{rows} rows, seeds {seeds}; {sum(finished())} have a result. "
            f"To run: {len(chosen)}."
        )

        def need_not_run(cell: Cell) -> bool:
            return cell.is_done() or (lines.has(cell) and not options.again)

        failed = run_cells(matrix, chosen, console, start_paths(cells), lines.add, need_not_run)
    if options.aggregate or (options.cell is None and any(finished())):
        page = aggregate_cells(matrix, cells)
        console.print(f"{sum(finished())} of {len(cells)} cells compared in {page}")
    if failed:
        names = ", ".join(f"{cell.title.rpartition(', ')[0]} (seed {cell.seed})" for cell in failed)
        console.print(f"[bold red]Failed: {names}.[/] Give the same command again once the cause is mended.")
    return 1 if failed else 0


def _chosen(options: argparse.Namespace, matrix: MatrixConfig, cells: list[Cell]) -> list[Cell]:
    """Those that the options name; `ValueError` for one that names none."""
    if options.cell is not None and not 0 <= options.cell < len(cells):
        raise ValueError(
            f"`--cell` should be from 0 to {len(cells) - 1}, got {options.cell}. `--list` shows the cells."
        )
    for name, known in (("rows", [run.name for run in matrix.runs]), ("testbeds", matrix.testbeds)):
        for value in getattr(options, name) or []:
            if value not in known:
                raise ValueError(unknown_value_message(f"--{name}", value, known))
    chosen = cells if options.cell is None else [cells[options.cell]]
    found = [
        cell
        for cell in chosen
        if (options.rows is None or cell.row in options.rows)
        and (options.testbeds is None or cell.testbed in options.testbeds)
    ]
    if not found:
        raise ValueError("`--cell`, `--rows` and `--testbeds` name no cell together. `--list` shows the cells.")
    return found
