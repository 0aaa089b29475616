"""Which example goes where. No example is in two of: training, validation, held back for the relearn attack or to choose the
weights of coherence fine-tuning on."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from datasets import Dataset

from hf_era.data.config import DataConfig
from hf_era.data.label_errors import LabelChanges, change_labels, count_changes
from hf_era.data.labelling import FORGET, LABEL_COLUMN, MODULE, RETAIN, UNLABELLED, Labels, label_text
from hf_era.data.words import fold

PARTS = (
    "train",
    "validation_forget",
    "validation_retain",
    "validation_unlabelled",
    "attack_forget",
    "coherence_validation",
)
MOST_UNLABELLED_HELD_OUT = 0.1
"""Share of the unlabelled examples that is measured on, at most: they are there to be trained on."""
MOST_FOR_COHERENCE = 0.1
"""Share of the retain training examples that coherence fine-tuning chooses its weights on, at most."""


@dataclass(frozen=True)
class StorySplits:
    """Labelled examples, split. `train` has the label -1 where an example has none, or lost it (`labelled_fraction`,
    `labelled_retain_fraction`); `label_changes` counts the latter, and retain examples that it labels forget.
    `contradictions_dropped` are those of the duplicates that had another label than the example that they repeat."""

    train: Dataset
    validation_forget: Dataset
    validation_retain: Dataset
    validation_unlabelled: Dataset
    attack_forget: Dataset
    coherence_validation: Dataset
    duplicates_dropped: int
    blanks_dropped: int = 0
    contradictions_dropped: int = 0
    label_changes: LabelChanges = field(default_factory=LabelChanges)
    unused_columns: dict[str, list[str]] = field(default_factory=dict)


def split_stories(train: Dataset, validation: Dataset | None, config: DataConfig, seed: int) -> StorySplits:
    """Splits labelled examples (columns `text`, `label`); the same seed gives the same split.

    Validation and attack examples come from `validation` where it is given, else out of `train`; those that coherence
    fine-tuning chooses its weights on always come out of `train`. Examples that repeat an earlier one are dropped, so that a
    validation example cannot have been trained on. Where examples have a `module`, each module has its share of every part.

    Raises:
        ValueError: if there is no forget or no retain example, or fewer than asked for; the message says how many. If no
            example of a module is left to train on.
    """
    pool = validation if validation is not None else train
    first_of_train = set() if validation is None else {story_key(text) for text in train["text"][:]}
    unique, contradictions = _unique_indices(pool, first_of_train)
    labels = pool["label"][:]
    order = random.Random(f"split-{seed}")
    chosen: dict[int, list[int]] = {}
    for kind in (FORGET, RETAIN, UNLABELLED):
        chosen[kind] = [index for index in unique if labels[index] == kind]
        order.shuffle(chosen[kind])
    if MODULE in pool.column_names:
        chosen[FORGET] = _in_proportion(chosen[FORGET], pool[MODULE][:])
    _check_counts(train, chosen, config, from_train=validation is None)

    attack, forget = _attack_and_measured(pool, chosen[FORGET], config)
    retain = chosen[RETAIN][: config.retain_validation_stories]
    most = min(config.unlabelled_validation_stories, int(len(chosen[UNLABELLED]) * MOST_UNLABELLED_HELD_OUT))
    unlabelled = chosen[UNLABELLED][:most]
    if validation is None:
        held_out = {*attack, *forget, *retain, *unlabelled}
        train = train.select([index for index in unique if index not in held_out])
    # Whatever the method, and with coherence or without: rows of one table are trained on the same examples.
    given, coherence = _without_coherence_validation(train, config, seed, is_unique=validation is None)
    train = change_labels(
        given,
        config.labelled_fraction,
        seed,
        config.label_errors,
        config.label_threshold,
        config.labelled_retain_fraction,
    )
    check_modules_occur(train, config.labels, "examples that are left to train on")
    return StorySplits(
        train=train,
        validation_forget=pool.select(forget),
        validation_retain=pool.select(retain),
        validation_unlabelled=pool.select(unlabelled),
        attack_forget=pool.select(attack),
        coherence_validation=coherence,
        duplicates_dropped=len(pool) - len(unique),
        contradictions_dropped=contradictions,
        label_changes=count_changes(given, train),
    )


def _without_coherence_validation(
    train: Dataset, config: DataConfig, seed: int, is_unique: bool
) -> tuple[Dataset, Dataset]:
    """The training examples without those retain examples that coherence fine-tuning chooses its weights on; and these. The
    copies of one are not trained on either, where there may be some."""
    retain = [index for index, label in enumerate(train["label"][:]) if label == RETAIN]
    number = min(config.coherence_validation_stories, int(len(retain) * MOST_FOR_COHERENCE))
    chosen = sorted(random.Random(f"coherence-{seed}").sample(retain, number))
    validation, taken = train.select(chosen), set(chosen)
    if number and not is_unique:
        validation = validation.select(_unique_indices(validation, set())[0])
        keys = set(map(story_key, validation["text"][:]))
        taken = {index for index, text in enumerate(train["text"][:]) if story_key(text) in keys}
    return (train.select([index for index in range(len(train)) if index not in taken]) if taken else train), validation


def _attack_and_measured(pool: Dataset, forget: list[int], config: DataConfig) -> tuple[list[int], list[int]]:
    """Of the indices of forget examples those for the attacker and those to measure on, each in the given order."""
    of_attack, of_measured = forget, forget[config.attack_stories :]
    if config.attack_labels:
        names, given = {str(label_text(label)) for label in config.attack_labels}, pool[LABEL_COLUMN][:]
        of_attack = [index for index in forget if given[index] in names]
        of_measured = [index for index in forget if given[index] not in names]
        for found, asked in ((of_attack, "attack_stories"), (of_measured, "forget_validation_stories")):
            if len(found) < getattr(config, asked):
                what = "with" if found is of_attack else "without"
                raise ValueError(
                    f"`data.{asked}`: {getattr(config, asked)} forget examples {what} one of `data.attack_labels` "
                    f"({', '.join(sorted(names))}) were asked for, but there are {len(found)} distinct ones. Lower it, or "
                    "give more."
                )
    return of_attack[: config.attack_stories], of_measured[: config.forget_validation_stories]


def _in_proportion(indices: list[int], modules: list[str]) -> list[int]:
    """The indices of examples so that the first few have of each module as great a share as all of them; within a module in
    the given order."""
    own = np.array(indices, dtype=np.int64)
    _, codes, numbers = np.unique(np.array(modules)[own].astype(str), return_inverse=True, return_counts=True)
    by_module = np.argsort(codes, kind="stable")
    ranks = np.empty(len(own), dtype=np.int64)  # among those of its module
    ranks[by_module] = np.arange(len(own)) - (np.cumsum(numbers) - numbers)[codes[by_module]]
    return own[np.argsort((ranks + 0.5) / numbers[codes], kind="stable")].tolist()


def story_key(text: str) -> str:
    """What makes two examples the same one: their words, as they are compared everywhere, whatever the white space."""
    return " ".join(fold(text).split())


def check_labels(examples: Dataset, labels: Labels, where: str, field: str) -> None:
    """Raises `ValueError` if there is no forget or no retain example, or none with one of the labels that are named; `where`
    and `field` say of what, in messages."""
    given = examples["label"][:]
    values = Counter(examples[LABEL_COLUMN][:]) if LABEL_COLUMN in examples.column_names else {}
    if FORGET not in given:
        raise ValueError(labels.no_forget_message(len(given), values, where))
    if (message := labels.absent_label_message(len(given), values, where)) is not None:
        raise ValueError(message)
    check_modules_occur(examples, labels, where)
    if RETAIN not in given:
        raise ValueError(f"{field}: {labels.no_retain_message(len(given), values, where)}")


def check_modules_occur(examples: Dataset, labels: Labels, where: str) -> None:
    """Raises `ValueError` if no example belongs to one of the modules that labels name."""
    if MODULE in examples.column_names:
        there = set(examples[MODULE][:])
        for module in labels.modules:
            if module not in there:
                raise ValueError(labels.absent_module_message(module, len(examples), where))


def _unique_indices(stories: Dataset, seen: set[str]) -> tuple[list[int], int]:
    """Of examples that neither repeat an earlier one nor are among those `seen` before; and how many repeat one that has
    another label."""
    unique, labels, contradictions = [], {}, 0
    for index, (text, label) in enumerate(zip(stories["text"][:], stories["label"][:], strict=True)):
        key = story_key(text)
        if key not in seen:
            seen.add(key)
            labels[key] = label
            unique.append(index)
        else:
            contradictions += labels.get(key, label) != label
    return unique, contradictions


def _check_counts(train: Dataset, pool: dict[int, list[int]], config: DataConfig, from_train: bool) -> None:
    check_labels(train, config.labels, "training examples", "`data.train`")
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
