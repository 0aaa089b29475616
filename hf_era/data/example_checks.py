"""Checks of the examples of a batch, column by column in numpy: every training step waits for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_era.checks import shown

IGNORE_INDEX = -100
OPTIONAL_COLUMNS = ("attention_mask", "labels", "routing_weight", "is_forget_word")
_LARGEST_ID = 2**31 - 1
# What the numbers of a column are, in words, and the kinds of numpy dtype that hold them.
_KINDS = {
    "input_ids": ("integers", "iu"),
    "labels": ("integers", "iu"),
    "attention_mask": ("0 or 1", "iub"),
    "routing_weight": ("floating numbers in [0, 1]", "fiu"),
    "is_forget_word": ("true or false", "biu"),
}


def check_examples(examples: Sequence[dict[str, Any]]) -> list[str]:
    """The optional columns that the examples have.

    Raises:
        ValueError: for an empty batch, an empty story, a column that only some examples have, or a wrong length.
    """
    if not examples:
        raise ValueError("The batch is empty. A collator needs at least one example.")
    present = [name for name in OPTIONAL_COLUMNS if any(name in example for example in examples)]
    for row, example in enumerate(examples):
        if "input_ids" not in example:
            raise ValueError(f"Row {row} of the batch has no `input_ids`, only {shown(sorted(map(str, example)))}.")
        tokens = _length("input_ids", row, example)
        if not tokens:
            raise ValueError(f"Row {row} of the batch has no token in `input_ids`. Take the empty story out.")
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


def _length(name: str, row: int, example: dict[str, Any]) -> int:
    try:
        return len(example[name])
    except TypeError as error:
        raise ValueError(f"`{name}` of row {row} should be a list, got {shown(example[name])}.") from error


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
        raise ValueError(f"`{name}` should be {wanted}, got {shown(values[index].item())} in row {row} of the batch.")
    return values


def _numbers(name: str, row: int, values: Any) -> np.ndarray[Any, Any]:
    """One example's values as an array; of one dimension, and numbers of the right kind."""
    spelled, kinds = _KINDS[name]
    try:
        array = np.asarray(values)
    except Exception as error:  # rows of unlike length, tensors on another device: numpy and torch say it in their ways
        raise ValueError(f"`{name}` of row {row} should hold {spelled}, got {shown(values)}.") from error
    if array.dtype.kind not in kinds or array.ndim != 1:
        raise ValueError(
            f"`{name}` of row {row} should be a list of {spelled}, got an array of {array.dtype} with the shape "
            f"{array.shape}."
        )
    return array
