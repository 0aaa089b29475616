"""One full training step (forward, backward, optimizer) at the TinyStories-28M shape: stock GPT-Neo against hf_era.

    python benchmarks/train_step.py                    # on a CPU 2 x 64 and 8 x 256 tokens, and a small model's 1 x 256;
                                                       # on a GPU 80 x 256
    python benchmarks/train_step.py --no-compile       # without the compiled variants, which take minutes to compile

Variants: `stock` is transformers' `GPTNeoForCausalLM` with the loss that the plain `Trainer` takes from it; `ours` is the
expanded model (auxiliary width 64 in layers 0 to 4, as in the recipes) without routing; `routed` is the same with routing
and the L1 term. (The small model: hidden 256, 4 layers, a vocabulary of 8,192, modules in all layers.) Each in fp32 and
under bf16 autocast, as it is and compiled. All have the Trainer's default optimizer, fused AdamW. They run in turns in one
process; ratios are medians of the rounds' ratios. Peak memory is that of a process of its own for each variant, less what
the process held before the model was built.

FLOPs are those of the stock model's matrix products, forward and backward, as torch's FLOP counter sees them, for every
variant: what a variant leaves out is its gain. On a GPU the share of the matmul rate is those FLOPs a second over the rate
of a bf16 product of two 8,192 x 8,192 matrices that was measured in the same process.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPTNeoConfig

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
from hf_era import ExpansionConfig
from hf_era.models.fast.precision import cpu_has_bf16_units
from hf_era.models.loading import expanded_from_config
from hf_era.routing import make_router

KINDS, DTYPES = ("stock", "ours", "routed"), ("fp32", "bf16")
L1_COEFFICIENT = 1e-4
EXPANSION = ExpansionConfig(width=64, target_layers=[0, 1, 2, 3, 4])


def gpt_neo_config(layers: int, **values: Any) -> GPTNeoConfig:
    """A GPT-Neo without dropout, its layers global and local in turns."""
    no_dropout = dict.fromkeys(("embed_dropout", "attention_dropout", "resid_dropout"), 0.0)
    attention = [[["global", "local"], layers // 2]]
    return GPTNeoConfig(num_layers=layers, attention_types=attention, use_cache=False, **no_dropout, **values)


def tinystories_28m() -> GPTNeoConfig:
    """The shape of `roneneldan/TinyStories-28M`."""
    return gpt_neo_config(
        8, vocab_size=50_257, hidden_size=512, num_heads=16, max_position_embeddings=2_048, window_size=256
    )


def build_model(
    kind: str, config: Any, device: torch.device, expansion: ExpansionConfig, router: Mapping[str, Any] | None = None
) -> tuple[Any, torch.optim.Optimizer]:
    """A model with random weights and its optimizer: transformers' own for `stock`, else expanded, with the router."""
    if kind == "stock":
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(config)
    else:
        model = expanded_from_config(config, expansion, seed=0)
        if router is not None:
            model.router = make_router(dict(router))
    model.to(device).train()
    return model, torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True)


def small_model(layers: int = 4, vocabulary: int = 8_192) -> GPTNeoConfig:
    """A model for steps so small that what is not a matrix product counts."""
    sizes = {"hidden_size": 256, "num_heads": 8, "max_position_embeddings": 2_048, "window_size": 256}
    return gpt_neo_config(layers, vocab_size=vocabulary, bos_token_id=0, eos_token_id=0, **sizes)


MODELS = {"28M": (tinystories_28m, EXPANSION), "small": (small_model, ExpansionConfig(width=64))}


def build(kind: str, device: torch.device, model: str = "28M") -> tuple[Any, torch.optim.Optimizer]:
    config, expansion = MODELS[model]
    return build_model(kind, config(), device, expansion)


