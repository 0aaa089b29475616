"""Pads examples to a batch: `input_ids`, `attention_mask`, `labels`, `routing_weight` and more; and checks them first."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_era.utils.checks import check_count, listed, short_repr

IGNORE_INDEX = -100
# What padding holds in the optional columns of a batch: it counts for nothing.
PADDING = {
    "attention_mask": 0, "labels": IGNORE_INDEX, "routing_weight": 1.0, "is_forget_word": False, "is_unassigned": False,
}  # fmt: skip
MODULE_INDEX = "module_index"
"""One number per example, not per token: the place of its module among those of the model, -1 for none."""
PACKING_INPUTS = frozenset({
    "position_ids", "seq_idx", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_lengths",
})  # fmt: skip
"""Where packed examples begin in their row. Many models take these without naming them in `forward`."""
LABEL_MASKS = frozenset({"completion_mask", "assistant_masks"})
"""Which tokens are to be learnt, in data sets that trl and chat templates make."""
MODEL_INPUTS = (
    PACKING_INPUTS | LABEL_MASKS | {"token_type_ids", "inputs_embeds", "shift_labels", "cache_position", "head_mask"}
)
"""Inputs of causal LMs that `RoutingCollator` has no padding for."""
_LARGEST_ID = 2**31 - 1
# What the numbers of a column are, in words; the kinds of numpy dtype that hold them; their dtype in a batch.
_KINDS: dict[str, tuple[str, str, Any]] = {
    "input_ids": ("integers", "iu", np.int64),
    "labels": ("integers", "iu", np.int64),
    "attention_mask": ("0 or 1", "iub", np.int64),
    "routing_weight": ("floating numbers in [0, 1]", "fiu", np.float32),
    "is_forget_word": ("true or false", "biu", np.bool_),
    "is_unassigned": ("true or false", "biu", np.bool_),
    MODULE_INDEX: ("an integer of at least -1 (no module)", "iu", np.int64),
}


def check_all_are_collated(where: str, names: Iterable[str], taken: Collection[str] = MODEL_INPUTS) -> None:
    """Raises `ValueError` for names of columns that a model takes (`taken`) and `RoutingCollator` would leave out."""
    lost = sorted(name for name in names if name in taken and name not in _KINDS)
    if lost:
        harm = " Packed examples would see each other." if PACKING_INPUTS.intersection(lost) else ""
        if LABEL_MASKS.intersection(lost):
            harm += " Tokens that it leaves out would be trained on: give `labels` that are -100 there instead."
        raise ValueError(
            f"{listed(lost)} of {where} would not reach the model: `RoutingCollator` does not know it.{harm} Take the "
            "column out, or pass a `data_collator` of your own that makes batches with it."
        )


def check_examples(examples: Sequence[dict[str, Any]]) -> list[str]:
    """The optional columns that the examples have.

    Raises:
        ValueError: for an empty batch, an empty example, a column that only some examples have, or a wrong length; and for
            an input of causal LMs that there is no padding for.
    """
    if not examples:
        raise ValueError("The batch is empty. A collator needs at least one example.")
    present = [name for name in PADDING if any(name in example for example in examples)]
    for row, example in enumerate(examples):
        check_all_are_collated(f"row {row} of the batch", example)
        if "input_ids" not in example:
            raise ValueError(
                f"Row {row} of the batch has no `input_ids`, only {short_repr(sorted(map(str, example)))}."
            )
        tokens = _length("input_ids", row, example)
        if not tokens:
            raise ValueError(f"Row {row} of the batch has no token in `input_ids`. Take the empty example out.")
        for name in present:
            if name not in example:
                raise ValueError(
                    f"Some examples of the batch have `{name}` and some do not. Give it to all, or to none."
                )
            if _length(name, row, example) != tokens:
                raise ValueError(
                    f"`{name}` has {len(example[name])} values for {tokens} tokens in `input_ids`, in row {row} of the "
                    "batch. It needs one value per token."
                )
    return present


def _module_indices(examples: Sequence[dict[str, Any]]) -> Tensor | None:
    """(batch,), int64; `None` if no example says which module it belongs to.

    Raises:
        ValueError: if only some do, or a value is no integer of at least -1; it names the row.
    """
    if not any(MODULE_INDEX in example for example in examples):
        return None
    spelled, kinds, dtype = _KINDS[MODULE_INDEX]
    if not all(MODULE_INDEX in example for example in examples):
        raise ValueError(
            f"Some examples of the batch have `{MODULE_INDEX}` and some do not. Give it to all (-1: no module), or to none."
        )
    values = [np.asarray(example[MODULE_INDEX]) for example in examples]
    for row, value in enumerate(values):
        if value.ndim or value.dtype.kind not in kinds or not -1 <= value <= _LARGEST_ID:
            raise ValueError(
                f"`{MODULE_INDEX}` of row {row} should be {spelled}, got {short_repr(examples[row][MODULE_INDEX])}."
            )
    return torch.from_numpy(np.array(values, dtype))


def _length(name: str, row: int, example: dict[str, Any]) -> int:
    try:
        return len(example[name])
    except TypeError as error:
        raise ValueError(f"`{name}` of row {row} should be a list, got {short_repr(example[name])}.") from error


def checked_values(name: str, examples: Sequence[dict[str, Any]], vocabulary_size: int | None) -> np.ndarray[Any, Any]:
    """A column of all examples end to end, (tokens,).

    Raises:
        ValueError: for values that are no numbers, or out of the column's range; it names the row.
    """
    columns = [_numbers(name, row, example[name]) for row, example in enumerate(examples)]
    values = np.concatenate(columns)
    if name == "routing_weight":
        is_fine, wanted = (values >= 0) & (values <= 1), "in [0, 1]: 1 is retain, 0 is forget"  # NaN is neither
    elif name in ("input_ids", "labels"):
        most = (vocabulary_size or _LARGEST_ID + 1) - 1
        is_fine, wanted = (values >= 0) & (values <= most), f"from 0 to {most}"
        if name == "labels":
            is_fine |= values == IGNORE_INDEX
            wanted += f", or {IGNORE_INDEX}"
    else:
        is_fine, wanted = (values == 0) | (values == 1), _KINDS[name][0]
    if not is_fine.all():
        index = int(np.argmin(is_fine))
        row = int(np.searchsorted(np.cumsum([len(column) for column in columns]), index, side="right"))
        raise ValueError(
            f"`{name}` should be {wanted}, got {short_repr(values[index].item())} in row {row} of the batch."
        )
    return values


def _numbers(name: str, row: int, values: Any) -> np.ndarray[Any, Any]:
    """One example's values as an array; of one dimension, and numbers of the right kind."""
    spelled, kinds, _ = _KINDS[name]
    try:
        array = np.asarray(values)
    except Exception as error:  # rows of unlike length, tensors on another device: numpy and torch say it in their ways
        raise ValueError(f"`{name}` of row {row} should hold {spelled}, got {short_repr(values)}.") from error
    if array.dtype.kind not in kinds or array.ndim != 1:
        raise ValueError(
            f"`{name}` of row {row} should be a list of {spelled}, got an array of {array.dtype} with the shape "
            f"{array.shape}."
        )
    return array


