"""GELU as one operation, with the routing and the L1 term in its backward pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from hf_era.routing import routed_gelu

# Names in transformers' table -> `approximate` of torch's GELU that is the same function.
FUSED_GELUS = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "none"}


class RoutedActivation(nn.Module):
    """The activation function of an MLP `down(act(up(x)))`: what it gives is the down projection's input, so it can route.

    Outside of a target layer it is a plain activation module. Not for gated MLPs, whose routed activation is a product.

    Args:
        name (`str`): in `transformers.activations.ACT2FN`. The GELUs have a fused form, others take transformers' own.

    Attributes:
        fused (`bool`): `False` takes transformers' own form, and leaves the routing to the down projection.
        call (`LayerCall`, *optional*): of the target layer that it belongs to.
        module (`str`, *optional*): the auxiliary module that it belongs to; `None`: the original MLP.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.stock = ACT2FN[name]
        self.approximate = FUSED_GELUS.get(name)
        self.fused = True
        self.call: Any = None
        self.module: str | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, seq, width) -> the same, routed where a forward pass with routing is running."""
        if not self.fused or self.approximate is None:
            return self.stock(inputs)
        if torch.compiler.is_compiling():  # a compiler fuses the separate operations by itself
            return F.gelu(inputs, approximate=self.approximate)
        routing = None if self.call is None else self.call.routing
        if routing is None:
            return routed_gelu(inputs, approximate=self.approximate)[0]
        activation, norm = routed_gelu(
            inputs,
            routing.of(self.module).activation_multiplier,
            approximate=self.approximate,
            measure_l1=routing.measure_activation_l1,
            mask=routing.l1_mask(self.module, inputs.shape[:2]) if routing.measure_activation_l1 else None,
        )
        if norm is not None:
            self.call.add_l1(norm)
        self.call.is_routed = True
        return activation
