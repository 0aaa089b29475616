"""Expanded model classes: expand a stock causal LM, route, ablate, contract."""

from hf_era.models.architectures import ARCHITECTURES, ArchitectureSpec, get_architecture
from hf_era.models.auxiliary import AuxiliaryMLP
from hf_era.models.expansion import ExpansionConfig
from hf_era.models.fast_paths import FastPaths
from hf_era.models.gpt_neo import ExpandedGPTNeoConfig, ExpandedGPTNeoForCausalLM, FastGPTNeoForCausalLM
from hf_era.models.loading import expand_base
from hf_era.models.outputs import ExpandedCausalLMOutput
from hf_era.models.registration import register_auto_classes

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
