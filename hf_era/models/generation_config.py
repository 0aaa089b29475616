"""The configs of a model can be saved: transformers refuses some when a model is saved, after all the training.

A config that is read from a file passes as long as nobody changes it, and the Trainer changes its special tokens. So one
that contradicts itself is repaired where a model is expanded, begins to train, or is contracted or saved by us.
"""

from __future__ import annotations

import copy
import json
import warnings
from typing import Any

from transformers import GenerationConfig

from hf_era.utils.checks import error_text, short_repr

# What the others are checked against comes first.
_MODES = ("do_sample", "num_beams", "use_cache", "return_dict_in_generate", "suppress_tokens")


class GenerationConfigWarning(UserWarning):
    """A model's generation config could not have been saved, and was changed."""


def make_generation_config_savable(model: Any) -> None:
    """Gives a model whose generation config cannot be saved one that can, and says so with a `GenerationConfigWarning`.

    Settings that contradict the others (in greedy decoding, say, `temperature` has no effect) or are no JSON are left out;
    a model without one gets that of its own config; generation settings in the model's own config, which transformers does
    not save there, are moved. The generation config itself, which may be another model's too, is left as it is.

    Raises:
        ValueError: if the model's own config cannot be saved: what is in it may be of use.
    """
    if not hasattr(model, "can_generate") or not model.can_generate():
        return
    _check_models_config(model.config)
    if not isinstance(model.generation_config, GenerationConfig):
        found = short_repr(model.generation_config)
        model.generation_config = GenerationConfig.from_model_config(model.config)
        _warn(
            f"`model.generation_config` should be a `GenerationConfig`, got {found}, with which no model is saved: "
            "it is the one that transformers makes of `model.config` now. Set one yourself for another."
        )
    _move_out_of_the_models_config(model)
    config: Any = model.generation_config
    problem = _problem(config)
    if problem is None:
        return
    # Not by its `to_dict`, which copies what may be no JSON and no more be copied.
    values = {name: value for name, value in vars(config).items() if value is not None and not name.startswith("_")}
    kept, left_out = type(config)(), []
    for name in sorted(values, key=lambda name: name not in _MODES):
        before = vars(kept).get(name)
        is_known = name in vars(kept)
        setattr(kept, name, values[name])
        if _problem(kept) is not None:
            setattr(kept, name, before) if is_known else delattr(kept, name)
            left_out.append(f"`{name}` = {values[name]!r}")
    model.generation_config = copy.deepcopy(kept)
    _warn(
        f"`model.generation_config` could not have been saved after training, so {', '.join(left_out)} was left out. "
        f"transformers says: {problem} To keep it, make the config fit before the model comes to hf_era."
    )


def _move_out_of_the_models_config(model: Any) -> None:
    """What the generation config says itself stays as it says."""
    found = model.config._get_generation_parameters()
    if not found:
        return
    own, defaults = copy.copy(model.generation_config), GenerationConfig()
    for name, value in found.items():
        delattr(model.config, name)
        if getattr(own, name, None) in (None, getattr(defaults, name, None)):
            setattr(own, name, value)
    model.generation_config = own
    listed = ", ".join(f"`{name}` = {value!r}" for name, value in found.items())
    _warn(
        f"`model.config` could not have been saved after training, for {listed} is of generation, so it was moved to "
        "`model.generation_config`, where that said nothing of it. Set it there."
    )


def _check_models_config(config: Any) -> None:
    try:
        if hasattr(config, "validate"):
            config.validate()
        config.to_json_string()
    except Exception as error:  # whatever a config's own checks raise
        wrong = next((name for name, value in vars(config).items() if not _is_json(value)), None)
        what = (
            "`model.config`"
            if wrong is None
            else f"`model.config.{wrong}` is {short_repr(getattr(config, wrong))}, and"
        )
        raise ValueError(
            f"{what} cannot be saved after training ({error_text(error)}). Delete it from the config, or give it a value of "
            "JSON that the config takes."
        ) from error


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (ValueError, TypeError):
        return False
    return True


def _problem(config: Any) -> str | None:
    """Why transformers would refuse to save a config; `None` if it would not."""
    try:
        config.validate(strict=True)
        config.to_json_string(keys_to_pop=["compile_config"])
    except (ValueError, TypeError) as error:
        # Behind that it guesses where the values came from.
        return " ".join(str(error).partition("\nIf you're using a pretrained model")[0].split())
    return None


def _warn(text: str) -> None:
    warnings.warn(text, GenerationConfigWarning, stacklevel=4)
