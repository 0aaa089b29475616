"""Evaluation sets of every kind: refused before training exactly where no token is to be predicted."""

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from hf_era.data import RoutingCollator
from hf_era.training.evaluation_sets import check_something_to_predict, named_sets

from .data_sets import Rows, Stream

rows = st.lists(st.lists(st.sampled_from([-100, -100, 5]), min_size=1, max_size=4), max_size=4)


KINDS: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "list": list,
    "rows": Rows,
    "stream": lambda rows: Stream(iter(rows)),  # to be read only once
}


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
