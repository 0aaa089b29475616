"""Reading weights: safetensors alone, and all of the weights that a model has, in their shapes, and no others.

A weight that a file lacks would start at random without a word, and the model would still run.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from hf_era.checks import reason
from hf_era.models.architectures import ArchitectureSpec, spec_of
from hf_era.models.checkpoint_files import check_weight_files
from hf_era.models.size import check_model_fits
from hf_era.models.sources import SAFE_OPTIONS, check_model_source, unreachable_message


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
    check_model_fits(field, described_by)
    spec = spec_of(described_by)
    folder = Path(source) / (options.get("subfolder") or "")
    if folder.is_dir():
        is_constant = None if spec is None else spec.is_stored_buffer
        shapes = check_weight_files(field, folder, options.get("variant"), is_constant)
        if spec is not None:
            _check_shapes(field, source, model_class, described_by, shapes)
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
            raise ValueError(f"`{field}`: the checkpoint {source} cannot be loaded: {reason(error)}") from error
        raise ValueError(unreachable_message(field, source, "model")) from error
    except Exception as error:  # a config whose values do not go together, weights that cannot be converted
        raise ValueError(f"`{field}`: the checkpoint {source} cannot be loaded: {reason(error)}") from error
    finally:
        logging.set_verbosity(verbosity)
    _check_report(field, source, report, spec, may_be_missing)
    return model


def _check_shapes(field: str, source: str, model_class: Any, config: Any, stored: dict[str, list[int]]) -> None:
    """Raises `ValueError` for a weight of another shape than the config says, before any memory is taken for either."""
    if not hasattr(model_class, "base_model_prefix"):
        return  # `AutoModelForCausalLM`, for an expanded checkpoint
    try:
        with torch.device("meta"):
            wanted = {
                name: list(value.shape) for name, value in model_class(copy.deepcopy(config)).state_dict().items()
            }
    except Exception as error:
        raise ValueError(f"`{field}`: the config.json of {source} describes no model: {reason(error)}") from error
    for name, shape in wanted.items():
        # The body alone can be saved too, without the causal LM's prefix.
        found = stored.get(name, stored.get(name.removeprefix(f"{model_class.base_model_prefix}."), shape))
        if found != shape:
            raise ValueError(_wrong_shape(field, source, name, found, shape))


def _wrong_shape(field: str, source: str, name: str, found: Sequence[int], wanted: Sequence[int]) -> str:
    return (
        f"`{field}`: the weight {name} of the checkpoint {source} has the shape {list(found)}, its config.json says "
        f"{list(wanted)}. Save both again."
    )


def _check_report(
    field: str,
    source: str,
    report: dict[str, Any],
    spec: ArchitectureSpec | None,
    may_be_missing: Callable[[str], bool],
) -> None:
    """Raises `ValueError` for weights that are missing, of another shape, or not the model's."""
    missing = sorted(key for key in report["missing_keys"] if not may_be_missing(key))
    if missing:
        raise ValueError(
            f"`{field}`: the checkpoint {source} lacks {missing[0]} and {len(missing) - 1} more weights. Save it again, or "
            "pass another."
        )
    if report["mismatched_keys"]:
        raise ValueError(_wrong_shape(field, source, *min(report["mismatched_keys"])))
    # Other families may bring parts that transformers leaves out on purpose; of those known here every weight is known.
    unknown = [] if spec is None else sorted(key for key in report["unexpected_keys"] if not spec.is_stored_buffer(key))
    if unknown:
        raise ValueError(
            f"`{field}`: the checkpoint {source} holds {unknown[0]} and {len(unknown) - 1} more weights that its "
            "architecture does not have. They would be left out without a word: pass the model that they belong to."
        )
