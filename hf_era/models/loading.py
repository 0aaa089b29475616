"""Checkpoints in, from local directories and hub ids: safetensors alone, whole, and with errors that say what to do."""

from __future__ import annotations

import contextlib
import copy
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig
from transformers.utils import logging

from hf_era.models.base_checks import check_arguments, check_base_in_memory, check_family, check_not_quantised
from hf_era.models.checkpoint_files import check_weight_files, read_json_object
from hf_era.models.config import NOT_OF_THE_BASE, ExpansionConfig
from hf_era.models.families.family import EXPANDED_PREFIX, FAMILIES, Family, family_for, family_of
from hf_era.models.families.unsupported import no_causal_lm_message, why_no_causal_lm
from hf_era.models.generation_config import make_generation_config_savable
from hf_era.models.self_check import check_opened
from hf_era.models.size import check_config_numbers, check_model_fits
from hf_era.models.whole_weights import follow_attention, take_over
from hf_era.utils.checks import check_path_text, error_text, first_and_more, short_repr
from hf_era.utils.files import local_path

HUB_OPTIONS = ("revision", "cache_dir", "token", "subfolder", "local_files_only", "force_download")
SAFE_OPTIONS = {"use_safetensors": True, "trust_remote_code": False}
"""What every `from_pretrained` of a model gets, and no caller can change."""


@contextlib.contextmanager
def without_weight_bars() -> Iterator[None]:
    """Within this context transformers shows no bar for each model that it reads or writes; bars of downloads stay."""
    previous = logging.set_tqdm_hook(lambda factory, args, options: logging.EmptyTqdm(*args, **options))
    try:
        yield
    finally:
        logging.set_tqdm_hook(previous)


def looks_local(name: str | os.PathLike[str]) -> bool:
    """Whether a name is meant as a path (`./x`, `/x`, `~/x`, `a/b/c`, or a path object), not as a hub id."""
    text = os.fspath(name)
    is_path = not isinstance(name, str) or text.startswith((".", "/", "~")) or text.count("/") > 1
    # `runs/mine` may be an id, but not where there is a folder `runs`: the hub need not be asked, and may be far.
    return is_path or ("/" in text and Path(text.split("/")[0]).is_dir())


def _of_a_run(path: Path) -> str:
    """The model in the folder of a run, for a message; empty if it is no such folder."""
    model = path / "model"
    return f" The folder of a run has it inside: pass {model}." if (model / "config.json").is_file() else ""


def check_model_source(field: str, name: str | os.PathLike[str], subfolder: str = "") -> str:
    """Returns the source as transformers wants it; raises `ValueError` if it is a path that does not exist."""
    check_path_text(field, os.fspath(name))
    path = local_path(name)
    if path.is_dir():
        if (path / subfolder / "adapter_config.json").is_file():
            raise ValueError(
                f"`{field}`: {path / subfolder} holds an adapter (adapter_config.json), which names another model to load. "
                "Merge the two yourself (`merge_and_unload` of peft), save the result with `save_pretrained`, and pass that "
                "directory."
            )
        if not (path / subfolder / "config.json").is_file():
            raise ValueError(
                f"`{field}`: the directory {path} holds no config.json, so it is no saved model.{_of_a_run(path)}"
            )
        return str(path)
    if path.is_file():
        raise ValueError(f"`{field}` should be a directory with a saved model or a hub id, got the file {path}.")
    if looks_local(name):
        raise ValueError(f"`{field}`: the directory {path} does not exist. Check the path, or pass a hub id.")
    return os.fspath(name)


def check_options(field: str, options: dict[str, Any]) -> None:
    """Raises `ValueError` for an option of `from_pretrained` that would read a pickle, or run a checkpoint's code."""
    for name, safe in SAFE_OPTIONS.items():
        if options.get(name, safe) != safe:
            raise ValueError(
                f"`{field}`: `{name}={options[name]}` is not supported: hf_era reads safetensors only and runs no code of "
                "a checkpoint. Load the model yourself where you trust it, save it with `save_pretrained`, and pass that."
            )


