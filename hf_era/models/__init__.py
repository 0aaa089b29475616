"""Expanded model classes: expand a stock causal LM, route, ablate, contract."""

from hf_era.models.attention_heads import AttentionHeads
from hf_era.models.config import ExpansionConfig, ModuleConfig
from hf_era.models.expanded import ExpandedCausalLMOutput
from hf_era.models.families import gemma, gpt2, gpt_neox, llama  # noqa: F401  registers them
from hf_era.models.families.family import (
    FAMILIES,
    Family,
    family_for,
    get_family,
    register_auto_classes,
    register_family,
)
from hf_era.models.families.gpt_neo import ExpandedGPTNeoConfig, ExpandedGPTNeoForCausalLM
from hf_era.models.fast.causal_lm import FastPaths
from hf_era.models.fast.gpt_neo import FastGPTNeoForCausalLM
from hf_era.models.layers import AuxiliaryMLP, AuxiliaryModule, register_module_kind
from hf_era.models.loading import expand_base
from hf_era.models.module_files import attach_module, load_expanded
from hf_era.models.self_check import UntestedFamilyWarning

ExpandedGPTNeo = ExpandedGPTNeoForCausalLM

__all__ = [
    "FAMILIES",
    "AttentionHeads",
    "AuxiliaryMLP",
    "AuxiliaryModule",
    "ExpandedCausalLMOutput",
    "ExpandedGPTNeo",
    "ExpandedGPTNeoConfig",
    "ExpandedGPTNeoForCausalLM",
    "ExpansionConfig",
    "Family",
    "FastGPTNeoForCausalLM",
    "FastPaths",
    "ModuleConfig",
    "UntestedFamilyWarning",
    "attach_module",
    "expand_base",
    "family_for",
    "get_family",
    "load_expanded",
    "register_auto_classes",
    "register_family",
    "register_module_kind",
]
