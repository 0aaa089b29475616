"""Adapters that peft puts into a model: found, taken out of their wrapper, and merged into the layers they stand around.

peft is imported by whoever made an adapter; where it is not imported there is none.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

_adapters_are_kept: ContextVar[bool] = ContextVar("adapters_are_kept", default=False)


def is_wrapped_by_peft(model: Any) -> bool:
    """Whether a model is a `PeftModel`, and not the model inside."""
    return isinstance(model, _peft_classes("peft.peft_model", "PeftModel"))


def has_adapters(model: Any) -> bool:
    return is_wrapped_by_peft(model) or bool(_adapters_in(model))


def trained_in_place(model: Any) -> Any:
    """The model inside a `PeftModel`, which has the adapters in it; any other model as it is.

    Auxiliary modules, which peft freezes like all that it adapts, can be trained again, unless adapters of their own can be.

    Raises:
        ValueError: for a kind of peft whose parameters are not in the layers of the model (prompts, prefixes), or an adapter
            on a tied weight.
    """
    if is_wrapped_by_peft(model):
        if model.active_peft_config.is_prompt_learning:
            raise ValueError(
                f"`model`: {model.active_peft_config.peft_type.value} has its parameters beside the model and not in its "
                "layers, so no router reaches them. Use LoRA, or train the expanded model itself."
            )
        model = model.get_base_model()
    _check_no_tied_weight_is_adapted(model)
    if _adapters_in(model) and hasattr(model, "is_auxiliary_parameter"):
        auxiliary = [value for name, value in model.named_parameters() if model.is_auxiliary_parameter(name)]
        if not any(value.requires_grad for value in auxiliary):
            for value in auxiliary:
                value.requires_grad_(True)
    return model


@contextmanager
def adapters_kept() -> Iterator[None]:
    """Within it, models of ours are saved with their adapters beside the layers: only a training can go on from that."""
    token = _adapters_are_kept.set(True)
    try:
        yield
    finally:
        _adapters_are_kept.reset(token)


def are_adapters_kept() -> bool:
    """Whether this is within `adapters_kept`: a checkpoint of a training is being written."""
    return _adapters_are_kept.get()


def saved_merged(
    model: Any, folder: Any, *args: Any, state_dict: dict[str, Tensor] | None = None, **kwargs: Any
) -> bool:
    """Saves a model that has adapters with these merged, for its `save_pretrained`, and says whether it did: not if there
    are none, or within `adapters_kept`. Loaded with them beside the layers, the layers would be at random."""
    if are_adapters_kept() or not has_adapters(model):
        return False
    without_adapters(model, state_dict).save_pretrained(folder, *args, **kwargs)
    return True


def without_adapters(model: Any, weights: dict[str, Tensor] | None = None) -> Any:
    """A copy with all adapters merged into the layers that they stand around, and no weight frozen, as peft has frozen them
    for the adapters' sake; the model itself if it has none. With `weights`, its state dict, the copy has these.

    Raises:
        ValueError: for an adapter on a tied weight.
    """
    if not _adapters_in(model):
        return model
    _check_no_tied_weight_is_adapted(model)
    merged = copy.deepcopy(model)
    if weights is not None:
        merged.load_state_dict(weights)
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


def _check_no_tied_weight_is_adapted(model: Any) -> None:
    """An adapter changes the weight in one of its places. Merged, it changes it in all: another model."""
    for path, adapter in _adapters_in(model).items():
        layer = adapter.original_module if hasattr(adapter, "original_module") else adapter.get_base_layer()
        own = {id(value) for value in layer.parameters()}
        places = [name for name, value in model.named_parameters(remove_duplicate=False) if id(value) in own]
        other = next((name for name in places if not name.startswith(f"{path}.")), None)
        if other is not None:
            raise ValueError(
                f"`model`: the adapter on `{path}` changes a weight that is tied to `{other}`, and merged it would change "
                f"both: what is saved would be another model. Leave `{path.rpartition('.')[2]}` out of `target_modules`, "
                "`modules_to_save` and `trainable_token_indices`, or untie the weights before the adapters come: "
                "`model.config.tie_word_embeddings = False`, then `model.get_output_embeddings().weight = "
                "torch.nn.Parameter(model.get_output_embeddings().weight.detach().clone())`."
            )


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