def unreachable_message(field: str, name: str, kind: str) -> str:
    """The text for a hub id that could not be fetched."""
    way_out = f"`--{field} ./my_{kind}`" if field.startswith("model.") else f"`./my_{kind}`"
    text = (
        f"`{field}`: could not get the {kind} `{name}` from the hub (offline, no such id, or no access) and it is not in "
        f"the local cache. Pass the path of a local directory instead, for instance {way_out}."
    )
    if kind == "model":
        text += (
            " A repository without safetensors files is converted by the hub; where that does not happen, load it yourself "
            "if you trust it, save it with `save_pretrained`, and pass that directory."
        )
    return text


def load_base_config(base: str | os.PathLike[str], field: str = "model.base", **kwargs: Any) -> Any:
    """The config of a stock checkpoint.

    Raises:
        ValueError: with a way out, if it cannot be had, is broken, describes a model that no machine holds, or needs code
            that comes with the checkpoint.
    """
    check_options(field, kwargs)
    subfolder = kwargs.get("subfolder") or ""
    source = check_model_source(field, base, subfolder)
    values = _config_values(field, source, subfolder, kwargs)
    check_config_numbers(f"{field}: config.json", values)
    try:
        config = _opened_config(values) or AutoConfig.from_pretrained(source, trust_remote_code=False, **kwargs)
        check_round_trip(config)
        return config
    except OSError as error:
        raise ValueError(unreachable_message(field, source, "model")) from error
    except Exception as error:  # whatever becomes of wrong values; there is a class of error for each
        raise ValueError(_unusable(field, source, values, error)) from error


def _opened_config(values: dict[str, Any]) -> Any:
    """The config of an expanded model of a family that was opened by the names of its parts, which only the checkpoints of a
    training have; `None` of any other."""
    expansion, model_type = values.get("expansion"), str(values.get("model_type"))
    if not model_type.startswith(EXPANDED_PREFIX) or not isinstance(expansion, dict) or expansion.get("mlp") is None:
        return None
    own = {name: value for name, value in values.items() if name not in NOT_OF_THE_BASE}
    base_config = AutoConfig.for_model(model_type.removeprefix(EXPANDED_PREFIX), **own)
    family = family_for(base_config, ExpansionConfig.from_dict(expansion))
    return family.model_class.config_class.from_dict(values)


def check_round_trip(config: Any) -> None:
    """Writes and reads a config, as will be done with it later: some wrong values pass the first reading only.

    Raises:
        Exception: whatever transformers or JSON make of such a value.
    """
    type(config).from_dict(json.loads(config.to_json_string()))


def _config_values(field: str, source: str, subfolder: str, options: dict[str, Any]) -> dict[str, Any]:
    """What stands in the config file, before it becomes a config."""
    folder = Path(source) / subfolder
    if folder.is_dir():
        return read_json_object(field, folder / "config.json")
    try:
        return PreTrainedConfig.get_config_dict(source, **options)[0]
    except OSError as error:
        raise ValueError(unreachable_message(field, source, "model")) from error
    except Exception as error:
        raise ValueError(_unusable(field, source, {}, error)) from error


def _unusable(field: str, source: str, values: dict[str, Any], error: Exception) -> str:
    if "auto_map" in values:
        return (
            f"`{field}`: the config.json of {source} names code of its own (`auto_map`), and its model type "
            f"{short_repr(values.get('model_type'))} is not one that transformers knows. hf_era runs no code of a "
            "checkpoint: pass a model whose architecture is part of transformers."
        )
    return f"`{field}`: the config.json of {source} describes no model that transformers knows: {error_text(error)}"