@dataclass
class RoutingCollator:
    """Right-pads the examples of a batch to their longest.

    Padding is marked by the attention mask and by label -100, never by a token id: with GPT-2's tokenizer the padding id
    is also the BOS and EOS id, and those must be learnt. Examples that bring `attention_mask` or `labels` of their own
    (a masked prompt, say) keep them; otherwise every token is real and is a label.

    Args:
        pad_token_id (`int`): any valid id; it is masked wherever it pads.
        pad_to_multiple_of (`int`, *optional*): round the length up to a multiple of this, if `max_length` allows.
        vocabulary_size (`int`, *optional*): of the model. Given: ids and labels beyond it are refused here, with their row;
            not given, only negative ones are.
        max_length (`int`, *optional*): that rounding up stops at: a model has no more positions.

    Raises (from a call):
        ValueError: for an empty batch or example, columns of unlike length or that some examples lack, a routing weight that
            is not in [0, 1], a module index that is no integer of at least -1, ids and labels that no vocabulary has, or
            inputs of causal LMs that it does not know (`position_ids`, say), which it would otherwise leave out. Columns
            that are no inputs (`text`, `length`) are left out.

    Returns (from a call): `input_ids`, `attention_mask`, `labels` int64 and, if the examples have it, `routing_weight`
    fp32 (1 on padding), `is_forget_word` and `is_unassigned` bool, each (batch, seq); and `module_index` int64, (batch,).
    Labels are not shifted; the model shifts them.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None
    vocabulary_size: int | None = None
    max_length: int | None = None

    def __post_init__(self) -> None:
        check_count("pad_token_id", self.pad_token_id, 0)
        check_count("pad_to_multiple_of", self.pad_to_multiple_of)
        check_count("vocabulary_size", self.vocabulary_size)
        check_count("max_length", self.max_length)

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        present = check_examples(examples)
        lengths = np.array([len(example["input_ids"]) for example in examples])
        longest = int(lengths.max())
        if self.pad_to_multiple_of:
            rounded = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
            longest = max(longest, min(rounded, self.max_length or rounded))
        is_token = np.arange(longest) < lengths[:, None]

        def padded(name: str, padding: Any) -> Tensor:
            column = np.full(is_token.shape, padding, _KINDS[name][-1])
            # End to end, then all at once: row by row takes several times as long, and every training step waits for it.
            column[is_token] = checked_values(name, examples, self.vocabulary_size)
            return torch.from_numpy(column)

        batch = {
            "input_ids": padded("input_ids", self.pad_token_id),
            "attention_mask": torch.from_numpy(is_token.astype(np.int64)),
            **{name: padded(name, PADDING[name]) for name in present},
        }
        if (modules := _module_indices(examples)) is not None:
            batch[MODULE_INDEX] = modules
        if "labels" not in present:
            batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORE_INDEX)
        return batch


def padding_token_id(tokenizer: Any, vocabulary_size: int | None = None) -> int:
    """The id to pad with: the tokenizer's own, else its EOS, else 0. Padding is masked, so any valid id will do; given the
    `vocabulary_size` of a model, ids that it does not have are passed over (of a padding token that only the tokenizer got).
    """
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None and (vocabulary_size is None or token_id < vocabulary_size):
            return int(token_id)
    return 0
