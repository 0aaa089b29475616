"""The relearn attack: fine-tune on a few forget stories and see how much of the capability comes back, and how fast.

One trial is here: one model, one set of stories, one learning rate; the whole curve of forget and retain loss. The attack
runs on a copy in the fast class of its architecture; batches are padded once and stay on the device, and evaluation never
holds logits. The experiment made of many trials is in `relearn_experiment.py`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from hf_era.evaluation.batch_halving import halving_batches
from hf_era.evaluation.relearn_config import FULL, LORA, RelearnAttackConfig
from hf_era.evaluation.relearn_lora import with_lora
from hf_era.evaluation.relearn_result import RelearnCurve, RelearnPoint, rises_at_the_end
from hf_era.evaluation.relearn_stories import MeasuredStories, count_labels, padded_batches
from hf_era.models.fast_model import FastCausalLMMixin
from hf_era.models.loading import fast_class_of


class RelearnAttack:
    """One trial: attacks models with the same stories.

    AdamW without a schedule, all stories in every step, in training mode (a model with dropout is attacked with it; the
    seed makes that repeatable). Weights in half precision are attacked in an fp32 copy: a step of 5e-5 would round to
    nothing in bf16. Frozen parameters are attacked too, for an attacker can unfreeze them.

    Args:
        stories (`Dataset`): forget stories that neither training nor evaluation saw, with `input_ids` and `length`; all
            are the batch of every step.
        measured (`MeasuredStories`): what the curve is measured on.
        pad_token_id (`int`): any valid id.
        config (`RelearnAttackConfig`): steps, learning rate and so on.
        kind (`str`, *optional*, defaults to `"full"`): `full`: all weights are trained. `lora`: adapters only.

    Raises:
        ValueError: if the stories have nothing to learn from.
    """

    def __init__(
        self,
        stories: Dataset,
        measured: MeasuredStories,
        pad_token_id: int,
        config: RelearnAttackConfig,
        kind: str = FULL,
    ) -> None:
        self.config, self.kind, self._measured = config, kind, measured
        self._stories, self._pad_token_id, self._batch_size = stories, pad_token_id, config.batch_size
        self._batches = padded_batches(stories, pad_token_id, config.batch_size, measured.device)
        self._labels = count_labels(self._batches)
        if not self._labels:
            raise ValueError(
                f"There is nothing to learn from the attack's {len(stories)} stories: none has two tokens or more. "
                "Give longer ones, or raise `relearn.stories`."
            )

    def run(
        self,
        model: Any,
        start: RelearnPoint | None = None,
        on_step: Callable[[RelearnPoint], None] | None = None,
    ) -> RelearnCurve:
        """Attacks a copy of `model`, any causal LM; the model itself is left as it is.

        A trial whose loss is no longer finite ends there, and its curve with the last finite point.

        Args:
            start (`RelearnPoint`, *optional*): the point of step 0, where it is known. Not given: it is measured.
            on_step (*optional*): called with every point of the curve.

        Raises:
            ValueError: if a loss is not finite before the attack.
        """
        with seeded(self.config.seed, self._measured.device):
            attacked = attackable_copy(model, self._measured.device)
            if self.kind == LORA:
                attacked = with_lora(attacked, self.config.lora_rank, self.config.lora_alpha)
            points = [start or self._measured.start(attacked)]
            if on_step is not None:
                on_step(points[0])
            self._attack(attacked.train(), points, on_step)
        return RelearnCurve(points)

    def _attack(self, model: Any, points: list[RelearnPoint], on_step: Callable[[RelearnPoint], None] | None) -> None:
        """Trains the copy in place and adds the points of its curve."""
        config = self.config
        optimizer = torch.optim.AdamW(
            [parameter for parameter in model.parameters() if parameter.requires_grad],
            lr=config.learning_rate,
            betas=(0.9, 0.95),
            fused=True if self._measured.device.type in ("cpu", "cuda") else None,
        )
        for step in range(1, config.steps + 1):
            self._step(model, optimizer)
            if step % config.evaluate_every and step != config.steps:
                continue
            point = self._measured.point(model, step)
            if not (math.isfinite(point.forget_loss) and math.isfinite(point.retain_loss)):
                return
            points.append(point)
            if on_step is not None:
                on_step(point)
            if config.patience is not None and rises_at_the_end(points) >= config.patience:
                return

    def _step(self, model: Any, optimizer: torch.optim.Optimizer) -> None:
        """One step on all stories: micro-batches whose losses are summed and divided by all labels."""

        def accumulate(size: int) -> None:
            if size != self._batch_size:
                self._batches = padded_batches(self._stories, self._pad_token_id, size, self._measured.device)
                self._batch_size = size
            optimizer.zero_grad()  # of a try that did not fit, too
            for batch in self._batches:
                with self._measured.autocast():
                    loss = self._share_of_loss(model, batch)
                loss.backward()

        halving_batches(accumulate, self._batch_size, doing="Attacking", setting="`relearn.batch_size`")
        optimizer.step()

    def _share_of_loss(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        """What a micro-batch adds to the loss over all labels."""
        if isinstance(model, FastCausalLMMixin):
            return model(**batch, num_items_in_batch=self._labels).loss  # type: ignore[operator]
        # Not every causal LM takes the number, and one that does not would divide by its own without a word.
        return model(**batch).loss * (count_labels([batch]) / self._labels)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Within this context torch draws from `seed`; afterwards it goes on as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def attackable_copy(model: Any, device: Any) -> Any:
    """A copy with storage of its own, on `device`, in fp32 where it was in half precision, every parameter trainable; in
    the fast class where its architecture has one."""
    fast_class = None if isinstance(model, FastCausalLMMixin) else fast_class_of(model.config)
    if fast_class is not None and type(model) is fast_class.stock_class:
        model = fast_class.from_stock(model)  # shares the parameters; the copy comes next
    copied = copy.deepcopy(model).to(device)
    if any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in copied.parameters()):
        copied = copied.float()
    copied.config.use_cache = False  # the copy's own: keys and values are for generating
    return copied.requires_grad_(True)
