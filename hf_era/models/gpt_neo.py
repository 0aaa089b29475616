"""GPT-Neo: a family's own part. Everything else is in `expanded_model.py` and `routed_layers.py`.

MLP `transformer.h.N.mlp`: `c_proj(gelu_new(c_fc(x)))`, both with bias, dropout after `c_proj`. LM head tied to `wte`.
"""

from typing import Any, ClassVar

from torch import Tensor
from transformers import GPTNeoConfig, GPTNeoForCausalLM
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoBlock, GPTNeoMLP

from hf_era.models.architectures import ARCHITECTURES
from hf_era.models.expanded_config import ExpandedConfigMixin
from hf_era.models.expanded_model import ExpandedCausalLMMixin
from hf_era.models.outputs import ExpandedCausalLMOutput
from hf_era.models.routed_layers import ExpandedMLPMixin, RoutedBlockMixin


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
        activation = self.route_original(self.act(self.c_fc(hidden_states)))
        output = self.add_auxiliary(hidden_states, self.c_proj(activation))
        return self.dropout(output)


class ExpandedGPTNeoBlock(RoutedBlockMixin, GPTNeoBlock):
    pass


class ExpandedGPTNeoForCausalLM(ExpandedCausalLMMixin, GPTNeoForCausalLM):
    """A `GPTNeoForCausalLM` with auxiliary modules in its target layers, trained by gradient routing.

    Three ways to make one: `ExpandedGPTNeoForCausalLM(ExpandedGPTNeoConfig(...))` from random weights,
    `from_base("roneneldan/TinyStories-28M", ExpansionConfig(...))` from a stock checkpoint, and `from_pretrained` (also
    `AutoModelForCausalLM.from_pretrained`, once `hf_era` is imported) from its own saved directory.
    """

    config_class = ExpandedGPTNeoConfig
    base_model_class: ClassVar[type] = GPTNeoForCausalLM
    architecture = ARCHITECTURES["gpt_neo"]
    expanded_block_class: ClassVar[type] = ExpandedGPTNeoBlock
    expanded_mlp_class: ClassVar[type] = ExpandedGPTNeoMLP
    _no_split_modules = ["GPTNeoBlock", "ExpandedGPTNeoBlock"]

    def __init__(self, config: ExpandedGPTNeoConfig) -> None:
        super().__init__(config)
        self.expand_target_layers()
        self.post_init()

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
        routing_weight: Tensor | None = None,
        output_activation_l1: bool = False,
        **kwargs: Any,
    ) -> ExpandedCausalLMOutput | tuple[Tensor, ...]:
        """`GPTNeoForCausalLM.forward`, and two arguments of its own. The forward values do not depend on them.

        Args:
            routing_weight (`Tensor`, *optional*): (batch, seq), floating, range [0, 1]: 1 = treat as retain, 0 = treat
                as forget. Position i holds the weight of token i + 1, which it predicts. `None`: no routing.
            output_activation_l1 (`bool`, *optional*, defaults to `False`): also return `activation_l1`.
        """
        return self.forward_with_routing(
            super().forward,
            routing_weight=routing_weight,
            output_activation_l1=output_activation_l1,
            input_ids=input_ids,
            past_key_values=past_key_values,
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
            **kwargs,
        )
