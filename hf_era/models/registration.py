"""Registers the expanded classes with transformers' Auto classes. The package's only side effect on import."""

from transformers import AutoConfig, AutoModelForCausalLM

from hf_era.models.gpt_neo import ExpandedGPTNeoConfig, ExpandedGPTNeoForCausalLM

EXPANDED_CLASSES = ((ExpandedGPTNeoConfig, ExpandedGPTNeoForCausalLM),)


def register_auto_classes() -> None:
    """Makes `AutoConfig` and `AutoModelForCausalLM` know every expanded family. Calling it again changes nothing."""
    for config_class, model_class in EXPANDED_CLASSES:
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModelForCausalLM.register(config_class, model_class, exist_ok=True)
