"""The activation function of an MLP: GELU as one operation, and the routing of its output."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from hf_era.routing import TokenRouting, activation_l1, routed_gelu, scale_gradient

# Names in transformers' table -> `approximate` of torch's GELU that is the same function.
FUSED_GELUS = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "none"}


class RoutedActivation(nn.Module):
    """An activation function that can route. Without routing it is a plain activation module.

    Args:
        name (`str`): in `transformers.activations.ACT2FN`. The GELUs have a fused form, others take the slow path.

    Attributes:
        fused (`bool`): `False` takes transformers' own form, and the routing in operations of its own.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.stock = ACT2FN[name]
        self.approximate = FUSED_GELUS.get(name)
        self.fused = True

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.fused or self.approximate is None:
            return self.stock(inputs)
        if torch.compiler.is_compiling():
            return F.gelu(inputs, approximate=self.approximate)
        return routed_gelu(inputs, approximate=self.approximate)[0]

    def route(
        self, inputs: Tensor, routing: TokenRouting | None, factor: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The routed activation and, if the routing asks for it, its L1 norm.

        Args:
            inputs (`Tensor`): (batch, seq, hidden), what the up projection gives.
            routing (`TokenRouting`, *optional*): of the running forward pass. `None`: nothing is routed or measured.
            factor (`Tensor`, *optional*): (batch, seq), the gradient multiplier of each token. `None`: 1.
        """
        if routing is None:
            return self(inputs), None
        # A compiler fuses the separate operations by itself.
        if self.fused and self.approximate is not None and not torch.compiler.is_compiling():
            return routed_gelu(
                inputs,
                factor,
                approximate=self.approximate,
                measure_l1=routing.measure_activation_l1,
                mask=routing.activation_mask,
            )
        activation = self(inputs)
        norm = activation_l1(activation, routing.activation_mask) if routing.measure_activation_l1 else None
        return scale_gradient(activation, factor), norm
