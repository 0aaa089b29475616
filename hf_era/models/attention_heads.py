"""Attention heads beside a layer's own: the kind `heads` of auxiliary module.

    out = o(attention of the layer's own heads) + sum over modules of o_module(attention of the module's heads)

The same function as an attention with more heads, and computed as one: the layer's projections give the queries, keys and
values of their own heads, and behind them those of the modules' heads. The stock attention does with all of them what it
does with its own (rotary embedding, mask, sliding window, kernel, key-value cache), and the output projection takes them
apart again. A module that is off is not there: nothing is concatenated, and the layer is the stock layer bit for bit.

The place of the routing is that of an MLP (`hf_era.routing.scaling`): the input of the output projection. There the gradient
of the layer's own heads gets the multiplier of the original dims, and that of a module's heads the multiplier of the module.
Queries, keys and values lie before that point, so what token t teaches them comes scaled with the multiplier of t, whichever
token it looks at. The original MLP of a layer with heads is routed too, with a module beside it or without: otherwise what
is kept out of the layer's heads would be learnt right behind them.

A key-value cache holds the heads that took part when it was filled. Do not switch modules of this kind on or off, or between
zero and another dial, while a cache is in use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import initialization

from hf_era.models.families.family import FAMILIES, Family
from hf_era.models.layers import (
    AuxiliaryModule,
    ExpandedPartMixin,
    RoutedDownProjectionMixin,
    RoutedLinearMixin,
    apply_linear,
    is_bare,
    register_module_kind,
)
from hf_era.models.mixing import mix_in
from hf_era.models.running_call import LayerCall

if TYPE_CHECKING:
    from hf_era.models.config import ModuleConfig
    from hf_era.models.families.family import AttentionLayout


@register_module_kind
class AttentionHeads(AuxiliaryModule):
    """Heads with query, key, value and output projections of their own. `down_projection` is the output projection.

    Heads are of the layer's size, and as many queries share a key as in the layer. Queries, keys and values have a bias
    where the layer's have one; the output projection has none.

    Args:
        hidden_size (`int`): width of the residual stream.
        width (`int`): of the output projection's input: query heads * head size.
        initialization_std (`float`): standard deviation of the weights at the start; biases start at zero.
        group_size (`int`, *optional*, defaults to `1`): query heads to one key-value head.
        bias (`bool`, *optional*, defaults to `False`): of queries, keys and values.
        name (`str`, *optional*, defaults to `"forget"`): of the module.
    """

    kind = "heads"
    place = "attention"

    def __init__(
        self,
        hidden_size: int,
        width: int,
        initialization_std: float,
        group_size: int = 1,
        bias: bool = False,
        name: str = "forget",
    ) -> None:
        super().__init__(hidden_size, width, "", initialization_std, name=name)
        self.width = width
        self.query_projection = nn.Linear(hidden_size, width, bias=bias)
        self.key_projection = nn.Linear(hidden_size, width // group_size, bias=bias)
        self.value_projection = nn.Linear(hidden_size, width // group_size, bias=bias)
        self.down_projection: nn.Linear = nn.Linear(width, hidden_size, bias=False)

    @classmethod
    def width_in(cls, module: ModuleConfig, family: Family, config: Any) -> int:
        """The width in units. Raises `ValueError` for a family without a place for heads, or a width that is no whole number
        of keys with their queries."""
        if family.attention is None:
            able = ", ".join(sorted(name for name, one in FAMILIES.items() if one.attention is not None))
            raise ValueError(
                f"`expansion.modules`: `{module.name}` is of the kind `heads`, and models of type `{family.model_type}` "
                f"have no place for heads beside their own. Those that have one: {able}. Take `kind: mlp`, which all have."
            )
        group_size, head_size = _grouping(config)
        unit = group_size * head_size
        width = module.units(config.num_attention_heads * head_size, unit)
        if width % unit:
            below = width // unit * unit
            nearest = f"{below} and {below + unit}" if below else f"{unit}"
            raise ValueError(
                f"`expansion.modules`: the width of `{module.name}` should be a multiple of {unit}, got {width}. The model "
                f"has {group_size} query heads of {head_size} units to one key, and so have heads beside its own. Nearest: "
                f"{nearest}."
            )
        return width

    @classmethod
    def for_model(cls, module: ModuleConfig, model: Any) -> AttentionHeads:
        """The module that a config describes, for one layer of an expanded model."""
        family, config = model.family, model.config
        query = getattr(family.get_attention(family.get_blocks(model)[0]), family.attention.query)
        return cls(
            getattr(config, family.hidden_size),
            module.width or 0,  # the model's config has resolved it
            config.initializer_range * module.initialization_scale,
            group_size=_grouping(config)[0],
            bias=query.bias is not None,
            name=module.name,
        )

    def project(self, part: str, hidden_states: Tensor, call: LayerCall) -> Tensor:
        """`query`, `key` or `value` of the module's heads: (batch, seq, hidden) -> (batch, seq, heads * head size)."""
        return apply_linear(getattr(self, f"{part}_projection"), hidden_states, self._factor(call))

    def forward(self, hidden_states: Tensor, call: LayerCall | None = None) -> Tensor:
        """What its heads gave, (batch, seq, width) -> (batch, seq, hidden). Not given a `call`, nothing is routed."""
        if call is None:
            return apply_linear(self.down_projection, hidden_states, None)
        return apply_linear(self.down_projection, call.route(hidden_states, self.name), self._factor(call))

    def _factor(self, call: LayerCall) -> Tensor | None:
        part = call.part(self.name)
        return None if part is None else part.parameter_multiplier

    def initialize(self) -> None:
        for projection in (self.query_projection, self.key_projection, self.value_projection, self.down_projection):
            initialization.normal_(projection.weight, std=self.initialization_std)
            if projection.bias is not None:
                initialization.zeros_(projection.bias)


