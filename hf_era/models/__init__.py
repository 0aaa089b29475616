"""Expanded model classes: expand a stock causal LM, route, ablate, contract."""

from transformers import AutoConfig, AutoModelForCausalLM

from hf_era.models.config import ExpansionConfig
from hf_era.models.expanded import ExpandedCausalLMOutput
from hf_era.models.families.family import ARCHITECTURES, ArchitectureSpec, get_architecture
from hf_era.models.families.gpt_neo import ExpandedGPTNeoConfig, ExpandedGPTNeoForCausalLM, FastGPTNeoForCausalLM
from hf_era.models.fast.causal_lm import FastPaths
from hf_era.models.layers import AuxiliaryMLP
from hf_era.models.loading import expand_base

__all__ = [
    "ARCHITECTURES",
    "ArchitectureSpec",
    "AuxiliaryMLP",
    "ExpandedCausalLMOutput",
    "ExpandedGPTNeoConfig",
    "ExpandedGPTNeoForCausalLM",
    "ExpansionConfig",
    "FastGPTNeoForCausalLM",
    "FastPaths",
    "expand_base",
    "get_architecture",
    "register_auto_classes",
]


EXPANDED_CLASSES = ((ExpandedGPTNeoConfig, ExpandedGPTNeoForCausalLM),)


def register_auto_classes() -> None:
    """Makes `AutoConfig` and `AutoModelForCausalLM` know every expanded family. Calling it again changes nothing."""
    for config_class, model_class in EXPANDED_CLASSES:
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModelForCausalLM.register(config_class, model_class, exist_ok=True)
