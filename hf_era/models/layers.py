"""The layers of an expanded model: auxiliary modules, and target layers that route.

What the MLP itself computes is its own business. Its down projection routes what it is given, whatever made it, and
adds what the auxiliary modules made of the MLP's input: the same function as a wider MLP, before any dropout or norm
that follows. A second place for modules, beside a layer's attention heads, is in `hf_era.models.attention_heads`. How a
batch's routing gets here: `hf_era.models.running_call`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn
from transformers import initialization
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from hf_era.models.mixing import MixedIn, mix_in, mix_out
from hf_era.models.running_call import LayerCall, RoutingChannel, RunningCall
from hf_era.routing import TokenRouting, linear_with_scaled_weight_gradient

if TYPE_CHECKING:
    from hf_era.models.config import ModuleConfig
    from hf_era.models.families.family import Family

LINEAR_CLASSES = (nn.Linear, Conv1D)
INITIALIZER_RANGE = 0.02
"""Where a config has none, as in transformers."""


# ---- Auxiliary modules ----


class AuxiliaryModule(nn.Module):
    """A module beside the MLP of a target layer: it reads what the MLP reads and adds to what its down projection writes.
    Or one beside its attention: `AttentionHeads`.

    To add a kind: a subclass with this constructor, or its own `for_model`, decorated with `@register_module_kind`.

    Args:
        hidden_size (`int`): width of the residual stream.
        width (`int`): hidden units.
        activation (`str`): name of the family's activation function in `transformers.activations.ACT2FN`.
        initialization_std (`float`): standard deviation of the weights at the start.
        gated (`bool`, *optional*, defaults to `False`): whether the family's MLPs are `act(gate(x)) * up(x)`.
        name (`str`, *optional*, defaults to `"forget"`): of the module.

    Attributes:
        kind (`str`): as it stands in a config. place (`str`): what it is beside, `mlp` or `attention`.
        active (`bool`): `False` while the module is ablated; it costs nothing then.
        dial (`float`): how much of its output takes part, in [0, 1], for every example.
        down_projection (`nn.Linear`): the last layer; its input is the module's activation.
    """

    kind: ClassVar[str]
    place: ClassVar[str] = "mlp"
    down_projection: nn.Module

    def __init__(
        self,
        hidden_size: int,
        width: int,
        activation: str,
        initialization_std: float,
        gated: bool = False,
        name: str = "forget",
    ) -> None:
        super().__init__()
        self.name, self.initialization_std = name, initialization_std
        self.active, self.dial = True, 1.0

    @classmethod
    def width_in(cls, module: ModuleConfig, family: Family, config: Any) -> int:
        """The width in units of a module of this kind, in a model of this family with this config; raises `ValueError` if it
        has no place there."""
        return module.units(family.mlp_width(config))

    @classmethod
    def for_model(cls, module: ModuleConfig, model: Any) -> AuxiliaryModule:
        """The module that a config describes, for one layer of an expanded model."""
        family, config = model.family, model.config
        return cls(
            getattr(config, family.hidden_size),
            module.width or 0,  # the model's config has resolved it
            getattr(config, family.activation),
            getattr(config, "initializer_range", INITIALIZER_RANGE) * module.initialization_scale,
            gated=family.gated,
            name=module.name,
        )

    @property
    def takes_part(self) -> bool:
        """Whether it adds anything, to any example."""
        return self.active and self.dial != 0

    def forward(self, hidden_states: Tensor, call: LayerCall | None = None) -> Tensor:
        """(batch, seq, hidden) -> (batch, seq, hidden). Not given a `call`, nothing is routed."""
        raise NotImplementedError(f"{type(self).__name__} has no `forward`.")

    def initialize(self) -> None:
        """Draws the starting weights, with the functions of `torch.nn.init` or `transformers.initialization`: while a model
        is set up, both leave parameters alone that were loaded from a checkpoint."""
        raise NotImplementedError(f"{type(self).__name__} has no `initialize`.")

    def contribution(self, hidden_states: Tensor, call: LayerCall) -> Tensor | None:
        """What the module adds, dialled; `None` if it is off."""
        if not self.takes_part:
            return None
        output = self(hidden_states, call)
        part = call.part(self.name)
        if self.dial != 1:
            output = output * self.dial
        if part is not None and part.dial is not None:
            output = output * part.dial.to(output.dtype)[:, None, None]
        return output


MODULE_KINDS: dict[str, type[AuxiliaryModule]] = {}


def register_module_kind(module_class: type[AuxiliaryModule]) -> type[AuxiliaryModule]:
    """Makes a kind of auxiliary module known; a decorator. Raises `ValueError` if there is another one of that kind."""
    known = MODULE_KINDS.setdefault(module_class.kind, module_class)
    if known is not module_class:
        raise ValueError(f"There is a module kind `{module_class.kind}` already: {known.__name__}. Choose another.")
    return module_class


@register_module_kind
class AuxiliaryMLP(AuxiliaryModule):
    """A side MLP of the family's own form: `down(act(up(x)))`, or `down(act(gate(x)) * up(x))`.

    It has no output bias of its own, so original plus auxiliary MLP is the same function as one MLP that is wider by
    `width` (the *expanded dims* of arXiv 2410.04332), while original weights keep their names and shapes.
    """

    kind = "mlp"

    def __init__(
        self,
        hidden_size: int,
        width: int,
        activation: str,
        initialization_std: float,
        gated: bool = False,
        name: str = "forget",
    ) -> None:
        super().__init__(hidden_size, width, activation, initialization_std, gated, name)
        self.up_projection = nn.Linear(hidden_size, width, bias=not gated)
        self.gate_projection = nn.Linear(hidden_size, width, bias=False) if gated else None
        self.down_projection: nn.Linear = nn.Linear(width, hidden_size, bias=False)
        self.act = ACT2FN[activation]

    def forward(self, hidden_states: Tensor, call: LayerCall | None = None) -> Tensor:
        part = None if call is None else call.part(self.name)
        factor = None if part is None else part.parameter_multiplier
        activation = apply_linear(self.up_projection, hidden_states, factor)
        if self.gate_projection is None:
            activation = self.act(activation)
        else:
            activation = self.act(apply_linear(self.gate_projection, hidden_states, factor)) * activation
        if call is not None:
            activation = call.route(activation, self.name)
        return apply_linear(self.down_projection, activation, factor)

    def initialize(self) -> None:
        # transformers' own functions look at each parameter's "loaded already" flag, torch's only within their guard.
        initialization.normal_(self.up_projection.weight, std=self.initialization_std)
        if self.up_projection.bias is not None:
            initialization.zeros_(self.up_projection.bias)
        if self.gate_projection is not None:
            initialization.normal_(self.gate_projection.weight, std=self.initialization_std)
        initialization.normal_(self.down_projection.weight, std=self.initialization_std)


def apply_linear(layer: Any, inputs: Tensor, factor: Tensor | None) -> Tensor:
    """A linear layer's output; with a factor, (batch, seq), its weights learn so much of each token."""
    if factor is None:
        return layer(inputs)
    _check_bare(layer)
    return linear_with_scaled_weight_gradient(inputs, layer.weight, layer.bias, factor, isinstance(layer, Conv1D))