def load_weights(
    model_class: Any,
    name: str | os.PathLike[str],
    field: str,
    described_by: Any,
    options: dict[str, Any],
    may_be_missing: Callable[[str], bool] = lambda key: False,
    **extra: Any,
) -> Any:
    """`from_pretrained`, of safetensors alone; every weight must be there, with its shape, and none beside it.

    Args:
        model_class: a causal LM's, or `AutoModelForCausalLM`.
        name (`str` or path): local directory or hub id.
        field (`str`): the setting that errors name.
        described_by (`PreTrainedConfig`): the config of the model that is loaded.
        options (`dict`): the caller's, for `from_pretrained`.
        may_be_missing (*optional*): whether a weight of this name may be missing. Not given: none.
        extra: more options.

    Raises:
        ValueError: if the files are missing, pickled or damaged, the model does not fit in memory, or the weights are not
            those that the config describes.
    """
    source = check_model_source(field, name, options.get("subfolder") or "")
    built = check_model_fits(field, described_by, options.get("dtype"))
    family = family_of(described_by)
    folder = Path(source) / (options.get("subfolder") or "")
    if folder.is_dir():
        is_constant = None if family is None else family.is_stored_buffer
        shapes = check_weight_files(field, folder, options.get("variant"), is_constant)
        if family is not None:
            _check_shapes(field, source, built, shapes)
    options = {name: value for name, value in options.items() if name not in SAFE_OPTIONS}
    # What transformers would print of missing and other weights, we raise.
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model, report = model_class.from_pretrained(
            source,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **extra,
            **options,
        )
    except OSError as error:
        if folder.is_dir():
            raise ValueError(f"`{field}`: the checkpoint {source} cannot be loaded: {error_text(error)}") from error
        raise ValueError(unreachable_message(field, source, "model")) from error
    except Exception as error:  # a config whose values do not go together, weights that cannot be converted
        raise ValueError(f"`{field}`: the checkpoint {source} cannot be loaded: {error_text(error)}") from error
    finally:
        logging.set_verbosity(verbosity)
    _check_report(field, source, report, family, may_be_missing)
    return model


def _check_shapes(field: str, source: str, built: Any, stored: dict[str, list[int]]) -> None:
    """Raises `ValueError` for a weight of another shape than the model on the meta device has, before memory is taken."""
    for name, value in built.state_dict().items():
        wanted = list(value.shape)
        # The body alone can be saved too, without the causal LM's prefix.
        found = stored.get(name, stored.get(name.removeprefix(f"{built.base_model_prefix}."), wanted))
        if found != wanted:
            raise ValueError(_wrong_shape(field, source, name, found, wanted))


def _wrong_shape(field: str, source: str, name: str, found: Sequence[int], wanted: Sequence[int]) -> str:
    return (
        f"`{field}`: the weight {name} of the checkpoint {source} has the shape {list(found)}, its config.json says "
        f"{list(wanted)}. Save both again."
    )


def _check_report(
    field: str,
    source: str,
    report: dict[str, Any],
    family: Family | None,
    may_be_missing: Callable[[str], bool],
) -> None:
    """Raises `ValueError` for weights that are missing, of another shape, or not the model's."""
    missing = sorted(key for key in report["missing_keys"] if not may_be_missing(key))
    if missing:
        raise ValueError(
            f"`{field}`: the checkpoint {source} lacks {first_and_more(missing)}. Save it again, or pass another."
        )
    if report["mismatched_keys"]:
        raise ValueError(_wrong_shape(field, source, *min(report["mismatched_keys"])))
    # Other families may bring parts that transformers leaves out on purpose; of those known here every weight is known.
    unknown = (
        [] if family is None else sorted(key for key in report["unexpected_keys"] if not family.is_stored_buffer(key))
    )
    if unknown:
        raise ValueError(
            f"`{field}`: the checkpoint {source} holds {first_and_more(unknown)} that its architecture "
            "does not have. They would be left out without a word: pass the model that they belong to."
        )


def load_causal_lm(name: str | os.PathLike[str], field: str = "model.base", **kwargs: Any) -> Any:
    """Any causal LM from a local directory or a hub id, in the fast class of its family where there is one.

    Args:
        name (`str` or path): a stock, a contracted or an expanded checkpoint, in one or (in a local directory) in parts.
        field (`str`, *optional*, defaults to `"model.base"`): the setting that errors name.
        kwargs: passed to `from_pretrained`. Only safetensors are read, and no code of the checkpoint is run.

    Raises:
        ValueError: if it does not exist or cannot be reached, is no causal LM, is damaged, lacks a weight, or does not fit
            in memory.
    """
    from hf_era.models.module_files import is_in_parts, load_expanded  # which load with this file

    check_options(field, kwargs)
    if is_in_parts(name):
        return load_expanded(name, **kwargs)
    config = load_base_config(name, field, **hub_options(kwargs))
    opened = getattr(type(config), "opened_family", None)
    if opened is not None:
        return load_weights(opened.model_class, name, field, config, kwargs, config=config)
    reason = None if getattr(config, "is_decoder", False) else why_no_causal_lm(config.model_type)
    if reason is not None:
        raise ValueError(f"`{field}`: {no_causal_lm_message(config.model_type, reason, FAMILIES)}")
    return load_weights(fast_class_of(config) or AutoModelForCausalLM, name, field, config, kwargs)


