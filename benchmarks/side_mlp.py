"""The auxiliary module beside the MLP: two products (ours), or one on concatenated weights? Forward and backward.

    python benchmarks/side_mlp.py

Variants at the TinyStories-28M shape (hidden 512, MLP 2,048, auxiliary width 64), 8 x 256 tokens on a CPU, 80 x 256 on a
GPU: `mlp alone`; `two products`: the module has weights and products of its own, as in the models; `concatenated`: its
weights are joined to the MLP's in every step and one product is made; `one matrix`: the ideal, weights that are stored
joined, which could not be saved, cut out or optimised apart.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F

from benchmarks.common import (
    benchmark_parser,
    environment,
    interleave,
    median_ratio,
    print_table,
    summarise,
    write_result,
)

HIDDEN, WIDTH, AUXILIARY = 512, 2_048, 64


def make_variants(rows: int, length: int, device: torch.device, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    def parameter(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, device=device) * 0.02).to(dtype).requires_grad_()

    up, up_bias, down, down_bias = (
        parameter(WIDTH, HIDDEN),
        parameter(WIDTH),
        parameter(HIDDEN, WIDTH),
        parameter(HIDDEN),
    )
    side_up, side_bias, side_down = parameter(AUXILIARY, HIDDEN), parameter(AUXILIARY), parameter(HIDDEN, AUXILIARY)
    total = WIDTH + AUXILIARY
    joined_up, joined_bias, joined_down = parameter(total, HIDDEN), parameter(total), parameter(HIDDEN, total)
    inputs = torch.randn(rows, length, HIDDEN, device=device).to(dtype).requires_grad_()
    gradient = torch.randn(rows, length, HIDDEN, device=device).to(dtype)
    leaves = [up, up_bias, down, down_bias, side_up, side_bias, side_down, joined_up, joined_bias, joined_down, inputs]

    def mlp(first: torch.Tensor, bias: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return F.linear(F.gelu(F.linear(inputs, first, bias), approximate="tanh"), second, down_bias)

    def run(output: torch.Tensor) -> None:
        output.backward(gradient)
        for leaf in leaves:
            leaf.grad = None

    def two_products() -> None:
        side = F.linear(F.gelu(F.linear(inputs, side_up, side_bias), approximate="tanh"), side_down)
        run(mlp(up, up_bias, down) + side)

    def concatenated() -> None:
        run(mlp(torch.cat([up, side_up]), torch.cat([up_bias, side_bias]), torch.cat([down, side_down], dim=1)))

    return {
        "mlp alone": lambda: run(mlp(up, up_bias, down)),
        "two products": two_products,
        "concatenated": concatenated,
        "one matrix": lambda: run(mlp(joined_up, joined_bias, joined_down)),
    }


def main() -> None:
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    options = benchmark_parser(__doc__, f"side_mlp_{kind}", rounds=15, warm_up=2).parse_args()
    shape = (80, 256) if kind == "cuda" else (8, 256)
    dtype = torch.bfloat16 if kind == "cuda" else torch.float32
    variants = make_variants(*shape, torch.device(kind), dtype)
    synchronise = torch.cuda.synchronize if kind == "cuda" else None
    times = interleave(variants, options.rounds, options.warm_up, options.time_limit, synchronise)
    figures = {
        name: {
            **summary,
            "over_mlp_alone": median_ratio(times, name, "mlp alone"),
            "over_two_products": median_ratio(times, name, "two products"),
        }
        for name, summary in summarise(times).items()
    }
    rows = [
        [name, f"{one['median_s'] * 1e3:.2f}", f"{one['over_mlp_alone']:.3f}", f"{one['over_two_products']:.3f}"]
        for name, one in figures.items()
    ]
    columns = ["variant", "median ms", "/ mlp alone", "/ two products"]
    print_table(f"MLP and auxiliary module, {shape[0]} x {shape[1]}, {dtype}", columns, rows)
    write_result(options.output, {**environment(kind), "shape": list(shape), "dtype": str(dtype), "variants": figures})


if __name__ == "__main__":
    main()
