"""Tokenised stories for the benchmarks: the real ones beside the checkout where they are, else the built-in generator's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from hf_era.data import DataConfig, generate_stories, train_tokenizer
from hf_era.data.tokenising import label_examples, tokenise_examples
from hf_era.models.loading import load_tokenizer

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@dataclass(frozen=True)
class BenchmarkStories:
    """Stories with `input_ids`, `is_forget_word`, `label`, `length`, what made their tokens, and where they are from."""

    stories: Dataset
    tokenizer: Any
    source: str


def load_texts(count: int) -> tuple[list[str], str]:
    """The texts of so many stories, and where they are from."""
    path = SHARED / "tinystories" / "train.jsonl"
    if not path.is_file():
        return [
            str(story) for story in generate_stories(count, seed=0)
        ], "built-in generator (no real stories beside the checkout)"
    with path.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line, _ in zip(lines, range(count), strict=False)]
    return texts, "TinyStories, a local subset"


def load_tokenised(count: int, vocabulary_size: int | None = None, max_tokens: int = 256) -> BenchmarkStories:
    """Labelled and tokenised stories: GPT-2's tokenizer, or a byte-level BPE of `vocabulary_size` trained on them."""
    texts, source = load_texts(count)
    folder = SHARED / "gpt2_tokenizer"
    tokenizer = (
        load_tokenizer(folder)
        if vocabulary_size is None and folder.is_dir()
        else train_tokenizer(texts, vocabulary_size or 2_048)
    )
    config = DataConfig(max_tokens=max_tokens)
    stories = label_examples(Dataset.from_dict({"text": texts}), config, "stories")
    return BenchmarkStories(tokenise_examples(stories, tokenizer, config, "stories"), tokenizer, source)