def fast_class_of(config: Any) -> Any:
    """The fast class without auxiliary modules for a stock config, or `None` if its family has none."""
    family = FAMILIES.get(config.model_type)
    return None if family is None else family.fast_class


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
    path = local_path(name)
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
                f"`{field}`: the directory {path} holds no tokenizer that can be read: {error_text(error)}"
            ) from error
        raise ValueError(unreachable_message(field, os.fspath(name), "tokenizer")) from error
    except Exception as error:  # a file of it is broken; there is a class of error for each way
        raise ValueError(
            f"`{field}`: the tokenizer of {source} cannot be loaded ({error_text(error)}). hf_era runs no code of a "
            "checkpoint; save the tokenizer again, or pass another with `model.tokenizer`."
        ) from error
    if not tokenizer.is_fast:
        raise ValueError(f"`{field}`: {name} has no fast tokenizer, and finding words in text needs its offsets.")
    return tokenizer


def expand_checkpoint(model_class: Any, base: str | os.PathLike[str], expansion: ExpansionConfig, **kwargs: Any) -> Any:
    """Loads a stock checkpoint straight into the expanded class: the original weights have the same names and shapes."""
    check_options("model.base", kwargs)
    base_config = load_base_config(base, **hub_options(kwargs))
    check_family(model_class, base_config)
    check_not_quantised(base_config, kwargs)
    config = model_class.config_class.from_base_config(base_config, expansion)
    # The auxiliary weights start at random: that is what was asked for.
    model = load_weights(
        model_class,
        base,
        "model.base",
        config,
        kwargs,
        may_be_missing=model_class.family.is_auxiliary_weight,
        config=config,
    )
    make_generation_config_savable(model)
    return model


def hub_options(options: dict[str, Any]) -> dict[str, Any]:
    """Those options of `from_pretrained` that say where its files come from."""
    return {key: options[key] for key in HUB_OPTIONS if key in options}


def expand_model(model_class: Any, base: nn.Module, expansion: ExpansionConfig, dtype: Any = None) -> Any:
    """Expands a stock model that is in memory; the result has its own storage, in `dtype` or the base's own."""
    check_family(model_class, base.config)
    check_base_in_memory(model_class.stock_class, base)
    config = model_class.config_class.from_base_config(base.config, expansion)
    follow_attention(config, base, model_class.stock_class)
    model = model_class(config).to(device=base.device, dtype=dtype or base.dtype)
    # Each weight in its own dtype: a half-precision model may have some in fp32.
    originals = {name: value.detach().to(dtype or value.dtype, copy=True) for name, value in base.state_dict().items()}
    model = take_over(model, {**model.state_dict(), **originals}, base)
    make_generation_config_savable(model)
    return model


def expand_base(
    base: str | os.PathLike[str] | nn.Module, expansion: ExpansionConfig | None = None, **kwargs: Any
) -> Any:
    """Expands a base model with the class of its family; arguments and errors as in `from_base`."""
    check_arguments(base, expansion)
    base_config: Any = base.config if isinstance(base, nn.Module) else load_base_config(base, **hub_options(kwargs))
    model_class = family_for(base_config, expansion).model_class
    return check_opened(model_class.from_base(base, expansion, **kwargs))


def expanded_from_config(base_config: Any, expansion: ExpansionConfig, seed: int) -> Any:
    """An expanded model with random weights; its original weights equal those of the stock model with this seed."""
    model_class = family_for(base_config, expansion).model_class
    torch.manual_seed(seed)
    return check_opened(model_class(model_class.config_class.from_base_config(base_config, expansion)))
