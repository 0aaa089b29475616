"""hf_era: gradient routing (Expand-Route-Ablate, arXiv 2410.04332) for HuggingFace Transformers.

Importing the package registers its model classes with transformers' Auto classes and does nothing else; the trainer and
everything it needs are imported when they are first used. The command line registers them with the first model that it
loads: nobody should wait for torch to read a help text.
"""

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_era.version import __version__

if TYPE_CHECKING:
    from hf_era.models import (
        ExpandedGPTNeo,
        ExpandedGPTNeoConfig,
        ExpandedGPTNeoForCausalLM,
        ExpansionConfig,
        FastGPTNeoForCausalLM,
        FastPaths,
        attach_module,
        expand_base,
    )
    from hf_era.routing import GradientMultipliers, RoutingRuleConfig
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
    "ExpandedGPTNeo": "hf_era.models",
    "ExpandedGPTNeoConfig": "hf_era.models",
    "ExpandedGPTNeoForCausalLM": "hf_era.models",
    "ExpansionConfig": "hf_era.models",
    "FastGPTNeoForCausalLM": "hf_era.models",
    "FastPaths": "hf_era.models",
    "GradientMultipliers": "hf_era.routing",
    "GradientRoutingConfig": "hf_era.training",
    "GradientRoutingTrainer": "hf_era.training",
    "LocalizationWarning": "hf_era.training",
    "NonFiniteLossError": "hf_era.training",
    "RoutingRuleConfig": "hf_era.routing",
    "RunConfig": "hf_era.run.config",
    "add_routing_weights": "hf_era.training",
    "attach_module": "hf_era.models",
    "expand_base": "hf_era.models",
    "load_run_config": "hf_era.run.config",
    "register_auto_classes": "hf_era.models",
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
    "attach_module",
    "expand_base",
    "load_run_config",
    "run_pipeline",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


def _is_command_line() -> bool:
    """Whether this process is `hf-era` or `python -m hf_era`: then nobody else's program waits for the registration."""
    program = sys.argv[0] if sys.argv else ""
    # While Python looks for the module of `-m`, its own name is not there yet.
    return Path(program).stem == "hf-era" or (program == "-m" and "hf_era" in sys.orig_argv)


if not _is_command_line():
    importlib.import_module("hf_era.models")  # each family registers itself
