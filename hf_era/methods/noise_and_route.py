"""Noise and route: routing on a model that exists, whose core was damaged first.

Routing decides where *new* learning goes; a core that knows already has nothing left to learn of forget examples. So its
weights are mixed with noise, a fresh module is put beside it, and both learn anew, from labels, from the base's outputs, or
from both: what of it goes into the core and what into the module is the router's business (`gram` with `p_as: 0`: forget
examples teach the module alone). With such a router nothing is un-learnt: there is no gradient ascent anywhere. Without a
module, the same noise and retain examples alone are `hf_era.methods.undo` with `teacher: none`, the control that this has to
be better than.

No paper has it; the parts are UNDO's (`hf_era.methods.undo`) and those of the routers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import set_seed

from hf_era.data.routing_weights import frequency_table
from hf_era.methods.gradient_routing import GradientRouting
from hf_era.methods.method import Cost, Run, Settings, register_method
from hf_era.methods.noise import BETA, INITIAL, NOISED, SELECTIVE, TRAINS_ALL, NoiseSettings, damage
from hf_era.methods.post_training import OWN_LOSS, refuse_ignored
from hf_era.models.loading import expand_base, load_causal_lm
from hf_era.training import GradientRoutingTrainer
from hf_era.training.distillation import DistillationTrainer
from hf_era.utils.checks import check_share
from hf_era.utils.fields import setting


@dataclass
class NoiseAndRouteSettings(NoiseSettings):
    """Settings: those of the noise, which only the core gets, with defaults of their own, and these.

    Args:
        alpha (`float`, *optional*, defaults to `1.0`), noise (`str`, *optional*, defaults to `"initial"`), noised (`str`,
            *optional*, defaults to `"selective"`), selective_share (`float`, *optional*, defaults to `0.35`): as in
            `NoiseSettings`. At 0.3 M parameters noise on all weights takes less of a language out, at a retain loss no lower
            than that of `selective` noise without a module.
        kl_weight (`float`, *optional*, defaults to `0.0`): in [0, 1]: of KL(base || student); the rest is the cross entropy
            of the labels. 0 is the clean case: the base's outputs on retain examples tell of forget words too.
        leak_guard (`bool`, *optional*, defaults to `True`): with a `kl_weight`: on retain tokens the base says nothing of
            the vocabulary entries of forget examples, and its distribution is that of the others, renormalised. They are
            those that the routing rule's frequencies give a weight below one half.

    Raises:
        ValueError: for a value out of range.
    """

    alpha: float = setting(1.0, "Share of the weights that noise takes the place of, in [0, 1].", identity=True)
    noise: str = setting(INITIAL, f"What is put in: {' or '.join(BETA)}.", identity=True)
    noised: str = setting(SELECTIVE, f"Which weights: {', '.join(NOISED)}.", identity=True)
    selective_share: float = setting(0.35, "Of every tensor, with `noised: selective`.", identity=True)
    kl_weight: float = setting(0.0, "Of the KL to the base; the rest is the labels' loss. In [0, 1].", identity=True)
    leak_guard: bool = setting(True, "On retain tokens the base says nothing of forget entries.", identity=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("method_settings.kl_weight", self.kl_weight)


class RoutedDistillationTrainer(DistillationTrainer, GradientRoutingTrainer):
    """`GradientRoutingTrainer` with the loss of `DistillationTrainer`.

    Args:
        forget_entries (`Tensor`, *optional*): (vocabulary,), bool: what the teacher says nothing of on retain tokens.
        args, kwargs: of the two.
    """

    def __init__(self, *args: Any, forget_entries: Tensor | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.forget_entries = None if forget_entries is None else forget_entries.to(self.args.device)

    def excluded_entries(self, inputs: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
        """The forget entries, on tokens whose routing weight says retain."""
        return None if self.forget_entries is None else (inputs["routing_weight"] >= 0.5, self.forget_entries)


class NoiseAndRoute(GradientRouting):
    """Gradient routing whose core starts from noised weights, and whose loss may be a distillation."""

    name = "noise_and_route"
    title = "noise and route"
    texts = {
        "summary": "This model was noised and trained again, forget examples into a module that was then cut out.",
        "introduction": (
            "A causal language model that hf_era {version} made to forget: its weights were mixed with noise, and it was "
            "trained again with [gradient routing](https://arxiv.org/abs/2410.04332), so that what it learnt of forget "
            "examples went into an auxiliary module, which was cut out. It has a stock Transformers architecture and loads "
            "without hf_era."
        ),
        "training": (
            "The weights of the model before the method were mixed with noise, an auxiliary module was put beside its MLPs, "
            "and both were trained with gradient routing."
        ),
        "labels": GradientRouting.texts["labels"],
    }
    settings_class = NoiseAndRouteSettings
    trainer_class = RoutedDistillationTrainer
    needs_forget_examples = True

    def check(self, settings: Settings) -> None:
        if settings.start != "pretrained":
            raise ValueError(
                f"`method: {self.name}` noises a model that exists, but `model.start` is {settings.start!r}. Set "
                "`model.start: pretrained`, and name the model with `model.base`, or leave that out to train one here."
            )
        refuse_ignored(self.name, {**OWN_LOSS, **dict.fromkeys(("trainable", "lora"), TRAINS_ALL)}, settings)
        super().check(settings)

    def plan(self, settings: Settings) -> list[tuple[str, str]]:
        own: NoiseAndRouteSettings = settings.method_settings
        return [*super().plan(settings), ("core", f"{own.noise_text}, weight of the KL to the base {own.kl_weight:g}")]

    def check_data(self, settings: Settings, retain_stories: int, unlabelled_stories: int) -> None:
        super().check_data(settings, retain_stories, unlabelled_stories)
        settings.method_settings.check_retain(retain_stories)

    def start_model(self, run: Run) -> Any:
        """The expanded model, its core noised and its modules fresh; the same weights each time."""
        base = load_causal_lm(run.before_model).to(torch.float32)
        damage(base, run)
        set_seed(run.seed)
        return expand_base(base, run.expansion)

    def options(self, run: Run) -> dict[str, Any]:
        settings: NoiseAndRouteSettings = run.method_settings
        teacher, entries = None, None
        if settings.kl_weight > 0:
            teacher = load_causal_lm(run.before_model).to(torch.float32)
            entries = forget_entries(run) if settings.leak_guard else None
        return {"teacher": teacher, "kl_weight": settings.kl_weight, "forget_entries": entries}

    def routing_cost(self, run: Run) -> Cost:
        cost = super().routing_cost(run)
        return replace(cost, measured=cost.measured + (cost.trained if run.method_settings.kl_weight > 0 else 0))


def forget_entries(run: Run) -> Tensor:
    """(vocabulary,), bool: entries that are so much more frequent in forget examples that their weight is below 1/2."""
    vocabulary = int(run.base_config.vocab_size)
    return frequency_table(run.data.train, run.routing, vocabulary, skip_bos=False).weights < 0.5


register_method(NoiseAndRoute())
