"""What can be seen before the first step: data that would not reach the model, settings without effect, coarse weights.

Each of these would train to the end without a word, and otherwise than was asked for.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any

import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import nn
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
)

from hf_era.data import RoutingCollator
from hf_era.data.collator import MODULE_INDEX, check_all_are_collated
from hf_era.data.columns import arrow_batches
from hf_era.data.examples import SCORE
from hf_era.data.labelling import MODULE
from hf_era.data.padding_rows import PaddingRowCollator
from hf_era.routing import Router
from hf_era.training.evaluation_sets import named_sets
from hf_era.utils.checks import listed, short_repr, unknown_key_message

IS_UNASSIGNED = "is_unassigned"
OWN_COLLATOR = "`hf_era.data.RoutingCollator(tokenizer.pad_token_id)`"
_PAD_NO_ROUTING_WEIGHT = (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
)


# ---- Data sets ----


def check_is_one_data_set(dataset: Any) -> None:
    """Raises `ValueError` for a `DatasetDict`, or another dict, as `train_dataset`."""
    if isinstance(dataset, Mapping):
        first = next(iter(dataset), "train")
        raise ValueError(
            f"`train_dataset` should be one data set, got a {type(dataset).__name__} with {listed(dataset) or 'nothing'}. "
            f"Pass one of its splits: `train_dataset=dataset[{first!r}]`."
        )


def check_columns_are_used(train: Any, evaluation: Any, collator: Any, taken: Collection[str]) -> None:
    """Raises `ValueError` for a column that the model takes and the collator leaves out.

    Args:
        train, evaluation: the data sets; `evaluation` may be a dict of them. Where the columns are not known, batches are
            checked by the collator.
        collator: only of `RoutingCollator` it is known what it leaves out.
        taken (`Collection[str]`): the columns that the Trainer hands to the collator.
    """
    taken = {*taken} - {"label", "label_ids"}  # of any data set: kept for another collator
    if isinstance(_unwrapped(collator), RoutingCollator):
        for name, dataset in {"`train_dataset`": train, **named_sets(evaluation)}.items():
            check_all_are_collated(name, columns_of(dataset) or (), taken)


def columns_of(dataset: Any) -> list[str] | None:
    """The names of a data set's columns, of a list of rows those of the first one; `None` if they are not known."""
    columns = getattr(dataset, "column_names", None)
    if isinstance(columns, list):
        return columns
    if isinstance(dataset, list) and dataset and isinstance(dataset[0], Mapping):
        return [*dataset[0]]
    return None


# ---- Routing weights ----


def check_routing_weights_arrive(dataset: Any, collator: Any) -> None:
    """Raises `ValueError` if it is known beforehand that batches will have no `routing_weight`.

    A collator of the user's own may make them of other columns; `check_is_routed` looks at each batch.
    """
    collator = _unwrapped(collator)
    if dataset is not None and any(_collates_like(collator, kind) for kind in _PAD_NO_ROUTING_WEIGHT):
        raise ValueError(
            f"`data_collator` is a {type(collator).__name__}, which does not pad `routing_weight`. Pass {OWN_COLLATOR}, or "
            "none: it is the default."
        )
    columns = columns_of(dataset)
    if isinstance(collator, RoutingCollator) and columns is not None and "routing_weight" not in columns:
        raise ValueError(
            unknown_key_message("`train_dataset`", "routing_weight", columns).replace("Unknown key", "No column")
            + " Without it nothing is routed; for a control without routing, add the column with 1.0 for every token."
        )


def check_modules_match(dataset: Any, names: Sequence[str] | None) -> None:
    """Raises `ValueError` if the `module_index` of a `Dataset` is of no module of the model, or of another one than its
    column `module` says, as where it was made for a model with other modules.

    Args:
        names (`Sequence[str]`, *optional*): of the model's modules, in order. `None`: the model has none.
    """
    columns = columns_of(dataset) or []
    if names is None or not isinstance(dataset, Dataset) or MODULE_INDEX not in columns:
        return
    found: set[tuple[int, str | None]] = set()
    chosen = [name for name in (MODULE_INDEX, MODULE) if name in columns]
    for table in arrow_batches(dataset, chosen):
        distinct = table.group_by(chosen).aggregate([])
        found.update((row[MODULE_INDEX], row.get(MODULE)) for row in distinct.to_pylist())
    for index, module in found:
        known = names[index] if 0 <= index < len(names) else None
        if (index != -1 and known is None) or (module is not None and module != known):
            named = f", for the module {short_repr(module)}" if module is not None else ""
            raise ValueError(
                f"`train_dataset` has the `module_index` {index}{named}, but the model's modules are {listed(names)}, from "
                f"0 to {len(names) - 1}. Make it with the modules of this model, in this order (-1: none)."
            )


def check_fits_router(dataset: Any, router: Router) -> None:
    """Raises `ValueError` for a training set whose labels the router has nothing to do with: scores, where it has to know
    whether an example is to be forgotten, or examples without a label, where it needs one."""
    columns = columns_of(dataset) or []
    if router.decides_by_example and SCORE in columns:
        raise ValueError(scores_message(router, "`train_dataset` has scores (the column `score`)"))
    if not router.needs_labels or not isinstance(dataset, Dataset) or IS_UNASSIGNED not in columns:
        return
    marks = [table[IS_UNASSIGNED] for table in arrow_batches(dataset, [IS_UNASSIGNED])]
    filled = [part.filter(pc.greater(pc.list_value_length(part), 0)) for part in marks]
    unlabelled = sum(pc.sum(pc.list_element(part, 0)).as_py() or 0 for part in filled)
    if unlabelled:
        raise ValueError(unlabelled_message(router, unlabelled))


