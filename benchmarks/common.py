"""What the benchmarks share: interleaved timing, ratios pair by pair, the machine, a table, the result file.

A shared or throttled machine drifts by more than what is to be measured. So the variants of a benchmark run in one
process, in turns, and each round compares what ran next to each other: the ratio is the median of the rounds' ratios. All
of them, transformers' own model among them, have memory as `hf-era` sets it (`hf_era.utils.freed_memory`).
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.table import Table

from hf_era.utils.environment import git_revision, machine_description, package_versions
from hf_era.utils.files import read_json, write_json
from hf_era.utils.freed_memory import keep_freed_memory

RESULTS = Path(__file__).resolve().parent / "results"
Found = TypeVar("Found")
LEAST_ROUNDS = 3
"""That a median is taken of, whatever the time limit."""


def benchmark_parser(description: str | None, name: str, rounds: int = 7, warm_up: int = 1) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has; the result goes to `benchmarks/results/<name>.json`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"timed rounds (default: {rounds})")
    parser.add_argument("--warm-up", type=int, default=warm_up, help=f"rounds before, not timed (default: {warm_up})")
    parser.add_argument("--time-limit", type=float, help="start no further round after so many seconds")
    parser.add_argument("--output", type=Path, default=RESULTS / f"{name}.json", help="where the figures are written")
    return parser


def interleave(
    variants: Mapping[str, Callable[[], object]],
    rounds: int = 7,
    warm_up: int = 1,
    time_limit_s: float | None = None,
    synchronise: Callable[[], object] | None = None,
    clock: Callable[[], float] | None = None,
) -> dict[str, list[float]]:
    """Times the variants in turns, one call each per round; every second round goes through them backwards.

    Args:
        variants (`Mapping[str, Callable]`): what to time, by name.
        rounds (`int`, *optional*, defaults to `7`): timed rounds, at least 1.
        warm_up (`int`, *optional*, defaults to `1`): rounds before these whose times are thrown away.
        time_limit_s (`float`, *optional*): no further round starts after so many seconds of timed ones; three always do, or
            `rounds` where that is less.
        synchronise (`Callable`, *optional*): waits for the device, e.g. `torch.cuda.synchronize`; called before the
            clock starts and before it stops.
        clock (`Callable`, *optional*): not given: `time.perf_counter`. `time.process_time` counts the processor's time for
            this process alone, where others use the machine.

    Returns:
        `dict[str, list[float]]`: seconds of each variant, one entry per round.

    Raises:
        ValueError: if there is no variant, or fewer rounds than one.
    """
    if not variants:
        raise ValueError("`variants` is empty. Name at least one function to time.")
    if rounds < 1:
        raise ValueError(f"`rounds` should be at least 1, got {rounds}.")
    if warm_up < 0:
        raise ValueError(f"`warm_up` should be at least 0, got {warm_up}.")
    keep_freed_memory()
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(-warm_up, rounds):
        if number == 0:
            start = time.perf_counter()
        if number >= LEAST_ROUNDS and time_limit_s is not None and time.perf_counter() - start > time_limit_s:
            break
        for name in list(variants)[:: -1 if number % 2 else 1]:
            seconds = _seconds(variants[name], synchronise, clock or time.perf_counter)
            if number >= 0:
                times[name].append(seconds)
    return times


def _seconds(work: Callable[[], object], synchronise: Callable[[], object] | None, clock: Callable[[], float]) -> float:
    gc.collect()  # what the variant before left behind is not this one's to clear away
    if synchronise is not None:
        synchronise()
    start = clock()
    result = work()
    if synchronise is not None:
        synchronise()
    seconds = clock() - start
    del result  # freed after the clock has stopped
    return seconds


def median_ratio(times: Mapping[str, Sequence[float]], variant: str, over: str) -> float:
    """The time of `variant` over that of `over`, median of the rounds: 2.0 takes twice as long, 0.5 half as long."""
    return statistics.median(mine / other for mine, other in zip(times[variant], times[over], strict=True))


def summarise(times: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Any]]:
    """Seconds per variant, for the result file: `median_s`, `fastest_s`, `slowest_s` and all `rounds_s`."""
    return {
        name: {
            "median_s": statistics.median(seconds),
            "fastest_s": min(seconds),
            "slowest_s": max(seconds),
            "rounds_s": list(seconds),
        }
        for name, seconds in times.items()
    }


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """What the figures depend on: `machine`, `versions`, `git_revision` and `date`."""
    machine = {
        **machine_description(device),
        "cpu_model": _cpu_model(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch_threads": torch.get_num_threads(),
    }
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine,
        "versions": package_versions(),
        "git_revision": git_revision(),
    }


def _cpu_model() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def resident_bytes() -> int:
    """What this process holds in memory now (Linux)."""
    return _status_bytes("VmRSS")


def peak_resident_bytes() -> int:
    """The most that this process ever held (Linux). Not `ru_maxrss`: a child takes that over from its parent."""
    return _status_bytes("VmHWM")


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    value = next(line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return int(value) * 1024


def measured_apart(function: Callable[..., Found], *arguments: Any, **named: Any) -> Found:
    """Calls a function in a process of its own, for its memory, and returns what it returned. That process is forked from
    one that has computed nothing, but imported what benchmarks import (where this runs in the repository's root)."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.train_step"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments, **named).result()


def peak_bytes(make: Callable[..., Callable[[], object]], *arguments: Any, device: torch.device, steps: int = 2) -> int:
    """Makes a step and goes it a few times: the most that was held at a time, in bytes. On a GPU by tensors; on a CPU by the
    process, less what it held before, and less pages of libraries that were read in meanwhile. To be measured apart.

    Args:
        make (`Callable`): called with the arguments, returns the function that makes a step.
        steps (`int`, *optional*, defaults to `2`): an optimizer's state is there from the first step's end on.
    """
    keep_freed_memory()
    torch.randn(64, 64) @ torch.randn(64, 64)  # the math library's own buffers
    before, of_files = resident_bytes(), _status_bytes("RssFile")
    step = make(*arguments)
    for _ in range(steps):
        step()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident_bytes() - before - (_status_bytes("RssFile") - of_files)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], note: str | None = None) -> None:
    """Prints a table to standard output: the first column to the left, figures to the right."""
    table = Table(title=title, caption=note, title_justify="left", caption_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    # Written to a file, the table is not cut to the 80 columns of a terminal that is not there.
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def kept_figures(path: Path, section: str, names: Sequence[str]) -> dict[str, Any]:
    """Of a result file, where this run measures only a part of a section again: the figures of the others, each with what it
    was measured in (`measured`: that of `environment()`)."""
    stored = read_json(path) if path.is_file() else {section: {}}
    measured = {key: stored[key] for key in ("date", "machine", "versions", "git_revision") if key in stored}
    return {
        name: {**figure, "measured": {**measured, **figure.get("measured", {})}}
        for name, figure in stored[section].items()
        if name not in names
    }


def write_result(path: str | Path, result: Mapping[str, Any]) -> Path:
    """Writes the figures as JSON, whole or not at all, and says where. Begin `result` with `environment()`."""
    written = write_json(path, dict(result))
    Console(stderr=True, soft_wrap=True).print(f"Figures: {written}")
    return written
