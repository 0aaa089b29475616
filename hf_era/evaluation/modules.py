"""Several modules, each by itself: its own forget examples, and what switching it off alone does to these and to others.

Which module an example belongs to says its column `module`. With one module there is nothing to tell apart: it is what the
whole result is about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from hf_era.data.labelling import MODULE
from hf_era.evaluation.evaluator import Evaluator
from hf_era.evaluation.intervals import paired_difference
from hf_era.evaluation.leak_audit import ablation_audit
from hf_era.evaluation.losses import StoryLosses, loss_estimate
from hf_era.evaluation.selectivity import AuxiliaryActivationMeter, StoryRows, selectivity_estimates

ALONE_OFF = "alone_off"
"""Stage in a module's losses: this module off, all others on."""
Measured = Mapping[str, StoryLosses]


def examples_of_modules(examples: Dataset, known: Sequence[str] = ()) -> dict[str, Tensor]:
    """Which examples are a module's own: name -> (examples,), bool; empty where there are fewer than two modules.

    Args:
        examples: forget examples. Without a column `module` nothing is known of whose they are.
        known (*optional*): the model's modules, in its order; one may have no example. Others follow by name.
    """
    if MODULE not in examples.column_names:
        return {}
    given = examples[MODULE][:]
    names = [*known, *sorted({name for name in given if name is not None} - set(known))]
    if len(names) < 2:
        return {}
    return {name: torch.tensor([one == name for one in given], dtype=torch.bool) for name in names}


def own_losses(losses: StoryLosses, own: Tensor) -> StoryLosses:
    """Those of a module's own examples."""
    return StoryLosses(*(column[own] for column in losses))


def stage_figures(measured: Mapping[str, Measured], own: Tensor, final_stage: str, samples: int) -> dict[str, Any]:
    """The losses at each stage on a module's own forget examples, and the final model's unlearning on them.

    Returns: `losses`: stage -> `forget` -> a `LossEstimate` as a dict; and, where there is a model before the method,
        `unlearning`: an `Estimate` as a dict.
    """
    parts = {stage: own_losses(losses["forget"], own) for stage, losses in measured.items()}
    found: dict[str, Any] = {"losses": {stage: {"forget": _estimate(part, samples)} for stage, part in parts.items()}}
    if "before" in parts and final_stage != "before":
        found["unlearning"] = _difference(parts[final_stage], parts["before"], samples)
    return found


def measure_module(
    evaluator: Evaluator, model: Any, module: str, own: Mapping[str, Tensor], all_on: Measured
) -> dict[str, Any]:
    """What switching one module off alone does, all others on, nats a token.

    Args:
        own: as `examples_of_modules` gives it. all_on: `forget`, `retain` -> the losses with all modules on.

    Returns: `losses`: `alone_off` -> `forget` (its own examples), `retain`; `ablation_gap` (its own forget examples),
        `retain_ablation_gap`, `crosstalk` (every other module -> gap on the forget examples of that one), and `ablation`, as
        `ablation_audit` makes it: in all of its layers and in each.
    """
    samples = evaluator.config.bootstrap_samples
    off: dict[str, StoryLosses] = {}

    def measure(name: str) -> StoryLosses:
        losses = evaluator.measure_set(model, name, f"Module {module} off")
        off.setdefault(name, losses)  # the audit begins with all of its layers off
        return own_losses(losses, own[module]) if name == "forget" else losses

    before = {"forget": own_losses(all_on["forget"], own[module]), "retain": all_on["retain"]}
    audit = ablation_audit(model, measure, samples, all_on=before, module=module)
    crosstalk = {
        other: _difference(own_losses(off["forget"], rows), own_losses(all_on["forget"], rows), samples)
        for other, rows in own.items()
        if other != module
    }
    losses = {"forget": own_losses(off["forget"], own[module]), "retain": off["retain"]}
    return {
        "losses": {ALONE_OFF: {name: _estimate(part, samples) for name, part in losses.items()}},
        "ablation_gap": audit["all"]["forget"],
        "retain_ablation_gap": audit["all"]["retain"],
        "crosstalk": crosstalk,
        "ablation": audit,
    }


def module_selectivity(
    evaluator: Evaluator, meters: Mapping[str, AuxiliaryActivationMeter], module: str, own: Tensor
) -> dict[str, Any]:
    """layer -> activation of a module on its own forget examples over that on retain examples, an `Estimate` as a dict.
    `meters`: of the forget and of the retain set, once read."""
    forget: StoryRows = {
        layer: (evaluator.in_given_order("forget", sums)[own], evaluator.in_given_order("forget", counts)[own])
        for layer, (sums, counts) in meters["forget"].story_rows(module).items()
    }
    samples = evaluator.config.bootstrap_samples
    estimates = selectivity_estimates(forget, meters["retain"].story_rows(module), samples)
    return {str(layer): estimate.to_dict() for layer, estimate in estimates.items()}


def _estimate(losses: StoryLosses, samples: int) -> dict[str, Any]:
    return loss_estimate(losses.nll, losses.tokens, samples).to_dict()


def _difference(later: StoryLosses, earlier: StoryLosses, samples: int) -> dict[str, Any]:
    return paired_difference(later.nll, earlier.nll, later.tokens, samples).to_dict()
