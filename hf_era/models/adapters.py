"""Adapters that peft puts into a model: found, taken out of their wrapper, and merged into the layers they stand around.

peft is imported by whoever made an adapter; where it is not imported there is none.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

from torch import nn


def is_wrapped_by_peft(model: Any) -> bool:
    """Whether a model is a `PeftModel`, and not the model inside."""
    return isinstance(model, _peft_classes("peft.peft_model", "PeftModel"))


def has_adapters(model: Any) -> bool:
    return is_wrapped_by_peft(model) or bool(_adapters_in(model))


def trained_in_place(model: Any) -> Any:
    """The model inside a `PeftModel`, which has the adapters in it; any other model as it is.

    Auxiliary modules, which peft freezes like all that it adapts, can be trained again, unless adapters of their own can be.

    Raises:
        ValueError: for a kind of peft whose parameters are not in the layers of the model (prompts, prefixes).
    """
    if is_wrapped_by_peft(model):
        if model.active_peft_config.is_prompt_learning:
            raise ValueError(
                f"`model`: {model.active_peft_config.peft_type.value} has its parameters beside the model and not in its "
                "layers, so no router reaches them. Use LoRA, or train the expanded model itself."
            )
        model = model.get_base_model()
    if _adapters_in(model) and hasattr(model, "is_auxiliary_parameter"):
        auxiliary = [value for name, value in model.named_parameters() if model.is_auxiliary_parameter(name)]
        if not any(value.requires_grad for value in auxiliary):
            for value in auxiliary:
                value.requires_grad_(True)
    return model


def without_adapters(model: Any) -> Any:
    """A copy with all adapters merged into the layers that they stand around, and no weight frozen, as peft has frozen them
    for the adapters' sake; the model itself if it has none."""
    if not _adapters_in(model):
        return model
    merged = copy.deepcopy(model)
    for path, adapter in _adapters_in(merged).items():
        if hasattr(adapter, "unload_and_optionally_merge_module"):
            layer = adapter.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
        else:
            if not adapter.merged:
                adapter.merge()
            layer = adapter.get_base_layer()
        parent, _, name = path.rpartition(".")
        setattr(merged.get_submodule(parent), name, layer)
    return merged.requires_grad_(True)


def _adapters_in(model: Any) -> dict[str, Any]:
    """The outermost adapters by their paths."""
    kinds = _peft_classes("peft.tuners.tuners_utils", "BaseTunerLayer") + _peft_classes(
        "peft.utils.other", "AuxiliaryTrainingWrapper", "ModulesToSaveWrapper"
    )
    found: dict[str, Any] = {}
    for path, module in model.named_modules() if isinstance(model, nn.Module) and kinds else ():
        if isinstance(module, kinds) and not any(path.startswith(f"{outer}.") for outer in found):
            found[path] = module
    return found


def _peft_classes(module: str, *names: str) -> tuple[type, ...]:
    loaded = sys.modules.get(module)
    return tuple(getattr(loaded, name) for name in names if hasattr(loaded, name))
