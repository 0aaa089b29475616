"""All of the data layer in one call: load, label, split, tokenise, and weigh the tokens."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, concatenate_datasets

from hf_era.data.columns import arrow_batches, flat_column
from hf_era.data.config import BUILT_IN, FACTS, FROM_STORIES, DataConfig
from hf_era.data.examples import IS_CHAT, PROMPT_CHARACTERS, SCORE, examples_of
from hf_era.data.facts import CHANCE
from hf_era.data.label_errors import LabelChanges
from hf_era.data.labelling import FORGET, MODULE, RETAIN, UNLABELLED, Labels
from hf_era.data.routing_weights import frequency_table, weigh_examples
from hf_era.data.sources import load_stories, made_of_texts
from hf_era.data.splits import PARTS, StorySplits, split_stories
from hf_era.data.tokenising import label_examples, tokenise_examples
from hf_era.data.word_pieces import check_words_have_tokens, warn_of_pieces, word_pieces
from hf_era.routing import FrequencyRow, RoutingRuleConfig
from hf_era.utils.checks import listed

_NO_COLUMN = Labels(has_two_sources=True, section=DataConfig.section)
"""Of texts that get their labels later: nothing is read but the texts."""


@dataclass(frozen=True)
class PreparedData:
    """Tokenised examples, ready for the collator, and what is to be said of them.

    Attributes:
        train (`Dataset`): `input_ids`, `routing_weight` (position i: that of token i + 1), `is_forget_word`, `label`, and
            `is_unassigned` if there are examples without a label,
            `length`, `text`; where there are prompts also `labels`, -100 on them; where labels name modules also `module`
            (text or null) and `module_index` (its place among those of the model, -1 for none).
        validation_forget, validation_retain, validation_unlabelled, attack_forget, coherence_validation (`Dataset`): the
            same but for `routing_weight` and `module_index`. All but the first two may be empty.
        frequency_rows (`list[FrequencyRow]`): the frequency rule's table; empty under other rules.
        summary (`dict`): counts, for the result file and the model card. `train_forget_without_routed_token`: labelled
            forget examples of which no token has a weight below 1, under the rule `concept` mostly because their words lie
            beyond `max_tokens`. `forget_word_pieces`: see `word_pieces`; under that rule only. `modules`: counts of each
            module's examples and tokens; where labels name modules only. `label_errors`: which labels are wrong on purpose;
            only where some may be. `train_retain_labelled_forget`: how many of the `train_forget_labelled` are retain
            examples; with `label_threshold` only.
    """

    train: Dataset
    validation_forget: Dataset
    validation_retain: Dataset
    validation_unlabelled: Dataset
    attack_forget: Dataset
    coherence_validation: Dataset
    frequency_rows: list[FrequencyRow] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)


class Sources(NamedTuple):
    """The examples as they were loaded (`hf_era.data.examples`), neither cut nor labelled, but for those of two sources.

    Attributes:
        unused_columns (`dict[str, list[str]]`): setting -> columns of its source that are no part of the examples.
    """

    train: Dataset
    validation: Dataset | None
    unused_columns: dict[str, list[str]] = {}


def load_sources(config: DataConfig, seed: int, tokenizer: Any = None) -> Sources:
    """Loads the examples that the settings name.

    Args:
        tokenizer (*optional*): whose chat template makes texts of messages.

    Raises:
        ValueError: as `load_stories` and `examples_of`; or if the validation examples are to come from a built-in source.
    """
    unused: dict[str, list[str]] = {}

    def load(name: str, source: str, split: str, labels: Labels = config.labels) -> Dataset:
        field, size, text_column = f"data.{name}", config.generator_stories, config.text_column
        if source in FROM_STORIES and config.stories_file is not None:
            texts = load("stories_file", config.stories_file, split, _NO_COLUMN)["text"][:]
            rows, text_column = made_of_texts(source, texts, seed), None
        else:
            rows = load_stories(
                source, field=field, split=split, subset=config.subset, generator_stories=size, seed=seed
            )
        options: dict[str, Any] = {"text_column": text_column, "num_proc": config.num_proc, "tokenizer": tokenizer}
        examples, unused[field] = examples_of(rows, labels, field=field, source=source, **options)
        return examples

    parts = {name: load(name, source, config.train_split) for name, source in config.sources.items()}
    train = parts["train"] if not config.has_two_sources else _from_two_sources(parts)
    if config.max_train_stories is not None:
        train = train.select(range(min(config.max_train_stories, len(train))))
    validation = None
    if config.validation in BUILT_IN:
        raise ValueError(
            f"`data.validation` cannot be `{config.validation}`. Leave it out: it is split off the training examples."
        )
    if config.validation is not None:
        validation = load("validation", config.validation, config.validation_split)
    return Sources(train, validation, {name: columns for name, columns in unused.items() if columns})


def _from_two_sources(parts: dict[str, Dataset]) -> Dataset:
    """Examples with the `label` of the source that they are from, forget and retain ones in turn: whoever takes the first
    few has some of each."""
    kinds = {"forget": FORGET, "retain": RETAIN, "train": UNLABELLED}
    columns = {name: set(part.column_names) for name, part in parts.items()}
    if len(set(map(frozenset, columns.values()))) > 1:
        told = "; ".join(f"`data.{name}`: {listed(sorted(names))}" for name, names in columns.items())
        raise ValueError(f"The sources should be of one kind, all text or all with prompts or messages, got {told}.")
    labelled = [
        part.add_column("label", np.full(len(part), kinds[name], dtype=np.int64))  # type: ignore[call-arg]
        for name, part in parts.items()
    ]
    together = concatenate_datasets(labelled)
    # Of each source the share of it that lies before an example says where that stands.
    places = np.concatenate([(np.arange(len(part)) + 0.5) / max(len(part), 1) for part in labelled])
    return together.select(np.argsort(places, kind="stable"))


def split_sources(sources: Sources, config: DataConfig, seed: int) -> StorySplits:
    """Labels and splits the examples; every check on the data that needs no tokenizer is made here.

    Raises:
        ValueError: if all examples are blank, or there are fewer forget or retain examples than asked for.
    """
    train = label_examples(sources.train, config, "training examples")
    blanks = len(sources.train) - len(train)
    validation = None
    if sources.validation is not None:
        validation = label_examples(sources.validation, config, "validation examples")
        blanks += len(sources.validation) - len(validation)
    splits = split_stories(train, validation, config, seed)
    return replace(splits, blanks_dropped=blanks, unused_columns=sources.unused_columns)


def load_splits(config: DataConfig, seed: int) -> StorySplits:
    """Loads, labels and splits the examples: `load_sources`, then `split_sources`."""
    return split_sources(load_sources(config, seed), config, seed)


def prepare_data(
    splits: StorySplits,
    tokenizer: Any,
    config: DataConfig,
    rule: RoutingRuleConfig,
    vocabulary_size: int,
    modules: Sequence[str] | None = None,
) -> PreparedData:
    """Tokenises the splits and gives each training token its routing weight.

    Args:
        tokenizer: a fast tokenizer.
        vocabulary_size (`int`): of the model; at least that of the tokenizer.
        modules (`Sequence[str]`, *optional*): names of the model's modules, in order. Not given: those of `config.modules`.

    Warns: `ForgetWordPiecesWarning` if the rule `concept` routes tokens that mostly stand in other words.
    """
    check_words_have_tokens(config.forget_words, tokenizer)
    train = tokenise_examples(splits.train, tokenizer, config, "training examples")
    others = {
        name: tokenise_examples(getattr(splits, name), tokenizer, config, name.replace("_", " ")) for name in PARTS[1:]
    }
    table, rows = None, []
    if rule.needs_frequencies:
        table = frequency_table(train, rule, vocabulary_size, skip_bos=config.add_bos)
        rows = table.rows(lambda token: tokenizer.decode([token]), rule.table_minimum_per_10k)
    # Where forget examples alone lost their labels, a mark would give them away.
    changes = splits.label_changes
    is_mixed = not changes.dropped or changes.retain_dropped > 0
    has_unlabelled = is_mixed and UNLABELLED in splits.train["label"][:]
    names = list(config.modules) if modules is None else modules
    train = weigh_examples(train, rule, table, config.num_proc, has_unlabelled, names)
    summary = _summary(train, others, config, splits)
    if rule.rule == "concept":
        summary["forget_word_pieces"] = word_pieces(train, tokenizer, vocabulary_size)
        warn_of_pieces(summary)
    return PreparedData(train=train, frequency_rows=rows, summary=summary, **others)


def data_fingerprint(splits: StorySplits) -> str:
    """A hash of the examples themselves and where each went: a phase is run again when its data changed."""
    digest = hashlib.sha256()
    for part in PARTS:
        examples = getattr(splits, part)
        if part in ("validation_unlabelled", "coherence_validation") and not len(examples):
            continue  # earlier versions had no such parts
        # Texts and labels first, and alone where there is no more: as earlier versions did it.
        columns = [
            "label",
            "text",
            *(name for name in (SCORE, PROMPT_CHARACTERS, IS_CHAT, MODULE) if name in examples.column_names),
        ]
        for table in arrow_batches(examples, columns):
            rows = zip(*(table[name].to_pylist() for name in columns), strict=True)
            digest.update("".join("".join(f"{value}\0" for value in row) for row in rows).encode())
        digest.update(b"\1")
    return digest.hexdigest()


def _summary(train: Dataset, others: dict[str, Dataset], config: DataConfig, splits: StorySplits) -> dict[str, Any]:
    parts = {"train": train, **others}
    return {
        "source": None if config.has_two_sources else config.train,
        "stories_source": config.stories_file,
        **({"chance_accuracy": CHANCE} if config.train == FACTS and not config.has_two_sources else {}),
        "forget_source": config.forget,
        "retain_source": config.retain,
        "unlabelled_source": config.sources.get("train") if config.has_two_sources else None,
        "validation_source": config.validation,
        "forget_words": list(config.forget_words),
        "labelling": config.labels.describe(),
        "unused_columns": splits.unused_columns,
        "train_stories": len(train),
        **_training_counts(train, splits.label_changes),
        **_label_errors(config, splits),
        "duplicates_dropped": splits.duplicates_dropped,
        "contradictions_dropped": splits.contradictions_dropped,
        "blanks_dropped": splits.blanks_dropped,
        "long_prompts_dropped": sum(len(getattr(splits, name)) - len(part) for name, part in parts.items()),
        **{f"{name}_stories": len(part) for name, part in others.items()},
        # `map` adds no column to an empty part (no example may have been held back).
        **{f"{name}_tokens": sum(part["length"][:]) if len(part) else 0 for name, part in others.items()},
        **({"modules": _module_counts(parts, config.modules)} if config.modules else {}),
    }


def _label_errors(config: DataConfig, splits: StorySplits) -> dict[str, Any]:
    """Which labels are wrong on purpose; nothing where none may be."""
    if config.label_threshold is not None:
        errors = {"kind": config.label_errors, "threshold": config.label_threshold}
        return {"label_errors": errors, "train_retain_labelled_forget": splits.label_changes.mistaken}
    return {"label_errors": {"kind": config.label_errors}} if splits.label_changes.dropped else {}


def _module_counts(parts: Mapping[str, Dataset], modules: Iterable[str]) -> dict[str, dict[str, int]]:
    """Module -> how many examples and tokens of it there are in each part that has any."""
    counts: dict[str, dict[str, int]] = {module: {} for module in modules}
    for name in ("train", "validation_forget", "attack_forget"):
        table = pa.concat_tables(arrow_batches(parts[name], [MODULE, "length"])) if len(parts[name]) else None
        for module, found in counts.items():
            own = [] if table is None else table["length"].filter(pc.equal(table[MODULE], module)).to_pylist()
            found |= {f"{name}_stories": len(own), f"{name}_tokens": sum(own)}
    return counts


def _training_counts(train: Dataset, changes: LabelChanges) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for table in arrow_batches(train, ["label", "is_forget_word", "routing_weight"]):
        labels = table["label"].to_numpy()
        words, _ = flat_column(table, "is_forget_word")
        weights, lengths = flat_column(table, "routing_weight")
        below_one = np.zeros(len(labels), dtype=bool)
        below_one[np.repeat(np.arange(len(labels)), lengths)[weights < 1.0]] = True
        counts.update(
            train_tokens=len(weights),
            train_forget_tokens=lengths[labels == FORGET].sum(),
            train_retain_tokens=lengths[labels == RETAIN].sum(),
            train_forget_labelled=(labels == FORGET).sum(),
            train_unlabelled=(labels == UNLABELLED).sum(),
            train_retain=(labels == RETAIN).sum(),
            train_forget_word_tokens=words.sum(),
            train_tokens_routed_as_forget=(weights < 0.5).sum(),
            train_forget_without_routed_token=((labels == FORGET) & ~below_one).sum(),
        )
    counts["train_forget_unlabelled"] = changes.dropped
    counts["train_unlabelled"] -= changes.dropped
    return {name: int(count) for name, count in counts.items()}
