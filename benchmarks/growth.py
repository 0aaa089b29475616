"""How the time and the memory of a training step grow: sequence length, batch, auxiliary width, layers, vocabulary, modules,
share of examples without a label, and a Llama's parameters.

    python benchmarks/growth.py                      # about ten minutes on 2 CPU cores; writes a JSON file and a picture
    python benchmarks/growth.py --sweeps modules     # some of it; the others stay in the file as they are

One thing grows at a time from a base shape (hidden 256, 4 layers, vocabulary 8,192, 2 x 256 tokens, one module of width 64
in all layers). `stock` is transformers' GPT-Neo, `routed` ours with routing and the L1 term; several modules (each of that
width, examples in turns) and examples without a label have the router `gram`. The Llamas have the proportions of
SmolLM2-135M, the largest of them. The optimizer is fused AdamW. At every point both sides run in turns in a process of its
own: medians of the steps after a warm-up, and of the rounds' ratios. Peak memory is that of a process of its own for each
side, less what it held before the model was built.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.console import Console
from rich.progress import track
from transformers import LlamaConfig

from benchmarks.common import (
    benchmark_parser,
    environment,
    interleave,
    kept_figures,
    measured_apart,
    median_ratio,
    peak_bytes,
    print_table,
    write_result,
)
from benchmarks.train_step import build_model, make_batch, make_step, small_model
from hf_era import ExpansionConfig
from hf_era.utils.files import read_json

BASE = {
    "sequence length": 256, "batch": 2, "auxiliary width": 64, "layers": 4, "vocabulary": 8_192, "modules": 1,
    "unlabelled share": 0.0,
}  # fmt: skip
SWEEPS = {
    "sequence length": [256, 512, 1_024, 2_048],
    "batch": [1, 2, 4, 8, 16],
    "auxiliary width": [16, 64, 256, 1_024],
    "layers": [2, 4, 8, 16],
    "vocabulary": [2_048, 8_192, 32_768, 131_072],
    "modules": [1, 4, 16],
    "unlabelled share": [0.0, 0.5, 1.0],
    "Llama, million parameters": [16, 44, 135],
}
OWN_BASE: dict[str, dict[str, Any]] = {
    "modules": {"batch": 32, "sequence length": 128, "router": "gram"},
    "unlabelled share": {"batch": 8, "router": "gram"},
}
"""Of sweeps for which two examples are too few: of 32, half of them forget, each of 16 modules has one."""
GRAM = {"name": "gram", "p_as": 0.3, "p_cr": 0.5}
LLAMAS = {16: (192, 16, 3), 44: (384, 16, 6), 135: (576, 30, 9)}
"""Million parameters -> hidden size, layers, heads."""
KINDS = ("stock", "routed")
WARM_UP = 2
"""Rounds before those that are timed: so many it takes until memory that a step frees is all used again."""
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def config_of(shape: dict[str, Any]) -> Any:
    if "Llama, million parameters" in shape:
        hidden, layers, heads = LLAMAS[shape["Llama, million parameters"]]
        return LlamaConfig(
            vocab_size=49_152, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
            num_key_value_heads=heads // 3, intermediate_size=hidden * 8 // 3, tie_word_embeddings=True, use_cache=False,
        )  # fmt: skip
    return small_model(shape["layers"], shape["vocabulary"])


def batch_of(kind: str, shape: dict[str, Any], device: torch.device, vocabulary: int) -> dict[str, Any]:
    """Half of the labelled examples are of a module, the modules in turns; the last ones have no label."""
    batch = make_batch(shape["batch"], shape["sequence length"], device, vocabulary)
    if kind == "routed" and shape.get("router") == "gram":
        place, labelled = torch.arange(shape["batch"]), round(shape["batch"] * (1 - shape["unlabelled share"]))
        is_forget = (place % 2 == 0) & (place < labelled)
        index = torch.where(is_forget, (place // 2) % shape["modules"], -1)
        weight = (~is_forget).float()[:, None].expand(batch["input_ids"].shape).contiguous()
        unassigned = (place >= labelled)[:, None].expand(batch["input_ids"].shape).contiguous()
        added = {"routing_weight": weight, "module_index": index, "is_unassigned": unassigned}
        batch |= {name: value.to(device) for name, value in added.items()}
    return batch


def step_of(kind: str, shape: dict[str, Any], parameters: dict[str, int] | None = None) -> Callable[[], object]:
    """The step of one side at one point; notes how many parameters it has."""
    modules = [{"name": f"module_{number}", "width": shape["auxiliary width"]} for number in range(shape["modules"])]
    router = GRAM if shape.get("router") == "gram" else None
    model, optimizer = build_model(kind, config_of(shape), DEVICE, ExpansionConfig(modules=modules), router)
    if parameters is not None:
        parameters[kind] = sum(value.numel() for value in model.parameters())
    return make_step(kind, "fp32", model, optimizer, batch_of(kind, shape, DEVICE, model.config.vocab_size))


def time_point(shape: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Both sides in turns: seconds of their steps and parameters, and routed over stock; to be measured apart."""
    parameters: dict[str, int] = {}
    steps = {kind: step_of(kind, shape, parameters) for kind in KINDS}
    synchronise = torch.cuda.synchronize if DEVICE.type == "cuda" else None
    times = interleave(steps, options.rounds, options.warm_up, options.time_limit, synchronise)
    figures = {
        kind: {"seconds": statistics.median(times[kind]), "rounds_s": times[kind], "parameters": parameters[kind]}
        for kind in KINDS
    }
    return {**figures, "time_ratio": median_ratio(times, "routed", "stock")}


