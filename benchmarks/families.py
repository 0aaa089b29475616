"""One full training step of every family, stock transformers against hf_era routed: time, and memory at its peak.

    python benchmarks/families.py                          # every family that is registered, 4 x 256 tokens
    python benchmarks/families.py --families llama gpt2    # some of them; the others stay in the file as they are

Each model has four layers of width 384, an MLP of 1,536 (gated: 1,024), six heads and 32,000 tokens: the vocabulary's part
of a step is then what it is in small published models. `stock` is the family's own class with the loss that the plain
`Trainer` takes from it, `routed` the expanded one (auxiliary width 64 in every layer) with routing and the L1 term. Both
have the attention that transformers gives them by default and fused AdamW; they run in turns in one process, and the ratio
is the median of the rounds' ratios. Peak memory is that of a process of its own, less what it held before the model was
built.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from transformers import AutoConfig

from benchmarks.common import (
    benchmark_parser,
    environment,
    interleave,
    kept_figures,
    measured_apart,
    median_ratio,
    peak_bytes,
    print_table,
    summarise,
    write_result,
)
from benchmarks.train_step import build_model, gpt_neo_config, make_batch, make_step
from hf_era import ExpansionConfig
from hf_era.models import FAMILIES, get_family

VOCABULARY, LAYERS, HIDDEN, HEADS = 32_000, 4, 384, 6
CPU = torch.device("cpu")


def family_config(model_type: str) -> Any:
    """A config of that family, all of one size, without dropout."""
    family, inner = get_family(model_type), 1_024 if get_family(model_type).gated else 1_536
    if model_type == "gpt_neo":
        return gpt_neo_config(
            LAYERS, vocab_size=VOCABULARY, hidden_size=HIDDEN, num_heads=HEADS, intermediate_size=inner
        )
    values: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "max_position_embeddings": 512, "use_cache": False, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0,
    }  # fmt: skip
    if model_type == "gpt2":
        return AutoConfig.for_model(
            model_type, **values, n_inner=inner, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
        )
    values["intermediate_size"] = inner
    if family.gated:
        values |= {"num_key_value_heads": HEADS // 2, "head_dim": HIDDEN // HEADS}
    return AutoConfig.for_model(model_type, **values)


def step_of(kind: str, model_type: str, shape: tuple[int, int]) -> Any:
    built = build_model(kind, family_config(model_type), CPU, ExpansionConfig(width=64))
    return make_step(kind, "fp32", *built, make_batch(*shape, CPU, VOCABULARY))


def measure(model_type: str, shape: tuple[int, int], options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one family."""
    steps = {kind: step_of(kind, model_type, shape) for kind in ("stock", "routed")}
    times = interleave(steps, options.rounds, options.warm_up, options.time_limit)
    peaks = {kind: measured_apart(peak_bytes, step_of, kind, model_type, shape, device=CPU) for kind in steps}
    return {
        "shape": list(shape),
        "time_ratio": median_ratio(times, "routed", "stock"),
        "memory_ratio": peaks["routed"] / peaks["stock"],
        "peak_bytes": peaks,
        "seconds": summarise(times),
    }


def main() -> None:
    parser = benchmark_parser(__doc__, "families_cpu", rounds=5, warm_up=2)
    parser.add_argument("--families", nargs="+", choices=sorted(FAMILIES), default=sorted(FAMILIES))
    parser.add_argument("--shape", default="4x256", help="rows x tokens (default: 4x256)")
    options = parser.parse_args()
    rows, tokens = map(int, options.shape.split("x"))
    print(f"{len(options.families)} families, about 15 seconds each on 2 cores", file=sys.stderr)
    figures: dict[str, Any] = {}
    for model_type in options.families:
        figures[model_type] = measure(model_type, (rows, tokens), options)
        print(f"  {model_type}: {figures[model_type]['time_ratio']:.2f}", file=sys.stderr)
    print_table(
        f"Routed over stock, {rows} x {tokens} tokens, {VOCABULARY:,} in the vocabulary",
        ("family", "stock, ms", "routed, ms", "time", "memory"),
        [
            (
                model_type,
                *(f"{1_000 * found['seconds'][kind]['median_s']:,.0f}" for kind in ("stock", "routed")),
                f"{found['time_ratio']:.2f}",
                f"{found['memory_ratio']:.2f}",
            )
            for model_type, found in figures.items()
        ],
        f"median time ratio over families: {statistics.median(f['time_ratio'] for f in figures.values()):.2f}",
    )
    families = dict(sorted((kept_figures(options.output, "families", options.families) | figures).items()))
    write_result(options.output, {**environment(), "families": families})


if __name__ == "__main__":
    main()
