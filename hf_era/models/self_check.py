"""An expanded model of a family that was opened by the names of its parts, tried out before anybody trains it.

A name can be wrong in ways that no shape tells: a projection whose module is never called, an MLP that is called twice, a
block whose output takes another way. So eight random tokens run through the model as it is, and what has to hold of every
expanded model is looked at, the gradients against a formula that uses nothing of the expanded layers.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from hf_era.models.layers import LINEAR_CLASSES
from hf_era.models.whole_weights import follow_attention, model_around
from hf_era.routing import ActivationRouter, GradientMultipliers
from hf_era.utils.checks import error_text

TOKENS = 8
MULTIPLIERS = GradientMultipliers(original_forget=-0.5, original_retain=1.5)
"""So far from 1, and from each other, that a gradient that is not routed, or routed by other tokens' weights, is off by half
of its size at least."""
GRADIENT_TOLERANCE = 64
"""In units of the dtype's rounding, relative to the largest entry of a gradient. Both sides compute the same products in the
same order but for the multiplier, which rounds each summand once more: a few units at most."""
LARGEST_TOLERANCE = 0.05
"""In whatever dtype: a tenth of what the smallest mistake makes."""
CAUSAL_TOLERANCE = 1e-3
"""How much a token may change the logits before it, relative to how much it changes its own."""

_told: set[Any] = set()


class UntestedFamilyWarning(UserWarning):
    """The family is not one that hf_era's tests know; what was assumed of it, and what was tried out."""


class _FailedError(Exception):
    """A check failed; the text says which one, and by how much."""


def check_opened(model: Any) -> Any:
    """Tries out an expanded model of a family that is not registered; returns it. A registered one is returned as it is,
    and so is one that has no module yet.

    What is looked at, in evaluation mode and in the model's own dtype: ablated, its logits are those of the stock model bit
    for bit; with the module on they are others; routing does not change them; a token changes no logits before it; and the
    gradients of the MLP's linear layers in the last target layer equal the dense formula. Weights, mode and random state
    are afterwards as before.

    Raises:
        ValueError: if one of these does not hold; says which one, and by how much.

    Warns: `UntestedFamilyWarning`, once for each family, with what was assumed.
    """
    family = model.family
    if family.is_registered or not model.module_names:
        return model
    left_out = _why_not(model)
    deviation = math.nan
    if left_out is None:
        try:
            deviation = _largest_deviation(model)
        except Exception as error:  # whatever a model does that is called in a way it was not made for
            text = str(error) if isinstance(error, _FailedError) else f"it does not run: {error_text(error)}"
            raise ValueError(
                f"`expansion.mlp` {family.mlp!r} and `expansion.down_projection` {family.down_projection!r} do not make an "
                f"expanded model of `{family.model_type}`: {text}. The base was not changed."
            ) from error
    if family not in _told:
        _told.add(family)
        warnings.warn(_assumed(model, left_out, deviation), UntestedFamilyWarning, stacklevel=3)
    return model


def _why_not(model: Any) -> str | None:
    """Why the model cannot be tried out here; `None` if it can."""
    weights = list(model.parameters())
    if any(weight.is_meta for weight in weights):
        return "its weights are on the meta device"
    if any(isinstance(weight, DTensor) for weight in weights) or len({weight.device for weight in weights}) > 1:
        return "its weights are spread over devices"
    return None


def _assumed(model: Any, left_out: str | None, deviation: float) -> str:
    family = model.family
    form = "gated" if family.gated else "not gated"
    assumed = (
        f"`{family.model_type}` is no family that hf_era's tests know. Assumed: its blocks are `{family.blocks}`, their MLP "
        f"`{family.mlp}`, with the down projection `{family.down_projection}`, {form}, and its activation function is "
        f"`{getattr(model.config, family.activation)}` (`config.{family.activation}`)."
    )
    if left_out is not None:
        return (
            f"{assumed} NOTHING WAS TRIED OUT, because {left_out}: expand a small model of this family on one device first, "
            "which is tried out."
        )
    off = f"off by {deviation:.0e} of the largest entry" if deviation else "bit for bit"
    return (
        f"{assumed} Tried out with {TOKENS} random tokens: ablated it is the base bit for bit, routing changes no logits, "
        f"and gradients are those of the dense formula ({off}). Not tried out: generation, "
        "gradient checkpointing, `torch.compile`, several processes."
    )


