"""The trainer and its config, and coherence fine-tuning."""

from hf_era.training.config import GradientRoutingConfig
from hf_era.training.errors import LocalizationWarning, NonFiniteLossError
from hf_era.training.token_weighted_trainer import TokenWeightedTrainer
from hf_era.training.trainer import GradientRoutingTrainer

__all__ = [
    "GradientRoutingConfig",
    "GradientRoutingTrainer",
    "LocalizationWarning",
    "NonFiniteLossError",
    "TokenWeightedTrainer",
]
