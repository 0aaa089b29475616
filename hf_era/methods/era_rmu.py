"""Gradient routing and then RMU: what the cut leaves of the capability is steered away, before coherence fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import set_seed

from hf_era.methods.gradient_routing import GradientRouting, coherence_phase
from hf_era.methods.method import Phase, Run, Stage, register_method
from hf_era.methods.rmu import RMU_TEXT, RMUSettings, RMUTrainer, choose_updated, steered_layer
from hf_era.models import family_for
from hf_era.models.loading import load_causal_lm
from hf_era.training.report import GRADIENT_ROUTING_TEXTS
from hf_era.utils.checks import check_count, check_positive
from hf_era.utils.fields import setting
from hf_era.utils.files import fingerprint


@dataclass
class ERARMUSettings(RMUSettings):
    """RMU's settings, and the training of its phase: the section `training` is the routing's.

    Args:
        steps (`int`, *optional*, defaults to `500`): of RMU, with the batch of the section `training`.
        learning_rate (`float`, *optional*, defaults to `5e-4`): constant.
        kwargs: as `RMUSettings`.

    Raises:
        ValueError: for a value out of range.
    """

    steps: int = setting(500, "Steps of RMU.", identity=True)
    learning_rate: float = setting(5e-4, "Learning rate of RMU, constant.", identity=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("method_settings.steps", self.steps)
        check_positive("method_settings.learning_rate", self.learning_rate)

    def training_changes(self) -> dict[str, Any]:
        """What differs from the training arguments of the routing."""
        return {
            "max_steps": self.steps,
            "learning_rate": self.learning_rate,
            "lr_scheduler_type": "constant",
            "lr_scheduler_kwargs": None,
            "warmup_steps": 0,
            "metric_for_best_model": None,  # the routing has others
        }


class ERARMU(GradientRouting):
    """Route, contract, RMU on the contracted model, coherence."""

    name = "era_rmu"
    title = "gradient routing and RMU"
    texts = {
        **GRADIENT_ROUTING_TEXTS,
        "training": f"{GRADIENT_ROUTING_TEXTS['training']} What remained was changed by {RMU_TEXT}",
    }
    settings_class = ERARMUSettings
    needs_forget_examples = True

    def plan(self, settings: Any) -> list[tuple[str, str]]:
        *lines, coherence = super().plan(settings)
        return [*lines, ("RMU", f"{settings.method_settings.steps} steps on the contracted model"), coherence]

    def phases(self, run: Run) -> list[Phase]:
        steered_layer(run)  # refuses layers that the model has not
        route, cut, _ = super().phases(run)
        key = fingerprint(cut.key, "rmu")
        unlearn = Phase(
            "rmu",
            "Steering representations of forget tokens away (RMU)",
            key,
            partial(_unlearn, run),
            (run.folder("unlearned"),),
            partial(run.remove_checkpoints, "rmu", key),
            run.training_cost(
                run.training_arguments("rmu", key, **run.method_settings.training_changes()), len(run.data.train)
            ),
        )
        return [route, cut, unlearn, coherence_phase(run, unlearn)]

    def stages(self, run: Run) -> list[Stage]:
        before, after, *rest = super().stages(run)
        return [before, after, Stage("after_rmu", run.folder("unlearned"), title="After RMU"), *rest]


def _unlearn(run: Run, key: str) -> dict[str, Any]:
    """RMU on the contracted model, which is what retain representations are held to as well."""
    settings, family = run.method_settings, family_for(run.base_config, run.expansion)
    arguments = run.training_arguments("rmu", key, **settings.training_changes())
    set_seed(run.seed)
    model, reference = (load_causal_lm(run.folder("contracted")).to(torch.float32) for _ in range(2))
    choose_updated(model, family, settings)
    options = {"settings": settings, "layer": steered_layer(run), "reference": reference}
    trainer, _ = run.train(RMUTrainer, model, arguments, run.folder("unlearned"), **options)
    return run.training_report(trainer, arguments)


register_method(ERARMU())
