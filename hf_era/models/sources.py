"""Where stock checkpoints come from, local directories and hub ids, and their configs; with errors that say what to do.

Nothing of a checkpoint is run: `trust_remote_code` is off, whatever a `config.json` names.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from hf_era.checks import check_path_text, reason, shown
from hf_era.models.checkpoint_files import read_json_object
from hf_era.models.size import check_config_numbers

HUB_OPTIONS = ("revision", "cache_dir", "token", "subfolder", "local_files_only", "force_download")
SAFE_OPTIONS = {"use_safetensors": True, "trust_remote_code": False}
"""What every `from_pretrained` of a model gets, and no caller can change."""


def looks_local(name: str | os.PathLike[str]) -> bool:
    """Whether a name is meant as a path (`./x`, `/x`, `~/x`, `a/b/c`, or a path object), not as a hub id."""
    text = os.fspath(name)
    return not isinstance(name, str) or text.startswith((".", "/", "~")) or text.count("/") > 1


def check_model_source(field: str, name: str | os.PathLike[str], subfolder: str = "") -> str:
    """Returns the source as transformers wants it; raises `ValueError` if it is a path that does not exist."""
    check_path_text(field, os.fspath(name))
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
    text = (
        f"`{field}`: could not get the {kind} `{name}` from the hub (offline, no such id, or no access) and it is not in "
        f"the local cache. Pass the path of a local directory instead, for instance `--{field} ./my_{kind}`."
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
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **kwargs)
        check_round_trip(config)
        return config
    except OSError as error:
        raise ValueError(unreachable_message(field, source, "model")) from error
    except Exception as error:  # whatever becomes of wrong values; there is a class of error for each
        raise ValueError(_unusable(field, source, values, error)) from error


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
            f"{shown(values.get('model_type'))} is not one that transformers knows. hf_era runs no code of a checkpoint: "
            "pass a model whose architecture is part of transformers."
        )
    return f"`{field}`: the config.json of {source} describes no model that transformers knows: {reason(error)}"
