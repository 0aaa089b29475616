"""Padding rows: they fill the last batch of several processes up and count for nothing.

Every process must make the same number of forward passes over batches of the same size. Taking examples from the start of
the epoch again, as accelerate does, counts those examples twice. A padding row is a masked copy of two tokens of an example:
attention mask 0, labels -100, routing weight 1, so it adds nothing to a loss, a token count, an L1 norm or a mean
activation; and a batch of nothing but padding rows has a loss of zero and gradients of zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from hf_era.data.collator import PADDING

PADDING_ROW_MARK = "_is_padding_row"
PADDING_ROW_TOKENS = 2  # the shortest row that has a predicted position


class StoriesWithPaddingRows(Dataset):
    """Examples, and a padding row at every index behind the last example. Its length is the number of examples.

    Args:
        examples: a map-style data set of examples (dicts) with at least one example.

    Raises:
        ValueError: if there is no example to make a padding row of.
    """

    def __init__(self, stories: Any) -> None:
        if len(stories) == 0:
            raise ValueError("The data set is empty: there is no example to share out to the processes. Give it one.")
        self.stories = stories
        self.padding_row: dict[str, Any] = {PADDING_ROW_MARK: True}
        for name, value in stories[0].items():
            # A number of the whole example has a shape too, where the data set gives arrays: an empty one.
            is_per_token = isinstance(value, (list, tuple)) or bool(getattr(value, "shape", ()))
            self.padding_row[name] = value[:PADDING_ROW_TOKENS] if is_per_token else value

    def __len__(self) -> int:
        return len(self.stories)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self.padding_row) if index >= len(self.stories) else self.stories[index]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """All examples of a batch at once, as torch's loader asks for them: a `datasets.Dataset` is far faster so."""
        real = [index for index in indices if index < len(self.stories)]
        fetch = getattr(self.stories, "__getitems__", None)
        found = iter((fetch(real) if real else []) if fetch is not None else [self.stories[index] for index in real])
        return [dict(self.padding_row) if index >= len(self.stories) else next(found) for index in indices]


class PaddedSampler(Sampler[int]):
    """The order of another sampler, filled up with indices of padding rows to a multiple of the global batch.

    Args:
        sampler (`Sampler`): yields indices of examples.
        multiple (`int`): rows of one batch over all processes.
        padding_index (`int`): an index behind the last example.
    """

    def __init__(self, sampler: Any, multiple: int, padding_index: int) -> None:
        self.sampler, self.multiple, self.padding_row_index = sampler, multiple, padding_index

    def set_epoch(self, epoch: int) -> None:
        """Hands the epoch on to the sampler inside."""
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.multiple) * self.multiple

    def __iter__(self) -> Iterator[int]:
        yield from self.sampler
        yield from [self.padding_row_index] * (len(self) - len(self.sampler))


@dataclass
class PaddingRowCollator:
    """Collates with another collator, which sees ordinary examples only, and then masks the padding rows.

    Args:
        collator (`Callable`): makes a batch of `input_ids`, `labels` and more, each (batch, seq), from examples.

    Raises:
        ValueError: (from a call) if a batch with padding rows has no `labels` or `input_ids`: nothing tells the loss to
            leave them out.
    """

    collator: Callable[[Sequence[dict[str, Any]]], Any]

    def __call__(self, examples: Sequence[dict[str, Any]]) -> Any:
        is_padding = torch.tensor([PADDING_ROW_MARK in example for example in examples])
        if not is_padding.any():
            return self.collator(examples)
        batch = self.collator([{name: row[name] for name in row if name != PADDING_ROW_MARK} for row in examples])
        missing = [name for name in ("input_ids", "labels") if name not in batch]
        if missing or len(batch["labels"]) != len(examples):
            raise ValueError(
                f"`data_collator` ({type(self.collator).__name__}) gave a batch with {sorted(batch)}. With several "
                "processes it should give `input_ids` and `labels`, one row per example: the last batch is filled up "
                "with rows that count for nothing. Or set `training.dataloader_drop_last: true`."
            )
        if "attention_mask" not in batch:
            batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        for name, value in PADDING.items():  # other columns keep what the example had
            if name in batch:
                batch[name][is_padding] = value
        return batch
