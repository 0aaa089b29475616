"""Evaluation sets of every kind: refused before training exactly where no token is to be predicted."""

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from torch.utils.data import IterableDataset

from hf_era.data import RoutingCollator
from hf_era.training.evaluation_sets import check_something_to_predict, named_sets

rows = st.lists(st.lists(st.sampled_from([-100, -100, 5]), min_size=1, max_size=4), max_size=4)


class Rows:
    """A data set without `column_names`."""

    def __init__(self, examples: list[dict[str, Any]]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.examples[index]


class Stream(IterableDataset):
    """A data set that may be read only once."""

    def __init__(self, examples: list[dict[str, Any]]) -> None:
        self.examples = iter(examples)

    def __iter__(self) -> Any:
        return self.examples


KINDS: dict[str, Callable[[list[dict[str, Any]]], Any]] = {"list": list, "rows": Rows, "stream": Stream}


def without_labels(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """As a collator that drops the column, and makes none."""
    batch = RoutingCollator(0)(examples)
    del batch["labels"]
    return batch


def test_evaluation_sets(fuzz: Callable, accepted: Callable) -> None:
    outcomes = {"taken": 0, "refused": 0}

    def check(labels: list[list[int]], kind: str, own_labels: bool, drops: bool, size: int) -> None:
        examples = [{"input_ids": [7] * len(row), **({"labels": row} if own_labels else {})} for row in labels]
        stories, collate = KINDS[kind](examples), without_labels if drops else RoutingCollator(0)
        ((name, found),) = named_sets({"for get": stories}).items()
        _, message = accepted(check_something_to_predict, name, found, collate, size)
        outcomes["refused" if message else "taken"] += 1
        counted = any(not own_labels or value != -100 for row in labels for value in row[1:])
        assert (message is None) == (kind == "stream" or (counted and not drops))
        assert kind != "stream" or len(list(found)) == len(labels)
        assert message is None or "`eval_dataset['for get']` has no token to predict" in message

    fuzz(
        "evaluation_sets",
        check,
        labels=rows,
        kind=st.sampled_from(sorted(KINDS)),
        own_labels=st.booleans(),
        drops=st.sampled_from([False, False, False, True]),
        size=st.integers(1, 4),
    )
    assert min(outcomes.values()) > 0, outcomes
