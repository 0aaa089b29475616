"""The relearn attack: fine-tune on a few forget examples and see how much of the capability comes back, and how fast.

One trial is here: one model, one set of examples, one learning rate; the whole curve of forget and retain loss. The attack
runs on a copy in the fast class of its architecture; batches are padded once and stay on the device, and evaluation never
holds logits. The experiment made of many trials is in `experiment.py`.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from torch import Tensor

from hf_era.data import RoutingCollator, longest_first
from hf_era.data.columns import present
from hf_era.evaluation.batch_halving import halving_batches
from hf_era.evaluation.losses import concatenated, count_labels, story_losses
from hf_era.evaluation.relearn.config import FULL, LORA, RelearnAttackConfig
from hf_era.evaluation.relearn.result import RelearnCurve, RelearnPoint, rises_at_the_end, spaced
from hf_era.models.loading import fast_class_of
from hf_era.utils.processes import in_all, share_out


class RelearnAttack:
    """One trial: attacks models with the same examples.

    AdamW without a schedule, all examples in every step, in training mode (a model with dropout is attacked with it; the
    seed makes that repeatable). Weights in half precision are attacked in an fp32 copy: a step of 5e-5 would round to
    nothing in bf16. Frozen parameters are attacked too, for an attacker can unfreeze them.

    Args:
        stories (`Dataset`): forget examples that neither training nor evaluation saw, with `input_ids` and `length`; all
            are the batch of every step.
        measured (`MeasuredStories`): what the curve is measured on. pad_token_id (`int`): any valid id.
        config (`RelearnAttackConfig`): steps, learning rate and so on.
        kind (`str`, *optional*, defaults to `"full"`): `full`: all weights are trained. `lora`: adapters only.

    Attributes:
        tokens (`int`): that a step learns from: those that are predicted.

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
    ) -> None:
        self.config, self.kind, self._measured = config, kind, measured
        self._stories, self._pad_token_id, self._batch_size = stories, pad_token_id, config.batch_size
        self._batches = padded_batches(stories, pad_token_id, config.batch_size, measured.device)
        self.tokens = count_labels(self._batches)
        if not self.tokens:
            raise ValueError(
                f"There is nothing to learn from the attack's {len(stories)} examples: none has two tokens or more. "
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
        config = self.config
        optimizer = torch.optim.AdamW(
            [parameter for parameter in model.parameters() if parameter.requires_grad],
            lr=config.learning_rate,
            betas=(0.9, 0.95),
            fused=True if self._measured.device.type in ("cpu", "cuda") else None,
        )
        for step in range(1, config.steps + 1):
            self._step(model, optimizer)
            if not is_measured(step, config):
                continue
            point = self._measured.point(model, step)
            if not (math.isfinite(point.forget_loss) and math.isfinite(point.retain_loss)):
                return
            points.append(point)
            if on_step is not None:
                on_step(point)
            if has_turned(points, config):
                return

    def _step(self, model: Any, optimizer: torch.optim.Optimizer) -> None:
        """One step on all examples: micro-batches whose losses are summed and divided by all labels."""

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
        if hasattr(model, "label_losses"):  # one of ours
            return model(**batch, num_items_in_batch=self.tokens).loss  # type: ignore[operator]
        # Not every causal LM takes the number, and one that does not would divide by its own without a word.
        return model(**batch).loss * (count_labels([batch]) / self.tokens)


FIRST_STEPS = 10
"""Steps that are all measured, and made whatever the loss does."""


def is_measured(step: int, config: RelearnAttackConfig) -> bool:
    """Whether the losses after this step are a point of the curve. A high learning rate has its lowest point in the first
    steps, where a coarse grid would miss it."""
    return step <= FIRST_STEPS or step % config.evaluate_every == 0 or step == config.steps


def measured_steps(config: RelearnAttackConfig) -> int:
    """How many points the curve of a trial has after its first, at most."""
    return sum(is_measured(step, config) for step in range(1, config.steps + 1))


def has_turned(points: list[RelearnPoint], config: RelearnAttackConfig) -> bool:
    """Whether patience ends a trial here. Rises count between points `evaluate_every` apart, and the first steps never end
    one: without momentum AdamW overshoots at first, and comes back."""
    if config.patience is None or points[-1].step <= FIRST_STEPS:
        return False
    return rises_at_the_end(spaced(points, config.evaluate_every)) >= config.patience


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


class MeasuredStories:
    """The forget and retain examples that attacks are measured on.

    Args:
        forget, retain (`Dataset`): with `input_ids` and `length`. pad_token_id (`int`): any valid id.
        batch_size (`int`, *optional*, defaults to `16`): examples a batch; changes speed and memory only.
        device (*optional*, defaults to `"cpu"`): where they are kept, and attacks run.
        bf16 (`bool`, *optional*, defaults to `False`): attacks and measurements run in bf16 autocast.

    Attributes:
        counts (`dict[str, int]`): `forget_stories`, `forget_tokens`, `retain_stories`, `retain_tokens`; tokens that are
            predicted, and examples that have any.

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
        self.device = torch.device(device)
        self._stories, self._pad_token_id = {"forget": forget, "retain": retain}, pad_token_id
        self.autocast = partial(torch.autocast, self.device.type, torch.bfloat16, enabled=bf16)
        self.counts: dict[str, int] = {}
        self._pad(batch_size)
        for name, batches in self._batches.items():
            if not batches:
                raise ValueError(
                    f"There is no {name} example to measure the attack on: of {len(self._stories[name])}, none has two "
                    "tokens or more."
                )
            self.counts[f"{name}_stories"] = sum(len(batch["labels"]) for batch in batches)
            self.counts[f"{name}_tokens"] = count_labels(batches)

    def _pad(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._batches: dict[str, list[dict[str, Tensor]]] = {}  # those there were go before the others come
        for name, stories in self._stories.items():
            self._batches[name] = padded_batches(stories, self._pad_token_id, batch_size, self.device)

    def losses(self, model: Any, state: PartialState | None = None) -> dict[str, float]:
        """`forget`, `retain` -> loss, token-weighted, nats a token. The model is on this device already.

        Args:
            state (`PartialState`, *optional*): of this process among the launched ones, which share the batches out. Not
                given: this process reads them all, and waits for no other.
        """

        def read(size: int) -> dict[str, float]:
            if size != self.batch_size:
                self._pad(size)
            batches = [(name, batch) for name, part in self._batches.items() for batch in part]
            parts = share_out(batches, lambda pair: story_losses(model, [pair[1]], autocast=self.autocast), state)
            found = {}
            for name in self._batches:
                own = concatenated([part for (owner, _), part in zip(batches, parts, strict=True) if owner == name])
                found[name] = float(own.nll.sum() / own.tokens.sum())
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
    """Examples (`input_ids`, `length`) padded once, like with like, on the device. An example with fewer than two tokens has
    nothing to predict and is left out."""
    examples = longest_first(stories)
    kept, collator = sum(length > 1 for length in examples["length"]), RoutingCollator(pad_token_id)
    examples = present(examples, "input_ids", "labels")
    parts = [range(start, min(start + batch_size, kept)) for start in range(0, kept, batch_size)]
    batches = [collator(examples.select(part)) for part in parts]
    return [{name: value.to(device) for name, value in batch.items()} for batch in batches]


# Both are peft's own business: it asks transformers by an old name, and corrects a setting for GPT-2's layers by itself.
_PEFT_NOISE = ("`is_gradient_checkpointing` is deprecated", "fan_in_fan_out is set to ")


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
        for message in _PEFT_NOISE:
            warnings.filterwarnings("ignore", message=message)
        try:
            return get_peft_model(model, settings).get_base_model()
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"`relearn.lora`: peft can put no adapters on {type(model).__name__} ({error}). "
                "Leave this attack out with `--relearn.lora false`."
            ) from error
