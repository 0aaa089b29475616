"""One view of results of both kinds, so that tables, plots and reports need not know which kind they show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hf_era.evaluation.intervals import Estimate
from hf_era.evaluation.relearn.result import AttackSummary, RelearnResult
from hf_era.evaluation.results import ModelResult, RunResult

DIFFERENCES = ("ablation_gap", "retain_ablation_gap", "unlearning", "retain_tax", "forget_words_unlearning")
LOSS_KINDS = ("forget", "retain", "forget_words")


@dataclass(frozen=True)
class ResultSummary:
    """What is shown of a result. Losses are in nats a token.

    Attributes:
        name (`str`): of the recipe or model; as it was given, not escaped. seed (`int`): of the run.
        method (`str`): `gradient_routing`, `data_filtering`, `base`, or `model` (a model that was only evaluated).
        rule (`str`): the mask rule, e.g. `full_seq (frequency)`; empty where nothing was routed by a rule.
        start (`str`): `pretrained`, `scratch`, or empty. before_name (`str`): what "before the method" is; empty if none.
        before, final (`dict`): `forget`, `retain`, `forget_words` -> loss; `before` is empty if there is none.
        differences (`dict`): each of `DIFFERENCES` -> an estimate, without a value where it was not measured.
        relearning (`RelearnResult`, *optional*), strongest (`AttackSummary`, *optional*): of the final model.
        data_filtering (`dict`, *optional*): the yardstick, see `comparison_values`.
    """

    name: str
    seed: int
    method: str
    rule: str
    start: str
    before_name: str
    before: dict[str, Estimate]
    final: dict[str, Estimate]
    differences: dict[str, Estimate]
    relearning: RelearnResult | None
    strongest: AttackSummary | None
    data_filtering: dict[str, Any] | None


def summary_of(result: RunResult | ModelResult) -> ResultSummary:
    """The figures of a result of either kind."""
    relearning = result.relearning
    shared: dict[str, Any] = {
        "name": result.name,
        "seed": result.seed,
        "before_name": _before_name(result),
        "differences": {name: result.estimate(name) for name in DIFFERENCES},
        "relearning": relearning,
        "strongest": None if relearning is None else relearning.strongest(),
        "data_filtering": result.data_filtering,
    }
    own: dict[str, Any]
    before: dict[str, Any]
    final: dict[str, Any]
    if isinstance(result, ModelResult):
        before, final = (result.before or {}).get("losses", {}), result.losses
        own = {"method": "model", "rule": "", "start": ""}
    else:
        before, final = result.losses.get("before", {}), result.losses.get(result.final_stage, {})
        own = {
            "method": result.method,
            "rule": rule_label(result) if result.method == "gradient_routing" else "",
            "start": str((result.config.get("model") or {}).get("start") or ""),
        }
    return ResultSummary(**shared, **own, before=_estimates(before), final=_estimates(final))


def comparison_values(result: RunResult | ModelResult) -> dict[str, Any]:
    """What other results keep of a data-filtering result, to show it beside their own figures (JSON-like)."""
    figures = summary_of(result)
    attacks = [] if figures.relearning is None else [part.to_dict() for part in figures.relearning.summaries()]
    return {
        "name": figures.name,
        "seed": figures.seed,
        "losses": {kind: estimate.to_dict() for kind, estimate in figures.final.items()},
        "differences": {name: estimate.to_dict() for name, estimate in figures.differences.items()},
        "attacks": attacks,
        "strongest": None if figures.strongest is None else figures.strongest.to_dict(),
    }


def rule_label(result: RunResult) -> str:
    """The mask rule with its weighting, as plain text: `full_seq (frequency)`, `concept`, `none`."""
    routing = result.config.get("routing")
    routing = routing if isinstance(routing, dict) else {}
    rule = str(routing.get("rule") or "not recorded")
    return f"{rule} ({routing['weighting']})" if rule == "full_seq" and routing.get("weighting") else rule


def _before_name(result: RunResult | ModelResult) -> str:
    if isinstance(result, RunResult):
        return {"pretrained": "pretrained base", "base_control": "base control"}.get(result.before_kind or "", "")
    return str((result.before or {}).get("model") or "")


def _estimates(losses: Mapping[str, Any]) -> dict[str, Estimate]:
    return {
        kind: Estimate(losses[kind].get("loss"), losses[kind].get("low"), losses[kind].get("high"))
        for kind in LOSS_KINDS
        if losses.get(kind)
    }