def scores_message(router: Router, what: str) -> str:
    return (
        f"The router `{router.name}` asks of each example whether it is to be forgotten, but {what}: with a score of 0.1, "
        "too, an example would be taken for one. Make labels of them, or take the router `activation` or `parameter`."
    )


def unlabelled_message(router: Router, unlabelled: int) -> str:
    return (
        f"The router `{router.name}` has nothing to do with examples without a label, of which there are {unlabelled:,}. "
        f"Say what they run with, for instance `router: {{name: {router.name}, unlabelled: retain}}`, label them, or choose "
        "another router."
    )


def _collates_like(collator: Any, kind: type) -> bool:
    """Whether it is of this kind, and has no way of its own to make batches."""
    ways = ("__call__", "torch_call")
    own = type(collator)
    return isinstance(collator, kind) and all(getattr(own, way, None) is getattr(kind, way, None) for way in ways)


def check_is_routed(batch: Mapping[str, Any], collator: Any) -> None:
    """Raises `ValueError` for a training batch without routing weights: it would train as if there were no routing."""
    if batch.get("routing_weight") is None:
        own = _unwrapped(collator)
        raise ValueError(
            "The batch has no `routing_weight`, and without it nothing is routed: `data_collator` "
            f"`{getattr(own, '__name__', type(own).__name__)}` gave {listed(sorted(batch))}. Give every row of "
            "`train_dataset` a column `routing_weight`, a value from 0 (forget) to 1 (retain) for each token, and pass a "
            f"collator that pads it, {OWN_COLLATOR}; for a control without routing, 1.0 for every token."
        )


def check_modules_arrive(batch: Mapping[str, Any], dataset: Any, collator: Any) -> None:
    """Raises `ValueError` for a training batch that lost the `module_index` of its examples: each would teach all."""
    if batch.get(MODULE_INDEX) is None and MODULE_INDEX in (columns_of(dataset) or ()):
        own = _unwrapped(collator)
        raise ValueError(
            f"`train_dataset` has the column `{MODULE_INDEX}`, but the batch that `data_collator` "
            f"`{getattr(own, '__name__', type(own).__name__)}` gave has none, and without it every example teaches all "
            f"modules. Make it a tensor of one integer per example, as {OWN_COLLATOR} does; if that is what you want, take "
            "the column out."
        )


def _unwrapped(collator: Any) -> Any:
    """The collator itself, whatever fills up its batches."""
    return collator.collator if isinstance(collator, PaddingRowCollator) else collator


# ---- Settings and weights ----


def check_has_effect(args: Any, names: Collection[str], argument: str) -> None:
    """Raises `ValueError` for settings that are not at their defaults, where `argument` of the trainer makes them void."""
    defaults = {item.name: item.default for item in fields(args)}
    for name in names:
        if getattr(args, name) != defaults[name]:
            raise ValueError(
                f"`training.{name}` is {getattr(args, name)}, but has no effect on {argument} of your own. Leave it at its "
                f"default ({defaults[name]}) and set that up as you want it, or let the trainer make it."
            )


def check_special_tokens_are_known(tokenizer: Any, vocabulary_size: int | None) -> None:
    """Raises `ValueError` if a special token has an id that the model has no embedding for: the Trainer writes these ids
    into the model's config, and a checkpoint with such a padding id cannot be loaded."""
    for name in ("bos_token", "eos_token", "pad_token"):
        token_id = getattr(tokenizer, f"{name}_id", None)
        if vocabulary_size is None or token_id is None or token_id < vocabulary_size:
            continue
        other = "Pad with a token that is there, `tokenizer.pad_token = tokenizer.eos_token`, or else give" * (
            name == "pad_token"
        )
        raise ValueError(
            f"`processing_class`: its `{name}` {getattr(tokenizer, name)!r} has the id {token_id}, but the model has "
            f"embeddings for {vocabulary_size} ids (0 to {vocabulary_size - 1}). {other or 'Give'} the base model more, "
            f"before it is expanded: `resize_token_embeddings({len(tokenizer)})`."
        )


def warn_of_half_precision(model: nn.Module, learning_rate: float) -> None:
    """Warns if weights that are trained are bf16 or fp16: most of a small step is lost in rounding."""
    coarse = {value.dtype for value in model.parameters() if value.requires_grad} & {torch.bfloat16, torch.float16}
    for dtype in coarse:
        name = str(dtype).removeprefix("torch.")
        warnings.warn(
            f"The model's weights are {name}, and training changes them in {name}: steps that are small beside a weight are "
            f"rounded away (at a learning rate of 1e-5, 57 % of bfloat16 weights never moved; `learning_rate` is "
            f"{learning_rate:g}). Load the model with `dtype=torch.float32`, in `from_pretrained` or `expand_base`, and "
            "set `bf16=True`: weights then are float32, and most products are still made in bfloat16.",
            stacklevel=5,
        )
