"""GPT-Neo. MLP `transformer.h.N.mlp`: `c_proj(gelu_new(c_fc(x)))`, both with bias, dropout after `c_proj`; LM head tied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import GPTNeoConfig, GPTNeoForCausalLM

from hf_era.models.config import ExpandedConfigMixin
from hf_era.models.expanded import ExpandedCausalLMMixin
from hf_era.models.families.family import Family, register_family
from hf_era.models.fast.gpt_neo import GPT_NEO_FAST_PATH, FastGPTNeoForCausalLM
from hf_era.models.size import MAXIMUM_LAYERS
from hf_era.utils.checks import check_count, short_repr


class ExpandedGPTNeoConfig(ExpandedConfigMixin, GPTNeoConfig):
    """A `GPTNeoConfig` with an `expansion`. All other fields keep their meaning and value, `intermediate_size` too."""

    model_type = "expanded_gpt_neo"
    expansion: dict | None = None


class ExpandedGPTNeoForCausalLM(ExpandedCausalLMMixin, GPTNeoForCausalLM):
    """A `GPTNeoForCausalLM` with auxiliary modules in its target layers, trained by gradient routing.

    Three ways to make one: `ExpandedGPTNeoForCausalLM(ExpandedGPTNeoConfig(...))` from random weights,
    `from_base("roneneldan/TinyStories-28M", ExpansionConfig(...))` from a stock checkpoint, and `from_pretrained` (also
    `AutoModelForCausalLM.from_pretrained`, once `hf_era` is imported) from its own saved directory.
    """

    config_class = ExpandedGPTNeoConfig
    _supports_sdpa = True  # through its fast path

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True


def _check_attention_types(field: str, values: Mapping[str, Any]) -> None:
    """`[[["global", "local"], 6], ...]`: names of kinds of attention, and how often they are repeated.

    GPT-Neo's config makes a list of all of them, which nine digits are enough to fill the memory with.
    """
    name, value = f"{field}.attention_types", values.get("attention_types")
    if value is None:
        return
    rows: list[Any] = list(value) if isinstance(value, (list, tuple)) else [None]
    layers = 0
    for row in rows:
        is_pair = isinstance(row, (list, tuple)) and len(row) == 2 and isinstance(row[0], (list, tuple))
        if not is_pair or isinstance(row[1], bool) or not isinstance(row[1], int) or row[1] < 0:
            raise ValueError(f'`{name}` should be a list such as [[["global", "local"], 6]], got {short_repr(value)}.')
        layers += len(row[0]) * row[1]
    check_count(f"{name} (layers in all)", layers, 1, MAXIMUM_LAYERS)


register_family(
    Family(
        model_class=ExpandedGPTNeoForCausalLM,
        blocks="transformer.h",
        down_projection="c_proj",
        number_of_layers="num_layers",
        activation="activation_function",
        fast_path=GPT_NEO_FAST_PATH,
        explicit_fast_class=FastGPTNeoForCausalLM,
        stored_buffers=r"\.attn\.attention\.(bias|masked_bias)",
        check_config_values=_check_attention_types,
    )
)
