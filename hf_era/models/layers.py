"""The auxiliary module: a small MLP beside the original one, `down(activation(up(x)))`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import initialization

from hf_era.models.fast.activation import RoutedActivation
from hf_era.routing import TokenRouting


class AuxiliaryMLP(nn.Module):
    """A side MLP that reads what the original MLP reads and adds to what it writes.

    It has no output bias of its own, so original plus auxiliary MLP is the same function as one MLP that is wider by
    `width` (the *expanded dims* of arXiv 2410.04332), while original weights keep their names and shapes.

    Args:
        hidden_size (`int`): width of the residual stream.
        width (`int`): hidden units.
        activation (`str`): name of the activation function in `transformers.activations.ACT2FN`.
        initialization_std (`float`): standard deviation of both weights at the start; the bias starts at zero.

    Attributes:
        active (`bool`): `False` while the module is ablated.
    """

    def __init__(self, hidden_size: int, width: int, activation: str, initialization_std: float) -> None:
        super().__init__()
        self.up_projection = nn.Linear(hidden_size, width)
        self.down_projection = nn.Linear(width, hidden_size, bias=False)
        self.act = RoutedActivation(activation)
        self.initialization_std = initialization_std
        self.active = True

    def forward(
        self, hidden_states: Tensor, activate: Callable[[RoutedActivation, Tensor], Tensor] | None = None
    ) -> Tensor:
        """(batch, seq, hidden) -> (batch, seq, hidden).

        `activate` makes the (batch, seq, width) activation of the up projection's output, and routes it. Not given:
        `self.act` does, without routing.
        """
        inputs = self.up_projection(hidden_states)
        return self.down_projection(self.act(inputs) if activate is None else activate(self.act, inputs))

    def initialize(self) -> None:
        """Draws the starting weights; parameters that were loaded from a checkpoint are left alone."""
        # transformers' own functions look at each parameter's "loaded already" flag, torch's do not.
        initialization.normal_(self.up_projection.weight, std=self.initialization_std)
        initialization.zeros_(self.up_projection.bias)
        initialization.normal_(self.down_projection.weight, std=self.initialization_std)


class RoutingChannel:
    """Holds the routing of the forward pass that is running now, and gathers the L1 norms that its layers measure."""

    def __init__(self) -> None:
        self.routing: TokenRouting | None = None
        self.layer_l1: list[Tensor] = []

    def open(self, routing: TokenRouting | None) -> None:
        self.routing, self.layer_l1 = routing, []

    def close(self) -> Tensor | None:
        """Empties the channel and returns the L1 norm summed over the layers, if they measured it."""
        total = sum(self.layer_l1[1:], self.layer_l1[0]) if self.layer_l1 else None
        self.routing, self.layer_l1 = None, []
        return total


class RoutedBlockMixin:
    """Mixed into a family's transformer block. The block's MLP must be an `ExpandedMLPMixin`."""

    routing_channel: RoutingChannel
    routed_mlp_name: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        channel = self.routing_channel
        if channel.routing is not None:
            kwargs["routing"] = channel.routing
        outputs = super().__call__(*args, **kwargs)  # type: ignore[misc]
        if channel.routing is not None and channel.routing.measure_activation_l1:
            *outputs, layer_l1 = outputs
            channel.layer_l1.append(layer_l1)
            return outputs[0] if len(outputs) == 1 else tuple(outputs)
        return outputs

    def forward(self, *args: Any, routing: TokenRouting | None = None, **kwargs: Any) -> Any:
        mlp: ExpandedMLPMixin = getattr(self, self.routed_mlp_name)
        mlp.routing = routing
        try:
            outputs = super().forward(*args, **kwargs)  # type: ignore[misc]
            layer_l1 = mlp.measured_l1
        finally:
            mlp.routing = mlp.measured_l1 = None
        if routing is None or not routing.measure_activation_l1:
            return outputs
        # The norm leaves as an output of the block, so that checkpointing carries its gradient too.
        return (*outputs, layer_l1) if isinstance(outputs, tuple) else (outputs, layer_l1)


class ExpandedMLPMixin:
    """Mixed into a family's MLP: routes the original activation and adds the auxiliary modules' outputs."""

    auxiliary: nn.ModuleDict
    routing: TokenRouting | None = None
    measured_l1: Tensor | None = None

    def activate_original(self, act: RoutedActivation, inputs: Tensor) -> Tensor:
        """What the original MLP's down projection gets, (batch, seq, intermediate), of what its up projection gives."""
        return self._activate(act, inputs, None if self.routing is None else self.routing.original_factor)

    def add_auxiliary(self, hidden_states: Tensor, output: Tensor) -> Tensor:
        """Adds what the active auxiliary modules make of the MLP's input; both (batch, seq, hidden)."""
        for module in self.auxiliary.values():
            if module.active:  # an ablated module costs nothing and leaves `output` bit for bit
                output = output + module(hidden_states, self._activate_auxiliary)
        return output

    def _activate_auxiliary(self, act: RoutedActivation, inputs: Tensor) -> Tensor:
        return self._activate(act, inputs, None if self.routing is None else self.routing.auxiliary_factor)

    def _activate(self, act: RoutedActivation, inputs: Tensor, factor: Tensor | None) -> Tensor:
        activation, measured = act.route(inputs, self.routing, factor)
        if measured is not None:
            self.measured_l1 = measured if self.measured_l1 is None else self.measured_l1 + measured
        return activation


def expand_layer(
    block: Any,
    mlp_name: str,
    classes: tuple[type, type],
    auxiliary: dict[str, AuxiliaryMLP],
    channel: RoutingChannel,
) -> None:
    """Turns a stock block into an expanded one, in place.

    The block and its MLP change class and keep their parameters. A model built with a seed has therefore the same
    original weights as the stock model built with that seed, which makes the base control a fair one.

    Args:
        block (`nn.Module`): the stock block.
        mlp_name (`str`): attribute that holds its MLP.
        classes (`tuple[type, type]`): the expanded classes of block and MLP.
        auxiliary (`dict[str, AuxiliaryMLP]`): the modules to add, by name.
        channel (`RoutingChannel`): the model's channel.
    """
    block_class, mlp_class = classes
    mlp = getattr(block, mlp_name)
    block.__class__, mlp.__class__ = block_class, mlp_class
    block.routing_channel, block.routed_mlp_name = channel, mlp_name
    mlp.auxiliary = nn.ModuleDict(auxiliary)
    # Set once here: a compiled model would be compiled again when the first forward pass makes new attributes.
    mlp.routing = mlp.measured_l1 = None
