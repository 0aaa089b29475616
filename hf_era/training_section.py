"""The sections `training` and `pretraining` of a config: fields of `GradientRoutingConfig`, checked before any is made."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any

from huggingface_hub.utils import HFValidationError, validate_repo_id

from hf_era.checks import check_count, check_path_text, shown
from hf_era.configuration_parsing import coerce
from hf_era.suggestions import unknown_key_message
from hf_era.training.config import GradientRoutingConfig

# These are decided by the pipeline.
_RESERVED_FIELDS = {
    "output_dir": "Use the top-level `output_dir`.",
    "seed": "Use the top-level `seed`.",
    "data_seed": "Use the top-level `seed`.",
    "eval_on_start": "The run evaluates before and after by itself.",
    "load_best_model_at_end": "The last weights are the routed ones; coherence fine-tuning keeps its best by itself.",
    "save_only_model": "A run that is stopped goes on from its optimizer's state, which this would leave out.",
    "resume_from_checkpoint": "Give the same command again: it goes on where it was.",
}
# Least and most. What is beyond is a slip of the hand: it would fill the memory, or start a million processes.
_LIMITS = {
    "per_device_train_batch_size": (1, 1_000_000),
    "per_device_eval_batch_size": (1, 1_000_000),
    "gradient_accumulation_steps": (1, 1_000_000),
    "eval_accumulation_steps": (1, 1_000_000),
    "max_steps": (-1, 1_000_000_000),
    "dataloader_num_workers": (0, 1_024),
    "dataloader_prefetch_factor": (1, 10_000),
}


def checked_training(values: dict[str, Any], section: str) -> dict[str, Any]:
    """The fields that a section sets, with their types.

    Raises:
        ValueError: for an unknown field, one that the run sets itself, a value of another type or out of range.
    """
    known = {item.name: item for item in dataclasses.fields(GradientRoutingConfig) if item.init}
    hints = typing.get_type_hints(GradientRoutingConfig)
    checked = {}
    for key, value in values.items():
        if key not in known:
            raise ValueError(unknown_key_message(f"section `{section}`", key, sorted(known)))
        if key in _RESERVED_FIELDS:
            raise ValueError(f"`{section}.{key}` is set by the run itself. {_RESERVED_FIELDS[key]}")
        name = f"{section}.{key}"
        checked[key] = coerce(value, hints[key], name)
        _check_range(name, key, checked[key])
    return checked


def _check_range(name: str, key: str, value: Any) -> None:
    if key in _LIMITS:
        check_count(name, value, *_LIMITS[key])
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"`{name}` should be a finite number, got {shown(value)}.")
    elif key == "hub_model_id" and value is not None:
        # Here, not when the model is pushed: that is after all the training.
        try:
            validate_repo_id(value)
        except HFValidationError as error:
            raise ValueError(f"`{name}` should be a hub id such as `owner/name`, got {shown(value)}.") from error
    elif isinstance(value, str):
        check_path_text(name, value)
