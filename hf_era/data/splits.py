"""Which example goes where. No example is in two of: training, validation, held back for the relearn attack."""

from __future__ import annotations

import random
from dataclasses import dataclass

from datasets import Dataset

from hf_era.data.config import DataConfig
from hf_era.data.labelling import FORGET, RETAIN, UNLABELLED
from hf_era.data.words import fold

PARTS = ("train", "validation_forget", "validation_retain", "attack_forget")


@dataclass(frozen=True)
class StorySplits:
    """Labelled examples, split. `train` has a label of -1 where a forget example lost its label (`labelled_fraction`)."""

    train: Dataset
    validation_forget: Dataset
    validation_retain: Dataset
    attack_forget: Dataset
    duplicates_dropped: int
    blanks_dropped: int = 0


def split_stories(train: Dataset, validation: Dataset | None, config: DataConfig, seed: int) -> StorySplits:
    """Splits labelled examples (columns `text`, `label`); the same seed gives the same split.

    Validation and attack examples come from `validation` where it is given, else out of `train`. Examples that repeat an
    earlier one are dropped, so that a validation example cannot have been trained on.

    Raises:
        ValueError: if there is no forget or no retain example, or fewer than asked for; the message says how many.
    """
    pool = validation if validation is not None else train
    first_of_train = set() if validation is None else {story_key(text) for text in train["text"][:]}
    unique = _unique_indices(pool, first_of_train)
    labels = pool["label"][:]
    order = random.Random(f"split-{seed}")
    chosen: dict[int, list[int]] = {}
    for kind in (FORGET, RETAIN):
        chosen[kind] = [index for index in unique if labels[index] == kind]
        order.shuffle(chosen[kind])
    _check_counts(train, chosen, config, from_train=validation is None)

    attack = chosen[FORGET][: config.attack_stories]
    forget = chosen[FORGET][config.attack_stories :][: config.forget_validation_stories]
    retain = chosen[RETAIN][: config.retain_validation_stories]
    if validation is None:
        held_out = {*attack, *forget, *retain}
        train = train.select([index for index in unique if index not in held_out])
    return StorySplits(
        train=drop_labels(train, config.labelled_fraction, seed),
        validation_forget=pool.select(forget),
        validation_retain=pool.select(retain),
        attack_forget=pool.select(attack),
        duplicates_dropped=len(pool) - len(unique),
    )


def drop_labels(train: Dataset, labelled_fraction: float, seed: int) -> Dataset:
    """Sets the label of all but `labelled_fraction` of the forget examples to -1 (at least one example keeps its label).

    Retain examples keep theirs, so "has no label" would give the forget examples away: what is trained takes both for
    retain, as somebody who only knows some of the forget examples has to.
    """
    labels = train["label"][:]
    forget = [index for index, label in enumerate(labels) if label == FORGET]
    keep = max(round(labelled_fraction * len(forget)), 1)
    if keep >= len(forget):
        return train
    for index in random.Random(f"labels-{seed}").sample(forget, len(forget) - keep):
        labels[index] = UNLABELLED
    return train.remove_columns("label").add_column("label", labels)  # type: ignore[call-arg]


def story_key(text: str) -> str:
    """What makes two examples the same one: their words, as they are compared everywhere, whatever the white space."""
    return " ".join(fold(text).split())


def _unique_indices(stories: Dataset, seen: set[str]) -> list[int]:
    """Of examples that neither repeat an earlier one nor are among those `seen` before."""
    unique = []
    for index, text in enumerate(stories["text"][:]):
        key = story_key(text)
        if key not in seen:
            seen.add(key)
            unique.append(index)
    return unique


def _check_counts(train: Dataset, pool: dict[int, list[int]], config: DataConfig, from_train: bool) -> None:
    labels = train["label"][:]
    words = ", ".join(config.forget_words)
    if FORGET not in labels:
        raise ValueError(
            f"`data.forget_words`: none of the {len(labels)} training examples has one of {words}. Check the words and the "
            "text column, or give more examples."
        )
    if RETAIN not in labels:
        raise ValueError(
            f"`data.train`: all of the {len(labels)} training examples have one of {words}; there is no retain example. "
            "Name rarer words, or add other examples."
        )
    asked = {
        FORGET: ("forget", config.forget_validation_stories + config.attack_stories),
        RETAIN: ("retain", config.retain_validation_stories),
    }
    for kind, (name, number) in asked.items():
        available = len(pool[kind])
        # Taken out of the training examples, they must leave some to train on.
        if available < number + (1 if from_train else 0):
            where = "training" if from_train else "validation"
            held = f" and {config.attack_stories} held back for the relearn attack" if kind == FORGET else ""
            raise ValueError(
                f"`data.{name}_validation_stories`: {getattr(config, f'{name}_validation_stories')} {name} examples to "
                f"evaluate on{held} were asked for, but the {where} data has {available} distinct ones. Lower "
                f"`data.{name}_validation_stories`{' or `data.attack_stories`' if kind == FORGET else ''}, or give more."
            )
