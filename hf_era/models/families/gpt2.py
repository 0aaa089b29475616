"""GPT-2. MLP `transformer.h.N.mlp`: `c_proj(gelu_new(c_fc(x)))`, both `Conv1D`, dropout after `c_proj`; LM head tied."""

from transformers import GPT2Config, GPT2LMHeadModel

from hf_era.models.config import ExpandedConfigMixin
from hf_era.models.expanded import ExpandedCausalLMMixin
from hf_era.models.families.family import Family, register_family


class ExpandedGPT2Config(ExpandedConfigMixin, GPT2Config):
    """A `GPT2Config` with an `expansion`."""

    model_type = "expanded_gpt2"
    expansion: dict | None = None


class ExpandedGPT2LMHeadModel(ExpandedCausalLMMixin, GPT2LMHeadModel):
    """A `GPT2LMHeadModel` with auxiliary modules in its target layers."""

    config_class = ExpandedGPT2Config


register_family(
    Family(
        model_class=ExpandedGPT2LMHeadModel,
        blocks="transformer.h",
        down_projection="c_proj",
        activation="activation_function",
        intermediate_size="n_inner",
    )
)