def is_bare(layer: Any) -> bool:
    """Whether it is a linear layer itself, and not what an adapter has put around one."""
    return isinstance(layer, LINEAR_CLASSES)


def _check_bare(layer: Any) -> None:
    """Raises `ValueError` for a layer with an adapter around it whose own linear layers are not routed."""
    inside = [part for part in layer.modules() if is_bare(part)]
    if not is_bare(layer) and not (inside and all(isinstance(part, RoutedLinearMixin) for part in inside)):
        raise ValueError(
            f"A router that scales gradients at the parameters does not reach those of {type(layer).__module__}."
            f"{type(layer).__name__}, which was put around a linear layer. If it is made of linear layers, as LoRA, take a "
            "router with a `core`, to which they belong. Otherwise merge the adapter, leave the MLPs of target layers out "
            "of it (and attention with heads beside its own), or take a router that scales at the activation."
        )


# ---- Target layers ----


class RoutedBlockMixin(MixedIn):
    """A transformer block that hands the routing of its call on to what is routed in it.

    Attributes:
        is_target (`bool`): whether modules are beside its parts; other blocks measure no activations.
    """

    routing_channel: RoutingChannel
    layer_call: LayerCall
    is_target: bool = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        channel = self.routing_channel
        if channel.routing is not None:
            kwargs["routing"] = channel.routing
        outputs = super().__call__(*args, **kwargs)  # type: ignore[misc]
        if self.is_target and channel.routing is not None and channel.routing.measure_activation_l1:
            *outputs, layer_l1 = outputs
            channel.layer_l1.append(layer_l1)
            return tuple(outputs) if channel.blocks_return_tuples else outputs[0]
        return outputs

    def forward(self, *args: Any, routing: TokenRouting | None = None, **kwargs: Any) -> Any:
        call = self.layer_call
        call.routing = routing
        try:
            outputs = super().forward(*args, **kwargs)  # type: ignore[misc]
            layer_l1 = call.l1
        finally:
            call.routing = call.l1 = None
            call.is_routed = False
        if routing is None or not routing.measure_activation_l1 or not self.is_target:
            return outputs
        # The norm leaves as an output of the block, so that checkpointing carries its gradient too; and side by side with
        # the others, because the reentrant kind of it does not look into tuples.
        self.routing_channel.blocks_return_tuples = isinstance(outputs, tuple)
        return (*outputs, layer_l1) if isinstance(outputs, tuple) else (outputs, layer_l1)


