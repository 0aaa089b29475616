"""`hf-era matrix`: recipes x seeds, each run in a process of its own, resumable, and what they say together.

A cell of the matrix is one run with one seed: an ordinary `hf-era run`, so that a matrix that was stopped goes on where it
was. Cells run one after the other; under SLURM each task of an array runs one (`--cell $SLURM_ARRAY_TASK_ID`), and on a node
with GPUs `launcher: [accelerate, launch, -m, hf_era, run]` starts each on all of them. What is there already is
aggregated at the end, or with `--aggregate` alone.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from hf_era.evaluation import RunResult
from hf_era.evaluation.summary import comparison_values
from hf_era.reporting.comparison import write_comparison_files
from hf_era.run.config import RunConfig
from hf_era.run.outputs import write_outputs
from hf_era.run.parsing import build, merge, read_yaml
from hf_era.run.recipes import find_config
from hf_era.utils import exit_codes
from hf_era.utils.checks import check_count, check_path_text, short_repr, unknown_value_message
from hf_era.utils.files import real_path, write_text
from hf_era.utils.signals import StoppedError
from hf_era.utils.yaml_text import dump_yaml

MAXIMUM_CELLS = 10_000


@dataclass
class MatrixRun:
    """One row of the matrix.

    Args:
        name (`str`): of the runs; part of their output directory.
        recipe (`str`): YAML file of a recipe, relative to the matrix's own, or the name of a packaged one.
        settings (`dict`, *optional*): what this row changes, e.g. `{routing: {rule: none}}`.
    """

    name: str
    recipe: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class MatrixConfig:
    """Recipes x seeds.

    Args:
        output_dir (`str`, *optional*, defaults to `"runs/matrix"`): where the comparison goes; the runs go where their own
            settings say.
        seeds (`list[int]`, *optional*, defaults to `[0, 1, 2]`): of every row.
        runs (`list`): the rows, each a mapping with the fields of `MatrixRun`.
        overlays (`list[str]`, *optional*): YAML files laid over every recipe, found likewise.
        settings (`dict`, *optional*): laid over every run, before a row's own.
        data_filtering (`str`, *optional*): name of the row whose figures stand beside the others', seed by seed.
        launcher (`list[str]`, *optional*): command that runs a config file. Not given: `hf-era run` in this Python. A
            matrix file says what is run, as a Makefile does: look at it before you run somebody else's.

    Raises:
        ValueError: for an empty matrix, a name that stands twice, or an unknown row.
    """

    output_dir: str = "runs/matrix"
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    runs: list[Any] = field(default_factory=list)
    overlays: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    data_filtering: str | None = None
    launcher: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.runs = [_row(f"runs[{index}]", values) for index, values in enumerate(self.runs)]
        if not self.runs or not self.seeds:
            raise ValueError("The matrix is empty. Give at least one of `runs` and one of `seeds`.")
        names = [run.name for run in self.runs]
        for what, values in (("runs", names), ("seeds", self.seeds)):
            twice = _first_repeated(values)
            if twice is not None:
                raise ValueError(f"`{what}`: {short_repr(twice)} stands twice. Give each a name of its own.")
        check_count("runs x seeds", len(names) * len(self.seeds), 1, MAXIMUM_CELLS)
        check_path_text("output_dir", self.output_dir)
        if self.data_filtering is not None and self.data_filtering not in names:
            raise ValueError(unknown_value_message("data_filtering", self.data_filtering, names))


def _first_repeated(values: Sequence[Any]) -> Any:
    """The smallest value that stands twice, or `None`."""
    return min((value for value, number in Counter(values).items() if number > 1), default=None)


def _row(where: str, values: Any) -> MatrixRun:
    if not isinstance(values, dict) or not {"name", "recipe"} <= set(values):
        raise ValueError(f"`{where}` should have `name` and `recipe`, got {short_repr(values)}.")
    row: MatrixRun = build(MatrixRun, values, where)
    return row


@dataclass(frozen=True)
class Cell:
    """One run of the matrix. `config` is complete; `values` is what it was made of."""

    row: str
    seed: int
    config: RunConfig
    values: dict[str, Any]

    @property
    def result_file(self) -> Path:
        return self.config.output_path / "result.json"

    def result(self) -> RunResult | None:
        """Its result, if there is one that can be read; one of another hf_era, say, has to be made again."""
        try:
            return RunResult.load(self.result_file) if self.result_file.is_file() else None
        except ValueError:
            return None


def load_matrix(path: str | Path, overrides: dict[str, Any] | None = None) -> tuple[MatrixConfig, list[Cell]]:
    """Reads a matrix and makes the config of every cell, so that bad input is found before anything runs.

    `path` is a YAML file, or the name of a packaged one. `overrides` are fields of `MatrixConfig` over those of the file,
    e.g. `{"seeds": [0]}`.

    Raises:
        ValueError: for a missing file, an unknown key, or two cells with the same output directory.
    """
    path = find_config(path)
    matrix: MatrixConfig = build(MatrixConfig, merge(read_yaml(path), overrides or {}), "")
    cells = [_cell(path.parent, matrix, run, seed) for seed in matrix.seeds for run in matrix.runs]
    folders = [str(real_path(cell.config.output_path)) for cell in cells]
    twice = _first_repeated(folders)
    if twice is not None:
        path = cells[folders.index(twice)].config.output_path
        raise ValueError(f"Two cells of the matrix have the output directory {path}. Put {{name}} and {{seed}} in it.")
    return matrix, cells


def _cell(folder: Path, matrix: MatrixConfig, run: MatrixRun, seed: int) -> Cell:
    values: dict[str, Any] = {}
    for name in (run.recipe, *matrix.overlays):
        values = merge(values, read_yaml(find_config(name, folder)))
    values = merge(merge(values, matrix.settings), run.settings)
    values = {**values, "name": run.name, "seed": seed}
    try:
        return Cell(run.name, seed, RunConfig.from_dict(values), values)
    except ValueError as error:
        raise ValueError(f"`runs`: {run.name[:100]}: {error}") from error


def run_cells(matrix: MatrixConfig, cells: Sequence[Cell], console: Console) -> list[Cell]:
    """Runs cells one after the other, each in a process of its own; returns those that failed. The rest still runs."""
    launcher = matrix.launcher or [sys.executable, "-m", "hf_era", "run"]
    failed = []
    for number, cell in enumerate(cells, 1):
        console.rule(f"{number} of {len(cells)}: {cell.row}, seed {cell.seed}")
        file = Path(matrix.output_dir) / "configs" / f"{cell.row}-seed{cell.seed}.yaml"
        write_text(file, dump_yaml(cell.values))
        if _run_cell([*launcher, str(file)]):
            console.print(f"[bold red]{cell.row}, seed {cell.seed} failed[/]; the other cells go on.")
            failed.append(cell)
    return failed


def _run_cell(command: Sequence[str]) -> int:
    """Runs one cell and returns its exit status; raises `StoppedError` if it, or the matrix, was asked to stop."""
    with subprocess.Popen(command) as process:
        try:
            status = process.wait()
        except StoppedError:
            process.terminate()  # it saves; leaving the block waits for it
            raise
    if status == exit_codes.STOPPED:
        raise StoppedError("The cell that was running was stopped.")
    return status


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
