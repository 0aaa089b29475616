"""How long a user waits before anything happens: the help text, the imports, and a run from the command to its first step.

    python benchmarks/startup.py          # each in processes of its own, in turns; the median of three

A run is the demo on built-in texts with its data cached, as when it is given a second time: what is timed is the way to the
first training step, and on it the imports (torch and transformers included), the preparation, the model and its trainer.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

BOUNDS = {"hf-era --help": 1.0, "run, to the first step": 10.0}
"""Seconds that are the aim."""
END = "; import os; os._exit(0)"
"""An import is timed to where it is there: without it, Python would first take down again what it had set up."""
COMMANDS = {
    "hf-era --help": ["-m", "hf_era", "--help"],
    "import torch": ["-c", "import torch" + END],
    "import hf_era": ["-c", "import hf_era" + END],
}


def seconds_of(arguments: list[str], folder: Path) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=folder, env=_environment(), check=True, capture_output=True)
    return time.perf_counter() - start


def to_the_first_step(folder: Path, number: int) -> dict[str, float]:
    """Seconds from the start of the process to each mark of a run."""
    arguments = [__file__, "--first-step", str(time.time()), str(folder / f"run{number}")]
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"The run ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run_to_the_first_step(started: float, output: str) -> None:
    """In a process of its own: the demo up to its first step of training, and then no further."""
    from hf_era.cli import main

    marks: dict[str, float] = {"command line imported": time.time() - started}

    def marking(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def work(*args: Any, **kwargs: Any) -> Any:
            marks.setdefault(name, time.time() - started)
            return function(*args, **kwargs)

        return work

    from hf_era.run import pipeline
    from hf_era.training import CausalLMTrainer

    marks["all imported"] = time.time() - started
    pipeline._run_phases = marking("prepared", pipeline._run_phases)

    def first_step(*_: Any, **__: Any) -> Any:
        marks["first step"] = time.time() - started
        print(json.dumps(marks), flush=True)
        os._exit(0)

    CausalLMTrainer.training_step = first_step  # type: ignore[method-assign]
    main(["run", "demo", "--output_dir", output, "--model.base_dir", f"{output}-base"])


def main() -> None:
    from benchmarks.common import benchmark_parser, environment, print_table, write_result

    parser = benchmark_parser(__doc__, "startup", rounds=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        to_the_first_step(folder, -1)  # caches the data, and the files of the imports
        times: dict[str, list[float]] = {name: [] for name in COMMANDS}
        runs = []
        for number in range(options.rounds):
            for what, arguments in COMMANDS.items():
                times[what].append(seconds_of(arguments, folder))
            runs.append(to_the_first_step(folder, number))
    figures = {name: statistics.median(values) for name, values in times.items()}
    marks = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    figures["run, to the first step"] = marks["first step"]
    rows = [[name, f"{value:.2f}", f"<= {BOUNDS[name]:g}" if name in BOUNDS else ""] for name, value in figures.items()]
    rows += [[f"  {name}", f"{value:.2f}", ""] for name, value in marks.items()]
    print_table("Seconds until something happens", ["what", "s", "aim"], rows)
    write_result(options.output, {**environment(), "seconds": figures, "run": marks})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--first-step"]:
        run_to_the_first_step(float(sys.argv[2]), sys.argv[3])
    else:
        main()
