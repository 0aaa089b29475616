"""Losses of a causal LM on examples: token-weighted, in nats a token, with an interval over examples.

Token-weighted means: all tokens of all examples count the same. The mean of batch means, which many scripts report, gives
a short example's tokens more weight and depends on the batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_era.data.collator import IGNORE_INDEX
from hf_era.evaluation.intervals import BOOTSTRAP_SAMPLES, ratio_estimate

NOT_OF_THE_MODEL = ("labels", "routing_weight", "is_forget_word", "is_unassigned", "module_index", "is_forget")
"""Columns of a batch that a measured model is not given; all others are inputs, as they are in training."""


class StoryLosses(NamedTuple):
    """Sums per example; all of shape (examples,), fp64.

    Attributes:
        nll (`Tensor`): summed negative log-likelihood, nats.
        tokens (`Tensor`): predicted tokens.
        forget_word_nll, forget_word_tokens (`Tensor`): the same over the tokens of forget words only.
    """

    nll: Tensor
    tokens: Tensor
    forget_word_nll: Tensor
    forget_word_tokens: Tensor


@dataclass(frozen=True)
class LossEstimate:
    """A loss in nats a token, with its 95 % bootstrap interval over examples. `loss` is None where there is no token."""

    loss: float | None
    low: float | None
    high: float | None
    tokens: int
    stories: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def token_losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of each label under the position before it, and which labels count.

    Args:
        logits (`Tensor`): (batch, seq, vocabulary).
        labels (`Tensor`): (batch, seq), -100 where nothing is to be predicted.

    Returns: two tensors of shape (batch, seq - 1): nats (0 where the label is -100), fp32; and a bool mask.
    """
    targets = labels[:, 1:]
    nll = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), targets, ignore_index=IGNORE_INDEX, reduction="none")
    return nll, targets != IGNORE_INDEX


def count_labels(batches: Iterable[Mapping[str, Tensor]]) -> int:
    """Tokens that are predicted in all batches together."""
    return sum(int((batch["labels"][:, 1:] != IGNORE_INDEX).sum()) for batch in batches)


def _token_losses_of(model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """As `token_losses`; a fast model makes them without ever holding the logits."""
    # A mask of ones is not made up where there is none: documents packed into one row are told apart without.
    inputs: dict[str, Any] = {name: value for name, value in batch.items() if name not in NOT_OF_THE_MODEL}
    if "position_ids" in inputs or getattr(getattr(model, "config", None), "use_cache", False):
        inputs["use_cache"] = False  # one would be filled for nothing, and with it no packed documents are looked for
    labels = batch["labels"] if "labels" in batch else torch.full_like(batch["input_ids"], IGNORE_INDEX)
    if hasattr(model, "label_losses"):
        return model.label_losses(labels, **inputs), labels[:, 1:] != IGNORE_INDEX
    return token_losses(model(**inputs).logits, labels)


def _on(device: torch.device | str, value: Any) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value  # lengths of packed documents are plain numbers


@torch.inference_mode()
def story_losses(
    model: Any,
    batches: Iterable[dict[str, Tensor]],
    *,
    device: torch.device | str | None = None,
    autocast: Callable[[], Any] = nullcontext,
    gather: Callable[[Any], Any] | None = None,
    on_batch: Callable[[Tensor], None] | None = None,
) -> StoryLosses:
    """The losses of each example under a model, in the order of the batches. The model's mode is left as it was.

    Args:
        model: any causal LM that takes the inputs of the batches and returns `logits`.
        batches: of `input_ids`, `labels` (else nothing is predicted) and, optionally, `attention_mask` (else all 1) and
            `is_forget_word`, each (batch, seq); and other inputs of the model, such as `position_ids`.
        device (*optional*): where the batches go. Not given: they are there already.
        autocast (*optional*): makes the context of each forward pass.
        gather (*optional*): gathers a tensor over processes, leaving out duplicates.
        on_batch (*optional*): called with each batch's attention mask before its forward pass.
    """
    was_training = model.training
    model.eval()
    parts = []
    try:
        for batch in batches:
            moved = batch if device is None else {name: _on(device, value) for name, value in batch.items()}
            if on_batch is not None:
                on_batch(moved.get("attention_mask", torch.ones_like(moved["input_ids"])))
            with autocast():
                nll, counted = _token_losses_of(model, moved)
            words = moved.get("is_forget_word")
            of_words = counted & words[:, 1:].bool() if words is not None else torch.zeros_like(counted)
            columns = (nll, counted, nll * of_words, of_words)
            rows = torch.stack([column.double().sum(1) for column in columns], dim=1)  # (batch, 4)
            parts.append((gather(rows) if gather is not None else rows).cpu())
    finally:
        model.train(was_training)
    table = torch.cat(parts) if parts else torch.zeros(0, 4, dtype=torch.float64)
    return StoryLosses(*table.unbind(1))


@torch.inference_mode()
def answers_right(model: Any, batch: Mapping[str, Tensor], autocast: Callable[[], Any] = nullcontext) -> Tensor:
    """Whether all labels of an example are the likeliest tokens, each after the true ones before it: (examples,), bool.

    Args:
        model: any causal LM that returns `logits`. batch: of `input_ids` and `labels`, -100 where nothing is asked, each
            (batch, seq), and other inputs of the model. autocast (*optional*): makes the context of the forward pass.
    """
    was_training = model.training
    model.eval()
    try:
        with autocast():
            logits = model(**{name: value for name, value in batch.items() if name not in NOT_OF_THE_MODEL}).logits
    finally:
        model.train(was_training)
    targets = batch["labels"][:, 1:]
    return ((logits[:, :-1].argmax(-1) == targets) | (targets == IGNORE_INDEX)).all(1).cpu()


def concatenated(parts: Sequence[StoryLosses]) -> StoryLosses:
    """The losses of all examples of the parts, in order."""
    return StoryLosses(*map(torch.cat, zip(*parts, strict=True)))


def loss_estimate(
    nll: Tensor, tokens: Tensor, bootstrap_samples: int = BOOTSTRAP_SAMPLES, seed: int = 0
) -> LossEstimate:
    """Token-weighted loss and its 95 % bootstrap interval over examples.

    Args:
        nll, tokens (`Tensor`): (examples,): sums per example. Examples without a counted token are left out.
        bootstrap_samples (`int`, *optional*, defaults to `1000`): resamples. 0: no interval.
        seed (`int`, *optional*, defaults to `0`): of the resampling, which has a generator of its own.
    """
    loss = ratio_estimate(nll, tokens, bootstrap_samples, seed)
    return LossEstimate(loss.value, loss.low, loss.high, int(tokens.sum()), int((tokens > 0).sum()))


def mean_of_batch_means(nll: Tensor, tokens: Tensor, batch_size: int) -> float | None:
    """The mean over batches of each batch's token-weighted loss, nats a token; `None` if no batch has a token.

    Short examples' tokens weigh more in it than others', and it depends on the batch size and the order: the reference
    reports it; ours is the token-weighted loss.

    Args:
        nll, tokens (`Tensor`): (examples,): summed negative log-likelihood and predicted tokens of each, in order.
        batch_size (`int`): examples a batch, at least 1; the last may be smaller. A batch without tokens is left out.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` should be at least 1, got {batch_size}. Pass a number of examples.")
    parts = zip(nll.double().split(batch_size), tokens.double().split(batch_size), strict=True)
    means = [loss.sum() / count.sum() for loss, count in parts if count.sum() > 0]
    return float(torch.stack(means).mean()) if means else None
