"""Labels that are wrong on purpose: which forget examples lose theirs, and which retain examples are labelled forget.

What a method does with few labels, or with bad ones, is asked by taking labels away from the training examples. Those that
are held out keep the truth. An error is one of `LABEL_ERRORS`:

* `random`: any forget example is as likely as another to lose its label;
* `short`: the shortest lose it first (characters, as they were cut), as where a labeller overlooks what is brief;
* `score`: those lose it first that a simple classifier takes least for forget examples. With a threshold it labels them all,
  so that some retain examples are labelled forget.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from datasets import Dataset

from hf_era.data.labelling import FORGET, MODULE, RETAIN, UNLABELLED
from hf_era.data.words import fold

LABEL_ERRORS = ("random", "short", "score")
CLASSIFIER_SHARE = 0.05
"""Of the training examples of either label, that the classifier is trained on: what somebody might label by hand."""
CLASSIFIER_LEAST = 20
"""And at least so many of either, or half of them if there are fewer."""
_WORD = re.compile(r"\w+")


def change_labels(
    train: Dataset,
    labelled_fraction: float,
    seed: int,
    errors: str = "random",
    threshold: float | None = None,
    labelled_retain_fraction: float = 1.0,
) -> Dataset:
    """Sets the label of all but `labelled_fraction` of the forget examples to -1 (at least one example keeps its label).

    Where retain examples keep theirs, "has no label" would give the forget examples away: what is trained takes both for
    retain, as somebody who only knows some of the forget examples has to. Where some of them lose theirs as well, those
    without a label are of both kinds, as data is of which a part was labelled: routers may treat them apart.

    Args:
        train (`Dataset`): columns `text`, `label`, and `module` where labels name modules.
        labelled_fraction (`float`): in (0, 1].
        seed (`int`): of what is drawn.
        errors (`str`, *optional*, defaults to `"random"`): one of `LABEL_ERRORS`.
        threshold (`float`, *optional*): of `score`, in place of a fraction. Forget examples with a lower probability lose
            their label; retain examples with this one or a higher are labelled forget.
        labelled_retain_fraction (`float`, *optional*, defaults to `1.0`): in (0, 1], of the retain examples; random.

    Raises:
        ValueError: if the threshold leaves no example that is labelled forget and is one, or none that is labelled retain.
    """
    labels: list[int] = train["label"][:]
    forget = [index for index, label in enumerate(labels) if label == FORGET]
    retain = [index for index, label in enumerate(labels) if label == RETAIN]
    without = len(retain) - max(round(labelled_retain_fraction * len(retain)), 1)
    if without > 0:
        for index in random.Random(f"retain-labels-{seed}").sample(retain, without):
            labels[index] = UNLABELLED
        train = _relabelled(train, labels)
    if threshold is not None:
        return _relabelled(train, _labels_from(threshold, forget_scores(train["text"][:], labels, seed), labels))
    keep = max(round(labelled_fraction * len(forget)), 1)
    if keep >= len(forget):
        return train
    if errors == "random":
        lost = random.Random(f"labels-{seed}").sample(forget, len(forget) - keep)
    else:
        texts = train["text"][:]
        order = list(map(len, texts)) if errors == "short" else forget_scores(texts, labels, seed)
        lost = sorted(forget, key=order.__getitem__)[: len(forget) - keep]
    for index in lost:
        labels[index] = UNLABELLED
    return _relabelled(train, labels)


class LabelChanges(NamedTuple):
    """How many labels are not the truth.

    Attributes:
        dropped (`int`): forget examples without their label. mistaken (`int`): retain examples that are labelled forget.
        retain_dropped (`int`): retain examples without their label.
    """

    dropped: int = 0
    mistaken: int = 0
    retain_dropped: int = 0


def count_changes(before: Dataset, after: Dataset) -> LabelChanges:
    """What `change_labels` changed."""
    changes = Counter(zip(before["label"][:], after["label"][:], strict=True))
    return LabelChanges(changes[FORGET, UNLABELLED], changes[RETAIN, FORGET], changes[RETAIN, UNLABELLED])


def _labels_from(threshold: float, scores: Sequence[float], labels: Sequence[int]) -> list[int]:
    """The labels that a classifier gives above a threshold; what had none has none."""
    least = math.log(threshold / (1 - threshold))
    given = [
        (FORGET if score >= least else UNLABELLED if label == FORGET else label) if label != UNLABELLED else label
        for score, label in zip(scores, labels, strict=True)
    ]
    if not any(label == own == FORGET for label, own in zip(labels, given, strict=True)):
        best = max(score for score, label in zip(scores, labels, strict=True) if label == FORGET)
        raise ValueError(
            f"`data.label_threshold` is {threshold}, but the classifier gives no forget example a probability above "
            f"{1 / (1 + math.exp(min(-best, 700))):.3g}: none would keep its label. Lower it."
        )
    if RETAIN not in given:
        raise ValueError(
            f"`data.label_threshold` is {threshold}, and the classifier gives every retain example at least that: all would "
            "be labelled forget. Raise it."
        )
    return given


def _relabelled(train: Dataset, labels: list[int]) -> Dataset:
    """The examples with other labels; one that is not labelled forget belongs to no module."""
    columns: dict[str, list[Any]] = {"label": labels}
    if MODULE in train.column_names:
        own = zip(train[MODULE][:], labels, strict=True)
        columns[MODULE] = [module if label == FORGET else None for module, label in own]
    for name, values in columns.items():
        train = train.remove_columns(name).add_column(name, values)  # type: ignore[call-arg]
    return train


def forget_scores(texts: Sequence[str], labels: Sequence[int], seed: int) -> list[float]:
    """The log odds that an example is a forget example, of a multinomial naive Bayes classifier over its words (McCallum and
    Nigam 1998) that was trained on `CLASSIFIER_SHARE` of the labelled ones. These are scored by another one like it, which
    was not trained on them."""
    order = random.Random(f"classifier-{seed}")
    shares: tuple[list[int], list[int]] = ([], [])
    for kind in (FORGET, RETAIN):
        own = [index for index, label in enumerate(labels) if label == kind]
        size = min(max(round(CLASSIFIER_SHARE * len(own)), CLASSIFIER_LEAST), len(own) // 2)
        drawn = order.sample(own, 2 * size)
        shares[0].extend(drawn[:size])
        shares[1].extend(drawn[size:])
    words = [_WORD.findall(fold(text)) for text in texts]
    (prior, odds), second = (_log_odds((labels[index], words[index]) for index in share) for share in shares)
    scores = [_score(found, prior, odds) for found in words]
    for index in shares[0]:
        scores[index] = _score(words[index], *second)
    return scores


def _log_odds(examples: Iterable[tuple[int, list[str]]]) -> tuple[float, dict[str, float]]:
    """The log odds of forget before anything is read, and those that each word adds. Every count is 1 higher."""
    numbers, counts = Counter[int](), {FORGET: Counter[str](), RETAIN: Counter[str]()}
    for label, words in examples:
        numbers[label] += 1
        counts[label].update(words)
    vocabulary = counts[FORGET].keys() | counts[RETAIN].keys()
    sizes = {kind: own.total() + len(vocabulary) for kind, own in counts.items()}
    odds = {
        word: math.log((counts[FORGET][word] + 1) / sizes[FORGET])
        - math.log((counts[RETAIN][word] + 1) / sizes[RETAIN])
        for word in vocabulary
    }
    return math.log((numbers[FORGET] + 1) / (numbers[RETAIN] + 1)), odds


def _score(words: Iterable[str], prior: float, odds: dict[str, float]) -> float:
    """A word that the classifier never met says nothing."""
    return prior + sum(odds.get(word, 0.0) for word in words)
