"""The relearn attack: fine-tune on a few forget examples and see how much of the capability comes back, and how fast.

One trial is here: one model, one set of examples, one learning rate and its schedule; the whole curve of forget and retain
loss. The attack runs on a copy in the fast class of its architecture; examples are padded once and stay on the device, and
evaluation holds logits only where examples are to be answered. What is measured is in `measured.py`, the experiment made of
many trials in `experiment.py`.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import repeat
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from hf_era.evaluation.batch_halving import halving_batches
from hf_era.evaluation.losses import count_labels
from hf_era.evaluation.relearn.config import RelearnAttackConfig
from hf_era.evaluation.relearn.measured import MeasuredStories, PaddedExamples
from hf_era.evaluation.relearn.result import (
    CONSTANT,
    COSINE,
    FORGET,
    FULL,
    HALF,
    LORA,
    RETAIN,
    RelearnCurve,
    RelearnPoint,
    nothing_improves,
    spaced,
)
from hf_era.models.loading import fast_class_of
from hf_era.models.trainable import PEFT_NOISE


class RelearnAttack:
    """One trial: attacks models with the same examples.

    AdamW, in training mode (a model with dropout is attacked with it; the seed makes that repeatable). Weights in half
    precision are attacked in an fp32 copy: a step of 5e-5 would round to nothing in bf16. Frozen parameters are attacked
    too, for an attacker can unfreeze them.

    Args:
        stories (`Dataset`): forget examples that neither training nor evaluation saw, with `input_ids` and `length`.
        measured (`MeasuredStories`): what the curve is measured on. pad_token_id (`int`): any valid id.
        config (`RelearnAttackConfig`): steps, learning rate and so on; without `batch_stories` all examples are the batch of
            every step.
        kind (`str`, *optional*, defaults to `"full"`): `full`: all weights are trained. `lora`: adapters only.
        schedule (`str`, *optional*, defaults to `"constant"`): `constant`, or `cosine`: 10 % warm-up, and down to zero.
        mixture (`str`, *optional*, defaults to `"forget"`): `forget`; `half`: a step has as many retain as forget examples;
            `retain`: retain examples alone.
        retain (`Dataset`, *optional*): retain examples for the last two, which nothing is reported on.

    Attributes:
        tokens (`int`): that a step learns from, on average: those that are predicted.

    Raises:
        ValueError: if the examples have nothing to learn from.
    """

    def __init__(
        self,
        stories: Dataset,
        measured: MeasuredStories,
        pad_token_id: int,
        config: RelearnAttackConfig,
        kind: str = FULL,
        schedule: str = CONSTANT,
        mixture: str = FORGET,
        retain: Dataset | None = None,
    ) -> None:
        self.config, self.kind, self.schedule, self._measured = config, kind, schedule, measured
        self._batch_size = config.batch_size
        parts = {FORGET: [stories], HALF: [stories, retain], RETAIN: [retain]}[mixture]
        self._examples = AttackedExamples([stories if part is None else part for part in parts], pad_token_id, measured)
        self._sizes = self._examples.shares(config.batch_stories)
        self.tokens = self._examples.mean_tokens(self._sizes)

    def run(
        self,
        model: Any,
        start: RelearnPoint | None = None,
        on_step: Callable[[RelearnPoint], None] | None = None,
    ) -> RelearnCurve:
        """Attacks a copy of `model`, any causal LM; the model itself is left as it is.

        A trial whose loss is no longer finite ends there, and its curve with the last finite point.

        Args:
            start (`RelearnPoint`, *optional*): the point of step 0. Not given: measured; `ValueError` if it is not finite.
            on_step (*optional*): called with every point of the curve.
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
        config, tokens = self.config, 0
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        fused = True if self._measured.device.type in ("cpu", "cuda") else None
        optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, betas=(0.9, 0.95), fused=fused)
        draws = self._examples.draws(self._sizes, config.seed)
        for step in range(1, config.steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * share_of_peak(step, config.steps, self.schedule)
            chosen = next(draws)
            self._step(model, optimizer, chosen)
            tokens += self._examples.count(chosen)
            if not is_measured(step, config):
                continue
            point = replace(self._measured.point(model, step), tokens=tokens)
            losses = point.forget_loss, point.retain_loss, point.chosen_by
            if not all(map(math.isfinite, losses)):
                return
            points.append(point)
            if on_step is not None:
                on_step(point)
            if has_turned(points, config, self.schedule):
                return

    def _step(self, model: Any, optimizer: torch.optim.Optimizer, chosen: list[list[int]]) -> None:
        def accumulate(size: int) -> None:
            self._batch_size = size
            optimizer.zero_grad()  # of a try that did not fit, too
            self._examples.accumulate(model, chosen, size)

        halving_batches(accumulate, self._batch_size, doing="Attacking", setting="`relearn.batch_size`")
        optimizer.step()


class AttackedExamples:
    """What an attack learns from: one part, or forget and retain examples as two.

    Args:
        parts (`list[Dataset]`): with `input_ids`, `length` and, optionally, `labels`.
        pad_token_id (`int`): any valid id. measured (`MeasuredStories`): on whose device, and in whose precision.

    Raises:
        ValueError: if a part has nothing to learn from.
    """

    def __init__(self, parts: list[Dataset], pad_token_id: int, measured: MeasuredStories) -> None:
        self._autocast = measured.autocast
        self._parts = [PaddedExamples(part, pad_token_id, measured.device) for part in parts]
        for given, part in zip(parts, self._parts, strict=True):
            if not len(part):
                raise ValueError(
                    f"There is nothing to learn from the attack's {len(given)} examples: none has two tokens or more. "
                    "Give longer ones, or raise `relearn.stories`."
                )

    def shares(self, batch_stories: int | None) -> list[int]:
        """How many examples of each part a step has: all, or equal shares of a batch, the first part's the larger one."""
        sizes = [len(part) for part in self._parts]
        if batch_stories is None:
            return sizes
        shares = [(batch_stories + at) // len(sizes) for at in reversed(range(len(sizes)))]
        return [min(share, size) for share, size in zip(shares, sizes, strict=True)]

    def mean_tokens(self, sizes: list[int]) -> int:
        """Tokens that are predicted in a step with so many examples of each part, on average."""
        means = [sum(part.labels) / len(part) for part in self._parts]
        return round(sum(size * mean for size, mean in zip(sizes, means, strict=True)))

    def draws(self, sizes: list[int], seed: int) -> Iterator[list[list[int]]]:
        """Without end: the examples of a step, of each part so many, in seeded epochs."""
        epochs = [drawn_in_epochs(len(part), size, seed) for part, size in zip(self._parts, sizes, strict=True)]
        return map(list, zip(*epochs, strict=True))

    def count(self, chosen: list[list[int]]) -> int:
        """Tokens that are predicted in these examples of each part."""
        return sum(part.labels[row] for part, rows in zip(self._parts, chosen, strict=True) for row in rows)

    def accumulate(self, model: Any, chosen: list[list[int]], batch_size: int) -> None:
        """Adds the gradient of the mean loss over all labels of the chosen examples, a micro-batch at a time."""
        tokens = self.count(chosen)
        for part, rows in zip(self._parts, chosen, strict=True):
            for batch in part.batches(rows, batch_size):
                with self._autocast():
                    loss = _share_of_loss(model, batch, tokens)
                loss.backward()


def _share_of_loss(model: Any, batch: dict[str, Tensor], tokens: int) -> Tensor:
    """What a micro-batch adds to the loss over all labels of a step."""
    if hasattr(model, "label_losses"):  # one of ours
        return model(**batch, num_items_in_batch=tokens).loss  # type: ignore[no-any-return]
    # Not every causal LM takes the number, and one that does not would divide by its own without a word.
    return model(**batch).loss * (count_labels([batch]) / tokens)  # type: ignore[no-any-return]


def drawn_in_epochs(size: int, number: int, seed: int) -> Iterator[list[int]]:
    """Without end: `number` of `size` indices, in seeded permutations one after another; all of them in order where the
    number is as large. A draw that an epoch does not fill is filled from the next one."""
    if number >= size:
        yield from repeat(list(range(size)))
    generator, waiting = torch.Generator().manual_seed(seed), list[int]()
    while True:
        while len(waiting) < number:
            waiting += torch.randperm(size, generator=generator).tolist()
        yield waiting[:number]
        del waiting[:number]


WARM_UP = 0.1
"""Share of the steps of the schedule `cosine` in which the learning rate rises, from one step's share to its peak."""


def share_of_peak(step: int, steps: int, schedule: str) -> float:
    """The learning rate of a step, 1 to `steps`, over the peak. (transformers' schedule begins with a step at 0.)"""
    if schedule == CONSTANT:
        return 1.0
    warm_up = max(round(WARM_UP * steps), 1)
    if step <= warm_up:
        return step / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up + 1)))


