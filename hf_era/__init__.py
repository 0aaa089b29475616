"""hf_era: gradient routing (Expand-Route-Ablate, arXiv 2410.04332) for HuggingFace Transformers.

Importing the package registers its model classes with transformers' Auto classes and does nothing else; the trainer and
everything it needs are imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from hf_era.models import (
    ExpandedGPTNeo,
    ExpandedGPTNeoConfig,
    ExpandedGPTNeoForCausalLM,
    ExpansionConfig,
    FastGPTNeoForCausalLM,
    FastPaths,
    expand_base,
    register_auto_classes,
)
from hf_era.routing import GradientMultipliers, RoutingRuleConfig
from hf_era.version import __version__

if TYPE_CHECKING:
    from hf_era.run.config import RunConfig, load_run_config
    from hf_era.run.pipeline import run_pipeline
    from hf_era.training import (
        GradientRoutingConfig,
        GradientRoutingTrainer,
        LocalizationWarning,
        NonFiniteLossError,
        add_routing_weights,
    )

_LAZY = {
    "GradientRoutingConfig": "hf_era.training",
    "GradientRoutingTrainer": "hf_era.training",
    "LocalizationWarning": "hf_era.training",
    "NonFiniteLossError": "hf_era.training",
    "add_routing_weights": "hf_era.training",
    "RunConfig": "hf_era.run.config",
    "load_run_config": "hf_era.run.config",
    "run_pipeline": "hf_era.run.pipeline",
}

__all__ = [
    "ExpandedGPTNeo",
    "ExpandedGPTNeoConfig",
    "ExpandedGPTNeoForCausalLM",
    "ExpansionConfig",
    "FastGPTNeoForCausalLM",
    "FastPaths",
    "GradientMultipliers",
    "GradientRoutingConfig",
    "GradientRoutingTrainer",
    "LocalizationWarning",
    "NonFiniteLossError",
    "RoutingRuleConfig",
    "RunConfig",
    "__version__",
    "add_routing_weights",
    "expand_base",
    "load_run_config",
    "run_pipeline",
]

register_auto_classes()


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
