"""Stock checkpoints in: local directories and hub ids, with errors that say what to do."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_era.checks import check_path_text, reason
from hf_era.models.architectures import ARCHITECTURES, get_architecture, is_auxiliary_weight
from hf_era.models.expansion import ExpansionConfig
from hf_era.models.size import check_model_fits
from hf_era.models.sources import (
    HUB_OPTIONS,
    SAFE_OPTIONS,
    check_options,
    load_base_config,
    looks_local,
    unreachable_message,
)
from hf_era.models.weights import load_weights


def load_causal_lm(name: str | os.PathLike[str], field: str = "model.base", **kwargs: Any) -> Any:
    """Any causal LM from a local directory or a hub id, in the fast class of its architecture where there is one.

    Args:
        name (`str` or path): a stock, a contracted or an expanded checkpoint.
        field (`str`, *optional*, defaults to `"model.base"`): the setting that errors name.
        kwargs: passed to `from_pretrained`. Only safetensors are read, and no code of the checkpoint is run.

    Raises:
        ValueError: if it does not exist or cannot be reached, is damaged, lacks a weight, or does not fit in memory.
    """
    check_options(field, kwargs)
    config = load_base_config(name, field, **_hub_options(kwargs))
    return load_weights(fast_class_of(config) or AutoModelForCausalLM, name, field, config, kwargs)


def fast_class_of(config: Any) -> Any:
    """The fast class without auxiliary modules for a stock config, or `None` if its architecture has none."""
    spec = ARCHITECTURES.get(config.model_type)
    return None if spec is None else spec.load_fast_class()


def causal_lm_from_config(config: Any, seed: int) -> Any:
    """A stock architecture with random weights, in its fast class; the weights are the stock class's for that seed."""
    check_model_fits("model.architecture", config)
    torch.manual_seed(seed)
    model_class = fast_class_of(config)
    return (
        AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        if model_class is None
        else model_class(copy.deepcopy(config))
    )


def load_tokenizer(name: str | os.PathLike[str], field: str = "model.tokenizer", **kwargs: Any) -> Any:
    """A fast tokenizer from a local directory or a hub id.

    Raises:
        ValueError: if it cannot be had, is broken, needs code of its own, or has no fast version (character offsets need
            one).
    """
    check_path_text(field, os.fspath(name))
    path = Path(name).expanduser()
    if looks_local(name) and not path.is_dir():
        raise ValueError(f"`{field}`: the directory {path} does not exist. Check the path, or pass a hub id.")
    check_options(field, kwargs)
    source = str(path) if path.is_dir() else os.fspath(name)
    options = {option: value for option, value in kwargs.items() if option not in SAFE_OPTIONS}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
    except OSError as error:
        if path.is_dir():
            raise ValueError(
                f"`{field}`: the directory {path} holds no tokenizer that can be read: {reason(error)}"
            ) from error
        raise ValueError(unreachable_message(field, os.fspath(name), "tokenizer")) from error
    except Exception as error:  # a file of it is broken; there is a class of error for each way
        raise ValueError(
            f"`{field}`: the tokenizer of {source} cannot be loaded ({reason(error)}). hf_era runs no code of a "
            "checkpoint; save the tokenizer again, or pass another with `model.tokenizer`."
        ) from error
    if not tokenizer.is_fast:
        raise ValueError(f"`{field}`: {name} has no fast tokenizer, and finding words in text needs its offsets.")
    return tokenizer


def expand_checkpoint(model_class: Any, base: str | os.PathLike[str], expansion: ExpansionConfig, **kwargs: Any) -> Any:
    """Loads a stock checkpoint straight into the expanded class: the original weights have the same names and shapes."""
    check_options("model.base", kwargs)
    base_config = load_base_config(base, **_hub_options(kwargs))
    check_architecture(model_class, base_config)
    config = model_class.config_class.from_base_config(base_config, expansion)
    # The auxiliary weights start at random: that is what was asked for.
    return load_weights(
        model_class, base, "model.base", config, kwargs, may_be_missing=is_auxiliary_weight, config=config
    )


def _hub_options(options: dict[str, Any]) -> dict[str, Any]:
    return {key: options[key] for key in HUB_OPTIONS if key in options}


def expand_model(model_class: Any, base: nn.Module, expansion: ExpansionConfig, dtype: Any = None) -> Any:
    """Expands a stock model that is in memory; the result has its own storage, in `dtype` or the base's own."""
    check_architecture(model_class, base.config)
    config = model_class.config_class.from_base_config(base.config, expansion)
    model = model_class(config)
    weights = {**model.state_dict(), **base.state_dict()}
    model.load_state_dict({name: value.detach().clone() for name, value in weights.items()})
    model.tie_weights()
    model.generation_config = copy.deepcopy(base.generation_config)
    return model.to(device=base.device, dtype=dtype or base.dtype)


def check_architecture(model_class: Any, base_config: Any) -> None:
    """Raises `ValueError` if `base_config` is not of the architecture that `model_class` expands."""
    spec = get_architecture(base_config.model_type)
    if spec.model_type != model_class.architecture.model_type:
        raise ValueError(
            f"{model_class.__name__} expands `{model_class.architecture.model_type}`, but the base model is of type "
            f"`{spec.model_type}`. Use {spec.load_model_class().__name__}."
        )


def expand_base(
    base: str | os.PathLike[str] | nn.Module, expansion: ExpansionConfig | None = None, **kwargs: Any
) -> Any:
    """Expands a base model with the class that its architecture asks for; arguments and errors as in `from_base`."""
    base_config: Any = base.config if isinstance(base, nn.Module) else load_base_config(base, **_hub_options(kwargs))
    model_class = get_architecture(base_config.model_type).load_model_class()
    return model_class.from_base(base, expansion, **kwargs)


def expanded_from_config(base_config: Any, expansion: ExpansionConfig, seed: int) -> Any:
    """An expanded model with random weights; its original weights equal those of the stock model with this seed."""
    model_class = get_architecture(base_config.model_type).load_model_class()
    torch.manual_seed(seed)
    return model_class(model_class.config_class.from_base_config(base_config, expansion))
