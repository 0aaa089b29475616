"""Modules that stay when a model is contracted: their hidden units become the last ones of a stock MLP that is wider.

`original(x) + dial * auxiliary(x)` is one MLP, and a stock one: the rows of the up projections one below the other, the
columns of the down projections side by side. A stock config has one width for all layers, so layers with fewer of these
units get some that are zero, and add nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_era.models.base_checks import check_not_quantised
from hf_era.models.families.family import FAMILIES
from hf_era.models.layers import LINEAR_CLASSES, AuxiliaryMLP
from hf_era.utils.checks import short_repr, unknown_key_message


def check_keep(model: Any, keep: Any) -> list[str]:
    """The names of the modules to keep, in the model's order.

    Raises:
        ValueError: if it is no list of names, a name is none of the model's, or such a module cannot be folded into the MLP.
    """
    if isinstance(keep, (str, bytes)) or not isinstance(keep, Sequence):
        raise ValueError(f"`keep` should be a list of the modules to keep, such as ['forget'], got {short_repr(keep)}.")
    for name in keep:
        if name not in model.module_names:
            raise ValueError(unknown_key_message("`keep`", name, model.module_names))
    if not keep:
        return []
    check_not_quantised(model.config)
    way_out = (
        "Leave it out of `keep`, and save it with `save_module`: attached to the contracted model, it is the same."
    )
    if model.family.mlp_width(model.config) is None:
        raise ValueError(
            f"`keep`: modules of the family `{model.family.model_type}` cannot be folded into its MLP, whose width no field "
            f"of its config says. {way_out}"
        )
    if model.family.model_type not in FAMILIES:
        raise ValueError(
            f"`keep`: the family `{model.family.model_type}` was opened by the names of its parts, and whether its MLP is "
            f"more than its linear layers is not known. {way_out}"
        )
    for named in model.auxiliary_modules().values():
        for name, module in named.items():
            if name in keep and type(module) is not AuxiliaryMLP:
                raise ValueError(
                    f"`keep`: the module `{name}` is of the kind `{module.kind}`, and only `mlp` is the same function as a "
                    f"wider MLP. {way_out}"
                )
    return [name for name in model.module_names if name in keep]


def widen(config: Any, model: Any, weights: dict[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """The weights of the MLPs of all layers with modules folded in, by name; the stock config gets their width.

    Args:
        config: the stock config, which is changed.
        model: the expanded model. weights: its `whole_weights`.
        names: from `check_keep`.

    Raises:
        ValueError: if the MLP is more than an up projection, a gate where the family is gated, and a down projection; or
            has no bias where the module has one.
    """
    family, paths = model.family, {module: path for path, module in model.named_modules()}
    kept = {
        layer: [named[name] for name in names if name in named] for layer, named in model.auxiliary_modules().items()
    }
    most = max(sum(module.up_projection.out_features for module in modules) for modules in kept.values())
    setattr(config, family.intermediate_size, family.mlp_width(config) + most)
    widened: dict[str, Tensor] = {}
    for layer, block in enumerate(family.get_blocks(model)):
        mlp, modules = family.get_mlp(block), kept.get(layer, [])
        for own, auxiliary in _counterparts(family, mlp).items():
            path, added = f"{paths[mlp]}.{own}", [(module, f"{paths[module]}.{auxiliary}") for module in modules]
            widened |= _wider_layer(mlp.get_submodule(own), path, added, weights, most, auxiliary == "down_projection")
    return widened


def _counterparts(family: Any, mlp: nn.Module) -> dict[str, str]:
    """Path in the MLP to each of its linear layers -> the layer of an `AuxiliaryMLP` that does the same."""
    known = {family.down_projection: "down_projection"}
    if family.gated:
        known[family.gate_projection] = "gate_projection"
    linear = [
        path
        for path, layer in mlp.named_modules()
        if isinstance(layer, LINEAR_CLASSES) and not path.startswith("auxiliary.")
    ]
    up = [path for path in linear if path not in known]
    if len(up) != 1 or not set(known) <= set(linear):
        raise ValueError(
            f"`keep`: the MLP of `{family.model_type}` has the linear layers {', '.join(linear)}, and which of them a "
            "module is to be folded into is not known. Contract without `keep`, and attach the module's file to the result."
        )
    return {**known, up[0]: "up_projection"}


def _wider_layer(
    layer: Any, path: str, added: list[tuple[Any, str]], weights: dict[str, Tensor], most: int, is_down: bool
) -> dict[str, Tensor]:
    """The weight of one linear layer, and the bias of its new units, with `most` units more."""
    is_transposed = isinstance(layer, Conv1D)
    own = weights[f"{path}.weight"]
    rows = own.T if is_transposed else own  # (out, in)
    parts = [weights[f"{name}.weight"].to(rows.device) for _, name in added]
    if is_down:
        parts = [(part.double() * module.dial).T for part, (module, _) in zip(parts, added, strict=True)]
        rows = rows.T  # (hidden units, hidden)
    missing = most - sum(len(part) for part in parts)
    whole = torch.cat([rows, *(part.to(rows.dtype) for part in parts), rows.new_zeros(missing, rows.shape[1])])
    whole = whole.T if is_down != is_transposed else whole
    made = {f"{path}.weight": whole.contiguous()}
    biases = [weights.get(f"{name}.bias") for _, name in added]
    bias = weights.get(f"{path}.bias")
    if bias is None and any(other is not None for other in biases):
        raise ValueError(
            f"`keep`: the module has a bias, and `{path}` of the stock model has none. Contract without `keep`, and attach "
            "the module's file to the result."
        )
    if bias is not None and not is_down:
        units = [
            bias.new_zeros(len(part)) if other is None else other.to(bias)
            for part, other in zip(parts, biases, strict=True)
        ]
        made[f"{path}.bias"] = torch.cat([bias, *units, bias.new_zeros(missing)])
    return made
