"""Tokens a second that are not padding: training steps on real stories, length-grouped batches against random order.

    python benchmarks/throughput.py                    # the TinyStories-28M shape, batches of 8 on a CPU, 80 on a GPU

Variants: `stock, random order`: transformers' GPT-Neo, batches in random order padded to their longest story;
`routed, random order`: ours on the same batches; `routed, by length`: ours on the batches of `train_sampling_strategy:
group_by_length`, as the recipes have it. In turns in one process; each round takes other batches of the same epoch.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler

from benchmarks.common import benchmark_parser, environment, interleave, print_table, write_result
from benchmarks.stories import load_tokenised
from benchmarks.train_step import build, make_step
from hf_era.data import RoutingCollator, padding_token_id
from hf_era.training.causal_lm_trainer import EpochSeededSampler


def batches_of(
    order: list[int], stories: Any, size: int, collator: RoutingCollator, device: torch.device
) -> Iterator[dict]:
    """Batches spread evenly over the epoch, so that grouped ones of all lengths come up."""
    starts = torch.randperm(len(order) // size, generator=torch.Generator().manual_seed(1)).tolist()
    for start in starts:
        examples = [stories[index] for index in order[start * size : (start + 1) * size]]
        batch = collator([{"input_ids": example["input_ids"]} for example in examples])
        batch["routing_weight"] = torch.ones(batch["input_ids"].shape)
        yield {name: value.to(device) for name, value in batch.items()}


def make_variant(kind: str, order: list[int], data: Any, options: Any, device: torch.device, built: tuple) -> Any:
    """A function that trains on the next batches, and the list of how many real tokens each call trained on."""
    collator = RoutingCollator(padding_token_id(data.tokenizer))
    batches = batches_of(order, data.stories, options.batch_size, collator, device)
    tokens: list[dict[str, int]] = []

    def work() -> None:
        chosen = [next(batches) for _ in range(options.batches)]
        for batch in chosen:
            make_step(kind, "bf16" if device.type == "cuda" else "fp32", *built, batch)()
        real = sum(int(batch["attention_mask"].sum()) for batch in chosen)
        tokens.append({"real": real, "positions": sum(batch["input_ids"].numel() for batch in chosen)})

    return work, tokens


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    parser = benchmark_parser(__doc__, f"throughput_{device.type}", rounds=3, warm_up=0)
    parser.add_argument("--batch-size", type=int, default=80 if on_gpu else 8)
    parser.add_argument("--batches", type=int, default=20 if on_gpu else 2, help="batches of each variant in a round")
    options = parser.parse_args()
    data = load_tokenised(4_000)
    lengths = list(data.stories["length"])
    random_order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0)).tolist()
    grouped = list(EpochSeededSampler(LengthGroupedSampler(options.batch_size, lengths=lengths), seed=0))
    stock, expanded = build("stock", device), build("routed", device)
    variants: dict[str, Callable[[], object]] = {}
    tokens = {}
    for name, kind, order, built in (
        ("stock, random order", "stock", random_order, stock),
        ("routed, random order", "routed", random_order, expanded),
        ("routed, by length", "routed", grouped, expanded),
    ):
        variants[name], tokens[name] = make_variant(kind, order, data, options, device, built)
    for work, _ in (
        make_variant(kind, random_order, data, options, device, built)
        for kind, built in (("stock", stock), ("routed", expanded))
    ):
        work()  # warm-up, on batches of its own
    synchronise = torch.cuda.synchronize if on_gpu else None
    times = interleave(variants, options.rounds, options.warm_up, options.time_limit, synchronise)
    report(times, tokens, data.source, options, device)


def report(
    times: dict[str, list[float]], tokens: dict[str, list[dict[str, int]]], source: str, options: Any, device: Any
) -> None:
    rates = {
        name: [count["real"] / seconds for count, seconds in zip(tokens[name], times[name], strict=True)]
        for name in times
    }
    figures, rows = {}, []
    for name, rate in rates.items():
        ratios = {
            other: statistics.median(one / two for one, two in zip(rate, rates[other], strict=True))
            for other in list(rates)[:2]
        }
        share = sum(count["real"] for count in tokens[name]) / sum(count["positions"] for count in tokens[name])
        figures[name] = {"tokens_per_s": rate, "over": ratios, "share_not_padding": share, "rounds_s": times[name]}
        rows.append(
            [name, f"{statistics.median(rate):,.0f}", f"{share:.0%}", *(f"{ratio:.2f}" for ratio in ratios.values())]
        )
    columns = ["variant", "tokens/s", "not padding", "/ stock, random", "/ routed, random"]
    print_table(
        "Tokens a second that are not padding", columns, rows, note=f"{source}; batches of {options.batch_size}"
    )
    write_result(
        options.output,
        {**environment(device), "source": source, "batch_size": options.batch_size, "variants": figures},
    )


if __name__ == "__main__":
    main()
