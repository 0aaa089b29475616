"""Which weights are trained where there is no memory for all: the base is frozen, but for what is routed, or for adapters.

| trainable | what is trained |
|---|---|
| `all` | every weight |
| `routed` | auxiliary modules, and the MLPs that they stand beside |
| `modules` | auxiliary modules alone; with `lora`, adapters on the original dims too |

Frozen weights need neither gradients nor optimizer states, and nothing is back-propagated below the first layer that has
something to train. LoRA adapters (Hu et al. 2021, arXiv 2106.09685) are routed like the layers that they stand around
(`ExpandedMLPMixin`): those of the up and gate projections get scaled gradients, and those of the down projection, as it
does itself, whole ones with respect to an input whose gradient is scaled.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_era.models.adapters import has_adapters
from hf_era.models.families.family import Family, family_of
from hf_era.models.layers import LINEAR_CLASSES
from hf_era.models.module_switches import is_auxiliary_parameter
from hf_era.utils.checks import (
    check_count,
    check_positive,
    listed,
    short_repr,
    unknown_key_message,
    unknown_value_message,
)
from hf_era.utils.fields import setting

TRAINABLE = ("all", "routed", "modules")
ALL_LINEAR = "all-linear"
# Both are peft's own business: it asks transformers by an old name, and corrects a setting for GPT-2's layers by itself.
PEFT_NOISE = ("`is_gradient_checkpointing` is deprecated", "fan_in_fan_out is set to ")


@dataclass(frozen=True)
class LoraSettings:
    """LoRA adapters on the original dims, which take the place of training these.

    Args:
        rank (`int`, *optional*, defaults to `16`): of each adapter.
        alpha (`float`, *optional*, defaults to `32.0`): adapters are scaled by alpha / rank.
        dropout (`float`, *optional*, defaults to `0.0`): of an adapter's input, in [0, 1).
        target_modules (`list[str]` or `str`, *optional*): names of linear layers, as peft takes them (`["q_proj",
            "down_proj"]`: in all layers), or `"all-linear"`: all but the LM head. Not given: the linear layers of the MLPs
            that have an auxiliary module beside them.
        attention (`bool`, *optional*, defaults to `False`): without `target_modules`: those of the same layers' attention
            too.

    Raises:
        ValueError: for a value out of range, or both of the last two.
    """

    rank: int = setting(16, "Rank of each adapter.", identity=True)
    alpha: float = setting(32.0, "Adapters are scaled by alpha / rank.", identity=True)
    dropout: float = setting(0.0, "Dropout of an adapter's input.", identity=True)
    target_modules: list[str] | str | None = setting(
        None, "Linear layers by name, or all-linear. Not given: of the routed MLPs.", identity=True
    )
    attention: bool = setting(False, "Without target_modules: the same layers' attention too.", identity=True)

    def __post_init__(self) -> None:
        check_count("training.lora.rank", self.rank)
        for name in ("alpha", "dropout"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"`training.lora.{name}` should be a finite number, got {short_repr(value)}.")
        check_positive("training.lora.alpha", self.alpha)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`training.lora.dropout` should be in [0, 1), got {self.dropout}.")
        if not isinstance(self.attention, bool):
            raise ValueError(f"`training.lora.attention` should be true or false, got {short_repr(self.attention)}.")
        self._check_targets()

    def _check_targets(self) -> None:
        given = self.target_modules
        if given is None or given == ALL_LINEAR:
            pass
        elif not isinstance(given, list | tuple) or not given or not all(isinstance(name, str) for name in given):
            raise ValueError(
                f"`training.lora.target_modules` should be a list of names such as [q_proj, down_proj], or {ALL_LINEAR!r}, "
                f"got {short_repr(given)}. Leave it out for the MLPs that are routed."
            )
        if given is not None and self.attention:
            raise ValueError(
                f"`training.lora.attention` is true, but `training.lora.target_modules` names all layers: "
                f"{short_repr(given)}. Drop one of them."
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LoraSettings:
        """Builds the settings from a dict; raises `ValueError` for a key that it does not know."""
        known = [item.name for item in fields(cls)]
        for key in values:
            if key not in known:
                raise ValueError(unknown_key_message("`training.lora`", key, known))
        return cls(**values)


def check_trainable(trainable: str | None, lora: Any) -> None:
    """Raises `ValueError` for a value of `training.trainable` that does not exist, or does not go with `training.lora`."""
    if trainable is not None and trainable not in TRAINABLE:
        raise ValueError(unknown_value_message("training.trainable", trainable, TRAINABLE))
    if lora is not None and trainable not in (None, "modules"):
        raise ValueError(
            f"`training.lora` trains adapters in place of the original dims, but `training.trainable` is {trainable!r}, "
            "which trains these themselves. Drop one of them."
        )


def choose_trainable(
    model: Any,
    trainable: str | None,
    lora: LoraSettings | None = None,
    layers: Sequence[int] | None = None,
    family: Family | None = None,
) -> None:
    """Freezes, in place, all weights of a model but those that are to be trained.

    Adapters start as no change, at random: seed torch before.

    Args:
        model: an expanded causal LM, or a stock one of a family that hf_era knows.
        trainable (`str`, *optional*): see above. `None`: with `lora` as `modules`, else the model is left as it is.
        lora (`LoraSettings`, *optional*): adapters to put on.
        layers (`Sequence[int]`, *optional*): of a stock model: the layers that count as routed. An expanded one knows them.
        family (`Family`, *optional*): of a stock model that nobody registered: the one that was opened.

    Raises:
        ValueError: for settings that contradict each other, a model that has adapters already, or layers that it has not.
    """
    check_trainable(trainable, lora)
    if trainable is None and lora is None:
        return
    if has_adapters(model):
        raise ValueError(
            f"`training.{'trainable' if lora is None else 'lora'}` is given, but `model` has adapters (peft) already, which "
            "say what is trained. Drop one of them."
        )
    if lora is not None:
        _add_adapters(model, lora, _adapted_layers(model, lora, layers, family))
    else:
        model.requires_grad_(trainable == "all")
    for name, value in model.named_parameters():
        if trainable != "all" and is_auxiliary_parameter(model, name):
            value.requires_grad_(True)
    if trainable == "routed":
        for part in _routed_parts(model, layers, family).values():
            part.requires_grad_(True)


def keep_input_gradients_off(model: Any, is_reentrant: bool = False) -> None:
    """Takes back what transformers does for checkpointing: it lets the embeddings ask for a gradient, frozen or not, and
    every frozen layer before the first that is trained is then computed again and passed through for nothing.

    Reentrant checkpointing alone needs it: without a gradient that comes in, it lets none out.
    """
    has_hook = bool(getattr(model, "_require_grads_hooks", None) or getattr(model, "_require_grads_hook", None))
    if has_hook and not is_reentrant:
        model.disable_input_require_grads()
    elif is_reentrant and not has_hook:
        model.enable_input_require_grads()


def trained_parameters(model: nn.Module) -> int:
    """How many numbers of a model are trained."""
    return sum(value.numel() for value in model.parameters() if value.requires_grad)


def _family(model: Any, given: Family | None) -> Family:
    family: Family | None = given or getattr(model, "family", None) or family_of(model.config)
    if family is None:
        raise ValueError(f"`training.trainable`: {type(model).__name__} is of no family that hf_era knows.")
    return family


def _routed_parts(
    model: Any, layers: Sequence[int] | None, given: Family | None, whole_blocks: bool = False
) -> dict[str, nn.Module]:
    """Path -> what stands beside an auxiliary module, or its whole block."""
    family, paths = _family(model, given), {id(module): path for path, module in model.named_modules()}
    chosen = list(model.auxiliary_modules()) if hasattr(model, "auxiliary_modules") else list(layers or ())
    if not chosen:
        raise ValueError("`training.trainable`: no layer of the model has an auxiliary module, so nothing is routed.")
    found: list[nn.Module] = []
    for layer in chosen:
        block = family.get_blocks(model)[layer]
        hosts = [part for part in block.modules() if isinstance(getattr(part, "auxiliary", None), nn.ModuleDict)]
        found += [block] if whole_blocks else hosts or [family.get_mlp(block)]
    return {paths[id(part)]: part for part in found}


def _linear_layers(model: nn.Module) -> list[str]:
    """Paths of all linear layers but those of auxiliary modules and the LM head."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return [
        path
        for path, part in model.named_modules()
        if isinstance(part, LINEAR_CLASSES) and part is not head and not is_auxiliary_parameter(model, f"{path}.weight")
    ]


