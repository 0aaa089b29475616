"""What keeping freed memory buys: a training step on a CPU with glibc's `malloc` as `hf-era` sets it, over its default.

    python benchmarks/freed_memory.py              # TinyStories-28M's shape at 2 x 64 tokens and a small model at 1 x 256;
                                                   # --shapes 8x256: larger steps

The setting is the process's, so each variant lives in a process of its own; they step in turns, one at a time, and ratios
are medians of the rounds' ratios. Peak memory is the process's, less what it held before the model was built.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.common import (
    benchmark_parser,
    environment,
    interleave,
    median_ratio,
    peak_resident_bytes,
    print_table,
    resident_bytes,
    summarise,
    write_result,
)
from benchmarks.train_step import StepShape, step_of
from hf_era.utils.freed_memory import keep_freed_memory

DEFAULT = "as glibc has it"
VARIANTS = {f"{kind}, {mode}": (kind, mode) for kind in ("stock", "routed") for mode in (DEFAULT, "kept")}


class Stepper:
    """A process that makes one training step whenever it is told to."""

    def __init__(self, kind: str, mode: str, shape: str) -> None:
        command = [sys.executable, __file__, "--step", kind, "--mode", mode, "--shape", shape]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.answer: dict[str, Any] = {}

    def step(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"The process ended with status {self._process.wait()} before it had stepped.")
        self.answer = json.loads(line)

    def close(self) -> None:
        self._process.communicate()


def answer_steps(kind: str, mode: str, shape: StepShape) -> None:
    """Steps once for every line on standard input, and says what the process has held at most."""
    if mode == "kept" and not keep_freed_memory():
        raise SystemExit("glibc's malloc cannot be set here: another C library, or `MALLOC_*` in the environment.")
    torch.randn(64, 64) @ torch.randn(64, 64)  # the math library's own buffers
    before = resident_bytes()
    step = step_of(f"{kind} fp32 eager", shape, torch.device("cpu"))
    for _ in sys.stdin:
        step()
        print(json.dumps({"peak_bytes": peak_resident_bytes() - before}), flush=True)


def measure(shape: str, options: argparse.Namespace) -> dict[str, Any]:
    steppers = {name: Stepper(kind, mode, shape) for name, (kind, mode) in VARIANTS.items()}
    times = interleave(
        {name: one.step for name, one in steppers.items()}, options.rounds, options.warm_up, options.time_limit
    )
    for one in steppers.values():
        one.close()
    figures = {
        name: {
            **summary,
            "over_default": median_ratio(times, name, f"{VARIANTS[name][0]}, {DEFAULT}"),
            "over_stock": median_ratio(times, name, f"stock, {DEFAULT}"),
            "peak_bytes": steppers[name].answer["peak_bytes"],
        }
        for name, summary in summarise(times).items()
    }
    rows = [
        [name, f"{one['median_s']:.3f}", f"{one['over_default']:.2f}", f"{one['over_stock']:.2f}",
         f"{one['peak_bytes'] / 2**20:,.0f}"]
        for name, one in figures.items()
    ]  # fmt: skip
    columns = ["variant", "median s", "/ glibc's default", "/ stock", "peak MiB"]
    print_table(f"Training step, tokens: {StepShape.of(shape)}, fp32", columns, rows)
    return figures


def main() -> None:
    parser = benchmark_parser(__doc__, "freed_memory_cpu", rounds=7, warm_up=2)
    parser.add_argument(
        "--shapes",
        nargs="+",
        default=["1x256:small", "2x64"],
        help="rows x tokens, and the model (default: 1x256:small 2x64)",
    )
    for hidden in ("--step", "--mode", "--shape"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        answer_steps(options.step, options.mode, StepShape.of(options.shape))
        return
    shapes = {str(StepShape.of(shape)): measure(shape, options) for shape in options.shapes}
    write_result(options.output, {**environment("cpu"), "shapes": shapes})


if __name__ == "__main__":
    main()
