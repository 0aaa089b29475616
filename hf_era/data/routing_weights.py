"""Which tokens are routed, and to which module: the frequency table of the training examples, the weight of each of their
tokens, and the place of each example's module among those of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset

from hf_era.data.columns import arrow_batches, flat_column, list_column, map_tables
from hf_era.data.examples import SCORE
from hf_era.data.labelling import FORGET, MODULE, UNLABELLED
from hf_era.routing import (
    FrequencyTable,
    RoutingRuleConfig,
    align_stories_to_prediction,
    count_tokens,
    weigh_tokens,
)


def frequency_table(train: Dataset, rule: RoutingRuleConfig, vocabulary_size: int, skip_bos: bool) -> FrequencyTable:
    """Counts tokens in labelled forget examples and in all others (unlabelled ones are treated as retain)."""
    counts = {is_forget: torch.zeros(vocabulary_size, dtype=torch.int64) for is_forget in (True, False)}
    stories_left = dict.fromkeys(counts, rule.frequency_stories)
    for table in arrow_batches(train, ["label", "input_ids"]):
        tokens, lengths = flat_column(table, "input_ids")
        is_counted = np.ones(len(tokens), dtype=bool)
        if skip_bos:
            starts = np.cumsum(lengths) - lengths
            is_counted[starts[lengths > 0]] = False
        labelled_forget = table["label"].to_numpy() == FORGET
        for is_forget in counts:
            of_kind = labelled_forget == is_forget
            of_kind &= of_kind.cumsum() <= stories_left[is_forget]
            stories_left[is_forget] -= int(of_kind.sum())
            chosen = tokens[is_counted & np.repeat(of_kind, lengths)]
            counts[is_forget] += count_tokens([torch.from_numpy(chosen).long()], vocabulary_size)
    return FrequencyTable(counts[True], counts[False], rule.frequency_scale, rule.frequency_bias)


def weigh_examples(
    stories: Dataset,
    rule: RoutingRuleConfig,
    table: FrequencyTable | None,
    num_proc: int | None = None,
    marks_unlabelled: bool = False,
    modules: Sequence[str] = (),
) -> Dataset:
    """Adds `routing_weight`, fp32, aligned to the predicted token: 1 on examples that are not labelled forget.

    Of examples with a score s (`hf_era.data.labelling`) it is 1 - s * (1 - w), w the rule's weight of a forget example's
    token: under uniform weighting 1 - s on every token, whichever side of the threshold they are on.

    With `marks_unlabelled` also `is_unassigned` (one bool per token), for routers that treat such examples apart. Where
    examples have a `module` also `module_index`, int64: its place in `modules`, those of the model in order; -1 for none.
    """
    names = pa.array(modules, pa.string())
    vocabulary_weights = None if table is None else table.weights

    def weigh(batch: pa.Table) -> pa.Table:
        ids, lengths = flat_column(batch, "input_ids")
        is_forget_word, _ = flat_column(batch, "is_forget_word")
        scores = _scores(batch)
        in_forget = np.repeat(scores > 0, lengths)
        weights = torch.ones(len(ids))
        weights[torch.from_numpy(in_forget)] = weigh_tokens(
            rule,
            torch.from_numpy(ids[in_forget]).long(),
            torch.from_numpy(is_forget_word[in_forget]),
            vocabulary_weights,
        )
        if SCORE in batch.column_names:  # of others the weights stay what they are to the last bit
            weights = 1 - torch.from_numpy(np.repeat(scores, lengths)) * (1 - weights)
        aligned = align_stories_to_prediction(weights, torch.tensor(lengths, dtype=torch.int64))
        batch = batch.append_column("routing_weight", list_column(aligned.numpy(), lengths))
        if marks_unlabelled:
            is_unassigned = np.repeat(batch["label"].to_numpy() == UNLABELLED, lengths)
            batch = batch.append_column("is_unassigned", list_column(is_unassigned, lengths))
        if MODULE in batch.column_names:
            places = pc.fill_null(pc.index_in(batch[MODULE], names, skip_nulls=True), -1)
            batch = batch.append_column("module_index", places.cast(pa.int64()))
        return batch

    return map_tables(stories, weigh, num_proc, "Weighing tokens")


def _scores(batch: pa.Table) -> np.ndarray[Any, Any]:
    """How much each example is one to be forgotten, (examples,): its score, or 1 for a forget label; 0 without one."""
    labels = batch["label"].to_numpy()
    if SCORE in batch.column_names:
        return np.where(labels == UNLABELLED, 0, np.nan_to_num(batch[SCORE].to_numpy())).astype(np.float32)
    return (labels == FORGET).astype(np.float32)
