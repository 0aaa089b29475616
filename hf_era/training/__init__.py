"""The trainers, their configs, and coherence fine-tuning."""

from hf_era.training.causal_lm_trainer import CausalLMTrainer
from hf_era.training.config import CausalLMTrainingConfig, GradientRoutingConfig
from hf_era.training.evaluation_sets import EvaluationSetWarning
from hf_era.training.finite_losses import NonFiniteLossError
from hf_era.training.gradient_routing_trainer import GradientRoutingTrainer, LocalizationWarning
from hf_era.training.raw_examples import add_routing_weights

__all__ = [
    "CausalLMTrainer",
    "CausalLMTrainingConfig",
    "EvaluationSetWarning",
    "GradientRoutingConfig",
    "GradientRoutingTrainer",
    "LocalizationWarning",
    "NonFiniteLossError",
    "add_routing_weights",
]
