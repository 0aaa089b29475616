"""Gradient routing: expand, route, cut, and a short fine-tuning on retain examples (Cloud et al. 2024, arXiv 2410.04332)."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from transformers import set_seed

from hf_era.data import RETAIN, UNLABELLED
from hf_era.methods.method import Cost, Method, Phase, Run, Settings, Stage, register_method, stories_labelled
from hf_era.models import expand_base, family_for
from hf_era.models.loading import expanded_from_config, load_causal_lm
from hf_era.models.trainable import choose_trainable
from hf_era.routing import make_router
from hf_era.training import GradientRoutingConfig, GradientRoutingTrainer
from hf_era.training.checkpoints import DamagedCheckpointWarning
from hf_era.training.checks import unlabelled_message
from hf_era.training.coherence import CoherenceConfig, coherence_settings, damage_of_best, fine_tune_for_coherence
from hf_era.training.report import GRADIENT_ROUTING_TEXTS
from hf_era.utils.checks import short_repr
from hf_era.utils.fields import identity_values
from hf_era.utils.files import fingerprint


class GradientRouting(Method):
    """Route, contract, coherence. The sections `expansion`, `router`, `routing` and `coherence` are its settings.

    A subclass may route with another trainer, its loss for instance.

    Attributes:
        trainer_class (`type`): a `GradientRoutingTrainer`.
    """

    name = "gradient_routing"
    title = "gradient routing"
    texts = GRADIENT_ROUTING_TEXTS
    training_phase = "route"
    trainer_class: ClassVar[type[GradientRoutingTrainer]] = GradientRoutingTrainer

    def options(self, run: Run) -> dict[str, Any]:
        """Arguments of the trainer beside the usual ones."""
        return {}

    def changes(self, run: Run) -> dict[str, Any]:
        """Training arguments of the routing that differ from those of the section `training`."""
        return {}

    def check(self, settings: Settings) -> None:
        if not settings.expansion.module_configs:
            raise ValueError(
                "`expansion.modules` is []: there is no module that could learn the forget examples. Leave it out for one, "
                "or list the modules."
            )
        given = {name: settings.training.get(name) for name in ("trainable", "lora")}
        freezes = given["lora"] is not None or given["trainable"] not in (None, "all")
        if freezes and settings.start == "scratch":
            name = "lora" if given["lora"] is not None else "trainable"
            raise ValueError(
                f"`training.{name}` is {short_repr(given[name])}, which freezes the base, but `model.start: scratch` starts "
                "from random weights: they would stay random. Set `model.start: pretrained`, or leave it out."
            )
        if given == {"trainable": "modules", "lora": None} and settings.coherence.enabled:
            raise ValueError(
                "`training.trainable` is 'modules', so the contracted model is the base bit for bit, and `coherence.enabled`"
                " would train what is to stay as it is. Set `coherence.enabled: false`, or choose `trainable: routed`."
            )

    def check_data(self, settings: Settings, retain_stories: int, unlabelled_stories: int) -> None:
        router = make_router(settings.router)
        if router.needs_labels and unlabelled_stories:
            raise ValueError(unlabelled_message(router, unlabelled_stories))
        wanted = settings.coherence.stories
        available = retain_stories + (unlabelled_stories if settings.coherence.unlabelled else 0)
        if settings.coherence.enabled and available < wanted:
            raise ValueError(
                f"`coherence.stories` asks for {wanted} retain examples, but the training data has {available}. Lower "
                "it, or give more examples."
            )

    def plan(self, settings: Settings) -> list[tuple[str, str]]:
        lines = []
        for module in settings.expansion.module_configs:
            layers = "all layers" if module.target_layers is None else f"layers {module.target_layers}"
            lines.append(
                ("expansion", f"auxiliary module '{module.name}' ({module.kind}) of {module.width_text}, {layers}")
            )
        rule = settings.routing.rule
        lines.append(("routing", f"{rule} ({settings.routing.weighting})" if rule == "full_seq" else rule))
        values = make_router(settings.router).to_dict()
        if (name := values.pop("name")) != "activation":
            lines.append(("router", ", ".join([name, *(f"{key} {value}" for key, value in values.items())])))
        coherence = f"{settings.coherence.steps} steps at most" if settings.coherence.enabled else "left out"
        return [*lines, ("coherence", coherence)]

    def phases(self, run: Run) -> list[Phase]:
        route = fingerprint(run.identity, run.base_key if run.start == "pretrained" else None)
        contract = fingerprint(route, "contract")
        expanded, contracted = run.folder("expanded"), run.folder("contracted")
        routed = partial(run.remove_checkpoints, "route", route)
        work = partial(self._route, run)
        cut = Phase("contract", "Cutting the module out", contract, partial(_contract, run), (contracted,), cost=Cost())
        return [
            Phase(
                "route",
                "Training with gradient routing",
                route,
                work,
                (expanded,),
                routed,
                self.routing_cost(run),
            ),
            cut,
            coherence_phase(run, cut),
        ]

    def stages(self, run: Run) -> list[Stage]:
        stages = [
            Stage("before_ablation", run.folder("expanded"), is_expanded=True),
            Stage("after_ablation", run.folder("contracted")),
        ]
        return [*stages, Stage("after_coherence", run.folder("model"))] if run.coherence.enabled else stages

    def start_model(self, run: Run) -> Any:
        """The expanded model that routing starts from; the same weights each time."""
        if run.start == "scratch":
            return expanded_from_config(run.base_config, run.expansion, run.seed)
        set_seed(run.seed)
        # A half-precision checkpoint is trained in fp32: autocast makes bf16 of it where that is asked for.
        return expand_base(run.before_model, run.expansion, dtype=torch.float32)

    def routing_cost(self, run: Run) -> Cost:
        # Every evaluation is made twice, with the module and without; of several modules their own examples as well.
        passes = 2 if len(run.expansion.module_configs) < 2 else 3
        return run.training_cost(run.arguments, len(run.data.train), passes_to_evaluate=passes)

    def _route(self, run: Run, key: str) -> dict[str, Any]:
        """Expands the model and trains it with gradient routing."""
        arguments = run.training_arguments("route", key, **self.changes(run))
        set_seed(run.seed)
        model, folder = self.start_model(run), run.folder("expanded")
        trainer, _ = run.train(self.trainer_class, model, arguments, folder, **self.options(run))
        return run.training_report(trainer, arguments)


def coherence_phase(run: Run, before: Phase) -> Phase:
    """Coherence fine-tuning of the model that another phase makes: its only output."""
    key = _coherence_key(run, before.key)
    title = "Saving the final model, without coherence fine-tuning"
    if run.coherence.enabled:
        title = "Coherence fine-tuning"
    (start,) = before.outputs
    work, tuned = partial(_coherence, run, start), partial(run.remove_checkpoints, "coherence", key)
    return Phase("coherence", title, key, work, (run.folder("model"),), tuned, _coherence_cost(run))


def _contract(run: Run, key: str) -> dict[str, Any]:
    """Cuts the auxiliary modules out."""
    expanded = load_causal_lm(run.folder("expanded"))
    run.save(expanded.contract().save_pretrained, run.folder("contracted"))
    removed = [value for name, value in expanded.named_parameters() if expanded.is_auxiliary_parameter(name)]
    return {"parameters_removed": sum(value.numel() for value in removed)}


def _coherence_labels(run: Run) -> tuple[int, ...]:
    return (RETAIN, UNLABELLED) if run.coherence.unlabelled else (RETAIN,)


def _coherence_key(run: Run, contract: str) -> str:
    parts: list[Any] = [contract, identity_values(CoherenceConfig, run.coherence.to_dict())]
    if run.coherence.unlabelled and UNLABELLED in run.data.train["label"][:]:
        parts.append(
            "unlabelled examples, drawn"
        )  # earlier versions left them out; without any, it is the same training
    return fingerprint(*parts)


def _chosen_on(run: Run) -> Dataset:
    """The retain examples that choose the best weights: neither trained on nor reported, unless there are none to spare."""
    own: Dataset = run.data.coherence_validation
    return own if len(own) else run.data.validation_retain


def _coherence_cost(run: Run) -> Cost:
    settings = run.coherence
    if not settings.enabled:
        return Cost()
    measured = (settings.steps + 1) * len(_chosen_on(run))
    return Cost(settings.steps * settings.stories, measured, at_most=settings.patience is not None)


def _coherence(run: Run, start: Path, key: str) -> dict[str, Any]:
    """Fine-tunes on examples that are taken for retain and keeps the best weights; puts the final model in place."""
    settings = run.coherence
    model = load_causal_lm(start)
    if not settings.enabled:
        run.save(model.save_pretrained, run.folder("model"))
        return {"enabled": False}
    _begin_anew_if_damaged(run, key)
    changes = coherence_settings(settings, run.arguments.per_device_train_batch_size, run.arguments.world_size)
    arguments = run.training_arguments("coherence", key, **changes)
    train_what_routing_trains(run, model, arguments)
    best, report = fine_tune_for_coherence(
        model,
        arguments,
        settings,
        stories_labelled(run.data, *_coherence_labels(run), most=settings.stories, seed=run.seed),
        _chosen_on(run),
        run.tokenizer,
        run.progress,
    )
    run.state.wait_for_everyone()
    run.save(load_causal_lm(best).save_pretrained, run.folder("model"))
    return {"enabled": True, **report}


def train_what_routing_trains(run: Run, model: Any, arguments: GradientRoutingConfig) -> None:
    """Freezes, of a stock model, what the settings leave no memory to train. Adapters on it are new."""
    torch.manual_seed(run.seed)
    family = family_for(run.base_config, run.expansion)
    layers = run.expansion.resolve_layers(family.layers_of(run.base_config))
    choose_trainable(model, arguments.trainable, arguments.lora_settings, layers, family)


def _begin_anew_if_damaged(run: Run, key: str) -> None:
    damage = damage_of_best(run.checkpoints("coherence", key))
    if damage is not None:
        if run.state.is_main_process:
            text = f"The best weights of the coherence fine-tuning so far are damaged: {damage}. It begins anew."
            warnings.warn(text, DamagedCheckpointWarning, stacklevel=2)
        run.remove_checkpoints("coherence", key)
    run.state.wait_for_everyone()


register_method(GradientRouting())
