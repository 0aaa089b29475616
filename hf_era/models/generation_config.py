"""The generation config of a model can be saved: transformers refuses some when a model is saved, after all the training.

A config that is read from a file passes as long as nobody changes it, and the Trainer changes its special tokens. So one
that contradicts itself is repaired where a model is expanded, begins to train, or is contracted or saved by us.
"""

from __future__ import annotations

import warnings
from typing import Any

# What the others are checked against comes first.
_MODES = ("do_sample", "num_beams", "use_cache", "return_dict_in_generate", "suppress_tokens")


class GenerationConfigWarning(UserWarning):
    """A model's generation config could not have been saved, and was changed."""


def make_generation_config_savable(model: Any) -> None:
    """Gives a model whose generation config cannot be saved one without the settings that contradict the others, and says
    so with a `GenerationConfigWarning`. In greedy decoding, say, `temperature` has no effect. The config itself, which may
    be another model's too, is left as it is."""
    config: Any = getattr(model, "generation_config", None)
    problem = None if config is None else _problem(config)
    if problem is None:
        return
    values, kept, left_out = config.to_diff_dict(), type(config)(), []
    for name in sorted(values, key=lambda name: name not in _MODES):
        before = getattr(kept, name, None)
        setattr(kept, name, values[name])
        if _problem(kept) is not None:
            setattr(kept, name, before)
            left_out.append(f"`{name}` = {values[name]!r}")
    model.generation_config = kept
    text = (
        f"`model.generation_config` could not have been saved after training, so {', '.join(left_out)} was left out. "
        f"transformers says: {problem} To keep it, make the config fit before the model comes to hf_era."
    )
    warnings.warn(text, GenerationConfigWarning, stacklevel=3)


def _problem(config: Any) -> str | None:
    """Why transformers would refuse to save a config; `None` if it would not."""
    try:
        config.validate(strict=True)
    except (ValueError, TypeError) as error:
        # Behind that it guesses where the values came from.
        return " ".join(str(error).partition("\nIf you're using a pretrained model")[0].split())
    return None