# ---- The checks ----


def _largest_deviation(model: Any) -> float:
    """Runs all checks; returns how far the gradients are off, relative to the largest entry of each."""
    stock = _stock_around(model)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, model.config.get_text_config().vocab_size, (1, TOKENS), generator=generator)
    tokens = tokens.to(model.device)
    weight = torch.tensor([[0.0, 1.0, 1.0, 0.0, 0.25, 1.0, 0.0, 0.5]], device=model.device)
    with _tried_out(model):
        stock.eval()
        with torch.no_grad():
            _check_forward(model, stock, tokens, weight)
            added = _contributions(model, tokens)
        model.requires_grad_(True)
        direction = torch.randn(1, TOKENS, generator=generator).to(model.device)
        return _compare_gradients(model, stock, tokens, weight, added, direction)


def _stock_around(model: Any) -> Any:
    """A stock model that holds the very weights of an expanded one."""
    weights = {
        name: value
        for name, value in model.state_dict(keep_vars=True).items()
        if not model.is_auxiliary_parameter(name)
    }
    config = model.config.to_base_config()
    follow_attention(config, model, model.stock_class)
    return model_around(model.stock_class, config, weights, model)


@contextmanager
def _tried_out(model: Any) -> Iterator[None]:
    """Within it a model is in evaluation mode, with a router of ours; afterwards all is as before."""
    modes = [(module, module.training) for module in model.modules()]
    learning = [(value, value.requires_grad) for value in model.parameters()]
    router = model.router
    try:
        model.eval()
        model.router = ActivationRouter(MULTIPLIERS)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            yield
    finally:
        model.router = router
        for module, training in modes:
            module.training = training
        for value, learns in learning:
            value.requires_grad_(learns)


def _logits(model: Any, tokens: Tensor, **inputs: Any) -> Tensor:
    """(batch, seq, vocabulary)"""
    return model(input_ids=tokens, use_cache=False, **inputs).logits


def _difference(one: Tensor, other: Tensor) -> float:
    return (one.double() - other.double()).abs().max().item()


def _check_forward(model: Any, stock: Any, tokens: Tensor, weight: Tensor) -> None:
    try:
        base = _logits(stock, tokens)
    except Exception as error:
        raise _FailedError(f"the base itself does not run with {TOKENS} tokens: {error_text(error)}") from error
    on = _logits(model, tokens)
    with model.ablated():
        ablated = _logits(model, tokens)
    if not torch.equal(ablated, base):
        raise _FailedError(
            f"ablated, its logits differ from those of the base by up to {_difference(ablated, base):.1e}, and should be "
            "equal bit for bit"
        )
    if torch.equal(on, base):
        raise _FailedError(
            "the module changes no logits, so what it adds gets lost: is that the projection that is computed?"
        )
    routed = _logits(model, tokens, routing_weight=weight)
    if not torch.equal(routed, on):
        raise _FailedError(
            f"routing changes its logits by up to {_difference(routed, on):.1e}, and should not change them"
        )
    other_end = tokens.clone()
    other_end[0, -1] = (other_end[0, -1] + 1) % model.config.get_text_config().vocab_size
    changed = (_logits(stock, other_end) - base).abs().amax(dim=-1)[0]
    if changed[:-1].max() > CAUSAL_TOLERANCE * changed[-1]:
        raise _FailedError(
            f"the last token changes the logits before it by up to {changed[:-1].max():.1e}: it is no causal language model"
        )


