"""The relearn attack: fine-tune on a few forget stories and see how much of the capability comes back, and how fast.

One trial is here: one model, one set of stories, one learning rate; the whole curve of forget and retain loss. The attack
runs on a copy in the fast class of its architecture; batches are padded once and stay on the device, and evaluation never
holds logits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from hf_era.data import RoutingCollator, longest_first
from hf_era.data.collator import IGNORE_INDEX
from hf_era.evaluation.losses import story_losses
from hf_era.models.fast_model import FastCausalLMMixin
from hf_era.models.loading import fast_class_of


@dataclass(frozen=True)
class RelearnAttackConfig:
    """One trial of the attack. Defaults: the reference's.

    Args:
        stories (`int`, *optional*, defaults to `64`): forget stories that the attacker has; all are the batch of every
            step.
        steps (`int`, *optional*, defaults to `40`): steps at most.
        learning_rate (`float`, *optional*, defaults to `5e-5`): AdamW's, constant; betas (0.9, 0.95).
        patience (`int`, *optional*, defaults to `3`): stop after so many evaluations in a row whose forget loss rose.
            `None`: never.
        evaluate_every (`int`, *optional*, defaults to `1`): steps between evaluations.
        batch_size (`int`, *optional*, defaults to `16`): stories in memory at a time; changes speed and memory only.
        seed (`int`, *optional*, defaults to `0`): of the choice of stories.

    Raises:
        ValueError: for a number out of range.
    """

    stories: int = field(default=64, metadata={"help": "Forget stories that the attacker has."})
    steps: int = field(default=40, metadata={"help": "Steps at most."})
    learning_rate: float = field(default=5e-5, metadata={"help": "Learning rate, constant."})
    patience: int | None = field(default=3, metadata={"help": "Stop after so many rises in a row."})
    evaluate_every: int = field(default=1, metadata={"help": "Steps between evaluations."})
    batch_size: int = field(default=16, metadata={"help": "Stories in memory at a time."})
    seed: int = field(default=0, metadata={"help": "Of the choice of stories."})

    def __post_init__(self) -> None:
        for name in ("stories", "steps", "patience", "evaluate_every", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`relearn.{name}` should be at least 1, got {value}.")
        if not self.learning_rate > 0:
            raise ValueError(f"`relearn.learning_rate` should be positive, got {self.learning_rate}.")


@dataclass(frozen=True)
class RelearnPoint:
    """Losses after so many steps of the attack, nats a token, token-weighted."""

    step: int
    forget_loss: float
    retain_loss: float


@dataclass(frozen=True)
class RelearnCurve:
    """The curve of one trial; its first point is step 0, before the attack."""

    points: list[RelearnPoint]

    @property
    def lowest(self) -> RelearnPoint:
        """The point of the lowest forget loss: what the attack brought back at best."""
        return min(self.points, key=lambda point: point.forget_loss)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class RelearnAttack:
    """Attacks models with the same stories and measures them on the same ones.

    Args:
        attack_stories (`Dataset`): forget stories that neither training nor evaluation saw; `input_ids`, `length`.
        forget, retain (`Dataset`): what is measured; the same columns.
        pad_token_id (`int`): any valid id.
        config (`RelearnAttackConfig`): the attack.
        device (*optional*, defaults to `"cpu"`): where it runs.

    Raises:
        ValueError: if there are fewer attack stories than the attack asks for, or nothing to measure.
    """

    def __init__(
        self,
        attack_stories: Dataset,
        forget: Dataset,
        retain: Dataset,
        pad_token_id: int,
        config: RelearnAttackConfig,
        device: Any = "cpu",
    ) -> None:
        self.config, self.device = config, torch.device(device)
        self._collator = RoutingCollator(pad_token_id)
        if len(attack_stories) < config.stories:
            raise ValueError(
                f"`relearn.stories` asks for {config.stories} forget stories, but there are {len(attack_stories)} that "
                "neither training nor evaluation saw. Lower it, or set more aside with `data.attack_stories`."
            )
        for name, stories in (("forget", forget), ("retain", retain)):
            if not len(stories):
                raise ValueError(f"There is no {name} story to measure the attack on.")
        order = torch.randperm(len(attack_stories), generator=torch.Generator().manual_seed(config.seed))
        self._attack = self._batches(attack_stories.select(order[: config.stories].tolist()))
        self._labels = sum(int((batch["labels"][:, 1:] != IGNORE_INDEX).sum()) for batch in self._attack)
        self._sets = {"forget": self._batches(forget), "retain": self._batches(retain)}

    def run(self, model: Any, on_step: Callable[[RelearnPoint], None] | None = None) -> RelearnCurve:
        """Attacks a copy of `model`, any causal LM; `on_step` is called with every point of the curve."""
        attacked = _fast_copy(model).to(self.device).train()
        optimizer = torch.optim.AdamW(
            attacked.parameters(), lr=self.config.learning_rate, betas=(0.9, 0.95), fused=True
        )
        points: list[RelearnPoint] = []
        rises = 0
        for step in range(self.config.steps + 1):
            if step:
                self._step(attacked, optimizer)
            if step % self.config.evaluate_every and step != self.config.steps:
                continue
            point = RelearnPoint(step, self._loss(attacked, "forget"), self._loss(attacked, "retain"))
            rises = rises + 1 if points and point.forget_loss > points[-1].forget_loss else 0
            points.append(point)
            if on_step is not None:
                on_step(point)
            if self.config.patience is not None and rises >= self.config.patience:
                break
        return RelearnCurve(points)

    def _step(self, model: Any, optimizer: torch.optim.Optimizer) -> None:
        """One step on all stories: micro-batches whose losses are summed and divided by all labels."""
        optimizer.zero_grad()
        for batch in self._attack:
            model(**batch, num_items_in_batch=self._labels).loss.backward()
        optimizer.step()

    def _loss(self, model: Any, name: str) -> float:
        losses = story_losses(model, self._sets[name])
        return float(losses.nll.sum() / losses.tokens.sum())

    def _batches(self, stories: Dataset) -> list[dict[str, Tensor]]:
        """Padded once, like with like, on the device."""
        examples = longest_first(stories).select_columns(["input_ids"])
        size = self.config.batch_size
        return [
            {name: value.to(self.device) for name, value in self._collator(examples.select(range(start, stop))).items()}
            for start, stop in ((at, min(at + size, len(examples))) for at in range(0, len(examples), size))
        ]


def _fast_copy(model: Any) -> Any:
    """A copy with storage of its own, in the fast class where its architecture has one."""
    fast_class = None if isinstance(model, FastCausalLMMixin) else fast_class_of(model.config)
    return copy.deepcopy(model) if fast_class is None else copy.deepcopy(fast_class.from_stock(model))
