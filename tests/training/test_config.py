"""The configs: what belongs to which, what each field says of itself, which values and which trainers are refused."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import TrainingArguments

import hf_era
from hf_era import GradientRoutingConfig, GradientRoutingTrainer
from hf_era.training import CausalLMTrainer, CausalLMTrainingConfig
from hf_era.training.coherence import CoherenceConfig
from hf_era.training.config import SHOWN_OR_KEPT
from hf_era.utils.fields import UNLESS_DEFAULT, about

ROUTING_ALONE = {
    "router", "multipliers", "l1_coefficient", "auxiliary_learning_rate_factor", "auxiliary_weight_decay",
    "skip_zero_gradients", "minimum_ablation_gap", "forget_dataset_name", "retain_dataset_name",
    # Of text that the trainer labels, tokenises and weighs itself, and of a model that it expands.
    "label_column", "forget_labels", "retain_labels", "score_column", "forget_words", "modules", "text_column", "max_length",
    "validation_examples", "routing", "expansion", "trainable", "lora",
}  # fmt: skip


def undeclared(config_class: type) -> list[str]:
    """The fields that a class declares itself without saying whether they belong to a run's identity."""
    own = [item for item in dataclasses.fields(config_class) if item.name in vars(config_class)["__annotations__"]]
    assert own, f"{config_class.__name__} declares no field: nothing was checked"
    return [
        item.name
        for item in own
        if item.metadata.get("identity") not in (True, False, UNLESS_DEFAULT) or not item.metadata.get("help")
    ]


@pytest.mark.parametrize("config_class", [CausalLMTrainingConfig, GradientRoutingConfig, CoherenceConfig])
def test_every_own_field_says_whether_it_identifies_a_run(config_class: type) -> None:
    assert undeclared(config_class) == []


def test_a_field_that_does_not_say_it_is_found() -> None:
    @dataclass
    class Planted(CausalLMTrainingConfig):
        silent: int = field(default=1, metadata={"help": "Says nothing of a run's identity."})
        declared: int = field(default=1, metadata=about("Says it.", identity=False))
        bare: int = 1

    assert undeclared(Planted) == ["silent", "bare"]


def test_what_changes_nothing_of_what_is_computed() -> None:
    said = {
        item.name for item in dataclasses.fields(GradientRoutingConfig) if item.metadata.get("identity", True) is False
    }
    assert said == {"logging_steps", "logging_nan_inf_filter", "minimum_ablation_gap"}
    assert not said & SHOWN_OR_KEPT  # each stands in one place


def test_only_routing_has_what_only_routing_needs() -> None:
    every, routing = (
        {item.name for item in dataclasses.fields(kind)} for kind in (CausalLMTrainingConfig, GradientRoutingConfig)
    )
    assert routing - every == ROUTING_ALONE
    assert every < routing


def test_a_stock_model_is_trained_with_either_config_alike(
    make_base: Callable[..., Any], make_stories: Callable[..., Any], tmp_path: Path
) -> None:
    trained = []
    for kind in (CausalLMTrainingConfig, GradientRoutingConfig):
        args = kind(str(tmp_path), max_steps=2, save_strategy="no", disable_tqdm=True, use_cpu=True)
        trainer = CausalLMTrainer(make_base(), args, train_dataset=make_stories(8, routed=False))
        trainer.train()
        trained.append(trainer.model.state_dict())
    assert all(torch.equal(value, trained[1][name]) for name, value in trained[0].items())


