"""Losses with intervals, selectivity, leak audit, generations, the relearn attack, `evaluate` modules, and result files."""

from hf_era.evaluation.evaluator import EvaluationConfig, Evaluator
from hf_era.evaluation.generation import SamplingConfig, describe_generations, generate_texts
from hf_era.evaluation.intervals import Estimate, mean_interval
from hf_era.evaluation.leak_audit import ablation_audit, gradient_audit
from hf_era.evaluation.losses import (
    LossEstimate,
    StoryLosses,
    loss_estimate,
    mean_of_batch_means,
    story_losses,
    token_losses,
)
from hf_era.evaluation.metrics import load
from hf_era.evaluation.prompts import LabelledPrompts, prompts_for
from hf_era.evaluation.relearn.attack import RelearnAttack, RelearnAttackConfig
from hf_era.evaluation.relearn.config import RelearnConfig, check_attack, stories_needed
from hf_era.evaluation.relearn.experiment import RelearnExperiment
from hf_era.evaluation.relearn.result import AttackSummary, RelearnCurve, RelearnPoint, RelearnResult, RelearnTrial
from hf_era.evaluation.results import SCHEMA_VERSION, ModelResult, RunResult, load_control, load_result
from hf_era.evaluation.selectivity import AuxiliaryActivationMeter, selectivity, selectivity_estimates
from hf_era.evaluation.text_metrics import (
    TargetWordCounts,
    count_target_words,
    mean_repetition,
    target_word_spans,
    trigram_repetition,
)

__all__ = [
    "SCHEMA_VERSION",
    "AttackSummary",
    "AuxiliaryActivationMeter",
    "Estimate",
    "EvaluationConfig",
    "Evaluator",
    "LabelledPrompts",
    "LossEstimate",
    "ModelResult",
    "RelearnAttack",
    "RelearnAttackConfig",
    "RelearnConfig",
    "RelearnCurve",
    "RelearnExperiment",
    "RelearnPoint",
    "RelearnResult",
    "RelearnTrial",
    "RunResult",
    "SamplingConfig",
    "StoryLosses",
    "TargetWordCounts",
    "ablation_audit",
    "check_attack",
    "count_target_words",
    "describe_generations",
    "generate_texts",
    "gradient_audit",
    "load",
    "load_control",
    "load_result",
    "loss_estimate",
    "mean_interval",
    "mean_of_batch_means",
    "mean_repetition",
    "prompts_for",
    "selectivity",
    "selectivity_estimates",
    "stories_needed",
    "story_losses",
    "target_word_spans",
    "token_losses",
    "trigram_repetition",
]