class StepShape(NamedTuple):
    """A batch of so many rows of so many tokens, and the model that takes it."""

    rows: int
    length: int
    model: str = "28M"

    @classmethod
    def of(cls, text: str) -> StepShape:
        """From `8x256` or `1x256:small`."""
        size, _, model = text.partition(":")
        rows, length = map(int, size.split("x"))
        return cls(rows, length, model or "28M")

    def __str__(self) -> str:
        return f"{self.rows} x {self.length}{'' if self.model == '28M' else f', {self.model} model'}"

    def batch(self, device: torch.device) -> dict[str, Any]:
        return make_batch(self.rows, self.length, device, MODELS[self.model][0]().vocab_size)


def make_batch(rows: int, length: int, device: torch.device, vocabulary: int = 50_257) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (rows, length), generator=generator)
    weight = (torch.rand(rows, length, generator=generator) < 0.5).float()
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids, "routing_weight": weight}
    return {name: value.to(device) for name, value in batch.items()}


def make_step(
    kind: str, dtype: str, model: Any, optimizer: torch.optim.Optimizer, batch: dict[str, Any]
) -> Callable[[], object]:
    """A function that makes one whole step. The number of labels is known beforehand, as the Trainer knows it."""
    device = batch["input_ids"].device
    labels_in_batch = batch["labels"][:, 1:].numel()
    inputs: dict[str, Any] = {**batch, "num_items_in_batch": labels_in_batch}
    if kind != "routed":
        del inputs["routing_weight"]
    else:
        inputs["output_activation_l1"] = True

    def step() -> object:
        context = torch.autocast(device.type, dtype=torch.bfloat16) if dtype == "bf16" else contextlib.nullcontext()
        with context:
            outputs = model(**inputs)
            loss = outputs["loss"]
            if kind == "routed":
                loss = loss + L1_COEFFICIENT * outputs["activation_l1"] / batch["attention_mask"].numel()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return None

    return step


# ---- Time ----


def time_shape(shape: StepShape, names: list[str], device: torch.device, options: argparse.Namespace) -> dict:
    """Times the variants at one shape, in turns."""
    batch = shape.batch(device)
    built = {kind: build(kind, device, shape.model) for kind in {"stock", "expanded"}}
    compiled: dict[str, Any] = {}
    steps = {}
    for name in names:
        kind, dtype, mode = name.split()
        model, optimizer = built["stock" if kind == "stock" else "expanded"]
        if mode == "compiled":
            compiled.setdefault(kind + dtype, torch.compile(model))
            model = compiled[kind + dtype]
        steps[name] = make_step(kind, dtype, model, optimizer, batch)
    synchronise = torch.cuda.synchronize if device.type == "cuda" else None
    times = interleave(steps, options.rounds, options.warm_up, options.time_limit, synchronise)
    return {"times": times, "flops": flops_of(built["stock"][0], batch)}