def measure_point(shape: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Times and peak bytes of both sides, the peaks in processes of their own."""
    point = measured_apart(time_point, shape, options)
    for kind in KINDS:
        point[kind]["peak_bytes"] = measured_apart(peak_bytes, step_of, kind, shape, device=DEVICE)
    return point


COLUMNS = 4
LEAST_SPAN = 5.0
"""Of an axis, highest over lowest: what does not grow is to look like it."""


def draw(result: dict[str, Any], path: Path) -> None:
    """A sweep is a column, time above memory, in bands of four; logarithmic axes: a straight line of slope 1 is linear
    growth."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    sweeps = result["sweeps"]
    bands = -(-len(sweeps) // COLUMNS)
    figure, axes = plt.subplots(
        2 * bands, COLUMNS, figsize=(3.2 * COLUMNS, 5.6 * bands), layout="constrained", squeeze=False
    )
    for axis in axes.flat:
        axis.set_visible(False)
    for number, (name, sweep) in enumerate(sweeps.items()):
        for row, (key, unit, scale) in enumerate((("seconds", "s a step", 1.0), ("peak_bytes", "peak MiB", 2.0**-20))):
            axis = axes[2 * (number // COLUMNS) + row][number % COLUMNS]
            axis.set_visible(True)
            for kind, style in zip(KINDS, ("o--", "s-"), strict=True):
                values = [point[key] * scale for point in sweep[kind]]
                axis.plot(sweep["values"], values, style, label=kind)
            if 0 not in sweep["values"]:
                axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            low, high = axis.get_ylim()
            middle, span = (low * high) ** 0.5, max(high / low, LEAST_SPAN) ** 0.5
            axis.set_ylim(middle / span, middle * span)
            axis.set_xticks(sweep["values"], [f"{value:,}" for value in sweep["values"]], fontsize=8)
            axis.xaxis.set_minor_locator(mpl.ticker.NullLocator())
            axis.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:,g}"))
            axis.yaxis.set_minor_locator(mpl.ticker.NullLocator())
            axis.grid(alpha=0.3)
            axis.set_xlabel(name)
            axis.set_ylabel(unit)
    axes[0][0].legend()
    machine = result["machine"]
    figure.suptitle(f"Training step, fp32, {machine.get('gpu') or machine['cpu_model']}, {result['date'][:10]}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = benchmark_parser(__doc__, f"growth_{DEVICE.type}", rounds=5, warm_up=WARM_UP)
    parser.add_argument("--sweeps", nargs="+", choices=list(SWEEPS), default=list(SWEEPS), help="which (default: all)")
    parser.add_argument("--draw-only", action="store_true", help="draw the stored figures again")
    options = parser.parse_args()
    if options.draw_only:
        draw(read_json(options.output), options.output.with_suffix(".png"))
        return
    todo = [(name, value) for name in options.sweeps for value in SWEEPS[name]]
    sweeps: dict[str, Any] = {
        name: {"values": SWEEPS[name], **{kind: [] for kind in (*KINDS, "time_ratio")}} for name in options.sweeps
    }
    for name, value in track(todo, description=f"{len(todo)} points", console=Console(stderr=True)):
        shape = {**BASE, **OWN_BASE.get(name, {}), name: value}
        for kind, found in measure_point(shape, options).items():
            sweeps[name][kind].append(found)
    for name, sweep in sweeps.items():
        rows = [
            [
                f"{value:,}",
                *(f"{point['seconds']:.3f}" for point in points),
                f"{ratio:.2f}",
                *(f"{point['peak_bytes'] / 2**20:,.0f}" for point in points),
            ]
            for value, ratio, *points in zip(*(sweep[key] for key in ("values", "time_ratio", *KINDS)), strict=True)
        ]
        columns = [name, "stock s", "routed s", "/ stock", "stock MiB", "routed MiB"]
        print_table(f"Growth with {name}", columns, rows)
    sweeps |= kept_figures(options.output, "sweeps", options.sweeps)
    ordered = {name: sweeps[name] for name in SWEEPS if name in sweeps}
    result = {**environment(DEVICE), "base": BASE, "hidden": small_model().hidden_size, "sweeps": ordered}
    write_result(options.output, result)
    draw(result, options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
