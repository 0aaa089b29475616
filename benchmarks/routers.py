"""What routing costs: a training step with each router over one without routing, on one model.

    python benchmarks/routers.py              # the 28M shape; 2 x 256 tokens on a CPU, 80 x 256 on a GPU

Half of the examples are to be forgotten. `core: all` scales the weight gradient of every parameter of the original model,
head and embeddings included; `activation` is the router of Expand-Route-Ablate; `demix` computes the module of forget
examples in place of the MLP. No variant has an L1 term. All run in turns in one process; ratios are medians of ratios.
`--cpu-time` counts the processor's time, where others use the machine. The bound is 1.06.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.common import (
    benchmark_parser,
    environment,
    interleave,
    median_ratio,
    print_table,
    summarise,
    write_result,
)
from benchmarks.train_step import build, make_batch, make_step
from hf_era.routing import Router, make_router

NONE, BOUND = "no routing", 1.06
ROUTERS: dict[str, Router | None] = {
    NONE: None,
    "parameter, core: all": make_router({"name": "parameter", "core": "all"}),
    "parameter, core: mlp": make_router({"name": "parameter", "core": "mlp"}),
    "sgtm": make_router("sgtm"),
    "gram": make_router({"name": "gram", "p_as": 0.3, "p_cr": 0.5}),
    "demix": make_router("demix"),
    "activation": make_router("activation"),
}


def routed_step(
    router: Router | None, model: Any, optimizer: Any, batch: dict[str, Any], dtype: str
) -> Callable[[], object]:
    if router is None:
        return make_step("ours", dtype, model, optimizer, batch)

    def routed_model(**inputs: Any) -> Any:
        return model(**inputs, routing_weight=batch["routing_weight"])

    step = make_step("ours", dtype, routed_model, optimizer, batch)

    def work() -> None:
        model.router = router
        step()

    return work


def main() -> None:
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(kind)
    parser = benchmark_parser(__doc__, f"routers_{kind}", rounds=7)
    parser.add_argument("--shape", help="rows x tokens (default: 2x256 on a CPU, 80x256 on a GPU)")
    parser.add_argument("--cpu-time", action="store_true", help="the processor's time in place of the clock's")
    options = parser.parse_args()
    shape = tuple(map(int, (options.shape or ("80x256" if kind == "cuda" else "2x256")).split("x")))
    dtype = "bf16" if kind == "cuda" else "fp32"
    model, optimizer = build("routed", device)
    batch = make_batch(*shape, device)
    is_retain = torch.arange(shape[0], device=device) % 2
    batch["routing_weight"] = is_retain[:, None].expand(shape).float().contiguous()
    model.router = ROUTERS["parameter, core: all"]  # its layers are there in all variants
    steps = {name: routed_step(router, model, optimizer, batch, dtype) for name, router in ROUTERS.items()}
    synchronise = torch.cuda.synchronize if kind == "cuda" else None
    clock = time.process_time if options.cpu_time else time.perf_counter
    times = interleave(steps, options.rounds, options.warm_up, options.time_limit, synchronise, clock)
    figures = {
        name: {**summary, "over_no_routing": median_ratio(times, name, NONE)}
        for name, summary in summarise(times).items()
    }
    rows = [[name, f"{one['median_s']:.3f}", f"{one['over_no_routing']:.3f}"] for name, one in figures.items()]
    title = f"Training step, {shape[0]} x {shape[1]} tokens, {dtype}; bound {BOUND}"
    print_table(title, ["router", "median s", "/ no routing"], rows)
    write_result(
        options.output,
        {**environment(kind), "shape": list(shape), "dtype": dtype, "clock": clock.__name__, "variants": figures},
    )


if __name__ == "__main__":
    main()
