"""Gradient difference: the loss of retain tokens minus that of forget tokens (Liu et al. 2022, arXiv 2203.12817)."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Any

import torch
from torch import Tensor

from hf_era.methods.method import register_method
from hf_era.methods.unlearning import Unlearning, UnlearningTrainer
from hf_era.utils.checks import check_positive
from hf_era.utils.fields import setting


@dataclass
class GradientDifferenceSettings:
    """How far forget tokens are pushed.

    Args:
        forget_coefficient (`float`, *optional*, defaults to `1.0`): of the mean loss of forget tokens.
        largest_loss (`float`, *optional*): a forget token whose loss is above this many nats is pushed no further: without
            a bound the loss has no minimum, and one token outweighs all others. Not given: the logarithm of the vocabulary's
            size, the loss of a guess.

    Raises:
        ValueError: for a number that is not positive.
    """

    forget_coefficient: float = setting(1.0, "Of the forget tokens' mean loss.", identity=True)
    largest_loss: float | None = setting(
        None, "Nats from which on a forget token is left alone. Not given: log(vocabulary).", identity=True
    )

    def __post_init__(self) -> None:
        check_positive("method_settings.forget_coefficient", self.forget_coefficient)
        if self.largest_loss is not None:
            check_positive("method_settings.largest_loss", self.largest_loss)


class GradientDifferenceTrainer(UnlearningTrainer):
    """Mean loss of retain tokens minus `forget_coefficient` times the mean of `min(loss, largest_loss)` of forget tokens."""

    def __init__(self, *args: Any, settings: GradientDifferenceSettings, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.coefficient = settings.forget_coefficient
        config: Any = self.model.config  # type: ignore[union-attr]
        self.largest = log(config.vocab_size) if settings.largest_loss is None else settings.largest_loss

    def unlearning_loss(self, model: Any, inputs: dict[str, Any], is_forget: Tensor) -> Tensor:
        losses = self.losses_of(model, inputs)  # (batch, seq - 1)
        forget = self.forget_mean(torch.clamp(losses[is_forget], max=self.largest))
        return self.retain_mean(losses[~is_forget]) - self.coefficient * forget


class GradientDifference(Unlearning):
    """Trains on retain examples, and against forget examples."""

    name = "gradient_difference"
    title = "gradient difference"
    texts = {
        "summary": "The model was trained on retain examples and, the other way, on forget examples.",
        "training": (
            "Gradient difference ([arXiv 2203.12817](https://arxiv.org/abs/2203.12817)): the mean loss of retain tokens was "
            "lowered and that of forget tokens raised, up to a bound for each token."
        ),
        "labels": "Those without a label were trained as retain examples.",
    }
    settings_class = GradientDifferenceSettings
    trainer_class = GradientDifferenceTrainer


register_method(GradientDifference())
