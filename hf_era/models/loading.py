"""Stock checkpoints in: local directories and hub ids, with errors that say what to do."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from hf_era.models.architectures import ARCHITECTURES, get_architecture
from hf_era.models.expansion import ExpansionConfig


def looks_local(name: str | os.PathLike[str]) -> bool:
    """Whether a name is meant as a path (`./x`, `/x`, `~/x`, `a/b/c`, or a path object), not as a hub id."""
    text = os.fspath(name)
    return not isinstance(name, str) or text.startswith((".", "/", "~")) or text.count("/") > 1


HUB_OPTIONS = ("revision", "cache_dir", "token", "subfolder", "local_files_only", "force_download")


def check_model_source(field: str, name: str | os.PathLike[str], subfolder: str = "") -> str:
    """Returns the source as transformers wants it; raises `ValueError` if it is a path that does not exist."""
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / subfolder / "config.json").is_file():
            raise ValueError(f"`{field}`: the directory {path} holds no config.json, so it is no saved model.")
        return str(path)
    if path.is_file():
        raise ValueError(f"`{field}` should be a directory with a saved model or a hub id, got the file {path}.")
    if looks_local(name):
        raise ValueError(f"`{field}`: the directory {path} does not exist. Check the path, or pass a hub id.")
    return os.fspath(name)


def unreachable_message(field: str, name: str, kind: str) -> str:
    """The text for a hub id that could not be fetched."""
    return (
        f"`{field}`: could not get the {kind} `{name}` from the hub (offline, no such id, or no access) and it is not in "
        f"the local cache. Pass the path of a local directory instead, for instance `--{field} ./my_{kind}`."
    )


def load_base_config(base: str | os.PathLike[str], field: str = "model.base", **kwargs: Any) -> Any:
    """The config of a stock checkpoint; raises `ValueError` with a way out if it cannot be had."""
    source = check_model_source(field, base, kwargs.get("subfolder") or "")
    try:
        return AutoConfig.from_pretrained(source, **kwargs)
    except OSError as error:
        raise ValueError(unreachable_message(field, source, "model")) from error


def load_causal_lm(name: str | os.PathLike[str], field: str = "model.base", **kwargs: Any) -> Any:
    """Any causal LM from a local directory or a hub id, in the fast class of its architecture where there is one.

    Args:
        name (`str` or path): a stock, a contracted or an expanded checkpoint.
        field (`str`, *optional*, defaults to `"model.base"`): the setting that errors name.
        kwargs: passed to `from_pretrained`.

    Raises:
        ValueError: if it does not exist or cannot be reached.
    """
    config = load_base_config(name, field, **_hub_options(kwargs))
    model_class = fast_class_of(config) or AutoModelForCausalLM
    try:
        return model_class.from_pretrained(check_model_source(field, name, kwargs.get("subfolder") or ""), **kwargs)
    except OSError as error:
        raise ValueError(unreachable_message(field, os.fspath(name), "model")) from error


def fast_class_of(config: Any) -> Any:
    """The fast class without auxiliary modules for a stock config, or `None` if its architecture has none."""
    spec = ARCHITECTURES.get(config.model_type)
    return None if spec is None else spec.load_fast_class()


def causal_lm_from_config(config: Any, seed: int) -> Any:
    """A stock architecture with random weights, in its fast class; the weights are the stock class's for that seed."""
    torch.manual_seed(seed)
    model_class = fast_class_of(config)
    return AutoModelForCausalLM.from_config(config) if model_class is None else model_class(copy.deepcopy(config))


def load_tokenizer(name: str | os.PathLike[str], field: str = "model.tokenizer", **kwargs: Any) -> Any:
    """A fast tokenizer from a local directory or a hub id.

    Raises:
        ValueError: if it cannot be had, or has no fast version (character offsets need one).
    """
    path = Path(name).expanduser()
    if looks_local(name) and not path.is_dir():
        raise ValueError(f"`{field}`: the directory {path} does not exist. Check the path, or pass a hub id.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path) if path.is_dir() else os.fspath(name), **kwargs)
    except OSError as error:
        raise ValueError(unreachable_message(field, os.fspath(name), "tokenizer")) from error
    if not tokenizer.is_fast:
        raise ValueError(f"`{field}`: {name} has no fast tokenizer, and finding words in text needs its offsets.")
    return tokenizer


def expand_checkpoint(model_class: Any, base: str | os.PathLike[str], expansion: ExpansionConfig, **kwargs: Any) -> Any:
    """Loads a stock checkpoint straight into the expanded class: the original weights have the same names and shapes."""
    base_config = load_base_config(base, **_hub_options(kwargs))
    check_architecture(model_class, base_config)
    config = model_class.config_class.from_base_config(base_config, expansion)
    # "Newly initialized: ...auxiliary..." is what was asked for, not something to warn of; anything else is an error.
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model, report = model_class.from_pretrained(
            check_model_source("model.base", base, kwargs.get("subfolder") or ""),
            config=config,
            output_loading_info=True,
            **kwargs,
        )
    except OSError as error:
        raise ValueError(unreachable_message("model.base", os.fspath(base), "model")) from error
    finally:
        logging.set_verbosity(verbosity)
    missing = sorted(key for key in report["missing_keys"] if not model.is_auxiliary_parameter(key))
    if missing:
        raise ValueError(f"`model.base`: the checkpoint {base} lacks {missing[0]} and {len(missing) - 1} more weights.")
    return model


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
