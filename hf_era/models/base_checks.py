"""What can be expanded: checks of the arguments `base` and `expansion`, before anything is made of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from hf_era.models.adapters import has_adapters
from hf_era.models.config import ExpansionConfig
from hf_era.models.families.family import get_family
from hf_era.utils.checks import short_repr


def check_family(model_class: Any, base_config: Any) -> None:
    """Raises `ValueError` if `base_config` is not of the family that `model_class` expands."""
    own = model_class.family
    if base_config.model_type != own.model_type:
        family = get_family(base_config.model_type)
        raise ValueError(
            f"{model_class.__name__} expands `{own.model_type}`, but the base model is of type `{family.model_type}`. Use "
            f"{family.model_class.__name__}."
        )


def check_arguments(base: Any, expansion: Any) -> None:
    """Raises `ValueError` if `base` is neither a source nor a model with a config, or `expansion` no `ExpansionConfig`."""
    if expansion is not None and not isinstance(expansion, ExpansionConfig):
        way = (
            "Write `ExpansionConfig(**...)` around it."
            if isinstance(expansion, Mapping)
            else "Leave it out for 64 units."
        )
        raise ValueError(
            f"`expansion` should be an `ExpansionConfig`, for instance `ExpansionConfig(width=64)`, got "
            f"{short_repr(expansion)}. {way}"
        )
    if isinstance(base, (str, os.PathLike)):
        return
    if isinstance(base, type):
        kind, way = f"the class {base.__name__}", "Make one of it, with `from_pretrained` for instance."
    elif isinstance(base, PreTrainedConfig):
        kind = f"a {type(base).__name__}, which has no weights"
        way = "For random ones pass `AutoModelForCausalLM.from_config(config)`."
    elif not isinstance(base, nn.Module):
        kind, way = short_repr(base), "Pass one of the three."
    elif not isinstance(getattr(base, "config", None), PreTrainedConfig):
        kind, way = f"a {type(base).__name__} without a config", "Pass the model of transformers itself, unwrapped."
    else:
        return
    raise ValueError(f"`base` should be a local directory, a hub id or a causal LM of transformers, got {kind}. {way}")


def check_base_in_memory(stock_class: Any, base: Any) -> None:
    """Raises `ValueError` for a model that cannot be copied weight by weight into an expanded one."""
    if has_adapters(base):
        raise ValueError(
            f"`base` has adapters (peft): {type(base).__name__}. Merge them first, with `base = base.merge_and_unload()`, "
            "or put them on the expanded model: `get_peft_model(expand_base(...), ...)`."
        )
    check_not_quantised(base.config)
    if not isinstance(base, stock_class):
        raise ValueError(
            f"`base` should be a {stock_class.__name__}, got a {type(base).__name__}, which is another model or wrapped. "
            f"Load it as `{stock_class.__name__}` (its language-model head is part of what is trained), or unwrap it."
        )
    devices = sorted({str(value.device) for value in base.parameters()})
    if len(devices) > 1:
        raise ValueError(
            f"`base` is spread over devices (`device_map`): {', '.join(devices)}, where meta is offloaded. Load it without "
            "`device_map`; or pass its folder, and `device_map` with it, so that the expanded model is spread."
        )


def check_not_quantised(config: Any, options: Mapping[str, Any] | None = None) -> None:
    """Raises `ValueError` for the config of a model with quantised weights, or options that would quantise them."""
    asked_for = [name for name in ("quantization_config", "load_in_4bit", "load_in_8bit") if (options or {}).get(name)]
    if asked_for or getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            "The base model is quantised (`quantization_config`), and its weights can be neither trained nor routed, nor "
            "with adapters beside them (QLoRA) cut exactly. Load "
            "it without quantisation, for instance with `dtype=torch.bfloat16`, or dequantise it and save that."
        )