@pytest.mark.parametrize(
    ("trainer_class", "config_class", "expected"),
    [
        (CausalLMTrainer, TrainingArguments, "CausalLMTrainingConfig"),
        (GradientRoutingTrainer, TrainingArguments, "GradientRoutingConfig"),
        (GradientRoutingTrainer, CausalLMTrainingConfig, "GradientRoutingConfig"),
    ],
)
def test_a_config_of_too_little_is_refused(
    make_expanded: Callable[..., Any], tmp_path: Path, trainer_class: Any, config_class: Any, expected: str
) -> None:
    with pytest.raises(ValueError, match=f"should be a {expected}, got {config_class.__name__}"):
        trainer_class(make_expanded(), config_class(str(tmp_path), use_cpu=True))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("l1_coefficient", -1.0, r"`training.l1_coefficient` should be a finite number >= 0, got -1.0"),
        ("auxiliary_learning_rate_factor", float("nan"), r"auxiliary_learning_rate_factor.*got nan"),
        ("auxiliary_weight_decay", -0.1, r"`training.auxiliary_weight_decay`.*got -0.1"),
        ("multipliers", {"orignal_forget": 1}, r"Unknown key `orignal_forget`.*Did you mean `original_forget`"),
        ("multipliers", "not json", r"should be a dict or JSON"),
        ("multipliers", {"original_forget": "much"}, r"`original_forget` should be a finite number"),
    ],
)
def test_bad_routing_settings_are_refused(tmp_path: Path, name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GradientRoutingConfig(str(tmp_path), use_cpu=True, **{name: value})


@pytest.mark.parametrize("config_class", [CausalLMTrainingConfig, GradientRoutingConfig])
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("minimum_learning_rate_ratio", 1.5, r"should be in \[0, 1\], got 1.5"),
        ("adam_beta1", 1.5, r"`training.adam_beta1` should be in \[0, 1\), got 1.5"),
        ("adam_beta2", 1.0, r"`training.adam_beta2` should be in \[0, 1\), got 1.0"),
        ("adam_epsilon", 0.0, r"`training.adam_epsilon` should be positive, got 0.0"),
        ("label_smoothing_factor", -0.1, r"`training.label_smoothing_factor` should be in \[0, 1\), got -0.1"),
        ("max_grad_norm", -1, r"`training.max_grad_norm` should be a finite number >= 0, got -1"),
        ("warmup_steps", float("nan"), r"`training.warmup_steps` should be a finite number >= 0, got nan"),
        ("num_train_epochs", "three", r"`training.num_train_epochs` should be positive, got 'three'"),
        ("save_steps", -1, r"`training.save_steps` should be a finite number >= 0, got -1"),
        ("weight_decay", -1.0, r"`training.weight_decay` should be a finite number >= 0, got -1.0"),
        ("learning_rate", 0.0, r"`training.learning_rate` should be positive, got 0.0"),
        ("per_device_train_batch_size", 0, r"`training.per_device_train_batch_size` should be at least 1, got 0"),
        ("max_steps", 0, r"`training.max_steps` is 0. Give a number of steps"),
        ("attn_implementation", "spda", r"`training.attn_implementation`: 'spda'. Did you mean `sdpa`"),
    ],
)
def test_bad_settings_are_refused(config_class: Any, tmp_path: Path, name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_class(str(tmp_path), use_cpu=True, **{name: value})


def test_the_config_prints_its_help() -> None:
    said = transformers.HfArgumentParser(hf_era.GradientRoutingConfig).format_help()
    assert "--minimum_ablation_gap" in said
    assert "--minimum_learning_rate_ratio" in said


@pytest.mark.parametrize(
    ("metric", "greater"),
    [
        ("eval_retain_loss_ablated", False),
        ("cooking_loss_ablated", False),
        ("eval_retain_ablation_gap", False),
        ("eval_retain_loss", False),
        ("eval_forget_loss_ablated", True),
        ("eval_ablation_gap", True),
    ],
)
def test_the_best_of_our_metrics_is_the_right_end(tmp_path: Path, metric: str, greater: bool) -> None:
    """transformers takes every name that does not end in `loss` for one where more is better."""
    assert GradientRoutingConfig(str(tmp_path), metric_for_best_model=metric).greater_is_better is greater
    assert GradientRoutingConfig(str(tmp_path), metric_for_best_model=metric, greater_is_better=True).greater_is_better