FIRST_STEPS = 10
"""Steps that are all measured, and made whatever the loss does."""


def is_measured(step: int, config: RelearnAttackConfig) -> bool:
    """Whether the losses after this step are a point of the curve. A high learning rate has its lowest point in the first
    steps, where a coarse grid would miss it."""
    return step <= FIRST_STEPS or step % config.evaluate_every == 0 or step == config.steps


def measured_steps(config: RelearnAttackConfig) -> int:
    """How many points the curve of a trial has after its first, at most."""
    return sum(is_measured(step, config) for step in range(1, config.steps + 1))


def has_turned(points: list[RelearnPoint], config: RelearnAttackConfig, schedule: str = CONSTANT) -> bool:
    """Whether patience ends a trial here. It counts points `evaluate_every` apart, and the first steps never end a trial:
    without momentum AdamW overshoots at first, and comes back. Nor does the first half of the schedule `cosine`, whose
    learning rate is still high: what overshoots there comes down with it."""
    first = max(FIRST_STEPS, config.steps // 2 if schedule == COSINE else 0)
    if config.patience is None or points[-1].step <= first:
        return False
    return nothing_improves(spaced(points, config.evaluate_every), config.patience)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Within this context torch draws from `seed`; afterwards it goes on as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def attackable_copy(model: Any, device: Any) -> Any:
    """A copy with storage of its own, on `device`, in fp32 where it was in half precision, every parameter trainable; in
    the fast class where its architecture has one."""
    fast_class = fast_class_of(model.config)
    if fast_class is not None and type(model) is fast_class.stock_class:
        model = fast_class.from_stock(model)  # shares the parameters; the copy comes next
    copied = copy.deepcopy(model).to(device)
    if any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in copied.parameters()):
        copied = copied.float()
    copied.config.use_cache = False  # the copy's own: keys and values are for generating
    return copied.requires_grad_(True)


def with_lora(model: Any, rank: int, alpha: float) -> Any:
    """Puts LoRA adapters (Hu et al. 2021, arXiv 2106.09685) on every linear layer but the LM head, in place.

    Only the adapters can be trained afterwards; their scale is alpha / rank. They start as no change, at random: seed torch
    before. What is returned is the model itself and not peft's wrapper, so that a fast class keeps its chunked loss.

    Raises:
        ValueError: if peft finds no layer to put them on, or knows it not.
    """
    from peft import LoraConfig, get_peft_model  # heavy, and seldom needed

    scale: Any = alpha  # peft's hint says int, its formula does not mind
    settings = LoraConfig(
        r=rank, lora_alpha=scale, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with warnings.catch_warnings():
        for message in PEFT_NOISE:
            warnings.filterwarnings("ignore", message=message)
        try:
            return get_peft_model(model, settings).get_base_model()
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"`relearn.lora`: peft can put no adapters on {type(model).__name__} ({error}). "
                "Leave this attack out with `--relearn.lora false`."
            ) from error