def _adapted_layers(model: Any, lora: LoraSettings, layers: Sequence[int] | None, family: Family | None) -> list[str]:
    linear, wanted = _linear_layers(model), lora.target_modules
    if wanted == ALL_LINEAR:
        return linear
    if wanted is None:
        parts = _routed_parts(model, layers, family, whole_blocks=lora.attention)
        return [path for path in linear if any(path.startswith(f"{part}.") for part in parts)]
    for name in wanted:
        if not any(path == name or path.endswith(f".{name}") for path in linear):
            known = sorted({path.rpartition(".")[2] for path in linear})
            raise ValueError(
                f"`training.lora.target_modules` names {short_repr(name)}, but no linear layer of the "
                f"{type(model).__name__} has that name (the LM head and auxiliary modules get no adapters). Known: "
                f"{listed(known)}."
            )
    return [path for path in linear if any(path == name or path.endswith(f".{name}") for name in wanted)]


def _add_adapters(model: Any, lora: LoraSettings, paths: list[str]) -> None:
    from peft import LoraConfig, inject_adapter_in_model  # heavy, and seldom needed

    alpha: Any = lora.alpha  # peft's hint says int, its formula does not mind
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=alpha,
        lora_dropout=lora.dropout,
        target_modules=paths,
        fan_in_fan_out=isinstance(model.get_submodule(paths[0]), Conv1D),
    )
    with warnings.catch_warnings():
        for message in PEFT_NOISE:
            warnings.filterwarnings("ignore", message=message)
        inject_adapter_in_model(settings, model)
