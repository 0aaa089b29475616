"""The 2^N profiles of a model with N modules: which of them are on, and the losses that come of it.

One training gives them all: no module is trained to need another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import combinations
from typing import Any

from torch import Tensor

from hf_era.evaluation.evaluator import Evaluator
from hf_era.evaluation.losses import loss_estimate
from hf_era.evaluation.modules import own_losses
from hf_era.utils.checks import unknown_key_message

MOST_MODULES = 6
"""That are switched in all combinations: 64 profiles, each of which reads all examples."""
CORE = "core"
"""The profile with no module on: what is left once all are cut out."""


def profile_name(on: Sequence[str]) -> str:
    """`core`, `core + biology`, `core + biology + chemistry`."""
    return " + ".join([CORE, *on])


def modules_to_switch(model: Any, asked: Sequence[str] = ()) -> list[str]:
    """The modules whose combinations are measured: those asked for, or all of the model's, in its order. Raises `ValueError`
    if the model has none, or none of a name, or there are more than `MOST_MODULES`."""
    known = list(getattr(model, "module_names", []))
    if not known:
        raise ValueError(
            "`profiles`: the model has no auxiliary module to switch. Give an expanded model: the folder of a run, or its "
            "`expanded`."
        )
    for name in asked:
        if name not in known:
            raise ValueError(unknown_key_message("the model's modules", name, known))
    names = [name for name in known if not asked or name in asked]
    if len(names) > MOST_MODULES:
        raise ValueError(
            f"`profiles`: {len(names)} modules have {2 ** len(names):,} profiles; at most {MOST_MODULES} can be switched. "
            f"Choose which: `--profiles {' '.join(names[:2])}` (all others stay off). Modules: {', '.join(names)}."
        )
    return names


def combinations_of(modules: Sequence[str]) -> list[tuple[str, ...]]:
    """All subsets, `()` first and the whole last."""
    return [on for size in range(len(modules) + 1) for on in combinations(modules, size)]


def measure_profiles(
    evaluator: Evaluator, model: Any, own: Mapping[str, Tensor], modules: Sequence[str]
) -> list[dict[str, Any]]:
    """The losses under each combination of modules; all modules that are not named are off.

    Args:
        own: module -> which forget examples are its own, as `examples_of_modules` gives it; may be empty.
        modules: those that are switched, as `modules_to_switch` gives them.

    Returns: a dict per profile: `name`, `on` (names) and `losses`: `forget` (all), `retain`, and `modules`: name -> its own
        forget examples; each a `LossEstimate` as a dict.
    """
    samples = evaluator.config.bootstrap_samples
    found = []
    for on in combinations_of(modules):
        off = [name for name in model.module_names if name not in on]
        with model.ablated(*off) if off else nullcontext():  # without a name all would be off
            measured = evaluator.measure(model, profile_name(on))
        parts = {name: own_losses(measured["forget"], rows) for name, rows in own.items()}
        estimates = evaluator.estimates(measured)
        losses: dict[str, Any] = {name: estimates[name] for name in ("forget", "retain")}
        losses["modules"] = {
            name: loss_estimate(part.nll, part.tokens, samples).to_dict() for name, part in parts.items()
        }
        found.append({"name": profile_name(on), "on": list(on), "losses": losses})
    return found
