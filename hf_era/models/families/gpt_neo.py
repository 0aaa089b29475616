"""GPT-Neo: a family's own part. What families share is in `fast_model.py`, `expanded_model.py` and `routed_layers.py`.

MLP `transformer.h.N.mlp`: `c_proj(gelu_new(c_fc(x)))`, both with bias, dropout after `c_proj`. LM head tied to `wte`.
"""

from typing import Any, ClassVar

from torch import Tensor
from transformers import GPTNeoConfig, GPTNeoForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoBlock, GPTNeoMLP, GPTNeoSelfAttention

from hf_era.models.config import ExpandedConfigMixin
from hf_era.models.expanded import ExpandedCausalLMMixin, ExpandedCausalLMOutput
from hf_era.models.families.family import ARCHITECTURES
from hf_era.models.fast.activation import RoutedActivation
from hf_era.models.fast.causal_lm import FastCausalLMMixin, StockCheckpointMixin, cache_argument
from hf_era.models.fast.gpt_neo import FastGPTNeoSelfAttention
from hf_era.models.layers import ExpandedMLPMixin, RoutedBlockMixin


class GPTNeoWithFastLayers(FastCausalLMMixin, GPTNeoForCausalLM):
    """`GPTNeoForCausalLM` with attention through sdpa, a fused GELU and a chunked loss; see `FastPaths`."""

    def __init__(self, config: GPTNeoConfig) -> None:
        requested = config._attn_implementation
        if requested in (None, "sdpa"):
            config._attn_implementation_internal = "eager"  # the stock constructor knows no sdpa
        try:
            super().__init__(config)
        finally:
            config._attn_implementation_internal = requested
        blocks: Any = self.transformer.h
        for block in blocks:
            block.mlp.act = RoutedActivation(config.activation_function)
            attention: Any = block.attn.attention
            if type(attention) is GPTNeoSelfAttention:
                # Same parameters and buffers; only what is done with them differs.
                attention.__class__ = FastGPTNeoSelfAttention
                attention.returns_weights = False  # type: ignore[assignment]
        config._attn_implementation_internal = self._check_and_adjust_attn_implementation(requested, is_init_check=True)

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True

    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Any | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        skip_logits: bool | None = None,
        *,
        cache: Any | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Tensor, ...]:
        """`GPTNeoForCausalLM.forward`, and one argument of its own.

        Args:
            skip_logits (`bool`, *optional*): with `labels`: compute the loss without ever holding the logits, and return
                none. Not given: while training. `False`: always return logits.
            cache, past_key_values (*optional*): two names of the same, whatever the version of transformers.
        """
        return self.fast_forward(
            super().forward,
            skip_logits=skip_logits,
            labels=labels,
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
            logits_to_keep=logits_to_keep,
            **cache_argument(past_key_values, cache),
            **kwargs,
        )


class FastGPTNeoForCausalLM(StockCheckpointMixin, GPTNeoWithFastLayers):
    """A `GPTNeoForCausalLM` that runs faster: same weights, names, config and results (to rounding).

    `from_pretrained` loads an ordinary GPT-Neo checkpoint, `from_stock` takes a model in memory, and `save_pretrained` saves
    an ordinary checkpoint. `attn_implementation` is `"sdpa"` unless `"eager"` or `"flash_attention_2"` (transformers' own,
    which knows no local window) is asked for.
    """

    stock_class: ClassVar[type] = GPTNeoForCausalLM


class ExpandedGPTNeoConfig(ExpandedConfigMixin, GPTNeoConfig):
    """A `GPTNeoConfig` with an `expansion`. All other fields keep their meaning and value, `intermediate_size` too.

    Args:
        expansion (`dict`, *optional*):
            The fields of an `ExpansionConfig`. Not given: its defaults.
        kwargs: everything that `GPTNeoConfig` takes.

    Raises:
        ValueError: if the expansion does not fit the model, for instance a target layer that does not exist.
    """

    model_type = "expanded_gpt_neo"
    base_config_class: ClassVar[type] = GPTNeoConfig

    expansion: dict | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.check_expansion()


class ExpandedGPTNeoMLP(ExpandedMLPMixin, GPTNeoMLP):
    def forward(self, hidden_states: Tensor) -> Tensor:
        activation = self.activate_original(self.act, self.c_fc(hidden_states))
        output = self.add_auxiliary(hidden_states, self.c_proj(activation))
        return self.dropout(output)


class ExpandedGPTNeoBlock(RoutedBlockMixin, GPTNeoBlock):
    pass


class ExpandedGPTNeoForCausalLM(ExpandedCausalLMMixin, GPTNeoWithFastLayers):
    """A `GPTNeoForCausalLM` with auxiliary modules in its target layers, trained by gradient routing.

    Three ways to make one: `ExpandedGPTNeoForCausalLM(ExpandedGPTNeoConfig(...))` from random weights,
    `from_base("roneneldan/TinyStories-28M", ExpansionConfig(...))` from a stock checkpoint, and `from_pretrained` (also
    `AutoModelForCausalLM.from_pretrained`, once `hf_era` is imported) from its own saved directory.
    """

    config_class = ExpandedGPTNeoConfig
    stock_class: ClassVar[type] = GPTNeoForCausalLM
    architecture = ARCHITECTURES["gpt_neo"]
    expanded_block_class: ClassVar[type] = ExpandedGPTNeoBlock
    expanded_mlp_class: ClassVar[type] = ExpandedGPTNeoMLP

    def __init__(self, config: ExpandedGPTNeoConfig) -> None:
        super().__init__(config)
        self.expand_target_layers()
        self.post_init()
        self._no_split_modules = self.block_class_names()

    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Any | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        skip_logits: bool | None = None,
        routing_weight: Tensor | None = None,
        output_activation_l1: bool = False,
        *,
        cache: Any | None = None,
        **kwargs: Any,
    ) -> ExpandedCausalLMOutput | tuple[Tensor, ...]:
        """`GPTNeoForCausalLM.forward`, and arguments of its own. The forward values do not depend on the first two.

        Args:
            routing_weight (`Tensor`, *optional*): (batch, seq), floating, range [0, 1]: 1 = treat as retain, 0 = treat
                as forget. Position i holds the weight of token i + 1, which it predicts. `None`: no routing.
            output_activation_l1 (`bool`, *optional*, defaults to `False`): also return `activation_l1`.
            skip_logits (`bool`, *optional*): as in `FastGPTNeoForCausalLM`.
        """
        return self.forward_with_routing(
            super().forward,
            routing_weight=routing_weight,
            output_activation_l1=output_activation_l1,
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
            logits_to_keep=logits_to_keep,
            skip_logits=skip_logits,
            **cache_argument(past_key_values, cache),
            **kwargs,
        )
