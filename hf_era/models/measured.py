"""A stock causal LM that reports the L1 norm of its layers' activations, as an expanded one does.

A routed run is trained with an L1 term over the activations of its target layers. A control that is to differ from it in
the routing and the auxiliary module alone needs the term over the same layers, and has no module. Its layers are measured
by what measures those of an expanded model: expanded layers without a module (`hf_era.models.layers`).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Collection
from typing import Any

from hf_era.models.adapters import has_adapters, saved_merged
from hf_era.models.attention_heads import expand_attention
from hf_era.models.expanded import run_with_routing
from hf_era.models.families.family import Family, get_family
from hf_era.models.fast.causal_lm import FastCausalLMMixin
from hf_era.models.layers import expand_layer
from hf_era.models.mixing import MixedIn, mixed_class
from hf_era.models.running_call import RoutingChannel
from hf_era.models.stock_forward import give_forward
from hf_era.models.whole_weights import model_around
from hf_era.routing import ActivationRouter, build_token_routing


class MeasuredCausalLMMixin(MixedIn):
    """Put in front of the class of a stock causal LM; it is saved as that class saves it.

    Attributes:
        routing_channel (`RoutingChannel`): through which its layers report.
    """

    prefix = "Measured"
    routing_channel: RoutingChannel

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if MeasuredCausalLMMixin in cls.__bases__:  # and not a class that something made of it
            give_forward(cls, cls.__bases__[cls.__bases__.index(MeasuredCausalLMMixin) + 1], _measured_forward)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As the stock class: what is saved is its checkpoint, under its name. Adapters (peft) are merged, except in the
        checkpoints of a training."""
        if saved_merged(self, save_directory, *args, **kwargs):
            return
        if has_adapters(self):  # the checkpoint of a training: the stock class has no such weights
            super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
            return
        weights = kwargs.pop("state_dict", None) or self.state_dict(keep_vars=True)  # type: ignore[attr-defined]
        _, stock_class = type(self).mixed_of  # type: ignore[attr-defined]
        stock = model_around(stock_class, copy.deepcopy(self.config), weights, self)  # type: ignore[attr-defined]
        stock.save_pretrained(save_directory, *args, **kwargs)


def measure_activations(
    model: Any, layers: Collection[int], attention_layers: Collection[int] = (), family: Family | None = None
) -> Any:
    """Lets a stock causal LM report the L1 norm of the activations of some layers, in place; returns it.

    Parameters, their names and what it computes stay as they are, bit for bit; its forward pass also takes
    `output_activation_l1`, as that of an expanded model.

    Args:
        model: a causal LM of a family that is known, in its stock or its fast class.
        layers: indices of the layers whose MLP is measured, from 0.
        attention_layers: those whose attention is measured too, as it is where heads are beside it; they are among `layers`.
        family (`Family`, *optional*): its own; not given: the one that is registered.
    """
    family = family or get_family(model.config.model_type)
    model.routing_channel = RoutingChannel()
    for layer, block in enumerate(family.get_blocks(model)):
        if layer in layers:
            call = expand_layer(block, family.mlp, family.down_projection, {}, model.routing_channel)
            if layer in attention_layers and family.attention is not None:
                expand_attention(block, family.attention, {}, call)
    if isinstance(model, FastCausalLMMixin):  # a stock one has no fast layers
        model.family.fast_path.expand(model)
    # FSDP wraps each block, and refuses the name of one that is not there.
    model._no_split_modules = sorted({type(block).__name__ for block in family.get_blocks(model)})
    model.__class__ = mixed_class(MeasuredCausalLMMixin, type(model))
    return model


def _measured_forward(self: Any, inputs: dict[str, Any], *, output_activation_l1: bool = False) -> Any:
    """The forward pass of the class that is measured, and one argument of its own.

    Args:
        output_activation_l1 (`bool`, *optional*, defaults to `False`): also return `activation_l1`.
    """
    mask = inputs.get("attention_mask")
    routing = build_token_routing(
        None, ActivationRouter(), attention_mask=mask, measure_activation_l1=output_activation_l1
    )
    stock_forward = super(MeasuredCausalLMMixin, self).forward
    return run_with_routing(self.routing_channel, routing, lambda: stock_forward(**inputs))
