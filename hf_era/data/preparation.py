"""All of the data layer in one call: load, label, split, tokenise, and weigh the tokens."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset

from hf_era.data.columns import arrow_batches, flat_column
from hf_era.data.config import GENERATOR, DataConfig
from hf_era.data.labelling import FORGET, RETAIN, UNLABELLED, check_words_have_tokens
from hf_era.data.routing_weights import add_routing_weights, frequency_table
from hf_era.data.sources import load_stories
from hf_era.data.splits import PARTS, StorySplits, split_stories
from hf_era.data.tokenising import label_stories, tokenise_stories
from hf_era.data.word_pieces import warn_of_pieces, word_pieces
from hf_era.routing import FrequencyRow, RoutingRuleConfig


@dataclass(frozen=True)
class PreparedData:
    """Tokenised examples, ready for the collator, and what is to be said of them.

    Attributes:
        train (`Dataset`): `input_ids`, `routing_weight` (position i: that of token i + 1), `is_forget_word`, `label`,
            `length`, `text`.
        validation_forget, validation_retain, attack_forget (`Dataset`): the same but for `routing_weight`.
        frequency_rows (`list[FrequencyRow]`): the frequency rule's table; empty under other rules.
        summary (`dict`): counts, for the result file and the model card. `train_forget_without_routed_token`: labelled
            forget examples of which no token has a weight below 1, under the rule `concept` mostly because their words lie
            beyond `max_tokens`. `forget_word_pieces`: see `word_pieces`; under that rule only.
    """

    train: Dataset
    validation_forget: Dataset
    validation_retain: Dataset
    attack_forget: Dataset
    frequency_rows: list[FrequencyRow] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)


class Sources(NamedTuple):
    """The examples as they were loaded (column `text`), neither cut nor labelled."""

    train: Dataset
    validation: Dataset | None


def load_sources(config: DataConfig, seed: int) -> Sources:
    """Loads the examples that the settings name.

    Raises:
        ValueError: as `load_stories`; or if the validation examples are to come from the generator.
    """
    options: dict[str, Any] = {
        "subset": config.subset,
        "text_column": config.text_column,
        "generator_stories": config.generator_stories,
        "seed": seed,
    }
    train = load_stories(config.train, field="data.train", split=config.train_split, **options)
    if config.max_train_stories is not None:
        train = train.select(range(min(config.max_train_stories, len(train))))
    validation = None
    if config.validation == GENERATOR:
        raise ValueError(
            "`data.validation` cannot be `generator`. Leave it out: it is split off the training examples."
        )
    if config.validation is not None:
        validation = load_stories(config.validation, field="data.validation", split=config.validation_split, **options)
    return Sources(train, validation)


def split_sources(sources: Sources, config: DataConfig, seed: int) -> StorySplits:
    """Labels and splits the examples; every check on the data that needs no tokenizer is made here.

    Raises:
        ValueError: if all examples are blank, or there are fewer forget or retain examples than asked for.
    """
    train = label_stories(sources.train, config, "training examples")
    blanks = len(sources.train) - len(train)
    validation = None
    if sources.validation is not None:
        validation = label_stories(sources.validation, config, "validation examples")
        blanks += len(sources.validation) - len(validation)
    return replace(split_stories(train, validation, config, seed), blanks_dropped=blanks)


def load_splits(config: DataConfig, seed: int) -> StorySplits:
    """Loads, labels and splits the examples: `load_sources`, then `split_sources`."""
    return split_sources(load_sources(config, seed), config, seed)


def prepare_data(
    splits: StorySplits, tokenizer: Any, config: DataConfig, rule: RoutingRuleConfig, vocabulary_size: int
) -> PreparedData:
    """Tokenises the splits and gives each training token its routing weight.

    Args:
        tokenizer: a fast tokenizer.
        vocabulary_size (`int`): of the model; at least that of the tokenizer.

    Warns: `ForgetWordPiecesWarning` if the rule `concept` routes tokens that mostly stand in other words.
    """
    check_words_have_tokens(config.forget_words, tokenizer)
    train = tokenise_stories(splits.train, tokenizer, config, "training examples")
    others = {
        name: tokenise_stories(getattr(splits, name), tokenizer, config, name.replace("_", " ")) for name in PARTS[1:]
    }
    table, rows = None, []
    if rule.needs_frequencies:
        table = frequency_table(train, rule, vocabulary_size, skip_bos=config.add_bos)
        rows = table.rows(lambda token: tokenizer.decode([token]), rule.table_minimum_per_10k)
    train = add_routing_weights(train, rule, table, config.num_proc)
    summary = _summary(train, others, config, splits)
    if rule.rule == "concept":
        summary["forget_word_pieces"] = word_pieces(train, tokenizer, vocabulary_size)
        warn_of_pieces(summary)
    return PreparedData(train=train, frequency_rows=rows, summary=summary, **others)


def data_fingerprint(splits: StorySplits) -> str:
    """A hash of the examples themselves and where each went: a phase is run again when its data changed."""
    digest = hashlib.sha256()
    for part in PARTS:
        for table in arrow_batches(getattr(splits, part), ["text", "label"]):
            rows = zip(table["label"].to_pylist(), table["text"].to_pylist(), strict=True)
            digest.update("".join(f"{label}\0{text}\0" for label, text in rows).encode())
        digest.update(b"\1")
    return digest.hexdigest()


def _summary(train: Dataset, others: dict[str, Dataset], config: DataConfig, splits: StorySplits) -> dict[str, Any]:
    return {
        "source": config.train,
        "validation_source": config.validation,
        "forget_words": list(config.forget_words),
        "train_stories": len(train),
        **_training_counts(train),
        "duplicates_dropped": splits.duplicates_dropped,
        "blanks_dropped": splits.blanks_dropped,
        **{f"{name}_stories": len(part) for name, part in others.items()},
        # `map` adds no column to an empty part (no example may have been held back).
        **{f"{name}_tokens": sum(part["length"][:]) if len(part) else 0 for name, part in others.items()},
    }


def _training_counts(train: Dataset) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for table in arrow_batches(train, ["label", "is_forget_word", "routing_weight"]):
        labels = table["label"].to_numpy()
        words, _ = flat_column(table, "is_forget_word")
        weights, lengths = flat_column(table, "routing_weight")
        below_one = np.zeros(len(labels), dtype=bool)
        below_one[np.repeat(np.arange(len(labels)), lengths)[weights < 1.0]] = True
        counts.update(
            train_tokens=len(weights),
            train_forget_labelled=(labels == FORGET).sum(),
            train_forget_unlabelled=(labels == UNLABELLED).sum(),
            train_retain=(labels == RETAIN).sum(),
            train_forget_word_tokens=words.sum(),
            train_tokens_routed_as_forget=(weights < 0.5).sum(),
            train_forget_without_routed_token=((labels == FORGET) & ~below_one).sum(),
        )
    return {name: int(count) for name, count in counts.items()}
