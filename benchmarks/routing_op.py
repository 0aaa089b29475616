"""What routing costs on the activation of an MLP: (80, 256, 2112) values, one GELU forward and backward.

    python benchmarks/routing_op.py

Variants: `gelu` alone (no routing); `fused`: routing and the L1 term in the GELU's backward pass (what the models use);
`separate`: the same in operations of their own (`fused_activation: false`); `fused, no L1`; `reference`: the paper's
`m * x + (1 - m) * x.detach()`; `dense mask`: the gradient multiplied by a (batch, seq, hidden) mask. The last two are
without the L1 term. In turns in one process; extra memory is the peak above that of `gelu`, each in a process of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor

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
from hf_era.routing import activation_l1, routed_gelu, scale_gradient

L1_GRADIENT = torch.tensor(1e-4)


class _DenseMask(torch.autograd.Function):
    @staticmethod
    def forward(ctx, activation: Tensor, mask: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        ctx.save_for_backward(mask)
        return activation.view_as(activation)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def, override]
        return gradient * ctx.saved_tensors[0], None


def make_variants(
    shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype
) -> dict[str, Callable[[], object]]:
    """Each variant: one forward and one backward pass."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(shape, generator=generator).to(device, dtype).requires_grad_()
    gradient = torch.randn(shape, generator=generator).to(device, dtype)
    factor = (torch.rand(shape[:2], generator=generator) * 1.75 - 0.75).to(device)
    l1_gradient = L1_GRADIENT.to(device)

    def run(outputs: list[Tensor], gradients: list[Tensor]) -> None:
        torch.autograd.backward(outputs, gradients)
        inputs.grad = None

    def plain() -> None:
        run([F.gelu(inputs, approximate="tanh")], [gradient])

    def fused() -> None:
        activation, norm = routed_gelu(inputs, factor, measure_l1=True)
        run([activation, norm], [gradient, l1_gradient])  # type: ignore[list-item]

    def fused_without_l1() -> None:
        run([routed_gelu(inputs, factor)[0]], [gradient])

    def separate() -> None:
        activation = F.gelu(inputs, approximate="tanh")
        run([scale_gradient(activation, factor), activation_l1(activation)], [gradient, l1_gradient])

    def reference() -> None:
        activation, mask = F.gelu(inputs, approximate="tanh"), factor.unsqueeze(-1).to(dtype)
        run([mask * activation + (1 - mask) * activation.detach()], [gradient])

    def dense() -> None:
        mask = factor.unsqueeze(-1).to(dtype).expand(shape).contiguous()
        run([_DenseMask.apply(F.gelu(inputs, approximate="tanh"), mask)], [gradient])

    return {
        "gelu": plain,
        "fused": fused,
        "fused, no L1": fused_without_l1,
        "separate": separate,
        "reference": reference,
        "dense mask": dense,
    }


def variant_alone(
    name: str, shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype
) -> Callable[[], object]:
    return make_variants(shape, device, dtype)[name]


def main() -> None:
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(kind)
    parser = benchmark_parser(__doc__, f"routing_op_{kind}", rounds=5)
    parser.add_argument("--shape", default="80x256x2112", help="batch x tokens x hidden")
    parser.add_argument("--dtype", action="append", choices=["float32", "bfloat16"], help="default: both")
    options = parser.parse_args()
    batch, tokens, hidden = (int(part) for part in options.shape.split("x"))
    shape = (batch, tokens, hidden)
    dtypes = options.dtype or ["float32", "bfloat16"]
    synchronise = torch.cuda.synchronize if kind == "cuda" else None
    results = {}
    for dtype in dtypes:
        variants = make_variants(shape, device, getattr(torch, dtype))
        times = interleave(variants, options.rounds, options.warm_up, options.time_limit, synchronise)
        memory = {
            name: measured_apart(peak_bytes, variant_alone, name, shape, device, getattr(torch, dtype), device=device)
            for name in variants
        }
        results[dtype] = report(times, memory, shape, dtype)
        del variants
    write_result(options.output, {**environment(device), "shape": list(shape), "dtypes": results})


def report(times: dict[str, list[float]], memory: dict[str, int], shape: tuple[int, ...], dtype: str) -> dict:
    rows, figures = [], {}
    for name, summary in summarise(times).items():
        extra = sorted(one - plain for one, plain in zip(times[name], times["gelu"], strict=True))[
            len(times[name]) // 2
        ]
        figures[name] = {
            **summary,
            "extra_s": extra,
            "over_gelu": median_ratio(times, name, "gelu"),
            "extra_peak_bytes": memory[name] - memory["gelu"],
        }
        rows.append(
            [
                name,
                f"{summary['median_s'] * 1e3:,.1f}",
                f"{extra * 1e3:+,.1f}",
                f"{figures[name]['over_gelu']:.2f}",
                f"{figures[name]['extra_peak_bytes'] / 2**20:+,.0f}",
            ]
        )
    title = f"GELU on {shape} {dtype}, forward and backward"
    print_table(title, ["variant", "median ms", "extra ms", "/ gelu", "extra peak MiB"], rows)
    return figures


if __name__ == "__main__":
    main()
