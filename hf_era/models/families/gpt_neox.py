"""GPT-NeoX (Pythia). MLP `gpt_neox.layers.N.mlp`: `dense_4h_to_h(gelu(dense_h_to_4h(x)))`, beside attention or after it."""

from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from hf_era.models.config import ExpandedConfigMixin
from hf_era.models.expanded import ExpandedCausalLMMixin
from hf_era.models.families.family import Family, register_family


class ExpandedGPTNeoXConfig(ExpandedConfigMixin, GPTNeoXConfig):
    """A `GPTNeoXConfig` with an `expansion`."""

    model_type = "expanded_gpt_neox"
    expansion: dict | None = None


class ExpandedGPTNeoXForCausalLM(ExpandedCausalLMMixin, GPTNeoXForCausalLM):
    """A `GPTNeoXForCausalLM` with auxiliary modules in its target layers."""

    config_class = ExpandedGPTNeoXConfig


register_family(
    Family(model_class=ExpandedGPTNeoXForCausalLM, blocks="gpt_neox.layers", down_projection="dense_4h_to_h")
)
