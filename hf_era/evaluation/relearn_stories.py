"""The stories that relearn attacks learn from and are measured on: padded once, and kept on the device."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from torch import Tensor

from hf_era.data import RoutingCollator, longest_first
from hf_era.data.collator import IGNORE_INDEX
from hf_era.evaluation.batch_halving import halving_batches
from hf_era.evaluation.losses import concatenated, story_losses
from hf_era.evaluation.relearn_result import RelearnPoint
from hf_era.processes import in_all, share_out


class MeasuredStories:
    """The forget and retain stories that attacks are measured on.

    Args:
        forget, retain (`Dataset`): with `input_ids` and `length`.
        pad_token_id (`int`): any valid id.
        batch_size (`int`, *optional*, defaults to `16`): stories a batch; changes speed and memory only.
        device (*optional*, defaults to `"cpu"`): where they are kept, and attacks run.
        bf16 (`bool`, *optional*, defaults to `False`): attacks and measurements run in bf16 autocast.

    Attributes:
        counts (`dict[str, int]`): `forget_stories`, `forget_tokens`, `retain_stories`, `retain_tokens`; tokens that are
            predicted, and stories that have any.

    Raises:
        ValueError: if one of the two has nothing to predict.
    """

    def __init__(
        self,
        forget: Dataset,
        retain: Dataset,
        pad_token_id: int,
        batch_size: int = 16,
        device: Any = "cpu",
        bf16: bool = False,
    ) -> None:
        self.device, self.batch_size = torch.device(device), batch_size
        self._stories, self._pad_token_id = {"forget": forget, "retain": retain}, pad_token_id
        self.autocast = partial(torch.autocast, self.device.type, torch.bfloat16, enabled=bf16)
        self.counts: dict[str, int] = {}
        self._batches = self._padded(batch_size)
        for name, batches in self._batches.items():
            if not batches:
                raise ValueError(
                    f"There is no {name} story to measure the attack on: of {len(self._stories[name])}, none has two "
                    "tokens or more."
                )
            self.counts[f"{name}_stories"] = sum(len(batch["labels"]) for batch in batches)
            self.counts[f"{name}_tokens"] = count_labels(batches)

    def _padded(self, batch_size: int) -> dict[str, list[dict[str, Tensor]]]:
        return {
            name: padded_batches(stories, self._pad_token_id, batch_size, self.device)
            for name, stories in self._stories.items()
        }

    def losses(self, model: Any, state: PartialState | None = None) -> dict[str, float]:
        """`forget`, `retain` -> loss, token-weighted, nats a token. The model is on this device already.

        Args:
            state (`PartialState`, *optional*): of this process among the launched ones, which share the batches out. Not
                given: this process reads them all, and waits for no other.

        Raises:
            BatchMemoryError: if memory does not suffice for a single story.
        """

        def read(size: int) -> dict[str, float]:
            if size != self.batch_size:
                self._batches = {}  # before the others come
                self._batches, self.batch_size = self._padded(size), size
            batches = [(name, batch) for name, part in self._batches.items() for batch in part]
            parts = share_out(batches, lambda pair: story_losses(model, [pair[1]], autocast=self.autocast), state)
            found = {}
            for name in self._batches:
                own = [part for (owner, _), part in zip(batches, parts, strict=True) if owner == name]
                losses = concatenated(own)
                found[name] = float(losses.nll.sum() / losses.tokens.sum())
            return found

        # A process whose trial had to halve its batches has other ones than the rest.
        start = min(in_all(lambda: self.batch_size, state))
        losses, _ = halving_batches(
            read, start, doing="Measuring an attack", setting="`relearn.batch_size`", state=state
        )
        return losses

    def point(self, model: Any, step: int, state: PartialState | None = None) -> RelearnPoint:
        losses = self.losses(model, state)
        return RelearnPoint(step, losses["forget"], losses["retain"])

    def start(self, model: Any, state: PartialState | None = None) -> RelearnPoint:
        """The point of step 0; raises `ValueError` if a loss is not finite."""
        point = self.point(model, 0, state)
        for name, loss in (("forget", point.forget_loss), ("retain", point.retain_loss)):
            if not math.isfinite(loss):
                raise ValueError(
                    f"The model's {name} loss is not finite before the attack, but {loss}: there is nothing to attack. "
                    "Its weights or its training went wrong."
                )
        return point


def padded_batches(stories: Dataset, pad_token_id: int, batch_size: int, device: Any) -> list[dict[str, Tensor]]:
    """Stories (`input_ids`, `length`) padded once, like with like, on the device. A story with fewer than two tokens has
    nothing to predict and is left out."""
    examples = longest_first(stories)
    examples = examples.select(range(sum(length > 1 for length in examples["length"]))).select_columns(["input_ids"])
    collator = RoutingCollator(pad_token_id)
    return [
        {
            name: value.to(device)
            for name, value in collator(examples.select(range(start, min(start + batch_size, len(examples))))).items()
        }
        for start in range(0, len(examples), batch_size)
    ]


def count_labels(batches: list[dict[str, Tensor]]) -> int:
    """Tokens that are predicted."""
    return sum(int((batch["labels"][:, 1:] != IGNORE_INDEX).sum()) for batch in batches)
