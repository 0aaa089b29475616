"""What a result says of one of several modules, as a result of its own: all that shows a result shows that, too.

An entry of a result's `modules` has, for the module's own forget examples:

* `losses`: stage -> `forget` -> a `LossEstimate` as a dict; at the stage `alone_off`, this module off and all others on,
  also `retain`;
* `ablation_gap`, `retain_ablation_gap`: what switching it off alone adds to the loss on its own forget examples, and on
  retain examples; `crosstalk`: every other module -> the same on that one's; `unlearning`: final model minus before the
  method; each an `Estimate` as a dict;
* `selectivity`, `leak_audit`: as in the result, of this module and its own examples;
* `attack` (*optional*): a `RelearnResult` as a dict: the final model, attacked with and measured on its own examples.

What was not measured is left out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hf_era.evaluation.results import RunResult
from hf_era.utils.checks import unknown_value_message

_OF_A_MODULE = ("ablation_gap", "retain_ablation_gap", "unlearning")
_OF_ALL = ("retain_tax",)
"""The final model is without all modules: what that costs on retain examples is not one module's."""


def result_of_module(result: RunResult, module: str) -> RunResult:
    """The result with one module's figures in place of those of all: its own forget examples, itself alone switched off,
    attacked with its own. Retain losses, retain tax and the settings stay. Raises `ValueError` for an unknown module."""
    if module not in result.modules:
        raise ValueError(unknown_value_message("module", module, result.modules))
    own = result.modules[module]
    losses: dict[str, dict[str, Any]] = own.get("losses") or {}
    kept = {
        stage: {**{kind: part for kind, part in all_losses.items() if kind == "retain"}, **(losses.get(stage) or {})}
        for stage, all_losses in result.losses.items()
    }
    differences = {name: own[name] for name in _OF_A_MODULE if own.get(name)}
    return replace(
        result,
        losses=kept,
        differences={**differences, **{name: part for name, part in result.differences.items() if name in _OF_ALL}},
        selectivity=own.get("selectivity") or {},
        leak_audit=own.get("leak_audit") or {},
        attack=own.get("attack"),
        data_filtering=None if result.data_filtering is None else _of_control(result.data_filtering, module),
        modules={},
        profiles=[],
    )


def _of_control(control: dict[str, Any], module: str) -> dict[str, Any] | None:
    """What is known of the control on a module's own forget examples."""
    own = (control.get("modules") or {}).get(module)
    return None if own is None else {**control, **own}
