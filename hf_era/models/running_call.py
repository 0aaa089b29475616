"""What a forward pass that is running says to the layers in it.

How a batch's routing reaches the MLP of a target layer: as an argument of the block, never as lasting state. The model
writes the routing of the running forward pass into a `RoutingChannel`. When a target block is *called*, it reads the
channel and hands the routing on as a keyword argument of its own call. Gradient checkpointing wraps what happens
inside that call (`__call__` up to transformers 5.17, `forward` since) and keeps the arguments; the recomputation in
the backward pass therefore sees the routing of its own forward pass, whatever the channel holds by then. Inside
`forward`, the block lends it to its MLP for the length of that call.

Reading the channel inside `forward` instead would look the same and be wrong: by the backward pass the channel is
empty, the recomputed layer would not route, and forget gradient would leak into the original dims without any error.
"""

from __future__ import annotations

import threading
from typing import Any

from torch import Tensor

from hf_era.routing import PartRouting, TokenRouting, activation_l1, scale_gradient


class RunningCall(threading.local):
    """What a call that is running says to the layers in it; empty in between. Each thread sees its own, so that several may
    call one model at once. Copied and pickled, it is a new one."""

    routing: TokenRouting | None = None

    def core_multiplier(self, group: str) -> Tensor | None:
        """As `TokenRouting.core_multiplier`, of the routing that is running; `None` without any."""
        return None if self.routing is None else self.routing.core_multiplier(group)

    def __reduce__(self) -> Any:
        return type(self), ()


class RoutingChannel(RunningCall):
    """Holds the routing of the forward pass that is running now, and gathers the L1 norms that its layers measure."""

    def __init__(self) -> None:
        self.routing: TokenRouting | None = None
        self.layer_l1: list[Tensor] = []
        self.blocks_return_tuples = False

    def open(self, routing: TokenRouting | None) -> None:
        self.routing, self.layer_l1 = routing, []

    def close(self) -> Tensor | None:
        """Empties the channel and returns the L1 norm summed over the layers, if they measured it."""
        total = sum(self.layer_l1[1:], self.layer_l1[0]) if self.layer_l1 else None
        self.routing, self.layer_l1 = None, []
        return total


class LayerCall(RunningCall):
    """The call of a target layer that is running: what it lends to its projections and modules.

    One object that they share, so that it does not matter what wraps them in the meantime (an adapter, a shard). A copy of a
    layer shares it too: peft puts copies in the layers' places (`modules_to_save`), and these are to be routed as well.

    Attributes:
        routing (`TokenRouting`, *optional*): of the running forward pass. `None`: nothing is routed or measured.
        auxiliary_outputs (`list[Tensor]`): (batch, seq, hidden) each: what the next down projection adds to its own output.
        l1 (`Tensor`, *optional*): the L1 norm of the activations so far.
        is_routed (`bool`): whether a fused activation has routed the activation that comes next.
        heads (`list[AttentionHeads]`): the modules whose heads take part in the attention that is running.
        wrapped (`frozenset[str]`): what has an adapter around it: `output`, the next down projection, and of the attention
            that is running its other projections, `query`, `key`, `value`.
    """

    def __init__(self) -> None:
        self.routing: TokenRouting | None = None
        self.auxiliary_outputs: list[Tensor] = []
        self.l1: Tensor | None = None
        self.is_routed = False
        self.heads: list[Any] = []
        self.wrapped: frozenset[str] = frozenset()

    def __deepcopy__(self, memo: Any) -> LayerCall:
        return self

    def part(self, module: str | None) -> PartRouting | None:
        """The routing of an auxiliary module, or of the original dims for `None`."""
        return None if self.routing is None else self.routing.of(module)

    def route(self, activation: Tensor, module: str | None) -> Tensor:
        """The input of a down projection, (batch, seq, width): measured and routed, unless a fused activation did both."""
        if self.routing is None:
            return activation
        if self.is_routed:
            self.is_routed = False
            return activation
        if self.routing.measure_activation_l1:
            self.add_l1(activation_l1(activation, self.routing.l1_mask(module, activation.shape[:2])))
        return scale_gradient(activation, self.routing.of(module).activation_multiplier)

    def add_outputs(self, output: Tensor) -> Tensor:
        """The output of a down projection, (batch, seq, hidden), dialled if the router says so, and what the modules add."""
        part = self.part(None)
        if part is not None and part.dial is not None:
            output = output * part.dial.to(output.dtype)[:, None, None]
        for added in self.auxiliary_outputs:
            output = output + added
        return output

    def add_l1(self, norm: Tensor) -> None:
        self.l1 = norm if self.l1 is None else self.l1 + norm
