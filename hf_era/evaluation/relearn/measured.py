"""What relearn attacks train and are measured on: examples that are padded once and stay on the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from torch import Tensor

from hf_era.data import RoutingCollator, longest_first
from hf_era.data.collator import IGNORE_INDEX
from hf_era.data.columns import present
from hf_era.evaluation.batch_halving import halving_batches
from hf_era.evaluation.losses import StoryLosses, answers_right, concatenated, story_losses
from hf_era.evaluation.relearn.result import RelearnPoint
from hf_era.utils.processes import in_all, share_out


class PaddedExamples:
    """Examples on the device, of which any can be had as batches. Those with fewer than two tokens, or without a label to
    learn, teach nothing and are left out.

    Args:
        stories (`Dataset`): with `input_ids`, `length` and, where not all tokens are learnt, `labels`.
        pad_token_id (`int`): any valid id. device: where they are kept.

    Attributes:
        labels (`list[int]`): tokens of each that are predicted.
    """

    def __init__(self, stories: Dataset, pad_token_id: int, device: Any) -> None:
        self.labels: list[int] = []
        self._columns: dict[str, Tensor] = {}
        examples = longest_first(stories)
        kept = sum(length > 1 for length in examples["length"])
        if not kept:
            return
        whole = RoutingCollator(pad_token_id)(list(present(examples, "input_ids", "labels").select(range(kept))))
        counts = (whole["labels"][:, 1:] != IGNORE_INDEX).sum(1)
        rows = counts.nonzero().squeeze(1)
        self.labels = counts[rows].tolist()
        self._lengths = whole["attention_mask"].sum(1)[rows].tolist()
        self._columns = {name: value[rows].to(device) for name, value in whole.items()}

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, rows: Sequence[int], batch_size: int) -> list[dict[str, Tensor]]:
        """The examples in these rows, the longest first: batches as long as their longest example."""
        rows = sorted(rows, key=lambda row: -self._lengths[row])
        found = []
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            longest, chosen = self._lengths[part[0]], torch.tensor(part)
            found.append({name: value[chosen.to(value.device), :longest] for name, value in self._columns.items()})
        return found


class MeasuredStories:
    """The forget and retain examples that attacks are measured on.

    Args:
        forget, retain (`Dataset`): with `input_ids`, `length` and, where a completion alone is measured, `labels`.
        pad_token_id (`int`): any valid id.
        batch_size (`int`, *optional*, defaults to `16`): examples a batch; changes speed and memory only.
        device (*optional*, defaults to `"cpu"`): where they are kept, and attacks run.
        bf16 (`bool`, *optional*, defaults to `False`): attacks and measurements run in bf16 autocast.
        selection (`Dataset`, *optional*): other forget examples, on which the strongest attack and its step are chosen. Not
            given: both are chosen on `forget`.

    Attributes:
        counts (`dict[str, int]`): `forget_stories`, `forget_tokens`, likewise `retain` and `selection`; tokens that are
            predicted, and examples that have any.

    Raises:
        ValueError: if one of them has nothing to predict.
    """

    def __init__(
        self,
        forget: Dataset,
        retain: Dataset,
        pad_token_id: int,
        batch_size: int = 16,
        device: Any = "cpu",
        bf16: bool = False,
        selection: Dataset | None = None,
    ) -> None:
        self.device = torch.device(device)
        stories = {"forget": forget, "retain": retain, **({} if selection is None else {"selection": selection})}
        self.autocast = partial(torch.autocast, self.device.type, torch.bfloat16, enabled=bf16)
        self._has_answers = "labels" in forget.column_names
        self._examples = {name: PaddedExamples(part, pad_token_id, self.device) for name, part in stories.items()}
        self.counts: dict[str, int] = {}
        for name, examples in self._examples.items():
            if not len(examples):
                raise ValueError(
                    f"There is no {name} example to measure the attack on: of {len(stories[name])}, none has two "
                    "tokens or more."
                )
            self.counts[f"{name}_stories"] = len(examples)
            self.counts[f"{name}_tokens"] = sum(examples.labels)
        self._pad(batch_size)

    def _pad(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._batches: dict[str, list[dict[str, Tensor]]] = {}  # those there were go before the others come
        for name, examples in self._examples.items():
            self._batches[name] = examples.batches(range(len(examples)), batch_size)

    def losses(self, model: Any, state: PartialState | None = None) -> dict[str, float]:
        """`forget`, `retain` and, where there is that half, `selection` -> loss, token-weighted, nats a token; and
        `forget_accuracy`, where completions alone are measured. The model is on this device already.

        Args:
            state (`PartialState`, *optional*): of this process among the launched ones, which share the batches out. Not
                given: this process reads them all, and waits for no other.
        """

        def measure(pair: tuple[str, dict[str, Tensor]]) -> tuple[StoryLosses, Tensor]:
            name, batch = pair
            losses = story_losses(model, [batch], autocast=self.autocast)
            is_asked = self._has_answers and name == "forget"
            return losses, answers_right(model, batch, self.autocast) if is_asked else losses.tokens[:0]

        def read(size: int) -> dict[str, float]:
            if size != self.batch_size:
                self._pad(size)
            batches = [(name, batch) for name, part in self._batches.items() for batch in part]
            parts = share_out(batches, measure, state)
            found = {}
            for name in self._batches:
                own = concatenated(
                    [part for (owner, _), (part, _) in zip(batches, parts, strict=True) if owner == name]
                )
                found[name] = float(own.nll.sum() / own.tokens.sum())
            if self._has_answers:
                found["forget_accuracy"] = float(torch.cat([right for _, right in parts]).double().mean())
            return found

        # A process whose trial had to halve its batches has other ones than the rest.
        start = min(in_all(lambda: self.batch_size, state))
        losses, _ = halving_batches(
            read, start, doing="Measuring an attack", setting="`relearn.batch_size`", state=state
        )
        return losses

    def point(self, model: Any, step: int, state: PartialState | None = None) -> RelearnPoint:
        """What is measured after so many steps."""
        found = self.losses(model, state)
        accuracy = found.get("forget_accuracy")
        return RelearnPoint(step, found["forget"], found["retain"], found.get("selection"), None, accuracy)

    def start(self, model: Any, state: PartialState | None = None) -> RelearnPoint:
        """The point of step 0; raises `ValueError` if a loss is not finite."""
        point = replace(self.point(model, 0, state), tokens=0)
        for name, loss in (("forget", point.forget_loss), ("retain", point.retain_loss), ("forget", point.chosen_by)):
            if not math.isfinite(loss):
                raise ValueError(
                    f"The model's {name} loss is not finite before the attack, but {loss}: there is nothing to attack. "
                    "Its weights or its training went wrong."
                )
        return point
