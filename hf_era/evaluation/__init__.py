"""Losses with intervals, selectivity, the relearn attack, and the result file."""

from hf_era.evaluation.evaluator import EvaluationConfig, Evaluator
from hf_era.evaluation.losses import LossEstimate, StoryLosses, loss_estimate, story_losses, token_losses
from hf_era.evaluation.relearning import RelearnAttack, RelearnAttackConfig, RelearnCurve, RelearnPoint
from hf_era.evaluation.result import SCHEMA_VERSION, RunResult
from hf_era.evaluation.selectivity import AuxiliaryActivationMeter, selectivity

__all__ = [
    "SCHEMA_VERSION",
    "AuxiliaryActivationMeter",
    "EvaluationConfig",
    "Evaluator",
    "LossEstimate",
    "RelearnAttack",
    "RelearnAttackConfig",
    "RelearnCurve",
    "RelearnPoint",
    "RunResult",
    "StoryLosses",
    "loss_estimate",
    "selectivity",
    "story_losses",
    "token_losses",
]