class ExpandedPartMixin(MixedIn):
    """A part of a block with auxiliary modules beside it.

    Attributes:
        linear_paths (`list[str]`): in the part, to its own linear layers; the down projection's comes last.
    """

    auxiliary: nn.ModuleDict
    call: LayerCall
    linear_paths: list[str]

    def _check_adapters(self, layers: list[Any]) -> None:
        """Raises `ValueError` where the router wants to scale at the parameters of a layer that has an adapter around it."""
        part = self.call.part(None)
        if part is not None and part.parameter_multiplier is not None:
            for layer in layers:
                _check_bare(layer)

    def _linear_layers(self) -> list[Any]:
        return [self.get_submodule(path) for path in self.linear_paths]  # type: ignore[attr-defined]

    def _hooks_around(self, down_projection: Any) -> list[Any]:
        """For an adapter (peft) around the down projection. It reads the same input on a path of its own, and may scale what
        the layer inside gives (DoRA): the input is routed where it enters the adapter, and what the modules add comes after
        it. Returns the hooks' handles; none for a bare layer."""
        if is_bare(down_projection):
            return []
        return [
            down_projection.register_forward_pre_hook(self._route_input),
            down_projection.register_forward_hook(lambda _wrapper, _inputs, output: self.call.add_outputs(output)),
        ]

    def _route_input(self, _wrapper: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.call.route(inputs[0], None), *inputs[1:])


