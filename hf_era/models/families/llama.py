"""Llama, and those whose MLP is Llama's: SwiGLU, `down_proj(silu(gate_proj(x)) * up_proj(x))`, in `model.layers.N.mlp`.

Mistral (windowed attention), Qwen2 (biases in attention), Qwen3 (norms on queries and keys), SmolLM2 (is a Llama), SmolLM3
(layers without positions), OLMo2 (norms *after* attention and MLP: the auxiliary module adds before the norm). Where nothing
is between the projections and the heads of attention, there can be heads beside these.
"""

from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from hf_era.models.config import ExpandedConfigMixin
from hf_era.models.expanded import ExpandedCausalLMMixin
from hf_era.models.families.family import AttentionLayout, Family, register_family


class ExpandedLlamaConfig(ExpandedConfigMixin, LlamaConfig):
    """A `LlamaConfig` with an `expansion`."""

    model_type = "expanded_llama"
    expansion: dict | None = None


class ExpandedLlamaForCausalLM(ExpandedCausalLMMixin, LlamaForCausalLM):
    """A `LlamaForCausalLM` with auxiliary modules in its target layers."""

    config_class = ExpandedLlamaConfig


register_family(Family(model_class=ExpandedLlamaForCausalLM, gated=True, attention=AttentionLayout()))


class ExpandedMistralConfig(ExpandedConfigMixin, MistralConfig):
    """A `MistralConfig` with an `expansion`."""

    model_type = "expanded_mistral"
    expansion: dict | None = None


class ExpandedMistralForCausalLM(ExpandedCausalLMMixin, MistralForCausalLM):
    """A `MistralForCausalLM` with auxiliary modules in its target layers."""

    config_class = ExpandedMistralConfig


register_family(Family(model_class=ExpandedMistralForCausalLM, gated=True, attention=AttentionLayout()))


class ExpandedQwen2Config(ExpandedConfigMixin, Qwen2Config):
    """A `Qwen2Config` with an `expansion`."""

    model_type = "expanded_qwen2"
    expansion: dict | None = None


class ExpandedQwen2ForCausalLM(ExpandedCausalLMMixin, Qwen2ForCausalLM):
    """A `Qwen2ForCausalLM` with auxiliary modules in its target layers."""

    config_class = ExpandedQwen2Config


register_family(Family(model_class=ExpandedQwen2ForCausalLM, gated=True, attention=AttentionLayout()))


class ExpandedQwen3Config(ExpandedConfigMixin, Qwen3Config):
    """A `Qwen3Config` with an `expansion`."""

    model_type = "expanded_qwen3"
    expansion: dict | None = None


class ExpandedQwen3ForCausalLM(ExpandedCausalLMMixin, Qwen3ForCausalLM):
    """A `Qwen3ForCausalLM` with auxiliary modules in its target layers."""

    config_class = ExpandedQwen3Config


register_family(Family(model_class=ExpandedQwen3ForCausalLM, gated=True))


class ExpandedSmolLM3Config(ExpandedConfigMixin, SmolLM3Config):
    """A `SmolLM3Config` with an `expansion`."""

    model_type = "expanded_smollm3"
    expansion: dict | None = None


class ExpandedSmolLM3ForCausalLM(ExpandedCausalLMMixin, SmolLM3ForCausalLM):
    """A `SmolLM3ForCausalLM` with auxiliary modules in its target layers."""

    config_class = ExpandedSmolLM3Config


register_family(Family(model_class=ExpandedSmolLM3ForCausalLM, gated=True, attention=AttentionLayout()))


class ExpandedOlmo2Config(ExpandedConfigMixin, Olmo2Config):
    """A `Olmo2Config` with an `expansion`."""

    model_type = "expanded_olmo2"
    expansion: dict | None = None


class ExpandedOlmo2ForCausalLM(ExpandedCausalLMMixin, Olmo2ForCausalLM):
    """A `Olmo2ForCausalLM` with auxiliary modules in its target layers."""

    config_class = ExpandedOlmo2Config


register_family(Family(model_class=ExpandedOlmo2ForCausalLM, gated=True))