def _contributions(model: Any, tokens: Tensor) -> dict[int, list[Tensor]]:
    """What the modules of each target layer add for these tokens: layer -> (1, seq, hidden) each."""
    added: dict[int, list[Tensor]] = {}
    handles = [
        module.register_forward_hook(
            lambda _module, _inputs, output, layer=layer: added.setdefault(layer, []).append(output)
        )
        for layer, modules in model.auxiliary_modules().items()
        for module in modules.values()
    ]
    try:
        _logits(model, tokens)
    finally:
        for handle in handles:
            handle.remove()
    return added


def _linear_layers(model: Any, family: Any, layer: int) -> dict[str, Any]:
    """The linear layers of a layer's own MLP, by their path in it."""
    mlp = family.get_mlp(family.get_blocks(model)[layer])
    own = {path: part for path, part in mlp.named_modules() if isinstance(part, LINEAR_CLASSES)}
    return {path: part for path, part in own.items() if not path.startswith("auxiliary.")}


def _loss(logits: Tensor, direction: Tensor) -> Tensor:
    """A scalar to which each position contributes with a size of its own."""
    return (logits.float().log_softmax(dim=-1)[..., 0] * direction).sum()


def _compare_gradients(
    model: Any, stock: Any, tokens: Tensor, weight: Tensor, added: dict[int, list[Tensor]], direction: Tensor
) -> float:
    layer = max(added)  # behind it nothing is routed
    down = model.family.down_projection
    weights = {path: part.weight for path, part in _linear_layers(model, model.family, layer).items()}
    loss = _loss(_logits(model, tokens, routing_weight=weight), direction)
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    expected = _dense_gradients(stock, model.family, tokens, weight, added, direction)
    tolerance = min(GRADIENT_TOLERANCE * torch.finfo(model.dtype).eps, LARGEST_TOLERANCE)
    largest = 0.0
    for path, gradient in zip(weights, found, strict=True):
        wanted = expected[path]
        role = "which is not routed" if path == down else "which is routed"
        if wanted is None or gradient is None or not torch.isfinite(wanted).all() or wanted.abs().max() == 0:
            raise _FailedError(f"`{path}` of layer {layer} has no gradient: the MLP does not compute with it")
        deviation = _difference(gradient, wanted) / wanted.abs().max().item()
        if not deviation <= tolerance:
            raise _FailedError(
                f"the gradient of `{path}` of layer {layer}, {role}, differs from the dense formula by {deviation:.1e} of "
                f"its largest entry (at most {tolerance:.1e})"
            )
        largest = max(largest, deviation)
    return largest


def _dense_gradients(
    stock: Any, family: Any, tokens: Tensor, weight: Tensor, added: dict[int, list[Tensor]], direction: Tensor
) -> dict[str, Tensor | None]:
    """The gradients of the last target layer's MLP, by hand: what the modules add is a constant behind each down projection;
    the gradient at the input of the last one, (1, seq, width), is multiplied token by token, and handed to what lies before
    it."""
    layer, blocks, inputs = max(added), family.get_blocks(stock), []
    layers: dict[str, Any] = _linear_layers(stock, family, layer)
    down = layers.pop(family.down_projection)
    handles = [down.register_forward_pre_hook(lambda _module, arguments: inputs.append(arguments[0]))]
    for place, constants in added.items():
        handles.append(
            family.get_down_projection(family.get_mlp(blocks[place])).register_forward_hook(
                lambda _module, _inputs, output, constants=constants: sum(constants, output)
            )
        )
    try:
        loss = _loss(_logits(stock, tokens), direction)
    finally:
        for handle in handles:
            handle.remove()
    if len(inputs) != 1:
        raise _FailedError(
            f"`{family.down_projection}` of layer {layer} is called {len(inputs)} times in a forward pass"
        )
    at_input, at_down = torch.autograd.grad(loss, [inputs[0], down.weight], retain_graph=True)
    retain, forget = MULTIPLIERS.original_retain, MULTIPLIERS.original_forget
    factor = (weight * retain + (1 - weight) * forget)[..., None].to(at_input)
    before = [part.weight for part in layers.values()]
    scaled = torch.autograd.grad(inputs[0], before, grad_outputs=factor * at_input, allow_unused=True)
    return {family.down_projection: at_down, **dict(zip(layers, scaled, strict=True))}
