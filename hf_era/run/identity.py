"""What identifies a run: which settings and which launch make it another one, that must not go on from what this one kept.

Which settings do, stands on each field (`hf_era.utils.fields`). The stories are identified by their contents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_era.run.config import SECTIONS, RunConfig
from hf_era.training import CausalLMTrainingConfig, GradientRoutingConfig
from hf_era.training.config import SHOWN_OR_KEPT
from hf_era.utils.fields import identity_values


def identity_settings(config: RunConfig, arguments: CausalLMTrainingConfig) -> dict[str, Any]:
    """The settings that the method's training depends on; `arguments` say how this process was launched."""
    values = identity_values(RunConfig, config.to_dict())
    sections = {name: kind for name, kind in SECTIONS.items() if name in values}
    found = {name: identity_values(kind, values[name], SHOWN_OR_KEPT) for name, kind in sections.items()}
    return {**values, **found, "launch": launch_settings(arguments)}


def training_identity(training: Mapping[str, Any]) -> dict[str, Any]:
    """The training settings that change what is computed."""
    return identity_values(GradientRoutingConfig, training, SHOWN_OR_KEPT)


def launch_settings(arguments: CausalLMTrainingConfig) -> dict[str, Any]:
    """What a launch decides and the weights depend on."""
    return {"processes": arguments.world_size, "mixed_precision": mixed_precision(arguments)}


def mixed_precision(arguments: CausalLMTrainingConfig) -> str:
    """`no`, `bf16` or `fp16`, as the settings or `accelerate launch` ask for it."""
    return str(getattr(arguments, "mixed_precision", None) or ("bf16" if arguments.bf16 else "no"))
