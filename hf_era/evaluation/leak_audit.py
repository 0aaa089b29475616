"""The leak audit: did the capability localise, and where.

Two questions. Of the gradient of forget data, what reaches the original dims of each target layer, the auxiliary modules
and the rest of the model, with routing and without? And once trained, what does ablation remove, layer by layer?
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hf_era.evaluation.intervals import BOOTSTRAP_SAMPLES, paired_difference
from hf_era.evaluation.losses import StoryLosses, count_labels
from hf_era.models.expanded import ExpandedCausalLMMixin
from hf_era.utils.checks import unknown_key_message

Batch = dict[str, Tensor]
Gradients = dict[str, Tensor]
_INPUTS = ("input_ids", "attention_mask", "labels", "routing_weight")
_ROUTING = ("routing_weight", "module_index")
"""What a forward pass without routing is not given. A batch need not say whose its examples are."""
_UP, _DOWN, _AUXILIARY_UP, _AUXILIARY_DOWN = "original up", "original down", "auxiliary up", "auxiliary down"
_OTHERS = "other modules"
_SCALED = {"original": _UP, "auxiliary": _AUXILIARY_UP}  # what the routing scales in its own layer


# ---- Where the gradient goes ----


def gradient_audit(
    model: Any,
    batches: Batch | Sequence[Batch],
    device: torch.device | str | None = None,
    module: str | None = None,
) -> dict[str, Any]:
    """Where the gradient of forget data goes, with routing and without.

    The gradient is that of the loss over all labels of all batches, as in one accumulated training step (without the L1
    term), taken without dropout, with every auxiliary module on, and of every parameter, frozen or not. The model is left
    as it was: mode, device, `requires_grad`, gradients, ablated modules.

    Args:
        model: an expanded causal LM; its `router` says what the routing does.
        batches: one or several, of forget examples: `input_ids`, `attention_mask`, `labels`, `routing_weight`: (batch, seq);
            and, where there are several modules, `module_index`: (batch,).
        device (*optional*): where it runs. Not given: where the model is.
        module (`str`, *optional*): the module whose examples these are, and which *auxiliary* then means; target layers are
            its own. What reaches the other modules is `other_modules_share`. Not given: all modules together.

    Returns: `stories`, `tokens` (predicted ones), `routed`, `unrouted` and `alignment`, all JSON-like.

        `routed` and `unrouted` hold `total_norm`, `original_share`, `auxiliary_share`, `rest_share` and `layers`: target
        layer -> `original_norm`, `original_share`, `original_up_share`, `original_down_share`, `auxiliary_norm`,
        `auxiliary_share`. A share is a squared norm over that of the whole gradient, so that shares add up to 1; `None` if
        there is no gradient at all. *Original*: the layer's original MLP, of which *down* is its down projection and *up*
        all before that; where heads were added, the layer's own attention too. The routing scales the gradient between the
        two, so in its own layer it scales *up* and not *down*. *Rest*: other attention, norms, embeddings, and layers that
        are no target layers.

        `alignment`: target layer -> `original`, `auxiliary`: <routed, unrouted> / <unrouted, unrouted> of the up
        projection's gradient. 1: as without routing, 0: blocked, negative: un-teaching. `None` if there is none without
        routing. In the last target layer it comes of the multipliers there alone; what reaches earlier ones has also passed
        later ones, and what reaches heads the MLP behind them.

    Raises:
        ValueError: if the model is not expanded or has no such module, a column is missing, nothing is to be predicted, or a
            gradient is not finite.
    """
    batches = [batches] if isinstance(batches, Mapping) else batches
    labels = _checked_label_count(model, batches)
    layers, parts = layers_of(model, module), _parts(model, module)
    with _audited(model, device):
        routed = _gradients(model, batches, labels, routed=True)
        shares = {"routed": _shares(routed, parts)}
        # Of the two gradients, only what the alignment needs is held at the same time.
        routed = {
            name: routed[name] for name, (_, part) in parts.items() if part in _SCALED.values() and name in routed
        }
        unrouted = _gradients(model, batches, labels, routed=False)
        shares["unrouted"] = _shares(unrouted, parts)
    alignment = {
        str(layer): {
            kind: _alignment(routed, unrouted, [name for name in routed if parts[name] == (layer, part)])
            for kind, part in _SCALED.items()
        }
        for layer in layers
    }
    stories = sum(len(batch["input_ids"]) for batch in batches)
    return {"stories": stories, "tokens": labels, **shares, "alignment": alignment}


def _checked_label_count(model: Any, batches: Sequence[Batch]) -> int:
    """The number of tokens that are predicted."""
    if not isinstance(model, ExpandedCausalLMMixin):
        raise ValueError(f"`model` should be an expanded model, got {type(model).__name__}. Expand it: `expand_base`.")
    for name in _INPUTS:
        if any(name not in batch for batch in batches):
            raise ValueError(f"`batches`: a batch has no `{name}`. The leak audit needs {', '.join(_INPUTS)}.")
    labels = count_labels(batches)
    if not labels:
        raise ValueError("`batches`: no label to predict. Give at least one example of two tokens or more.")
    return labels


def layers_of(model: Any, module: str | None) -> list[int]:
    """The layers that have this auxiliary module, or any. Raises `ValueError` if the model has no such module."""
    modules: dict[int, dict[str, Any]] = model.auxiliary_modules()
    found = [layer for layer, named in modules.items() if module is None or module in named]
    if module is not None and not found:
        raise ValueError(unknown_key_message("the model's modules", module, model.module_names))
    return found


@contextmanager
def _audited(model: Any, device: torch.device | str | None) -> Iterator[None]:
    """Within this context dropout is off, every auxiliary module on, and every parameter gets a gradient, on `device`."""
    home = model.device
    modes = [(module, module.training) for module in model.modules()]
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    try:
        model.to(home if device is None else device)
        model.eval()
        for parameter in frozen:
            parameter.requires_grad_(True)
        with ablated_layers(model, []), torch.enable_grad():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        for module, training in modes:
            module.training = training
        model.to(home)


def _gradients(model: Any, batches: Sequence[Batch], labels: int, routed: bool) -> Gradients:
    """Each parameter's gradient of the loss over all batches, in fp32 at least; without those that get none.

    Raises `ValueError` if one is not finite.
    """
    names, parameters = zip(*model.named_parameters(), strict=True)
    found: Gradients = {}
    for batch in batches:
        names_given = [name for name in (*_INPUTS, "module_index") if name in batch]
        inputs = {name: batch[name].to(model.device) for name in names_given if routed or name not in _ROUTING}
        # Without logits, as in training; `skip_logits` because that is the default in training mode only.
        loss = model(**inputs, num_items_in_batch=labels, skip_logits=True, use_cache=False).loss
        # Not `backward`: gradients that the caller has, and hooks on them, are left alone.
        for name, gradient in zip(names, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
            if gradient is not None:
                gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
                found[name] = found[name] + gradient if name in found else gradient
    bad = next((name for name, gradient in found.items() if not bool(gradient.isfinite().all())), None)
    if bad is not None:
        raise ValueError(f"`model`: the gradient of `{bad}` is not finite. Has the training diverged?")
    return found


def _parts(model: Any, module: str | None) -> dict[str, tuple[int, str]]:
    """Name of each routed parameter of a target layer -> layer, and on which side of the routing it is."""
    family: Any = model.family
    blocks = family.get_blocks(model)
    part_of: dict[int, tuple[int, str]] = {}  # by id: a parameter's path is the architecture's business
    for layer, modules in model.auxiliary_modules().items():
        expanded = family.expanded_parts(blocks[layer])
        own = [part for name, part in modules.items() if module in (None, name)]
        groups: dict[str, list[Any]] = {}
        if own:
            groups = {
                _UP: [part for part, _ in expanded],
                _DOWN: [down for _, down in expanded],
                _AUXILIARY_UP: own,
                _AUXILIARY_DOWN: [part.down_projection for part in own],
            }
        groups[_OTHERS] = [part for part in modules.values() if part not in own]
        for part, owners in groups.items():  # what is inside comes after what it is inside of
            part_of |= {id(parameter): (layer, part) for owner in owners for parameter in owner.parameters()}
    return {name: part_of[id(value)] for name, value in model.named_parameters() if id(value) in part_of}


def _shares(gradients: Gradients, parts: dict[str, tuple[int, str]]) -> dict[str, Any]:
    squares: dict[Any, float] = dict.fromkeys([*parts.values(), None], 0.0)
    for name, gradient in gradients.items():
        squares[parts.get(name)] += _dot(gradient, gradient)
    total, rest = sum(squares.values()), squares.pop(None)

    def share(square: float) -> float | None:
        return square / total if total else None

    layers, sums = {}, {"original": 0.0, "auxiliary": 0.0, "rest": rest}
    others = [square for (_, part), square in squares.items() if part == _OTHERS]
    if others:
        sums["other_modules"] = sum(others)
    for layer in sorted({layer for layer, part in squares if part == _UP}):
        up, down = squares[layer, _UP], squares[layer, _DOWN]
        auxiliary = squares[layer, _AUXILIARY_UP] + squares[layer, _AUXILIARY_DOWN]
        sums["original"] += up + down
        sums["auxiliary"] += auxiliary
        layers[str(layer)] = {
            "original_norm": (up + down) ** 0.5,
            "original_share": share(up + down),
            "original_up_share": share(up),
            "original_down_share": share(down),
            "auxiliary_norm": auxiliary**0.5,
            "auxiliary_share": share(auxiliary),
        }
    whole = {f"{name}_share": share(square) for name, square in sums.items()}
    return {"total_norm": total**0.5, **whole, "layers": layers}


def _alignment(routed: Gradients, unrouted: Gradients, names: Iterable[str]) -> float | None:
    names = [name for name in names if name in unrouted]
    square = sum(_dot(unrouted[name], unrouted[name]) for name in names)
    return sum(_dot(routed[name], unrouted[name]) for name in names) / square if square else None


def _dot(left: Tensor, right: Tensor) -> float:
    return float((left.double() * right.double()).sum())


# ---- What ablation removes ----


@contextmanager
def ablated_layers(model: Any, layers: Iterable[int], module: str | None = None) -> Iterator[Any]:
    """Within this context the auxiliary modules of these layers (or `module` alone there) are off and all others on;
    afterwards each is as before. Raises `ValueError` for a layer without one."""
    modules, off, known = model.auxiliary_modules(), set(layers), layers_of(model, module)
    unknown = sorted(off - set(known))
    if unknown:
        which = "no auxiliary module" if module is None else f"no module {module!r}"
        raise ValueError(
            f"`layers`: layer {unknown[0]} has {which}. Layers that have one: {', '.join(map(str, known))}."
        )
    before = [(part, part.active) for named in modules.values() for part in named.values()]
    try:
        for layer, named in modules.items():
            for name, part in named.items():
                part.active = layer not in off or module not in (None, name)
        yield model
    finally:
        for part, active in before:
            part.active = active


def ablation_audit(
    model: Any,
    measure: Callable[[str], StoryLosses],
    samples: int = BOOTSTRAP_SAMPLES,
    seed: int = 0,
    all_on: Mapping[str, StoryLosses] | None = None,
    module: str | None = None,
) -> dict[str, dict[str, dict[str, float | None]]]:
    """What ablation removes: loss with modules off minus loss with all on, nats a token, paired over examples.

    Args:
        model: an expanded causal LM. Its modules are on or off afterwards as they were before.
        measure: `forget` or `retain` -> the losses of those examples, always in the same order, under the model as it is.
        samples (`int`, *optional*, defaults to `1000`): bootstrap resamples; 0: no intervals. seed (`int`): of these.
        all_on (*optional*): `forget`, `retain` -> losses with all modules on, where they are known. Not given: measured.
        module (`str`, *optional*): the module that is ablated, alone, in its own layers. Not given: all of them.

    Returns: `all`, and each target layer -> `forget`, `retain` -> an `Estimate` as a dict.

    Raises:
        ValueError: if the losses are not of the same examples each time, or the model has no such module.
    """
    layers = layers_of(model, module)
    with ablated_layers(model, []):
        before = all_on or {name: measure(name) for name in ("forget", "retain")}

    def difference(name: str) -> dict[str, float | None]:
        later, earlier = measure(name), before[name]
        if not torch.equal(later.tokens, earlier.tokens):
            raise ValueError(
                f"`measure`: `{name}` gave other examples, or another order, than before. Give the same each time."
            )
        return paired_difference(later.nll, earlier.nll, later.tokens, samples, seed).to_dict()

    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for key, off in {"all": layers, **{str(layer): [layer] for layer in layers}}.items():
        if key != "all" and off == layers:  # a single target layer
            found[key] = found["all"]
            continue
        with ablated_layers(model, off, module):
            found[key] = {name: difference(name) for name in ("forget", "retain")}
    return found
