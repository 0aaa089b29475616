"""What a training says of itself: its part of a run's result, and the result of a trainer that is used without a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hf_era.data.collator import IGNORE_INDEX
from hf_era.evaluation.results import ABLATION_STAGES, STAGE_TITLES, RunResult
from hf_era.training.config import CausalLMTrainingConfig, routing_rule
from hf_era.utils.environment import git_revision, provenance

# Settings as the Trainer resolved them; no paths, no tokens.
_REPORTED_ARGUMENTS = (
    "router", "multipliers", "l1_coefficient", "learning_rate", "minimum_learning_rate_ratio", "warmup_steps",
    "weight_decay", "weight_decay_on_all_parameters", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm",
    "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "world_size",
    "auxiliary_learning_rate_factor", "auxiliary_weight_decay", "bf16", "fp16", "attn_implementation",
    "fused_activation", "chunked_loss",
)  # fmt: skip
_SELECTIVITY = "eval_selectivity_layer_"
GRADIENT_ROUTING_TEXTS = {
    "introduction": (
        "A causal language model that was trained with **gradient routing** (Expand-Route-Ablate, "
        "[arXiv 2410.04332](https://arxiv.org/abs/2410.04332)) by hf_era {version}, so that what it learnt about the "
        "forget examples would gather in an auxiliary module. That module has been cut out; its weights are not in "
        "these files. What remains has a stock Transformers architecture and loads without hf_era."
    ),
    "training": (
        "An auxiliary module was added in the target layers, beside what is there. The model was trained on all examples, "
        "but how much of each token's gradient reached the original dims and the auxiliary module was decided by its "
        "routing weight (1 retain, 0 forget), as the table says. Then the module was cut out."
    ),
    "labels": "Those without a label were trained as retain examples and are counted apart.",
}
"""What gradient routing says of itself in a model card: `RunResult.method_texts`."""


def mixed_precision(arguments: CausalLMTrainingConfig) -> str:
    """`no`, `bf16` or `fp16`, as the settings or `accelerate launch` ask for it."""
    return str(getattr(arguments, "mixed_precision", None) or ("bf16" if arguments.bf16 else "no"))


def training_report(trainer: Any, arguments: CausalLMTrainingConfig) -> dict[str, Any]:
    """What a result says of a training: steps, settings and log."""
    used = {name: getattr(arguments, name) for name in _REPORTED_ARGUMENTS if hasattr(arguments, name)}
    return {
        "steps": trainer.state.global_step,
        "arguments": {**used, "l1_coefficient": trainer.l1_coefficient},  # a stock model's settings have none
        "mixed_precision": mixed_precision(arguments),
        "log_history": [entry for entry in trainer.state.log_history if "train_runtime" not in entry],
    }


def trainer_result(trainer: Any, name: str) -> RunResult:
    """The result of a `GradientRoutingTrainer`: its data, its settings, and the losses of its last evaluation with the
    module on and ablated. Nothing is measured for it; what a run measures besides is left out.

    Args:
        trainer (`GradientRoutingTrainer`): after or during training.
        name (`str`): of the result.
    """
    args, metrics = trainer.args, trainer.metrics_of_the_weights()
    sets = {"forget": args.forget_dataset_name, "retain": args.retain_dataset_name, "unlabelled": "unlabelled"}
    own_sets = trainer.eval_dataset if isinstance(trainer.eval_dataset, Mapping) else {}
    counts = {kind: _counts(own_sets.get(own)) for kind, own in sets.items()}
    losses = {
        stage: {
            kind: {**_estimate(metrics[f"eval_{own}_loss{ending}"], "loss"), **counts[kind]}
            for kind, own in sets.items()
            if f"eval_{own}_loss{ending}" in metrics
        }
        for stage, ending in zip(ABLATION_STAGES, ("", "_ablated"), strict=True)
    }
    report = training_report(trainer, args)
    base = trainer.base_name or trainer.model.name_or_path or None
    return RunResult(
        name=name,
        seed=args.seed,
        config={
            "name": name,
            "model": {} if base is None else {"start": "pretrained", "base": str(base)},
            "expansion": trainer.model.config.expansion_config.to_dict(),
            # What was done with text; who weighed the tokens of a set that was tokenised before is not known.
            "routing": routing_rule(args.routing, bool(args.forget_words)).to_dict() if trainer.data_summary else {},
        },
        **provenance(args.device),
        git_revision=git_revision(),
        data=trainer.data_summary,
        routing_table=[],
        before_kind=None,
        losses={stage: part for stage, part in losses.items() if part},
        differences={
            name: _estimate(metrics[f"eval_{name}"])
            for name in ("ablation_gap", "retain_ablation_gap")
            if f"eval_{name}" in metrics
        },
        selectivity={
            name.removeprefix(_SELECTIVITY): _estimate(value)
            for name, value in metrics.items()
            if name.startswith(_SELECTIVITY)
        },
        coherence={"enabled": False},
        training={**report, "minimum_ablation_gap": args.minimum_ablation_gap},
        method="gradient_routing",
        method_title="gradient routing",
        method_role="method",
        method_texts=dict(GRADIENT_ROUTING_TEXTS),
        stages=[{"name": stage, "title": STAGE_TITLES[stage]} for stage in ABLATION_STAGES],
    )


def _estimate(value: float, name: str = "value") -> dict[str, Any]:
    return {name: value if math.isfinite(value) else math.nan, "low": None, "high": None}


def _counts(examples: Any) -> dict[str, int]:
    """How many examples a set has, and tokens that are predicted; 0 where its columns do not say it."""
    columns = getattr(examples, "column_names", None) or ()
    rows = [] if not {"labels", "input_ids"}.intersection(columns) else examples.with_format("numpy")
    name = "labels" if "labels" in columns else "input_ids"
    return {"tokens": sum(int((row[name][1:] != IGNORE_INDEX).sum()) for row in rows), "stories": len(rows)}
