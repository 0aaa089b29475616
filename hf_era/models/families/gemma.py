"""Gemma 2 and 3 (text). MLP `model.layers.N.mlp`: `down_proj(gelu(gate_proj(x)) * up_proj(x))`, and a norm after it.

The auxiliary module adds to what `down_proj` writes, before that norm. Gemma 2 caps its logits; the chunked loss does, too.
"""

from transformers import Gemma2Config, Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig

from hf_era.models.config import ExpandedConfigMixin
from hf_era.models.expanded import ExpandedCausalLMMixin
from hf_era.models.families.family import Family, register_family


class ExpandedGemma2Config(ExpandedConfigMixin, Gemma2Config):
    """A `Gemma2Config` with an `expansion`."""

    model_type = "expanded_gemma2"
    expansion: dict | None = None


class ExpandedGemma2ForCausalLM(ExpandedCausalLMMixin, Gemma2ForCausalLM):
    """A `Gemma2ForCausalLM` with auxiliary modules in its target layers."""

    config_class = ExpandedGemma2Config


register_family(Family(model_class=ExpandedGemma2ForCausalLM, gated=True, activation="hidden_activation"))


class ExpandedGemma3TextConfig(ExpandedConfigMixin, Gemma3TextConfig):
    """A `Gemma3TextConfig` with an `expansion`."""

    model_type = "expanded_gemma3_text"
    expansion: dict | None = None


class ExpandedGemma3ForCausalLM(ExpandedCausalLMMixin, Gemma3ForCausalLM):
    """A `Gemma3ForCausalLM` with auxiliary modules in its target layers."""

    config_class = ExpandedGemma3TextConfig


register_family(
    Family(model_class=ExpandedGemma3ForCausalLM, gated=True, activation="hidden_activation", norms_heads_first=True)
)
