"""What each fast path buys: a routed training step with all of them, without each, and without any.

    python benchmarks/switches.py              # the TinyStories-28M shape; 2 x 256 tokens on a CPU, 80 x 256 on a GPU

In turns in one process; ratios are medians of the rounds' ratios. Peak memory is that of a process of its own for each
variant, less what the process held before the model was built.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.common import (
    benchmark_parser,
    environment,
    interleave,
    measured_apart,
    median_ratio,
    peak_bytes,
    print_table,
    summarise,
    write_result,
)
from benchmarks.train_step import build, make_batch, make_step
from hf_era import FastPaths
from hf_era.models.fast.causal_lm import ALL_FAST, ALL_SLOW

# Name -> attention and the other switches.
VARIANTS: dict[str, tuple[str, FastPaths]] = {
    "all on": ("sdpa", ALL_FAST),
    "attn_implementation: eager": ("eager", ALL_FAST),
    "fused_activation: false": ("sdpa", FastPaths(fused_activation=False)),
    "chunked_loss: false": ("sdpa", FastPaths(chunked_loss=False)),
    "all off": ("eager", ALL_SLOW),
}


def switched_step(name: str, model: Any, optimizer: Any, batch: dict[str, Any], dtype: str) -> Callable[[], object]:
    step = make_step("routed", dtype, model, optimizer, batch)
    attention, paths = VARIANTS[name]

    def work() -> None:
        model.set_attn_implementation(attention)
        model.set_fast_paths(paths)
        step()

    return work


def step_alone(name: str, shape: tuple[int, int], dtype: str, device: torch.device) -> Callable[[], object]:
    return switched_step(name, *build("routed", device), make_batch(*shape, device), dtype)


def main() -> None:
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(kind)
    shape, dtype = ((80, 256), "bf16") if kind == "cuda" else ((2, 256), "fp32")
    parser = benchmark_parser(__doc__, f"switches_{kind}", rounds=3)
    options = parser.parse_args()
    built, batch = build("routed", device), make_batch(*shape, device)
    steps = {name: switched_step(name, *built, batch, dtype) for name in VARIANTS}
    synchronise = torch.cuda.synchronize if kind == "cuda" else None
    times = interleave(steps, options.rounds, options.warm_up, options.time_limit, synchronise)
    del built, batch, steps
    memory = {
        name: measured_apart(peak_bytes, step_alone, name, shape, dtype, device, device=device) for name in VARIANTS
    }
    figures = {
        name: {**summary, "over_all_on": median_ratio(times, name, "all on"), "peak_bytes": memory[name]}
        for name, summary in summarise(times).items()
    }
    rows = [
        [name, f"{one['median_s']:.3f}", f"{one['over_all_on']:.3f}", f"{one['peak_bytes'] / 2**20:,.0f}",
         f"{one['peak_bytes'] / memory['all on']:.2f}"]
        for name, one in figures.items()
    ]  # fmt: skip
    title = f"Routed training step, {shape[0]} x {shape[1]} tokens, {dtype}"
    print_table(title, ["variant", "median s", "/ all on", "peak MiB", "/ all on"], rows)
    write_result(options.output, {**environment(kind), "shape": list(shape), "dtype": dtype, "variants": figures})


if __name__ == "__main__":
    main()
