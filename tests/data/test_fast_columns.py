"""What is done for whole columns at once is what the plain definition gives, story by story."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_era.data import FORGET, RETAIN, UNLABELLED, RoutingCollator
from hf_era.data.columns import arrow_batches, flat_column, list_column
from hf_era.data.routing_weights import frequency_table, weigh_examples
from hf_era.routing import (
    RoutingRuleConfig,
    align_stories_to_prediction,
    align_to_prediction,
    count_tokens,
    token_weights,
)

VOCABULARY = 30
RULES = [
    RoutingRuleConfig(),
    RoutingRuleConfig(weighting="uniform"),
    RoutingRuleConfig(rule="concept"),
    RoutingRuleConfig(rule="none"),
]


@pytest.fixture
def stories() -> Dataset:
    """Random stories of 0 to 8 tokens, more of them than a batch of `map`."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(0, 9, 2300)
    return Dataset.from_dict(
        {
            "input_ids": [generator.integers(0, VOCABULARY, length) for length in lengths],
            "is_forget_word": [generator.random(length) < 0.2 for length in lengths],
            "label": generator.choice([FORGET, RETAIN, UNLABELLED], len(lengths)),
        }
    )


@pytest.mark.parametrize("skip_bos", [True, False])
@pytest.mark.parametrize("most", [1, 100, 10_000])
def test_counts(stories: Dataset, skip_bos: bool, most: int) -> None:
    table = frequency_table(stories, RoutingRuleConfig(frequency_stories=most), VOCABULARY, skip_bos)
    for is_forget, counts in ((True, table.forget_counts), (False, table.retain_counts)):
        of_kind = [story for story in stories if (story["label"] == FORGET) == is_forget][:most]
        expected = Counter(token for story in of_kind for token in story["input_ids"][skip_bos:])
        assert counts.tolist() == [expected[token] for token in range(VOCABULARY)]


def test_counts_over_several_batches(stories: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = RoutingRuleConfig(frequency_stories=500)
    whole = frequency_table(stories, rule, VOCABULARY, skip_bos=True)
    monkeypatch.setattr(arrow_batches, "__defaults__", (70,))
    parts = frequency_table(stories, rule, VOCABULARY, skip_bos=True)
    assert torch.equal(whole.forget_counts, parts.forget_counts)
    assert torch.equal(whole.retain_counts, parts.retain_counts)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.rule}-{rule.weighting}")
def test_weights(stories: Dataset, rule: RoutingRuleConfig) -> None:
    table = frequency_table(stories, rule, VOCABULARY, skip_bos=False) if rule.needs_frequencies else None
    for story in weigh_examples(stories, rule, table):
        expected = [1.0] * len(story["input_ids"])
        if story["label"] == FORGET:
            weights = None if table is None else table.weights
            expected = align_to_prediction(token_weights(rule, story["input_ids"], story["is_forget_word"], weights))
        assert story["routing_weight"] == expected


def test_alignment_of_many_stories() -> None:
    generator = torch.Generator().manual_seed(0)
    for lengths in ([3, 0, 1, 4, 0], [0], [0, 0], [1], [5, 2]):
        weights = torch.rand(sum(lengths), generator=generator)
        expected = [aligned for part in weights.split(lengths) for aligned in align_to_prediction(part.tolist())]
        assert align_stories_to_prediction(weights, torch.tensor(lengths)).tolist() == expected


def test_a_token_outside_the_vocabulary_is_no_count() -> None:
    with pytest.raises(IndexError, match="out of range"):
        count_tokens([[1, VOCABULARY]], VOCABULARY)


def test_columns_there_and_back(stories: Dataset) -> None:
    rows = [story["input_ids"] for story in stories]
    for batch in arrow_batches(stories.select(range(5, 40)), ["input_ids"], batch_size=20):
        values, lengths = flat_column(batch, "input_ids")
        assert list_column(values, lengths).to_pylist() == batch["input_ids"].to_pylist()
    for data in (stories, stories.select(range(0, 2300, 3))):  # with an indices mapping, too
        values = [flat_column(batch, "input_ids")[0] for batch in arrow_batches(data, ["input_ids"])]
        expected = rows if len(data) == len(rows) else rows[::3]
        assert np.concatenate(values).tolist() == [token for row in expected for token in row]


def collate_row_by_row(examples: list[dict[str, Any]], padding: int) -> dict[str, list[list[Any]]]:
    length = max(len(example["input_ids"]) for example in examples)
    fillings = {
        "input_ids": padding,
        "attention_mask": 0,
        "labels": -100,
        "routing_weight": 1.0,
        "is_forget_word": False,
    }
    batch: dict[str, list[list[Any]]] = {
        name: [] for name in fillings if name in (*examples[0], "attention_mask", "labels")
    }
    for example in examples:
        ids = example["input_ids"]
        row = {"attention_mask": [1] * len(ids), "labels": list(ids), **example}
        if "attention_mask" in example and "labels" not in example:
            row["labels"] = [
                token if seen else -100 for token, seen in zip(ids, example["attention_mask"], strict=True)
            ]
        for name in batch:
            batch[name].append([*row[name], *[fillings[name]] * (length - len(ids))])
    return batch


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor], ids=["lists", "arrays", "tensors"])
@pytest.mark.parametrize(
    "columns", [[], ["routing_weight", "is_forget_word"], ["attention_mask"], ["attention_mask", "labels"]]
)
def test_batches(columns: list[str], kind: Any) -> None:
    generator = np.random.default_rng(1)
    for _ in range(20):
        examples = []
        for length in generator.integers(1, 12, 5):
            example = {
                "input_ids": generator.integers(0, 50, length).tolist(),
                "attention_mask": generator.integers(0, 2, length).tolist(),
                "labels": np.where(generator.random(length) < 0.3, -100, generator.integers(0, 50, length)).tolist(),
                "routing_weight": generator.random(length).astype(np.float32).tolist(),
                "is_forget_word": (generator.random(length) < 0.5).tolist(),
            }
            examples.append({name: example[name] for name in ("input_ids", *columns)})
        expected = collate_row_by_row(examples, padding=7)
        batch = RoutingCollator(7)([{name: kind(value) for name, value in row.items()} for row in examples])
        assert {name: column.tolist() for name, column in batch.items()} == expected