class ExpandedMLPMixin(ExpandedPartMixin):
    """An MLP with auxiliary modules beside it."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        modules: Any = self.auxiliary.values()
        added = [module.contribution(hidden_states, self.call) for module in modules]
        # An ablated module leaves the output bit for bit.
        self.call.auxiliary_outputs = [output for output in added if output is not None]
        layers = self._linear_layers()
        self._check_adapters(layers)
        handles = self._hooks_around(layers[-1])
        self.call.wrapped = frozenset({"output"} if handles else ())
        try:
            return super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]
        finally:
            self.call.auxiliary_outputs, self.call.wrapped = [], frozenset()
            for handle in handles:
                handle.remove()


class RoutedLinearMixin(MixedIn):
    """A linear layer of the core, whose weights learn what the router says.

    Attributes:
        core_group (`str`): as in `TokenRouting.core_multiplier`. Attention with heads beside its own is routed wherever MLPs
            are: `mlp`.
    """

    call: RunningCall
    core_group: str = "mlp"
    weight: Tensor
    bias: Tensor | None

    @property
    def core_multiplier(self) -> Tensor | None:
        """(batch, seq): what its weights learn of each token in the call that is running; `None`: all."""
        return self.call.core_multiplier(self.core_group)

    def forward(self, inputs: Tensor) -> Tensor:
        factor = self.core_multiplier
        if factor is None:
            return super().forward(inputs)  # type: ignore[misc]
        return linear_with_scaled_weight_gradient(inputs, self.weight, self.bias, factor, isinstance(self, Conv1D))


class RoutedDownProjectionMixin(RoutedLinearMixin):
    """The down projection of an expanded part: its input is routed, the auxiliary modules add to its output."""

    call: LayerCall

    def forward(self, inputs: Tensor) -> Tensor:
        if "output" in self.call.wrapped:  # by an adapter: its hooks do both
            return super().forward(inputs)
        return self.call.add_outputs(super().forward(self.call.route(inputs, None)))


def expand_layer(
    block: Any, mlp_name: str, down_projection: str, auxiliary: dict[str, AuxiliaryModule], channel: RoutingChannel
) -> LayerCall:
    """Turns a stock block into an expanded one, in place, with modules beside its MLP; without any, that MLP is routed. To a
    block that is expanded already, the modules are added.

    The block, its MLP and the MLP's linear layers change class and keep their parameters. A model built with a seed has
    therefore the same original weights as the stock model built with that seed, which makes the base control a fair one.

    Args:
        block (`nn.Module`): the stock block.
        mlp_name (`str`): attribute that holds its MLP.
        down_projection (`str`): path in the MLP to its down projection.
        auxiliary (`dict[str, AuxiliaryModule]`): the modules to add beside the MLP, by name.
        channel (`RoutingChannel`): the model's channel.

    Returns: the block's call, which whatever else is to be routed in it shares.

    Raises:
        ValueError: if the down projection is no linear layer.
    """
    mlp = getattr(block, mlp_name)
    if isinstance(mlp, ExpandedMLPMixin):
        mlp.auxiliary.update(auxiliary)
        return block.layer_call
    down = mlp.get_submodule(down_projection)
    if not is_bare(down):
        raise ValueError(
            f"The down projection `{mlp_name}.{down_projection}` should be a linear layer, got {type(down).__name__}."
        )
    call = LayerCall()
    linear_layers: dict[str, Any] = {
        path: part for path, part in mlp.named_modules() if is_bare(part) and part is not down
    }
    linear_layers[down_projection] = down
    for layer in linear_layers.values():
        mix_in(RoutedDownProjectionMixin if layer is down else RoutedLinearMixin, layer, call=call)
    mix_in(RoutedBlockMixin, block, routing_channel=channel, layer_call=call)
    modules = nn.ModuleDict(auxiliary).train(mlp.training)
    mix_in(ExpandedMLPMixin, mlp, call=call, auxiliary=modules, linear_paths=list(linear_layers))
    return call


def collapse_part(part: Any) -> None:
    """Turns an expanded part of a block into the stock one that it was, in place, and drops the modules that are in it."""
    for layer in (*part._linear_layers(), part):
        mix_out(layer, "call", "part", "parts", "auxiliary", "linear_paths")


def collapse_block(block: Any) -> None:
    """Turns an expanded block, whose parts are stock ones again, into the stock one that it was, in place."""
    mix_out(block, "routing_channel", "layer_call")
