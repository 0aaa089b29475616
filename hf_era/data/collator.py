"""Pads stories to a batch: `input_ids`, `attention_mask`, `labels` and `routing_weight`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_era.checks import check_count
from hf_era.data.example_checks import IGNORE_INDEX, check_examples, checked_values

PADDING_ROUTING_WEIGHT = 1.0


@dataclass
class RoutingCollator:
    """Right-pads the examples of a batch to their longest.

    Padding is marked by the attention mask and by label -100, never by a token id: with GPT-2's tokenizer the padding id
    is also the BOS and EOS id, and those must be learnt. Examples that bring `attention_mask` or `labels` of their own
    (a masked prompt, say) keep them; otherwise every token is real and is a label.

    Args:
        pad_token_id (`int`): any valid id; it is masked wherever it pads.
        pad_to_multiple_of (`int`, *optional*): round the length up to a multiple of this.
        vocabulary_size (`int`, *optional*): of the model. Given: ids and labels beyond it are refused here, with their row;
            not given, only negative ones are.

    Raises (from a call):
        ValueError: for an empty batch or story, columns of unlike length, a routing weight that is not in [0, 1], or ids and
            labels that no vocabulary has.

    Returns (from a call): `input_ids`, `attention_mask`, `labels` int64 and, if the examples have it, `routing_weight`
    fp32 (1 on padding) and `is_forget_word` bool, each (batch, seq). Labels are not shifted; the model shifts them.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None
    vocabulary_size: int | None = None

    def __post_init__(self) -> None:
        check_count("pad_token_id", self.pad_token_id, 0)
        check_count("pad_to_multiple_of", self.pad_to_multiple_of)
        check_count("vocabulary_size", self.vocabulary_size)

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        columns = check_examples(examples)
        lengths = np.array([len(example["input_ids"]) for example in examples])
        longest = int(lengths.max())
        if self.pad_to_multiple_of:
            longest = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        is_token = np.arange(longest) < lengths[:, None]

        def padded(name: str, padding: Any, dtype: Any) -> Tensor:
            column = np.full(is_token.shape, padding, dtype)
            # End to end, then all at once: row by row takes several times as long, and every training step waits for it.
            column[is_token] = checked_values(name, examples, self.vocabulary_size)
            return torch.from_numpy(column)

        batch = {
            "input_ids": padded("input_ids", self.pad_token_id, np.int64),
            "attention_mask": torch.from_numpy(is_token.astype(np.int64)),
            "labels": padded("labels" if "labels" in columns else "input_ids", IGNORE_INDEX, np.int64),
        }
        if "attention_mask" in columns:
            batch["attention_mask"] = padded("attention_mask", 0, np.int64)
            if "labels" not in columns:
                batch["labels"][batch["attention_mask"] == 0] = IGNORE_INDEX
        if "routing_weight" in columns:
            batch["routing_weight"] = padded("routing_weight", PADDING_ROUTING_WEIGHT, np.float32)
        if "is_forget_word" in columns:
            batch["is_forget_word"] = padded("is_forget_word", False, np.bool_)
        return batch


def padding_token_id(tokenizer: Any) -> int:
    """The id to pad with: the tokenizer's own, else its EOS, else 0. Padding is masked, so any valid id will do."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    return 0
