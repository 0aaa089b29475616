"""NPO: forget examples are made less likely than they were, the less the further they are (Zhang et al. 2024, 2404.05868).

With SAM, the forget part's gradient is taken where that part is worst nearby (Fan et al. 2025, arXiv 2502.05374), so that
small changes of the weights undo less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from hf_era.methods.method import register_method
from hf_era.methods.unlearning import Unlearning, UnlearningTrainer
from hf_era.utils.checks import check_positive, short_repr
from hf_era.utils.fields import setting


@dataclass
class NPOSettings:
    """Negative preference optimisation.

    Args:
        beta (`float`, *optional*, defaults to `0.1`): how soon an example is left alone, by 1 / `beta` nats below its
            log-likelihood before. Towards 0 it is gradient ascent. The paper's.
        retain_coefficient (`float`, *optional*, defaults to `1.0`): of the mean loss of retain tokens.
        sharpness_radius (`float`, *optional*, defaults to `0.0`): with SAM, the L2 distance in the weights at which the
            forget part's gradient is taken. The paper's is 0.01, with `beta` 0.015 and `retain_coefficient` 2.25. 0: off. Of
            each micro-batch and process by itself; not under FSDP.

    Raises:
        ValueError: for a number out of range.
    """

    beta: float = setting(0.1, "Inverse temperature; towards 0: gradient ascent.", identity=True)
    retain_coefficient: float = setting(1.0, "Of the retain tokens' mean loss.", identity=True)
    sharpness_radius: float = setting(0.0, "With SAM: distance in the weights. 0: off.", identity=True)

    def __post_init__(self) -> None:
        for name in ("beta", "retain_coefficient"):
            check_positive(f"method_settings.{name}", getattr(self, name))
        if not 0 <= self.sharpness_radius < float("inf"):
            given = short_repr(self.sharpness_radius)
            raise ValueError(f"`method_settings.sharpness_radius` should be finite and at least 0, got {given}.")


class NPOTrainer(UnlearningTrainer):
    """Retain loss, plus -2 / beta * log sigmoid(-beta * log(p / p_before)) of each forget example, with p the likelihood of
    all of its labels. The sum over forget examples is divided by their tokens (the paper: by their number), so that both
    parts are nats a token."""

    def __init__(self, *args: Any, settings: NPOSettings, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings = settings
        if settings.sharpness_radius > 0 and self.is_fsdp_enabled:
            raise ValueError(
                f"`method_settings.sharpness_radius` is {settings.sharpness_radius}, which does not go with FSDP: it needs "
                "the whole gradient. Set it to 0, or launch without sharding (`recipes/accelerate/cpu_ddp.yaml`)."
            )

    def unlearning_loss(self, model: Any, inputs: dict[str, Any], is_forget: Tensor) -> Tensor:
        losses = self.losses_of(model, inputs)  # (batch, seq - 1)
        loss = self.settings.retain_coefficient * self.retain_mean(losses[~is_forget])
        if not is_forget.any():
            return loss + self.forget_mean(losses[is_forget])  # 0, but all processes log the same parts
        rows = {name: value[is_forget] for name, value in inputs.items()}
        with torch.no_grad(), self.accelerator.autocast():
            before = self.losses_of(self.reference, rows).sum(1)  # (forget examples,)
        forget = losses[is_forget] if self.settings.sharpness_radius == 0 else self._at_the_worst(rows, before)
        return loss + self.forget_mean(self._npo(forget, before))

    def _npo(self, losses: Tensor, before: Tensor) -> Tensor:
        """Of each example, (examples,), from its labels' losses, (examples, seq - 1)."""
        return -2 / self.settings.beta * F.logsigmoid(self.settings.beta * (losses.sum(1) - before))

    def _at_the_worst(self, rows: dict[str, Any], before: Tensor) -> Tensor:
        """The losses of forget examples, (examples, seq - 1), at the weights a step up the forget part's gradient; their
        gradient with respect to these is that with respect to the model's."""
        model: Any = self.accelerator.unwrap_model(self.model)
        with torch.enable_grad(), self.accelerator.autocast():
            weights = {name: value for name, value in model.named_parameters() if value.requires_grad}
            steepest = torch.autograd.grad(self._npo(self.losses_of(model, rows), before).sum(), list(weights.values()))
            norm = torch.stack([part.norm() for part in steepest]).norm().clamp(min=1e-12)
            ways = zip(weights.items(), steepest, strict=True)
            moved = {name: value + self.settings.sharpness_radius / norm * way for (name, value), way in ways}
            return functional_call(
                _Losses(self, model), {f"model.{name}": value for name, value in moved.items()}, (rows,)
            )


class _Losses(torch.nn.Module):
    """`losses_of` a model, as a module that it can be called in."""

    def __init__(self, trainer: UnlearningTrainer, model: Any) -> None:
        super().__init__()
        self.trainer, self.model = trainer, model

    def forward(self, rows: dict[str, Any]) -> Tensor:
        return self.trainer.losses_of(self.model, rows)


class NPO(Unlearning):
    """Trains on retain examples, and makes forget examples less likely than they were."""

    name = "npo"
    title = "negative preference optimisation (NPO)"
    texts = {
        "summary": "The model was trained to find forget examples less likely than it did before.",
        "training": (
            "Negative preference optimisation ([arXiv 2404.05868](https://arxiv.org/abs/2404.05868)): forget examples were "
            "made less likely than the model before found them, and it was trained further on retain examples."
        ),
        "labels": "Those without a label were trained as retain examples.",
    }
    settings_class = NPOSettings
    trainer_class = NPOTrainer
    compares = True


register_method(NPO())