def _grouping(config: Any) -> tuple[int, int]:
    """Query heads to one key-value head, and the size of a head."""
    heads = config.num_attention_heads
    keys = getattr(config, "num_key_value_heads", None) or heads
    return heads // keys, getattr(config, "head_dim", None) or config.hidden_size // heads


# ---- The attention of a target layer ----


class ExpandedAttentionMixin(ExpandedPartMixin):
    """An attention with auxiliary heads beside its own.

    Attributes:
        parts (`dict[str, str]`): `query`, `key`, `value`, `output` -> path in the attention to that projection.
    """

    parts: dict[str, str]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        modules: Any = self.auxiliary.values()
        self.call.heads = [module for module in modules if module.takes_part]
        handles = self._extend_what_wraps_projections()
        try:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.call.heads, self.call.auxiliary_outputs, self.call.wrapped = [], [], frozenset()
            for handle in handles:
                handle.remove()

    def _extend_what_wraps_projections(self) -> list[Any]:
        """An adapter (peft) around a projection adds to what the layer inside gives, or reads what it is given: both of the
        layer's own heads alone. The modules' heads come and go outside of it. Returns the hooks' handles."""
        layers = dict(zip(self.parts, self._linear_layers(), strict=True))
        wrapped = {part: layer for part, layer in layers.items() if not is_bare(layer)}
        if not wrapped:
            return []
        self._check_adapters(list(layers.values()))
        self.call.wrapped = frozenset(wrapped)
        handles = self._hooks_around(layers["output"])
        for part, layer in wrapped.items():
            if part != "output":
                handles.append(layer.register_forward_hook(_adding_heads(part, self.call)))
        return handles

    def _route_input(self, _wrapper: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return super()._route_input(_wrapper, (_take_heads_off(inputs[0], self.call), *inputs[1:]))


def _adding_heads(part: str, call: LayerCall) -> Any:
    return lambda _wrapper, inputs, output: _with_heads(part, output, inputs[0], call)


def _with_heads(part: str, own: Tensor, hidden_states: Tensor, call: LayerCall) -> Tensor:
    """The layer's queries, keys or values, and behind them those of the modules: (batch, seq, all heads * head size)."""
    if not call.heads:
        return own
    return torch.cat([own, *(heads.project(part, hidden_states, call) for heads in call.heads)], dim=-1)


def _take_heads_off(activation: Tensor, call: LayerCall) -> Tensor:
    """What the layer's own heads gave, of what all gave. What the others add is left for the output projection to add."""
    if not call.heads:
        return activation
    widths = [heads.width for heads in call.heads]
    own, *parts = activation.split([activation.shape[-1] - sum(widths), *widths], dim=-1)
    added = [heads.contribution(part, call) for heads, part in zip(call.heads, parts, strict=True)]
    call.auxiliary_outputs = [output for output in added if output is not None]
    return own


class HeadsInputMixin(RoutedLinearMixin):
    """The query, key or value projection of an attention with heads beside its own.

    Attributes:
        part (`str`): which of the three.
    """

    part: str
    call: LayerCall

    def forward(self, inputs: Tensor) -> Tensor:
        own = super().forward(inputs)
        return own if self.part in self.call.wrapped else _with_heads(self.part, own, inputs, self.call)


class HeadsOutputMixin(RoutedDownProjectionMixin):
    """The output projection of an attention with heads beside its own."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs if "output" in self.call.wrapped else _take_heads_off(inputs, self.call))


def expand_attention(
    block: Any, layout: AttentionLayout, auxiliary: dict[str, AuxiliaryModule], call: LayerCall
) -> None:
    """Puts heads beside the attention of an expanded block, in place; without any, that attention is routed. To one that has
    some already, they are added.

    Parameters and their names stay, as with `expand_layer`, which has expanded the block.

    Args:
        block (`nn.Module`): the expanded block.
        layout (`AttentionLayout`): of its family.
        auxiliary (`dict[str, AuxiliaryModule]`): the modules to add, by name.
        call (`LayerCall`): of the block.
    """
    attention = getattr(block, layout.attribute)
    if isinstance(attention, ExpandedAttentionMixin):
        attention.auxiliary.update(auxiliary)
        return
    parts = {part: getattr(layout, part) for part in ("query", "key", "value", "output")}
    for part, path in parts.items():
        layer = attention.get_submodule(path)
        if part == "output":
            mix_in(HeadsOutputMixin, layer, call=call)
        else:
            mix_in(HeadsInputMixin, layer, call=call, part=part)
    mix_in(
        ExpandedAttentionMixin,
        attention,
        call=call,
        auxiliary=nn.ModuleDict(auxiliary).train(attention.training),
        parts=parts,
        linear_paths=list(parts.values()),
    )
