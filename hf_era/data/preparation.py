"""All of the data layer in one call: load, label, split, tokenise, and weigh the tokens."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

from datasets import Dataset

from hf_era.data.config import GENERATOR, DataConfig
from hf_era.data.labelling import FORGET, RETAIN, UNLABELLED, check_words_have_tokens
from hf_era.data.sources import load_stories
from hf_era.data.splits import StorySplits, split_stories
from hf_era.data.tokenising import label_stories, tokenise_stories
from hf_era.routing import (
    FrequencyRow,
    FrequencyTable,
    RoutingRuleConfig,
    align_to_prediction,
    count_tokens,
    token_weights,
)


@dataclass(frozen=True)
class PreparedData:
    """Tokenised stories, ready for the collator, and what is to be said of them.

    Attributes:
        train (`Dataset`): `input_ids`, `routing_weight`, `is_forget_word`, `label`, `length`, `text`.
        validation_forget, validation_retain, attack_forget (`Dataset`): the same but for `routing_weight`.
        frequency_rows (`list[FrequencyRow]`): the frequency rule's table; empty under other rules.
        summary (`dict`): counts, for the result file and the model card.
    """

    train: Dataset
    validation_forget: Dataset
    validation_retain: Dataset
    attack_forget: Dataset
    frequency_rows: list[FrequencyRow] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)


def load_splits(config: DataConfig, seed: int) -> StorySplits:
    """Loads, labels and splits the stories; every check on the data that needs no tokenizer is made here."""
    options: dict[str, Any] = {
        "subset": config.subset,
        "text_column": config.text_column,
        "generator_stories": config.generator_stories,
        "seed": seed,
    }
    train = load_stories(config.train, field="data.train", split=config.train_split, **options)
    if config.max_train_stories is not None:
        train = train.select(range(min(config.max_train_stories, len(train))))
    blanks = len(train)
    train = label_stories(train, config, "training stories")
    blanks -= len(train)
    validation = None
    if config.validation == GENERATOR:
        raise ValueError("`data.validation` cannot be `generator`. Leave it out: it is split off the training stories.")
    if config.validation is not None:
        loaded = load_stories(config.validation, field="data.validation", split=config.validation_split, **options)
        validation = label_stories(loaded, config, "validation stories")
        blanks += len(loaded) - len(validation)
    return replace(split_stories(train, validation, config, seed), blanks_dropped=blanks)


def prepare_data(
    splits: StorySplits, tokenizer: Any, config: DataConfig, rule: RoutingRuleConfig, vocabulary_size: int
) -> PreparedData:
    """Tokenises the splits and gives each training token its routing weight.

    Args:
        splits (`StorySplits`): from `load_splits`.
        tokenizer: a fast tokenizer.
        config (`DataConfig`): cuts, special tokens, forget words.
        rule (`RoutingRuleConfig`): the mask rule.
        vocabulary_size (`int`): of the model; at least that of the tokenizer.
    """
    check_words_have_tokens(config.forget_words, tokenizer)
    train = tokenise_stories(splits.train, tokenizer, config, "training stories")
    others = {
        name: tokenise_stories(getattr(splits, name), tokenizer, config, name.replace("_", " "))
        for name in ("validation_forget", "validation_retain", "attack_forget")
    }
    table, rows = None, []
    if rule.needs_frequencies:
        table = frequency_table(train, rule, vocabulary_size, skip_bos=config.add_bos)
        rows = table.rows(lambda token: tokenizer.decode([token]), rule.table_minimum_per_10k)
    train = add_routing_weights(train, rule, table, config.num_proc)
    summary = _summary(train, others, config, splits)
    return PreparedData(train=train, frequency_rows=rows, summary=summary, **others)


def frequency_table(train: Dataset, rule: RoutingRuleConfig, vocabulary_size: int, skip_bos: bool) -> FrequencyTable:
    """Counts tokens in labelled forget stories and in all others (unlabelled ones are treated as retain)."""
    labels = train["label"]
    counts = {}
    for name, wanted in (("forget", {FORGET}), ("retain", {RETAIN, UNLABELLED})):
        chosen = [index for index, label in enumerate(labels) if label in wanted][: rule.frequency_stories]
        stories = (ids[1 if skip_bos else 0 :] for ids in train.select(chosen)["input_ids"])
        counts[name] = count_tokens(stories, vocabulary_size)
    return FrequencyTable(counts["forget"], counts["retain"], rule.frequency_scale, rule.frequency_bias)


def add_routing_weights(
    stories: Dataset, rule: RoutingRuleConfig, table: FrequencyTable | None, num_proc: int | None = None
) -> Dataset:
    """Adds `routing_weight`, aligned to the predicted token: 1 on stories that are not labelled forget."""
    weights = None if table is None else table.weights

    def weigh(example: dict[str, Any]) -> dict[str, Any]:
        ids = example["input_ids"]
        if example["label"] != FORGET:
            return {"routing_weight": [1.0] * len(ids)}
        return {"routing_weight": align_to_prediction(token_weights(rule, ids, example["is_forget_word"], weights))}

    return stories.map(weigh, num_proc=num_proc, desc="Weighing tokens")


def data_fingerprint(splits: StorySplits) -> str:
    """A hash of the stories themselves and where each went: a phase is run again when its data changed."""
    digest = hashlib.sha256()
    for part in (splits.train, splits.validation_forget, splits.validation_retain, splits.attack_forget):
        for text, label in zip(part["text"], part["label"], strict=True):
            digest.update(f"{label}\0{text}\0".encode())
        digest.update(b"\1")
    return digest.hexdigest()


def _summary(train: Dataset, others: dict[str, Dataset], config: DataConfig, splits: StorySplits) -> dict[str, Any]:
    labels = train["label"]
    routed = sum(sum(weight < 0.5 for weight in weights) for weights in train["routing_weight"])
    return {
        "source": config.train,
        "validation_source": config.validation,
        "forget_words": list(config.forget_words),
        "train_stories": len(train),
        "train_tokens": sum(train["length"]),
        "train_forget_labelled": sum(label == FORGET for label in labels),
        "train_forget_unlabelled": sum(label == UNLABELLED for label in labels),
        "train_retain": sum(label == RETAIN for label in labels),
        "train_forget_word_tokens": sum(sum(words) for words in train["is_forget_word"]),
        "train_tokens_routed_as_forget": routed,
        "train_forget_without_routed_token": sum(
            label == FORGET and min(weights) == 1.0
            for label, weights in zip(labels, train["routing_weight"], strict=True)
        ),
        "duplicates_dropped": splits.duplicates_dropped,
        "blanks_dropped": splits.blanks_dropped,
        **{f"{name}_stories": len(part) for name, part in others.items()},
        **{f"{name}_tokens": sum(part["length"]) for name, part in others.items()},
    }
