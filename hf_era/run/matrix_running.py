"""Runs the cells of a matrix, each in a process of its own, one after the other or side by side.

Under SLURM each task of an array runs one cell (`--cell $SLURM_ARRAY_TASK_ID`), and on a node with GPUs `launcher:
[accelerate, launch, -m, hf_era, run]` starts each on all of them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from hf_era.run.matrix import Cell, MatrixConfig
from hf_era.utils import exit_codes
from hf_era.utils.files import local_path, make_folder, real_path, write_text
from hf_era.utils.signals import StoppedError
from hf_era.utils.yaml_text import dump_yaml

SECONDS_BETWEEN_LOOKS = 0.1
LINES_OF_A_FAILURE = 12
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")


def run_cells(
    matrix: MatrixConfig,
    cells: Sequence[Cell],
    console: Console,
    base_paths: Iterable[Path] = (),
    on_result: Callable[[Cell], object] = lambda cell: None,
    is_done: Callable[[Cell], bool] = Cell.is_done,
) -> list[Cell]:
    """Runs cells, `matrix.jobs` of them side by side, and returns those that failed; the others still run.

    Args:
        matrix, cells: from `load_matrix`.
        console: where it says what it does. Of cells side by side each has a file for what it says, beside its output
            directory.
        base_paths (*optional*): models that cells start from: no clean-up removes them.
        on_result (*optional*): is called after each cell that ended well, before its models are removed.
        is_done (*optional*): whether a cell need not be run; asked where `matrix.keep_models` is off.

    Raises:
        StoppedError: if a cell, or the matrix, was asked to stop; all that were running have saved what there was to save.
    """
    jobs = min(matrix.jobs, len(cells))
    running, waiting, failed = _Running(matrix, console, jobs), list(enumerate(cells, 1)), []
    kept = {real_path(path) for path in base_paths}
    with ExitStack() as stack:
        stack.callback(running.wait)
        try:
            while waiting or running.processes:
                while waiting and len(running.processes) < jobs:
                    number, cell = waiting.pop(running.next_of([cell for _, cell in waiting]))
                    if not matrix.keep_models and is_done(cell):
                        console.print(f"{cell.title}: done already")
                        remove_models(cell, kept)
                        continue
                    running.start(cell, f"{number} of {len(cells)}: {cell.title}")
                for cell, status in running.ended():
                    if status == exit_codes.STOPPED:
                        raise StoppedError("The cell that was running was stopped.")
                    if status:
                        running.say_failure(cell)
                        failed.append(cell)
                        continue
                    on_result(cell)
                    if not matrix.keep_models:
                        remove_models(cell, kept)
        except Exception:
            running.terminate()  # they save; leaving the block waits for them
            raise
    return failed


class _Process(NamedTuple):
    cell: Cell
    process: subprocess.Popen[bytes]
    started: float


class _Running:
    """The processes that are running now."""

    def __init__(self, matrix: MatrixConfig, console: Console, jobs: int) -> None:
        self.matrix, self.console, self.jobs = matrix, console, jobs
        self.processes: list[_Process] = []
        self._command = matrix.launcher or [sys.executable, "-m", "hf_era", "run"]

    def next_of(self, cells: Sequence[Cell]) -> int:
        """The place of the first cell that would not have to wait for a base which is being trained just now; 0 if all
        would."""
        busy = {base for item in self.processes if (base := _base_to_train(item.cell)) is not None}
        free = (place for place, cell in enumerate(cells) if _base_to_train(cell) not in busy)
        return next(free, 0) if busy else 0

    def start(self, cell: Cell, title: str) -> None:
        file = Path(self.matrix.output_dir) / "configs" / f"{cell.file_name}.yaml"
        write_text(file, dump_yaml(cell.values))
        command = [*self._command, str(file)]
        if self.jobs == 1:
            self.console.rule(title)
            process = subprocess.Popen(command)
        else:
            log = log_of(cell)
            make_folder(log.parent)
            self.console.print(f"[bold]{title}[/]: {log}", highlight=False)
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads_of_a_cell(self.jobs))}
            with log.open("ab") as output:
                process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        self.processes.append(_Process(cell, process, time.monotonic()))

    def ended(self) -> list[tuple[Cell, int]]:
        """Those that have ended since the last call, with their exit status; waits for a moment if there are none."""
        found = [item for item in self.processes if item.process.poll() is not None]
        if not found:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        for item in found:
            self.processes.remove(item)
            if self.jobs > 1:
                minutes = (time.monotonic() - item.started) / 60
                self.console.print(f"{item.cell.title}: ended after {minutes:.1f} minutes", highlight=False)
        return [(item.cell, item.process.returncode) for item in found]

    def say_failure(self, cell: Cell) -> None:
        if self.jobs > 1:
            lines = log_of(cell).read_text(encoding="utf-8", errors="replace").splitlines()[-LINES_OF_A_FAILURE:]
            self.console.print("\n".join(lines), markup=False, highlight=False)
        self.console.print(f"[bold red]{cell.title} failed[/]; the other cells go on.")

    def terminate(self) -> None:
        for item in self.processes:
            item.process.terminate()

    def wait(self) -> None:
        for item in self.processes:
            item.process.wait()


def log_of(cell: Cell) -> Path:
    """The file for what a cell says that runs beside others. In its output directory it would be no file of the run's."""
    path = cell.config.output_path
    return path.with_name(f"{path.name}.log")


def threads_of_a_cell(jobs: int) -> int:
    """How many of the cores that this process may use each of `jobs` cells has, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(cores // jobs, 1)


def _base_to_train(cell: Cell) -> Path | None:
    """Where the base is that a cell shares with others and that has not been trained yet."""
    config = cell.config
    if config.model.base_dir is None or not config.model.trains_base:
        return None
    return None if (config.base_path / "phases" / "base.json").is_file() else config.base_path


# ---- What a finished cell leaves on the disk ----


def start_paths(cells: Iterable[Cell]) -> set[Path]:
    """The models that cells share or start from, local ones: those must outlive the cells."""
    shared = {cell.config.base_path for cell in cells if cell.config.model.base_dir is not None}
    return shared | {local_path(cell.config.model.base) for cell in cells if cell.config.model.base is not None}


def remove_models(cell: Cell, kept: Iterable[Path]) -> None:
    """Removes the folders with weights of a finished cell, and its checkpoints. Its result, report and held-out examples
    stay, and so does every folder that is, holds, or lies in one of `kept` (real paths)."""
    folder = real_path(cell.config.output_path)
    kept = list(kept)
    for path in sorted(folder.iterdir()) if cell.result_file.is_file() else []:
        if path.is_symlink() or not path.is_dir():
            continue
        is_kept = any(other.is_relative_to(path) or path.is_relative_to(other) for other in kept)
        has_weights = path.name == "checkpoints" or any(next(path.rglob(form), None) for form in _WEIGHTS)
        if has_weights and not is_kept:
            shutil.rmtree(path)