def flops_of(stock: Any, batch: dict[str, Any]) -> int:
    """FLOPs of the stock model's matrix products in one forward and backward pass."""
    with FlopCounterMode(display=False) as counter:
        stock(input_ids=batch["input_ids"], labels=batch["labels"]).loss.backward()
    stock.zero_grad()
    return counter.get_total_flops()


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs a second of a large square product, the best of twenty."""
    size = 8_192 if device.type == "cuda" else 1_024
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(20):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


# ---- Memory ----


def step_of(name: str, shape: StepShape, device: torch.device) -> Callable[[], object]:
    """The step of a variant, of a model of its own."""
    kind, dtype, mode = name.split()
    model, optimizer = build(kind, device, shape.model)
    stepped = torch.compile(model) if mode == "compiled" else model
    return make_step(kind, dtype, stepped, optimizer, shape.batch(device))


# ---- Report ----


def variant_names(device: torch.device, with_compile: bool) -> list[str]:
    """On a CPU without bf16 units bf16 is emulated, some thirty times slower than fp32: nobody would use it there."""
    has_bf16 = device.type != "cpu" or cpu_has_bf16_units()
    dtypes = DTYPES if has_bf16 else DTYPES[:1]
    modes = ["eager", "compiled"] if with_compile else ["eager"]
    return [f"{kind} {dtype} {mode}" for mode in modes for dtype in dtypes for kind in KINDS]


def report(shape: StepShape, measured: dict, memory: dict[str, int], rates: dict[str, float]) -> dict:
    times, reference = measured["times"], "stock fp32 eager"
    tokens = shape.rows * shape.length
    rows, figures = [], {}
    for name, summary in summarise(times).items():
        kind, dtype, mode = name.split()
        figure = {
            **summary,
            "over_stock_fp32": median_ratio(times, name, reference),
            "over_stock_same": median_ratio(times, name, f"stock {dtype} {mode}"),
            "token_positions_per_s": tokens / summary["median_s"],
            "flops_per_s": measured["flops"] / summary["median_s"],
            "peak_bytes": memory.get(name),
            "peak_over_stock_fp32": memory[name] / memory[reference] if name in memory else None,
        }
        if kind == "routed":
            figure["over_without_routing"] = median_ratio(times, name, f"ours {dtype} {mode}")
        figure["share_of_matmul_rate"] = figure["flops_per_s"] / rates[dtype]
        figures[name] = figure
        rows.append(_row(name, figure))
    columns = [
        "variant",
        "median s",
        "/ stock fp32",
        "/ stock alike",
        "/ no routing",
        "positions/s",
        "matmul rate",
        "peak",
        "/ stock",
    ]
    print_table(f"Training step, tokens: {shape}", columns, rows)
    return {**shape._asdict(), "flops": measured["flops"], "rounds": len(times[reference]), "variants": figures}


def _row(name: str, figure: dict[str, Any]) -> list[str]:
    def ratio(key: str) -> str:
        return f"{figure[key]:.3f}" if figure.get(key) is not None else "-"

    peak = f"{figure['peak_bytes'] / 2**20:,.0f} MiB" if figure["peak_bytes"] else "-"
    return [
        name,
        f"{figure['median_s']:.3f}",
        ratio("over_stock_fp32"),
        ratio("over_stock_same"),
        ratio("over_without_routing"),
        f"{figure['token_positions_per_s']:,.0f}",
        f"{figure['share_of_matmul_rate']:.0%}",
        peak,
        ratio("peak_over_stock_fp32"),
    ]


def main() -> None:
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(kind)
    # It takes some rounds until memory that steps free is all used again.
    parser = benchmark_parser(__doc__, f"train_step_{kind}", rounds=7, warm_up=2)
    parser.add_argument("--shape", action="append", help="rows x tokens, e.g. 8x256, 1x256:small; any number of times")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled variants out")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory out")
    options = parser.parse_args()
    default = ["80x256"] if kind == "cuda" else ["1x256:small", "2x64", "8x256"]
    shapes = [StepShape.of(text) for text in options.shape or default]
    if kind == "cpu" and not cpu_has_bf16_units():
        print("This CPU has no bf16 units: bf16 is left out.")
    rates = {"fp32": matmul_rate(device, torch.float32), "bf16": matmul_rate(device, torch.bfloat16)}
    print(f"Measured matmul rate, GFLOP/s: fp32 {rates['fp32'] / 1e9:,.0f}, bf16 {rates['bf16'] / 1e9:,.0f}")
    results, largest = [], max(shapes, key=lambda shape: shape.rows * shape.length)
    for shape in shapes:
        # On a CPU at few tokens alone: what compiling does to the ratios shows there.
        with_compile = not options.no_compile and (device.type == "cuda" or shape.rows * shape.length <= 256)
        names = variant_names(device, with_compile)
        print(f"{shape}: {len(names)} variants, {options.rounds} rounds ...", flush=True)
        measured = time_shape(shape, names, device, options)
        measured_dtype = "fp32" if kind == "cpu" else ""  # the peaks of both are near, and each takes a process
        with_memory = [name for name in names if name.endswith("eager") and measured_dtype in name]
        if options.no_memory or shape != largest:
            with_memory = []
        memory = {name: measured_apart(peak_bytes, step_of, name, shape, device, device=device) for name in with_memory}
        results.append(report(shape, measured, memory, rates))
    write_result(options.output, {**environment(device), "matmul_flops_per_s": rates, "shapes": results})


if __name__ == "__main__":
    main()
