"""Labelling and tokenising stories, in stories a second, against plain Python loops.

    python benchmarks/data.py                  # 17,000 stories, a few minutes on two CPU cores
    python benchmarks/data.py --stories 2000   # a short look

The loops are what one writes first: lower-case each story and look for each forget word in it; tokenise the stories one
by one with the same fast tokenizer and add each token to a dict. Ours does more (whole words, labels and cuts as columns,
the marks of forget words) and is timed with all of it, through to an Arrow table. Both sides take turns in one process.
What is kept for a second run is timed too: `cached_data` finds the whole of `prepare_data` on the disk.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import datasets
from datasets import Dataset

from benchmarks.common import (
    benchmark_parser,
    environment,
    interleave,
    median_ratio,
    print_table,
    summarise,
    write_result,
)
from benchmarks.stories import SHARED, load_texts
from hf_era.data import (
    CachedData,
    DataConfig,
    Sources,
    cached_data,
    data_fingerprint,
    prepare_data,
    prepared_data_key,
    split_sources,
    train_tokenizer,
)
from hf_era.data.routing_weights import frequency_table, weigh_examples
from hf_era.data.tokenising import label_examples, tokenise_examples
from hf_era.models.loading import load_tokenizer
from hf_era.routing import RoutingRuleConfig

LABEL_LOOP, LABEL = "label, plain loop", "label_examples"
COUNT_LOOP, COUNT = "count tokens, plain loop", "tokenise_examples + frequency_table"
COMPARED = {LABEL: LABEL_LOOP, COUNT: COUNT_LOOP}


def label_loop(texts: list[str], words: list[str]) -> list[bool]:
    """The reference for labels: whether any of the words occurs in the lower-cased story."""
    labels = []
    for text in texts:
        labels.append(any(word in text.lower() for word in words))
    return labels


def count_loop(texts: list[str], tokenizer: Any, most: int) -> Counter[int]:
    """The reference for counts: one story after the other, at most so many tokens of each."""
    counts: Counter[int] = Counter()
    for text in texts:
        for token in tokenizer(text, add_special_tokens=False)["input_ids"][:most]:
            counts[token] += 1
    return counts


def make_variants(texts: list[str], tokenizer: Any) -> dict[str, Callable[[], Any]]:
    """What is timed, by name; each leaves nothing behind that another would profit from."""
    config, rule, size = DataConfig(), RoutingRuleConfig(), len(tokenizer)
    sources = Sources(Dataset.from_dict({"text": texts}), None)
    splits = split_sources(sources, config, seed=0)
    labelled = label_examples(sources.train, config, "stories")
    cut = labelled["text"][:]
    tokenised = tokenise_examples(labelled, tokenizer, config, "stories")
    table = frequency_table(tokenised, rule, size, skip_bos=True)

    def count() -> Any:
        return frequency_table(tokenise_examples(labelled, tokenizer, config, "stories"), rule, size, skip_bos=True)

    def prepare() -> CachedData:
        return CachedData(prepare_data(splits, tokenizer, config, rule, size), data_fingerprint(splits))

    def second_run() -> CachedData:
        return cached_data(prepared_data_key(sources, config, 0, rule, tokenizer, size), prepare)

    second_run()  # the first one, which keeps what it prepares
    return {
        LABEL_LOOP: lambda: label_loop(texts, config.forget_words),
        LABEL: lambda: label_examples(sources.train, config, "stories"),
        COUNT_LOOP: lambda: count_loop(cut, tokenizer, config.max_tokens - 1),
        COUNT: count,
        "frequency_table": lambda: frequency_table(tokenised, rule, size, skip_bos=True),
        "weigh_examples": lambda: weigh_examples(tokenised, rule, table),
        "split_sources": lambda: split_sources(sources, config, seed=0),
        "prepare_data": prepare,
        "prepare_data, kept from an earlier run": second_run,
    }


def check(variants: dict[str, Callable[[], Any]]) -> None:
    """Both sides count the same tokens; a label of ours is one of the loop's (which takes parts of words as well)."""
    table = variants[COUNT]()
    counted = {
        token: count for token, count in enumerate((table.forget_counts + table.retain_counts).tolist()) if count
    }
    if counted != variants[COUNT_LOOP]():
        raise RuntimeError("The two sides did not count the same tokens, so their times cannot be compared.")


def main() -> None:
    parser = benchmark_parser(__doc__, "data", rounds=5)
    parser.add_argument("--stories", type=int, default=17_000, help="how many stories (default: 17000)")
    options = parser.parse_args()
    datasets.disable_progress_bars()
    texts, source = load_texts(options.stories)
    folder = SHARED / "gpt2_tokenizer"
    is_gpt2 = folder.is_dir()
    tokenizer = load_tokenizer(folder) if is_gpt2 else train_tokenizer(texts)
    made_by = "GPT-2's tokenizer" if is_gpt2 else "a byte-level BPE trained on these stories (no GPT-2 tokenizer here)"
    with tempfile.TemporaryDirectory() as cache:
        datasets.config.HF_DATASETS_CACHE = Path(cache)  # neither read from nor written to the user's
        variants = make_variants(texts, tokenizer)
        check(variants)
        times = interleave(variants, options.rounds, options.warm_up, options.time_limit)
    note = f"{len(texts):,} stories of: {source}; {made_by}."
    report(times, len(texts), note, options.output)


def report(times: dict[str, list[float]], stories: int, note: str, output: Path) -> None:
    figures, rows = summarise(times), []
    for name, figure in figures.items():
        figure["stories_per_second"] = stories / figure["median_s"]
        if name in COMPARED:
            figure["over"] = COMPARED[name]
            figure["times_as_fast"] = median_ratio(times, COMPARED[name], over=name)
        ratio = f"{figure['times_as_fast']:.2f} x" if name in COMPARED else ""
        rows.append([name, f"{figure['median_s']:.3f}", f"{figure['stories_per_second']:,.0f}", ratio])
    print_table("Labelling and tokenising", ["", "seconds", "stories/s", "times as fast as the loop"], rows, note)
    write_result(output, {**environment(), "what": note, "stories": stories, "variants": figures})


if __name__ == "__main__":
    main()
