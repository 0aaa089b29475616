"""Labels that are wrong on purpose: which ones, how many, and that the held-out examples keep the truth."""

import math
from typing import Any

import pytest
from datasets import Dataset

from hf_era.data import FORGET, RETAIN, UNLABELLED
from hf_era.data.label_errors import _log_odds, change_labels, count_changes, forget_scores


def examples(texts: list[str], labels: list[int]) -> Dataset:
    return Dataset.from_dict({"text": texts, "label": labels})


def lost(before: Dataset, **settings: Any) -> list[int]:
    """The places of the examples that lost their label; no other label may change."""
    after = change_labels(before, **{"labelled_fraction": 0.5, "seed": 1, **settings})
    assert after["text"][:] == before["text"][:]
    changes = list(zip(before["label"][:], after["label"][:], strict=True))
    assert {change for change in changes if change[0] != change[1]} <= {(FORGET, UNLABELLED)}
    return [place for place, (old, new) in enumerate(changes) if old != new]


def test_random_errors_are_those_of_earlier_versions() -> None:
    train = examples([str(index) for index in range(60)], [FORGET, RETAIN, RETAIN] * 20)
    assert lost(train) == [6, 9, 21, 24, 30, 33, 42, 48, 54, 57]
    assert lost(train, seed=2) != lost(train)


def test_the_shortest_forget_examples_lose_their_label_first() -> None:
    train = examples(["cccc", "a", "bb", "x", "bb", "dddddd"], [FORGET, RETAIN, FORGET, UNLABELLED, FORGET, FORGET])
    assert lost(train, errors="short") == [2, 4]
    assert lost(train, errors="short", labelled_fraction=0.75) == [2]  # of two alike the first
    assert lost(train, errors="short", labelled_fraction=0.01) == [0, 2, 4]  # one is left


@pytest.fixture(scope="module")
def mixed() -> Dataset:
    """30 forget examples, of which every third reads as retain examples do; 60 of these, two like forget ones."""
    forget = [f"the sea {index}" if index % 3 == 0 else f"the tree {index}" for index in range(30)]
    retain = [f"the tree {index}" if index < 32 else f"the sea {index}" for index in range(30, 90)]
    return examples([*forget, *retain], [FORGET] * 30 + [RETAIN] * 60)


def test_those_lose_it_that_the_classifier_takes_least_for_forget_examples(mixed: Dataset) -> None:
    expected = list(range(0, 30, 3))
    assert lost(mixed, errors="score", labelled_fraction=2 / 3) == expected
    assert lost(mixed, errors="score", labelled_fraction=2 / 3, seed=5) == expected


def test_from_a_threshold_on_retain_examples_are_labelled_forget(mixed: Dataset) -> None:
    after = change_labels(mixed, 1.0, seed=1, errors="score", threshold=0.5)
    labels = after["label"][:]
    assert [place for place in range(30) if labels[place] == UNLABELLED] == list(range(0, 30, 3))
    assert [place for place in range(30, 90) if labels[place] == FORGET] == [30, 31]
    assert count_changes(mixed, after) == (10, 2, 0)


@pytest.mark.parametrize(
    ("threshold", "message"),
    [
        (0.999999, r"`data\.label_threshold` is 0\.999999, but the classifier gives no forget example a probability above "
                   r"0\.\d+: none would keep its label\. Lower it\."),
        (1e-9, r"`data\.label_threshold` is 1e-09, and the classifier gives every retain example at least that: .* Raise"),
    ],
)  # fmt: skip
def test_a_threshold_that_leaves_nothing_is_refused(mixed: Dataset, threshold: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        change_labels(mixed, 1.0, seed=1, errors="score", threshold=threshold)


def test_the_classifier_is_naive_bayes() -> None:
    prior, odds = _log_odds([(FORGET, ["a", "a", "b"]), (RETAIN, ["b", "c"]), (RETAIN, [])])
    assert prior == pytest.approx(math.log(2 / 3))
    # Six of the forget and five of the retain counts, each word once more than it occurs.
    expected = {"a": math.log(3 / 6 / (1 / 5)), "b": math.log(2 / 6 / (2 / 5)), "c": math.log(1 / 6 / (2 / 5))}
    assert odds == pytest.approx(expected)


def test_no_example_is_scored_by_what_it_taught() -> None:
    """Every text has a word of its own and is otherwise like all others: there is nothing to tell them apart by."""
    texts = [f"the sea word{index}" for index in range(40)]
    scores = forget_scores(texts, [FORGET, RETAIN] * 20, seed=0)
    assert scores == pytest.approx([0.0] * 40, abs=1e-9)


def test_retain_examples_may_lose_their_label_too(mixed: Dataset) -> None:
    after = change_labels(mixed, 0.5, 0, labelled_retain_fraction=0.5)
    changes = count_changes(mixed, after)
    assert changes.dropped == mixed["label"][:].count(FORGET) // 2
    assert changes.retain_dropped == mixed["label"][:].count(RETAIN) // 2
    # Which forget examples lose theirs does not depend on it.
    alone = change_labels(mixed, 0.5, 0)["label"][:]
    forget = [index for index, label in enumerate(mixed["label"][:]) if label == FORGET]
    assert [after["label"][index] for index in forget] == [alone[index] for index in forget]
