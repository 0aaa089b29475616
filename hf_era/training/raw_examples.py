"""Examples as a user has them, text with labels in a column, to what `GradientRoutingTrainer` trains and measures on.

Text is tokenised as trl does it: the tokenizer's own BOS if it puts one in front by itself, an EOS at the end, cut at
`max_length`. Where nobody gives evaluation sets, some forget and some retain examples are taken out of the training set.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset, IterableDataset

from hf_era.data import FORGET, RETAIN, UNLABELLED, DataConfig, Labels, examples_of, prepare_data
from hf_era.data.config import GIVEN
from hf_era.data.labelling import LABEL_NAMES
from hf_era.data.preparation import PreparedData
from hf_era.data.splits import StorySplits, check_labels, split_stories, story_key
from hf_era.data.tokenising import label_examples, tokenise_examples
from hf_era.models.config import ExpandedConfigMixin, ExpansionConfig
from hf_era.models.expanded import ExpandedCausalLMMixin
from hf_era.models.loading import expand_base, load_base_config, load_causal_lm, load_tokenizer
from hf_era.models.module_files import is_in_parts
from hf_era.routing import RoutingRuleConfig
from hf_era.training.config import GradientRoutingConfig, routing_rule, settings_from_text
from hf_era.training.evaluation_sets import EvaluationSetWarning, named_sets
from hf_era.utils.checks import check_count, short_repr, unknown_key_message

DEFAULT_MAX_LENGTH = 1_024
HELD_OUT_SHARE = 0.1
"""Of the forget and of the retain examples, at most so many are taken out of the training set for the evaluation."""


class TrainerData(NamedTuple):
    """What the trainer is given.

    Attributes:
        train (`Dataset`): tokenised, with `routing_weight`. evaluation (`dict[str, Dataset]`, *optional*): by name.
        summary (`dict`): counts and labels, as in the result of a run; empty if the examples were tokenised before.
    """

    train: Any
    evaluation: Any
    summary: dict[str, Any]


def expanded_model(model: Any, expansion: Any) -> Any:
    """The model to train: loaded if it is given by its path or hub id, and expanded if it is not yet.

    Args:
        model: path or id of a stock or an expanded model; or a model, or `None`, which is left as it is without `expansion`.
        expansion (`ExpansionConfig` or `dict`, *optional*): how. Not given for a path or id: the defaults.

    Raises:
        ValueError: for a model that is expanded already, or cannot be loaded.
    """
    is_name = isinstance(model, str | os.PathLike)
    if not is_name and (expansion is None or model is None):
        return model
    if isinstance(expansion, dict):
        known = [item.name for item in fields(ExpansionConfig)]
        for key in expansion:
            if key not in known:
                raise ValueError(unknown_key_message("`expansion`", key, known))
        expansion = ExpansionConfig(**expansion)
    is_expanded = isinstance(model, ExpandedCausalLMMixin)
    if is_name:
        is_expanded = is_in_parts(model) or isinstance(load_base_config(model, "model"), ExpandedConfigMixin)
    if is_expanded and expansion is not None:
        raise ValueError("`expansion` is given, but `model` is expanded already. Drop one of them.")
    if is_expanded:
        return load_causal_lm(model, "model", dtype=torch.float32)
    # Weights in half precision would be trained coarsely: autocast makes bf16 of fp32 where that is asked for.
    return expand_base(model, expansion or ExpansionConfig(), **({"dtype": torch.float32} if is_name else {}))


def is_raw(dataset: Any) -> bool:
    """Whether a data set still has to be tokenised or weighed: by us, if it is one of `datasets`. Of a stream whose columns
    are not known nobody can tell: it is taken as it is."""
    if not isinstance(dataset, Dataset | IterableDataset) or dataset.column_names is None:
        return False
    return "input_ids" not in dataset.column_names


def prepare_for_trainer(
    args: GradientRoutingConfig, train: Any, evaluation: Any, tokenizer: Any, model: Any
) -> TrainerData:
    """Labels, splits, tokenises and weighs raw examples; what is tokenised already is left as it is.

    Args:
        args (`GradientRoutingConfig`): which examples are to be forgotten, `text_column`, `max_length`, `routing`.
        train: the training set. evaluation (*optional*): one set, which is labelled as the training set is, or a dict of
            sets by name, of which those called the forget and the retain set are what they are called.
        tokenizer: of the model; a fast one. model: its vocabulary and positions.

    Raises:
        ValueError: if nothing or too much says what is to be forgotten, there is no forget or no retain example, no
            tokenizer, or a stream is given.
    """
    if not is_raw(train):
        for name, part in named_sets(evaluation).items():
            if is_raw(part):
                raise ValueError(
                    f"{name} is text, but `train_dataset` is {'not given' if train is None else 'tokenised already'}. "
                    "Tokenise it in the same way: `hf_era.add_routing_weights(...)`."
                )
        return TrainerData(train, evaluation, {})
    for name, dataset in {"train_dataset": train, "eval_dataset": evaluation}.items():
        if isinstance(dataset, IterableDataset):
            raise ValueError(
                f"`{name}` is a stream of text, whose examples cannot be counted and split before the training. Load it "
                "with `streaming=False`, or tokenise it and give every token a `routing_weight`."
            )
    if tokenizer is None:
        raise ValueError(
            "`train_dataset` holds text, but there is no tokenizer. Pass `processing_class`, or `model` as a path or hub id."
        )
    if model is None:
        raise ValueError(
            "`train_dataset` holds text, which is cut at the length of a model that `model_init` has not made yet. "
            "Tokenise it first: `hf_era.add_routing_weights(...)`."
        )
    config = _data_config(args, tokenizer, model)
    modules = getattr(model, "module_names", None)  # without any it is refused later, for what it is
    if modules is not None:
        config.labels.check_modules(modules, "the model")
    labelled = _labelled(train, config, "train_dataset", tokenizer)
    check_labels(labelled, config.labels, "training examples", "`train_dataset`")
    rule = routing_rule(args.routing, args.words_label)
    vocabulary = model.get_input_embeddings().num_embeddings
    splits, sets = _only_training(labelled), evaluation
    if isinstance(evaluation, Mapping):
        sets = {
            name: _named_set(args, str(name), part, config, tokenizer, labelled) for name, part in evaluation.items()
        }
    elif evaluation is None:
        splits = split_stories(labelled, None, _with_sizes(config, labelled, args), args.seed)
    elif is_raw(evaluation):
        given = _labelled(evaluation, config, "eval_dataset", tokenizer)
        _warn_of_trained_examples("eval_dataset", given, labelled)
        splits = _with_evaluation(labelled, given)
    prepared = prepare_data(splits, tokenizer, config, rule, vocabulary, modules)
    sets = _evaluation_sets(args, prepared) if evaluation is None or is_raw(evaluation) else sets
    return TrainerData(prepared.train, sets, prepared.summary)


def add_routing_weights(
    dataset: Dataset,
    tokenizer: Any,
    *,
    label_column: str | None = None,
    forget_labels: list[str] | None = None,
    retain_labels: list[str] | None = None,
    score_column: str | None = None,
    forget_words: list[str] | None = None,
    modules: Mapping[str, list[str]] | None = None,
    text_column: str | None = None,
    max_length: int | None = None,
    routing: RoutingRuleConfig | dict[str, Any] | None = None,
    num_proc: int | None = None,
) -> Dataset:
    """Tokenises labelled text and gives each token its routing weight: the training set of `GradientRoutingTrainer`.

    Args:
        dataset (`Dataset`): with a text column (or `messages`, or `prompt` and `completion`) and what labels it.
        tokenizer: a fast tokenizer, or a path or hub id of one.
        label_column, forget_labels, retain_labels, score_column, forget_words (*optional*): what is to be forgotten, in one
            of these ways: `hf_era.data.labelling`.
        modules (`Mapping[str, list[str]]`, *optional*): module -> its forget labels, or without a label column its
            forget words; in the order of the model's modules (`model.module_names`).
        text_column (`str`, *optional*): not given: found.
        max_length (`int`, *optional*): tokens of an example at most. Not given: 1,024.
        routing (*optional*): fields of `RoutingRuleConfig`. Not given: every token of a forget example has the weight 0
            (with words: the words' own tokens).
        num_proc (`int`, *optional*): processes that work at it.

    Returns: `input_ids`, `routing_weight` (fp32; position i holds that of token i + 1), `label` (0 forget, 1 retain, -1
        unlabelled), `is_forget_word`, `length`, `text`; `labels`, -100 on prompts, where there are prompts; and with
        `modules` `module` and `module_index`, -1 for none.

    Raises:
        ValueError: as `GradientRoutingTrainer` does for raw data.
    """
    check_count("max_length", max_length, 2)
    if isinstance(tokenizer, str | os.PathLike):
        tokenizer = load_tokenizer(tokenizer, "tokenizer")
    config = _TrainerData(
        train=GIVEN, label_column=label_column, forget_labels=forget_labels or [], retain_labels=retain_labels or [],
        score_column=score_column, forget_words=forget_words or [], modules=dict(modules or {}), text_column=text_column,
        num_proc=num_proc,
        max_characters=None, max_tokens=max_length or DEFAULT_MAX_LENGTH, **_special_tokens(tokenizer),
    )  # fmt: skip
    rule = routing_rule(settings_from_text("routing", routing), bool(config.forget_words))
    labelled = _labelled(dataset, config, "dataset", tokenizer)
    check_labels(labelled, config.labels, "examples", "`dataset`")
    return prepare_data(_only_training(labelled), tokenizer, config, rule, len(tokenizer)).train


class _TrainerData(DataConfig):
    """Its settings are called in messages as arguments are, not as fields of a section."""

    section = ""
    length_setting = "`max_length`"


def _data_config(args: GradientRoutingConfig, tokenizer: Any, model: Any) -> DataConfig:
    positions = getattr(model.config, "max_position_embeddings", None) or DEFAULT_MAX_LENGTH
    if args.max_length is not None and args.max_length > positions:
        raise ValueError(f"`max_length` is {args.max_length}, but the model has {positions} positions. Lower it.")
    return _TrainerData(
        train=GIVEN, label_column=args.label_column, forget_labels=args.forget_labels or [],
        retain_labels=args.retain_labels or [], score_column=args.score_column, forget_words=args.forget_words or [],
        modules=settings_from_text("modules", args.modules) or {}, text_column=args.text_column, max_characters=None,
        max_tokens=args.max_length or min(DEFAULT_MAX_LENGTH, positions), **_special_tokens(tokenizer),
        coherence_validation_stories=0,
    )  # fmt: skip


def _special_tokens(tokenizer: Any) -> dict[str, Any]:
    """Whether a BOS goes in front, as the tokenizer does it by itself, and an EOS to the end."""
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"`processing_class` should be a fast tokenizer, got {type(tokenizer).__name__}: places of words need one."
        )
    ids = tokenizer("a")["input_ids"]
    return {
        "add_bos": tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id],
        "add_eos": tokenizer.eos_token_id is not None,
    }


def _labelled(dataset: Any, config: DataConfig, name: str, tokenizer: Any, label: int | None = None) -> Dataset:
    if not isinstance(dataset, Dataset):
        raise ValueError(f"`{name}` should be a `datasets.Dataset` of text, got {type(dataset).__name__}.")
    if dataset.format["type"] == "custom":
        raise ValueError(
            f"`{name}` has a transform (`set_transform`), which is not applied to text. Use `map` instead."
        )
    labels = config.labels if label is None else Labels(has_two_sources=True)
    options = {"text_column": config.text_column, "tokenizer": tokenizer, "num_proc": config.num_proc}
    examples, _ = examples_of(dataset, labels, field=name, source="the data set", **options)
    if label is not None:
        examples = examples.add_column("label", np.full(len(examples), label))  # type: ignore[call-arg]
    return label_examples(examples, config, f"examples of `{name}`")


def _only_training(labelled: Dataset) -> StorySplits:
    nothing = labelled.select([])
    return StorySplits(labelled, nothing, nothing, nothing, nothing, nothing, duplicates_dropped=0)


def _with_evaluation(labelled: Dataset, given: Dataset) -> StorySplits:
    """The training set, and the forget, retain and unlabelled examples of the evaluation set."""
    labels = given["label"][:]
    check_labels(given, Labels(has_two_sources=True), "examples", "`eval_dataset`")
    places = {kind: [place for place, label in enumerate(labels) if label == kind] for kind in LABEL_NAMES}
    parts = {kind: given.select(found) for kind, found in places.items()}
    return replace(
        _only_training(labelled),
        validation_forget=parts[FORGET],
        validation_retain=parts[RETAIN],
        validation_unlabelled=parts[UNLABELLED],
    )


def _with_sizes(config: DataConfig, labelled: Dataset, args: GradientRoutingConfig) -> DataConfig:
    """The settings with sizes of evaluation sets that leave most of the examples to train on."""
    kinds = dict(zip(map(story_key, labelled["text"][:]), labelled["label"][:], strict=True))  # a repetition is one
    numbers = Counter(kinds.values())
    for kind in (FORGET, RETAIN):
        if numbers[kind] < 2:
            raise ValueError(
                f"`train_dataset` has {numbers[kind]} distinct {LABEL_NAMES[kind]} example, but one has to be taken out to "
                "be measured on. Give more, or an `eval_dataset`."
            )
    most = {kind: max(int(numbers[kind] * HELD_OUT_SHARE), 1) for kind in LABEL_NAMES}
    sizes: dict[str, Any] = {
        f"{name}_validation_stories": min(args.validation_examples, most[kind]) for kind, name in LABEL_NAMES.items()
    }
    return replace(config, attack_stories=0, **sizes)


def _evaluation_sets(args: GradientRoutingConfig, prepared: PreparedData) -> dict[str, Dataset]:
    sets = {
        args.forget_dataset_name: prepared.validation_forget,
        args.retain_dataset_name: prepared.validation_retain,
        "unlabelled": prepared.validation_unlabelled,
    }
    return {name: part for name, part in sets.items() if len(part)}


def _warn_of_trained_examples(name: str, examples: Dataset, train: Dataset) -> None:
    trained = set(map(story_key, train["text"][:]))
    shared = sum(story_key(text) in trained for text in examples["text"][:])
    if shared:
        warnings.warn(
            f"Of the {len(examples):,} examples of `{name}` {shared:,} are in `train_dataset` too, so what is measured on "
            "them says how well they were learnt by heart. Take them out of one of the two.",
            EvaluationSetWarning,
            stacklevel=5,
        )


def _named_set(
    args: GradientRoutingConfig, name: str, part: Any, config: DataConfig, tokenizer: Any, train: Dataset
) -> Any:
    if not is_raw(part):
        return part
    label = {args.forget_dataset_name: FORGET, args.retain_dataset_name: RETAIN}.get(name, UNLABELLED)
    full_name = f"eval_dataset[{short_repr(name)}]"
    labelled = _labelled(part, config, full_name, tokenizer, label)
    _warn_of_trained_examples(full_name, labelled, train)
    return tokenise_examples(labelled, tokenizer, config, f"{name} examples")
