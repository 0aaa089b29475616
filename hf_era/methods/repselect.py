"""RepSelect: unlearning by what of the forget gradient is selective (arXiv 2606.17168).

Adapters, or an auxiliary module beside a frozen model, first learn the forget examples better, so that what the model
knows shows in its gradient. That of the forget loss in the MLP projections is dominated by directions that all text
shares; these are collapsed, and steps are made along what is left for as long as the model says nearly the same of
general text. Only MLP projections change, and no retain example is trained on.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import set_seed

from hf_era.data import FORGET, RETAIN, UNLABELLED
from hf_era.data.collator import IGNORE_INDEX
from hf_era.methods.method import Cost, Phase, Run, Settings, Stage, register_method, stories_labelled
from hf_era.methods.post_training import PostTraining, batches_of
from hf_era.models import family_for
from hf_era.models.families.family import Family
from hf_era.models.layers import LINEAR_CLASSES
from hf_era.models.loading import expand_base, load_causal_lm
from hf_era.models.module_switches import is_auxiliary_parameter
from hf_era.models.trainable import LoraSettings, choose_trainable
from hf_era.training import CausalLMTrainer
from hf_era.training.distillation import distillation_loss
from hf_era.utils.checks import check_count, check_positive, unknown_value_message
from hf_era.utils.fields import UNLESS_DEFAULT, setting
from hf_era.utils.files import fingerprint

FIRST_STEP = 1e-3
"""Without a `learning_rate`: norm of a step over that of the weights that it changes."""
ADAPTERS, MODULE = ELICITORS = ("adapters", "module")
_WHAT_LEARNS = {ADAPTERS: "adapters", MODULE: "a module"}
LARGEST_EXACT_SVD = 1_024
"""Smaller side of a matrix up to which its singular vectors are computed exactly."""


class NothingUnlearntWarning(UserWarning):
    """The first step passed the bound on the KL divergence: the model is the one before the method."""


@dataclass
class RepSelectSettings:
    """Settings of RepSelect.

    Args:
        elicitor (`str`, *optional*, defaults to `"adapters"`): what learns the forget examples first: `adapters` (LoRA) on
            the MLP projections, as in the paper, or the `module` of `expansion`, beside them.
        elicitation_learning_rate (`float`, *optional*, defaults to `0.01`): of SGD, with which it does. The paper has .005
            to .5, for adapters.
        elicitation_epochs (`float`, *optional*, defaults to `1.0`): of it; 0 leaves it out.
        rank (`int`, *optional*, defaults to `8`): of the adapters.
        components (`float`, *optional*, defaults to `0.125`): how many of a gradient's strongest directions are
            collapsed, as a share of the smaller side of its matrix, in (0, 1]; at least one. The paper has 512 of 4,096.
        learning_rate (`float`, *optional*): of the steps along the collapsed gradient of the mean forget loss a token. Not
            given: such that a step's norm is a thousandth of that of the weights.
        max_kl (`float`, *optional*, defaults to `0.01`): nats a token: KL(model before || after) on general text that a step
            must not pass. The paper's.
        max_steps (`int`, *optional*, defaults to `500`): steps at most.
        forget_stories (`int`, *optional*): forget training examples at most. Not given: all.
        general_stories (`int`, *optional*, defaults to `64`): examples not labelled forget that the KL is measured on.

    Raises:
        ValueError: for a value out of range.
    """

    elicitor: str = setting(
        ADAPTERS, f"What learns forget examples first: {', '.join(ELICITORS)}.", identity=UNLESS_DEFAULT
    )
    elicitation_learning_rate: float = setting(
        0.01, "Of SGD, which lets the elicitor learn forget examples.", identity=True
    )
    elicitation_epochs: float = setting(1.0, "Epochs of that; 0 leaves it out.", identity=True)
    rank: int = setting(8, "Rank of the adapters.", identity=True)
    components: float = setting(
        0.125, "Collapsed directions as a share of a matrix's smaller side, in (0, 1].", identity=True
    )
    learning_rate: float | None = setting(
        None, "Of the steps. Not given: each a thousandth of the weights' norm.", identity=True
    )
    max_kl: float = setting(0.01, "KL to the model before on general text, nats a token, at most.", identity=True)
    max_steps: int = setting(500, "Steps at most.", identity=True)
    forget_stories: int | None = setting(None, "Forget examples at most. Not given: all.", identity=True)
    general_stories: int = setting(64, "Examples that the KL is measured on.", identity=True)

    def __post_init__(self) -> None:
        if self.elicitor not in ELICITORS:
            raise ValueError(unknown_value_message("method_settings.elicitor", self.elicitor, ELICITORS))
        for name in ("rank", "max_steps", "forget_stories", "general_stories"):
            check_count(f"method_settings.{name}", getattr(self, name))
        for name in ("elicitation_learning_rate", "learning_rate", "max_kl"):
            if getattr(self, name) is not None:
                check_positive(f"method_settings.{name}", getattr(self, name))
        if not 0 <= self.elicitation_epochs < float("inf"):
            raise ValueError(
                f"`method_settings.elicitation_epochs` should be a finite number >= 0, got {self.elicitation_epochs}."
            )
        if not 0 < self.components <= 1:
            raise ValueError(f"`method_settings.components` should be in (0, 1], got {self.components}.")


# ---- The gradient, and its collapse ----


def mlp_projections(model: nn.Module, family: Family) -> dict[str, nn.Parameter]:
    """Name -> weight of every linear layer in every MLP: up, down and, where MLPs are gated, gate projections; none of a
    module beside it.

    Raises:
        ValueError: if the MLPs have none (experts whose weights are one tensor).
    """
    paths = {id(module): path for path, module in model.named_modules()}
    found = {
        f"{paths[id(part)]}.weight": cast(nn.Parameter, part.weight)
        for block in family.get_blocks(model)
        for part in family.get_mlp(block).modules()
        if isinstance(part, LINEAR_CLASSES) and not is_auxiliary_parameter(model, f"{paths[id(part)]}.weight")
    }
    if not found:
        raise ValueError(
            f"`method: repselect` changes the linear layers of MLPs, and those of {type(model).__name__} have none. Choose "
            "another method, or another `model.base`."
        )
    return found


def soft_collapse(gradient: Tensor, components: int) -> Tensor:
    """A matrix whose strongest directions are no stronger than the last of them, from both sides.

    With G = U S V^T the component i of the first q is divided by S_i / S_q on the side of its outputs, and again on that of
    its inputs, so that S_i becomes S_q^2 / S_i; the rest is left alone.

    Args:
        gradient (`Tensor`): (rows, columns).
        components (`int`): q, from 1 to the smaller side.
    """
    if min(gradient.shape) <= LARGEST_EXACT_SVD:
        left, values, right = torch.linalg.svd(gradient, full_matrices=False)
        left, values, right = left[:, :components], values[:components], right[:components].T
    else:
        left, values, right = torch.svd_lowrank(gradient, q=components)
    # A direction without any gradient (0 / 0) stays as it is.
    removed = 1 - torch.where(values > 0, values[-1] / values, 1.0)
    gradient = gradient - (gradient @ right * removed) @ right.T
    return gradient - left @ (removed[:, None] * (left.T @ gradient))


def mean_kl(model: Any, original: Any, batches: list[dict[str, Tensor]]) -> float:
    """KL(original || model), nats a predicted token, over batches of `input_ids`, `attention_mask` and `labels`."""
    total, tokens = 0.0, 0
    with torch.inference_mode():
        for batch in batches:
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            logits, labels = model(**inputs).logits, batch["labels"]
            total += float(distillation_loss(logits, labels, original(**inputs).logits, 1.0)[2])
            tokens += int((labels[:, 1:] != IGNORE_INDEX).sum())
    return total / max(tokens, 1)


@torch.no_grad()
def steps_within_kl(
    model: Any,
    original: Any,
    steps: Mapping[str, Tensor],
    batches: list[dict[str, Tensor]],
    max_kl: float,
    max_steps: int,
) -> Iterator[float]:
    """Subtracts `steps` (name -> change) from a model's weights, in place, again and again; yields the KL after each.

    Ends before the first step whose KL to `original` passes `max_kl`, which is taken back, or after `max_steps`. What the
    weights are follows from the number of steps alone: original - number * step, in one product.
    """
    weights = dict(model.named_parameters())
    starts = {name: weights[name].clone() for name in steps}
    for number in range(1, max_steps + 1):
        for name, step in steps.items():
            weights[name].copy_(starts[name] - number * step)
        divergence = mean_kl(model, original, batches)
        if not divergence <= max_kl:  # NaN is no valid step either
            for name, step in steps.items():
                weights[name].copy_(starts[name] - (number - 1) * step if number > 1 else starts[name])
            return
        yield divergence


# ---- The method ----


class RepSelect(PostTraining):
    """Elicit, collapse, step."""

    name = "repselect"
    title = "RepSelect"
    phase_title = "Stepping along the selective part of the forget gradient"
    texts = {
        "summary": "This model was made by RepSelect: steps along what is selective of the forget gradient, in its MLPs.",
        "introduction": (
            "A causal language model that hf_era {version} made to forget with *RepSelect* "
            "([arXiv 2606.17168](https://arxiv.org/abs/2606.17168)). It has a stock Transformers architecture and loads "
            "without hf_era."
        ),
        "training": (
            "Its MLP projections were moved against the gradient that adapted MLPs have on forget examples, without the "
            "directions that all text shares. Nothing was trained on retain examples."
        ),
    }
    settings_class = RepSelectSettings
    ignored: ClassVar[dict[str, str]] = dict.fromkeys(
        ("trainable", "lora"), "changes the MLP projections, and these alone"
    )
    needs_forget_examples = True
    trains_for_steps = False

    def plan(self, settings: Settings) -> list[tuple[str, str]]:
        own: RepSelectSettings = settings.method_settings
        return [("method", f"RepSelect, until the KL on general text passes {own.max_kl:g} nats a token")]

    def check_data(self, settings: Settings, retain_stories: int, unlabelled_stories: int) -> None:
        wanted, available = settings.method_settings.general_stories, retain_stories + unlabelled_stories
        if wanted > available:
            raise ValueError(
                f"`method_settings.general_stories` asks for {wanted} examples that are not labelled forget, but the "
                f"training data has {available}. Lower it, or give more examples."
            )

    def stories(self, run: Run) -> Dataset:
        return stories_labelled(run.data, FORGET, most=run.method_settings.forget_stories, seed=run.seed)

    def phases(self, run: Run) -> list[Phase]:
        phases = super().phases(run)
        if run.method_settings.elicitation_epochs == 0:
            return phases
        key = fingerprint(run.identity, run.base_key, "elicit")
        clean_up = partial(run.remove_checkpoints, "elicit", key)
        title = f"Letting {_WHAT_LEARNS[run.method_settings.elicitor]} learn the forget examples"
        outputs = (run.folder("elicitor"),)
        cost = Cost(run.method_settings.elicitation_epochs * len(self.stories(run)))
        return [Phase("elicit", title, key, partial(self._elicit, run), outputs, clean_up, cost), *phases]

    def cost(self, run: Run) -> Cost:
        settings: RepSelectSettings = run.method_settings
        return Cost(len(self.stories(run)), 2 * settings.max_steps * settings.general_stories, at_most=True)

    def _family(self, run: Run) -> Family:
        return family_for(run.base_config, run.expansion)

    def _elicit(self, run: Run, key: str) -> dict[str, Any]:
        """Trains the elicitor to lower the forget loss, and saves the model with it: adapters merged, which leaves the
        gradients in the projections what they were with the adapters beside them."""
        settings: RepSelectSettings = run.method_settings
        arguments = run.training_arguments(
            "elicit",
            key,
            optim="sgd",
            learning_rate=settings.elicitation_learning_rate,
            lr_scheduler_type="constant",
            lr_scheduler_kwargs=None,
            warmup_steps=0,
            weight_decay=0.0,
            max_steps=-1,
            num_train_epochs=settings.elicitation_epochs,
        )
        set_seed(run.seed)
        model, family = self.start_weights(run), self._family(run)
        if settings.elicitor == MODULE:
            model = expand_base(model, run.expansion)
            choose_trainable(model, "modules")
        else:
            adapters = LoraSettings(rank=settings.rank, alpha=float(settings.rank))
            choose_trainable(model, None, adapters, range(family.layers_of(run.base_config)), family)
        trainer, _ = run.train(CausalLMTrainer, model, arguments, run.folder("elicitor"), self.stories(run))
        return run.training_report(trainer, arguments)

    def train(self, run: Run, key: str) -> dict[str, Any]:
        """Accumulates the gradient where the forget examples were elicited, collapses it, and steps the model before the
        method along it. Every process does all of it; the main one saves."""
        settings: RepSelectSettings = run.method_settings
        device = run.arguments.device
        set_seed(run.seed)  # singular vectors of a large matrix begin at random
        model = self.start_weights(run).to(device).eval()
        changes = {
            name: soft_collapse(gradient, max(round(settings.components * min(gradient.shape)), 1))
            for name, gradient in self._forget_gradient(run).items()
        }
        rate = settings.learning_rate or _first_rate(dict(model.named_parameters()), changes)
        general = stories_labelled(run.data, RETAIN, UNLABELLED, most=settings.general_stories, seed=run.seed)
        history: list[float] = []
        for divergence in steps_within_kl(
            model,
            copy.deepcopy(model),
            {name: rate * change for name, change in changes.items()},
            list(batches_of(run, general)),
            settings.max_kl,
            settings.max_steps,
        ):
            history.append(divergence)
            run.progress(len(history) / settings.max_steps)
        if not history and run.state.is_main_process:
            warnings.warn(nothing_unlearnt_message(rate, settings.max_kl), NothingUnlearntWarning, stacklevel=2)
        run.save(model.save_pretrained, run.folder("model"))
        return {
            "steps": len(history),
            "log_history": [{"step": step, "kl_divergence": value} for step, value in enumerate(history, 1)],
            "learning_rate": rate,
            "provenance": run.provenance(),
        }

    def _forget_gradient(self, run: Run) -> dict[str, Tensor]:
        """Name -> minus the gradient of the forget loss, a mean over tokens, in each projection; fp32."""
        settings: RepSelectSettings = run.method_settings
        source = run.before_model if settings.elicitation_epochs == 0 else run.folder("elicitor")
        model = load_causal_lm(source).to(run.arguments.device, torch.float32).eval().requires_grad_(False)
        weights = mlp_projections(model, self._family(run))
        for weight in weights.values():
            weight.requires_grad_(True)
        tokens, without_logits = 0, {"skip_logits": True} if hasattr(model, "label_losses") else {}
        for batch in batches_of(run, self.stories(run)):
            own = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
            if own:
                (-model(**batch, **without_logits).loss * own).backward()
            tokens += own
        return {name: weight.grad / max(tokens, 1) for name, weight in weights.items() if weight.grad is not None}

    def stages(self, run: Run) -> list[Stage]:
        return [Stage("after_training", run.folder("model"), title="After RepSelect")]


@torch.no_grad()
def _first_rate(weights: Mapping[str, Tensor], changes: Mapping[str, Tensor]) -> float:
    own, change = (float(torch.stack([part[name].norm() for name in changes]).norm()) for part in (weights, changes))
    return FIRST_STEP * own / change if change > 0 else FIRST_STEP


def nothing_unlearnt_message(rate: float, max_kl: float) -> str:
    """The warning's text where not one step was within the bound."""
    return (
        f"NOTHING WAS UNLEARNT: the first step, at a learning rate of {rate:.3g}, moves the KL on general text above "
        f"`method_settings.max_kl` = {max_kl}. Lower `method_settings.learning_rate`, or leave it out."
    )


register_method(RepSelect())
