"""The core: which parameters of the original model a router at the parameters scales, and how each of them is reached.

A block's linear layers in its MLP and its attention, its norms; the embeddings, the final norm and the LM head. Each of them
gets a mixin in front of its class, in place, when a router with a core is chosen (`ExpandedCausalLMMixin.router`). It asks
for the multiplier of its group when it is called, and without one it is the stock layer. Which groups are the core says
`Router.core`.

At a position the multiplier is that of the gradient which arises there; for embeddings too, whatever token stands in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from hf_era.models.layers import LINEAR_CLASSES, AuxiliaryModule, RoutedBlockMixin, RoutedLinearMixin
from hf_era.models.mixing import MixedIn, mix_in, mix_out
from hf_era.models.running_call import LayerCall, RunningCall
from hf_era.routing import Router, scale_gradient, scale_norm_weight_gradient
from hf_era.utils.checks import listed

MLP, ATTENTION, REST = "mlp", "attention", "rest"


class RoutedEmbeddingMixin(MixedIn):
    """An embedding whose vectors learn what the router says."""

    call: RunningCall

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        output = super().forward(*args, **kwargs)  # type: ignore[misc]
        factor = self.call.core_multiplier(REST)
        if factor is None:
            return output
        # Positions are looked up once for all examples.
        return scale_gradient(output.expand(*factor.shape, output.shape[-1]), factor)


class RoutedNormMixin(MixedIn):
    """A norm whose weight and bias learn what the router says.

    Attributes:
        heads_first (`bool`): whether its input may be (batch, heads, seq, size) where it has four dimensions, in place of
            (batch, seq, heads, size).
    """

    call: RunningCall
    heads_first: bool = False
    weight: Tensor

    def forward(self, inputs: Tensor) -> Tensor:
        factor = self.call.core_multiplier(REST)
        own = self.parameters(recurse=False)  # type: ignore[attr-defined]
        if factor is None or not any(value.requires_grad for value in own):
            return super().forward(inputs)  # type: ignore[misc]
        fixed = {name: value.detach() for name, value in self.named_parameters()}  # type: ignore[attr-defined]
        output = functional_call(self, fixed, (inputs,))  # type: ignore[arg-type]
        if inputs.dim() == 4:
            factor = factor[:, None, :] if self.heads_first else factor[:, :, None]
        factor = factor.expand(inputs.shape[:-1])
        return scale_norm_weight_gradient(
            output, inputs, self.weight, getattr(self, "bias", None), factor, self.normalise
        )

    def normalise(self, inputs: Tensor) -> Tensor:
        """The norm without weight and bias."""
        if isinstance(self, nn.LayerNorm):
            return F.layer_norm(inputs, self.normalized_shape, None, None, self.eps)
        wide = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + _epsilon_of(self))


def _epsilon_of(norm: Any) -> float:
    return float(norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps)


def is_norm(layer: Any) -> bool:
    """Whether it is a layer norm, or a root-mean-square norm of the usual form, by its name."""
    if isinstance(layer, nn.LayerNorm):
        return layer.weight is not None and len(layer.normalized_shape) == 1
    names = [name for name, _ in layer.named_parameters(recurse=False)]
    return type(layer).__name__.endswith("RMSNorm") and names == ["weight"] and layer.weight.dim() == 1


def keep_core_routed(model: Any) -> None:
    """Routes what was put around or in place of layers (adapters, copies that are trained, a resized head) since the core
    was routed: to be called before a routed forward pass. Raises `ValueError` as `route_core`."""
    if model.router.core is None or torch.compiler.is_compiling():
        return
    if model.__dict__.get("_layers_when_routed") != _layers_in(model):
        route_core(model, model.router)


def route_core(model: Any, router: Router) -> None:
    """Lets the layers of a router's core ask for its multiplier, in place. Adapters (peft) of linear layers that are there
    are parts of the core. Calling it again changes nothing.

    Raises:
        ValueError: for a parameter of the core that is of no kind of layer that can be reached, or modules that cannot take
            the place of the original MLPs where the router wants that.
    """
    if router.replaces_original:
        _check_can_replace(model, router)
    if router.core is None:
        return
    groups = {MLP: {MLP}, f"{MLP}+{ATTENTION}": {MLP, ATTENTION}, "all": {MLP, ATTENTION, REST}}[router.core]
    missed: list[str] = []
    for name, layer, group, call in _layers(model):
        if group not in groups:
            continue
        if isinstance(layer, (RoutedLinearMixin, RoutedEmbeddingMixin, RoutedNormMixin)):
            layer.call = call  # a copy (peft's `modules_to_save`) may have come with one that nobody opens
        elif isinstance(layer, LINEAR_CLASSES):
            mix_in(RoutedLinearMixin, layer, call=call, core_group=group, is_core=True)
        elif isinstance(layer, nn.Embedding):
            mix_in(RoutedEmbeddingMixin, layer, call=call, is_core=True)
        elif is_norm(layer):
            mix_in(RoutedNormMixin, layer, call=call, heads_first=model.family.norms_heads_first, is_core=True)
        else:
            own = layer.named_parameters(recurse=False)
            missed += [f"{name}.{parameter}" for parameter, value in own if value.requires_grad]
    if missed:
        raise ValueError(
            f"The router `{router.name}` with `core: {router.core}` scales gradients at the parameters, and cannot reach "
            f"{listed(missed)}: neither a linear layer, an embedding nor a norm of the usual kind. Choose a smaller `core`, "
            "freeze them, or take the router `activation`."
        )
    model._layers_when_routed = _layers_in(model)


def _layers_in(model: Any) -> tuple[nn.Module, ...]:
    """What makes up the model, without the model itself: it is to be kept there, and a circle would keep both alive."""
    return tuple(model.modules())[1:]


def _check_can_replace(model: Any, router: Router) -> None:
    """Where a module stands elsewhere, or nowhere, its examples would run with nothing in place of an MLP."""
    layers: dict[str, list[int]] = {}
    for layer, named in model.auxiliary_modules().items():
        for name, module in named.items():
            if module.place != "mlp":
                raise ValueError(
                    f"The router `{router.name}` runs examples with a module in place of the MLP, but `{name}` stands "
                    f"beside the {module.place}. Take `kind: mlp`, or another router."
                )
            layers.setdefault(name, []).append(layer)
    if len(set(map(tuple, layers.values()))) > 1:
        raise ValueError(
            f"The router `{router.name}` runs examples with a module in place of the MLP, but the modules {listed(layers)} "
            "stand in different layers. Give them the same `target_layers`, or take another router."
        )


def unroute_core(model: Any) -> None:
    """The inverse of `route_core`, in place."""
    for layer in model.modules():
        if layer.__dict__.pop("is_core", False):
            mix_out(layer, "call", "core_group", "heads_first", "routing_channel", "layer_call", "is_target")


def _layers(model: Any) -> Iterator[tuple[str, Any, str, RunningCall]]:
    """The layers of the original model that have parameters of their own: name, layer, group, and whose call to ask. A block
    that is none yet becomes a routed one."""
    family = model.family
    blocks = list(family.get_blocks(model))
    places = {id(block): block for block in blocks}
    inside = {id(layer) for block in blocks for layer in block.modules()}
    for name, layer in list(model.named_modules()):
        if id(layer) in places:
            block = places[id(layer)]
            if not isinstance(block, RoutedBlockMixin):
                channel, call = model.routing_channel, LayerCall()
                mix_in(RoutedBlockMixin, block, routing_channel=channel, layer_call=call, is_target=False, is_core=True)
            yield from _layers_of_block(name, block, family)
        elif id(layer) not in inside and any(True for _ in layer.parameters(recurse=False)):
            yield name, layer, REST, model.routing_channel


def _layers_of_block(prefix: str, block: Any, family: Any) -> Iterator[tuple[str, Any, str, RunningCall]]:
    of_modules = {
        id(layer) for part in block.modules() if isinstance(part, AuxiliaryModule) for layer in part.modules()
    }
    of_mlp = {id(layer) for layer in family.get_mlp(block).modules()}
    for name, layer in list(block.named_modules()):
        if id(layer) in of_modules or not any(True for _ in layer.parameters(recurse=False)):
            continue
        is_other = isinstance(layer, nn.Embedding) or is_norm(layer)
        group = MLP if id(layer) in of_mlp else REST if is_other else ATTENTION
        yield f"{prefix}.{name}", layer, group, block.layer_call
