"""One view of results of both kinds, alone and over seeds, so that reports need not know which kind or method they show."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_era.evaluation.intervals import Estimate, mean_interval
from hf_era.evaluation.module_results import result_of_module
from hf_era.evaluation.relearn.result import AT_THE_START, STEPS, Attack, AttackSummary, RelearnResult
from hf_era.evaluation.results import CONTROL, UNTOUCHED, AnyResult, RunResult

DIFFERENCES = ("ablation_gap", "retain_ablation_gap", "unlearning", "retain_tax", "forget_words_unlearning")
LOSS_KINDS = ("forget", "retain", "forget_words", "unlabelled")
ROBUST, BEFORE_UNDER_ATTACK = "robust_unlearning", "before_under_attack"
ATTACK_DIFFERENCES = ("unlearning_at_attack", ROBUST, BEFORE_UNDER_ATTACK)
"""Forget losses minus that before the method, all on the examples and in the precision of the attack: at its start, at its
lowest, and what the same attack does to the model before the method. Not to be subtracted from `DIFFERENCES`, which are
measured on other examples, and without autocast."""


@dataclass(frozen=True)
class ControlFigures:
    """What a result keeps of a run of data filtering on the same examples, see `comparison_values`."""

    name: str
    seed: int
    losses: dict[str, Estimate]  # by kind
    differences: dict[str, Estimate]  # as in `ResultSummary`
    attacks: dict[Attack, Estimate]  # -> robust unlearning
    at_most: frozenset[str]  # as in `ResultSummary`
    attacked: Estimate  # forget loss under the strongest attack, nats a token
    edges: frozenset[str]  # of that attack, see `AttackSummary`


@dataclass(frozen=True)
class ResultSummary:
    """What is shown of a result of either kind. Losses are in nats a token; texts are as they were given, not escaped."""

    result: AnyResult
    rule: str  # the mask rule, e.g. `full_seq (frequency)`; empty where nothing was routed by a rule
    start: str  # `pretrained`, `scratch`, or empty
    before_name: str  # what "before the method" is; empty if none
    losses: dict[str, dict[str, Estimate]]  # stage -> `forget`, `retain`, `forget_words`; only what was measured
    differences: dict[
        str, Estimate
    ]  # each of `DIFFERENCES` and `ATTACK_DIFFERENCES`; no value where it was not measured
    relearning: RelearnResult | None  # of the final model
    strongest: AttackSummary | None
    control: ControlFigures | None

    @property
    def at_most(self) -> frozenset[str]:
        """Differences that are upper bounds: the attack's minimum lies at the edge of what was tried."""
        before = None if self.relearning is None else self.relearning.before_attacked
        attacks = {ROBUST: self.strongest, BEFORE_UNDER_ATTACK: before}
        return frozenset(name for name, attack in attacks.items() if attack is not None and attack.edges)

    @property
    def is_control(self) -> bool:
        return self.result.method_role == CONTROL

    @property
    def is_yardstick(self) -> bool:
        return isinstance(self.result, RunResult) and self.result.is_yardstick

    @property
    def is_untouched(self) -> bool:
        return self.result.method_role == UNTOUCHED

    @property
    def before(self) -> dict[str, Estimate]:
        """Losses of the model before the method; empty if there is none."""
        return self.losses.get("before", {})

    @property
    def final(self) -> dict[str, Estimate]:
        """Losses of the final model."""
        return self.losses.get(self.result.final_stage, {})


def summary_of(result: AnyResult) -> ResultSummary:
    """The figures of a result of either kind."""
    relearning = result.relearning
    strongest = None if relearning is None else relearning.strongest()
    config = result.config if isinstance(result, RunResult) else {}
    return ResultSummary(
        result=result,
        rule=rule_label(config) if result.has_module else "",
        start=str((config.get("model") or {}).get("start") or ""),
        before_name=_before_name(result),
        losses={stage: part for stage, losses in _stage_losses(result).items() if (part := _estimates(losses))},
        differences={name: result.estimate(name) for name in DIFFERENCES} | _attack_differences(relearning, strongest),
        relearning=relearning,
        strongest=strongest,
        control=_control(result.data_filtering),
    )


def _attack_differences(relearning: RelearnResult | None, strongest: AttackSummary | None) -> dict[str, Estimate]:
    if relearning is None or strongest is None:
        return dict.fromkeys(ATTACK_DIFFERENCES, Estimate(None))
    before = relearning.before_attacked
    found = (
        Estimate(relearning.unlearning),
        strongest.robust_unlearning,
        Estimate(None) if before is None else before.robust_unlearning,
    )
    return dict(zip(ATTACK_DIFFERENCES, found, strict=True))


def comparison_values(result: AnyResult) -> dict[str, Any]:
    """What other results keep of a data-filtering result, to show it beside their own figures (JSON-like)."""
    figures = summary_of(result)
    attacks = [] if figures.relearning is None else [part.to_dict() for part in figures.relearning.summaries()]
    of_modules = {}
    if isinstance(result, RunResult):
        of_modules = {name: comparison_values(result_of_module(result, name)) for name in result.modules}
    return {
        "name": result.name,
        "seed": result.seed,
        "losses": {kind: estimate.to_dict() for kind, estimate in figures.final.items()},
        "differences": {name: estimate.to_dict() for name, estimate in figures.differences.items()},
        "attacks": attacks,
        "strongest": None if figures.strongest is None else figures.strongest.to_dict(),
        "training": _what_it_shares(result),
        **({"modules": of_modules} if of_modules else {}),
    }


def _what_it_shares(result: AnyResult) -> dict[str, Any]:
    """What a control was trained with that the runs it is compared with may have, too, or not."""
    training = result.training if isinstance(result, RunResult) else {}
    shared = {"l1_coefficient": (training.get("arguments") or {}).get("l1_coefficient")}
    return {**shared, "unlabelled_stories": training.get("unlabelled_stories")}


def estimate_of(values: Any) -> Estimate:
    """An estimate from its dict; without a value if there is none."""
    if not isinstance(values, dict):
        return Estimate(None)
    return Estimate(values.get("value"), values.get("low"), values.get("high"))


def rule_label(config: Mapping[str, Any]) -> str:
    """The mask rule of a run's config with its weighting, as plain text: `full_seq (frequency)`, `concept`, `none`."""
    routing = config.get("routing")
    routing = routing if isinstance(routing, dict) else {}
    rule = str(routing.get("rule") or "not recorded")
    return f"{rule} ({routing['weighting']})" if rule == "full_seq" and routing.get("weighting") else rule


def _before_name(result: AnyResult) -> str:
    if isinstance(result, RunResult):
        return {"pretrained": "pretrained base", "base_control": "base control"}.get(result.before_kind or "", "")
    return str((result.before or {}).get("model") or "")


def _stage_losses(result: AnyResult) -> dict[str, Any]:
    if isinstance(result, RunResult):
        return result.losses
    return {"before": (result.before or {}).get("losses", {}), result.final_stage: result.losses}


def _estimates(losses: Mapping[str, Any]) -> dict[str, Estimate]:
    return {
        kind: Estimate(losses[kind].get("loss"), losses[kind].get("low"), losses[kind].get("high"))
        for kind in LOSS_KINDS
        if losses.get(kind)
    }


def _control(values: dict[str, Any] | None) -> ControlFigures | None:
    if not values:
        return None
    differences, strongest = values.get("differences") or {}, values.get("strongest") or {}
    return ControlFigures(
        name=str(values.get("name") or ""),
        seed=values.get("seed") or 0,
        losses={kind: estimate_of(part) for kind, part in (values.get("losses") or {}).items() if part},
        differences={
            **{name: estimate_of(differences.get(name)) for name in (*DIFFERENCES, *ATTACK_DIFFERENCES)},
            ROBUST: estimate_of(strongest.get(ROBUST)),
        },
        # An attack of which nothing is known in that respect may have ended at an edge.
        at_most=frozenset({ROBUST} if strongest.get("edges", True) else ()),
        attacked=estimate_of(strongest.get("lowest_forget")),
        edges=frozenset(strongest.get("edges", (STEPS,))),
        attacks={Attack.from_dict(part): estimate_of(part.get(ROBUST)) for part in values.get("attacks") or []},
    )


# ---- Whether anything was localised ----


def is_localised(gap: float, minimum_gap: float) -> bool:
    """Whether ablation raises the forget loss by at least `minimum_gap`, nats a token; a gap that is no number does not."""
    return math.isfinite(gap) and gap >= minimum_gap


def modules_together(modules: Sequence[str]) -> str:
    """What is ablated, in a sentence: the one auxiliary module, or several by their names."""
    return "the auxiliary module" if len(modules) < 2 else f"the auxiliary modules ({', '.join(modules)}) together"


def localised_lines(
    metrics: Mapping[str, float], minimum_gap: float, prefix: str = "eval", modules: Sequence[str] = ()
) -> list[str]:
    """What ablation does to the forget and the retain loss, and whether that is localised: two lines, as plain text.

    Args:
        metrics: of `GradientRoutingTrainer.evaluate`: `eval_ablation_gap`, `eval_retain_ablation_gap`, nats a token.
        minimum_gap (`float`): the gap from which on the capability counts as localised.
        prefix (`str`, *optional*, defaults to `"eval"`): in front of the names in `metrics`.
        modules (`list[str]`, *optional*): the model's; of several the lines say that they are ablated together.
    """
    what = modules_together(modules)
    gap, retain_gap = (metrics.get(f"{prefix}_{name}") for name in DIFFERENCES[:2])
    if gap is None:
        return [
            f"What ablating {what} does was not measured.",
            'Localised: not known. Give held-out examples: `eval_dataset={"forget": ..., "retain": ...}`.',
        ]
    retain = "the retain loss was not measured" if retain_gap is None else f"the retain loss by {retain_gap:+.3f}"
    found = f"Ablating {what} changes the forget loss by {gap:+.3f} nats a token, {retain}."
    if not is_localised(gap, minimum_gap):
        return [found, f"Localised: no. The forget loss changes by less than the minimum of {minimum_gap:g}."]
    if retain_gap is not None and retain_gap >= gap:
        return [found, "Localised: not selectively. The retain loss rises as much: general damage."]
    return [found, f"Localised: yes. The forget loss rises by at least the minimum of {minimum_gap:g}."]


# ---- Over seeds ----

_NOT_OF_THE_RECIPE = frozenset({
    "seed", "output_dir", "overwrite_output_dir", "base_dir", "data_filtering", "logging_dir", "run_name", "report_to",
    "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "push_to_hub", "hub_model_id",
    "hub_token", "hub_revision", "hub_private_repo", "hub_strategy", "num_proc", "batch_size",
    "per_device_eval_batch_size", "dataloader_num_workers", "save_steps", "save_total_limit",
})  # fmt: skip
"""Settings, in any section, that say which seed it is, where something is kept, or what fits a machine."""


def recipe_of(result: AnyResult) -> dict[str, str]:
    """What results have in common that are seeds of one recipe: `name`, `method`, and the settings of a run by their dotted
    names, each as JSON. Settings that say no more than which seed it is, where something is kept, or what fits a machine are
    left out."""
    config = result.config if isinstance(result, RunResult) else {}
    settings = flat_settings(config)
    if (
        config.get("budget") is not None
    ):  # which says how long: how many steps that are, differs with the tokens of a split
        settings.pop("training.max_steps", None)
    return {"name": json.dumps(result.name), "method": json.dumps(result.method), **settings}


def flat_settings(values: Mapping[str, Any], section: str = "") -> dict[str, str]:
    """The settings of a config by their dotted names, each as JSON, but for those that `recipe_of` leaves out."""
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat_settings(value, f"{section}{name}.")
        elif name not in _NOT_OF_THE_RECIPE and section + name not in ("name", "method"):
            found[f"{section}{name}"] = json.dumps(value, default=str)
    return found


def figure_values(figures: ResultSummary) -> dict[str, float | None]:
    """All figures of one result as plain numbers, by name; `None` where one was not measured."""
    values: dict[str, float | None] = {}
    for stage, losses in (("before", figures.before), ("final", figures.final)):
        for kind in LOSS_KINDS:
            values[f"{kind}_loss_{stage}"] = losses[kind].value if kind in losses else None
    values |= {name: estimate.value for name, estimate in figures.differences.items()}
    return values | _attack_losses(figures)


def _attack_losses(figures: ResultSummary) -> dict[str, float | None]:
    """Before the method, at the start of the strongest attack and under it, all on the examples of the attack."""
    strongest = figures.strongest
    before = (None if figures.relearning is None else figures.relearning.before) or {}
    return {
        "attack_forget_loss_before": before.get("forget"),
        "attack_forget_loss_start": None if strongest is None else strongest.start_forget,
        "attacked_forget_loss": None if strongest is None else strongest.lowest_forget.value,
        "attack_retain_loss_before": before.get("retain"),
        "attack_retain_loss_start": None if strongest is None else strongest.start_retain,
        "attacked_retain_loss": None if strongest is None else strongest.retain_at_lowest.value,
        "attack_accuracy_start": None if strongest is None else strongest.start_accuracy,
        "attacked_accuracy": None if strongest is None else strongest.accuracy_at_lowest.value,
        "attack_tokens": None if strongest is None else strongest.tokens_to_lowest,
    }


def aggregate(results: Sequence[AnyResult]) -> list[dict[str, Any]]:
    """One dict per recipe (`recipe_of`) over its seeds, each seed once: `name`, `method`, `method_title`, `method_role`,
    `rule`, `start`, `seeds`, `figures` (name -> an `Estimate` as a dict: mean over seeds, 95 % interval of Student's t),
    `attacks` (`Attack.name`, such as `full 64 0.0002` -> the same), `attack_settings` (that name -> what it stands for),
    `attacks_at_the_last_step` (those of them that had not turned in a seed), `at_most` (differences that are upper bounds in
    any seed), `edges` (of the strongest attack in any seed, see `AttackSummary`), `recovered`, `at_the_start`, `attacked`
    (seeds whose strongest attack recovered the capability in any trial, those of them that had it at the start, of those
    that were attacked). Raises `ValueError` if there is no result."""
    if not results:
        raise ValueError("`results` is empty. Pass at least one result.")
    groups: dict[frozenset[tuple[str, str]], dict[int, ResultSummary]] = {}
    for result in results:
        groups.setdefault(frozenset(recipe_of(result).items()), {})[result.seed] = summary_of(result)
    return [_aggregated(list(parts.values())) for parts in groups.values()]


def _aggregated(parts: list[ResultSummary]) -> dict[str, Any]:
    tables = [figure_values(part) for part in parts]
    attacks: dict[str, list[float]] = {}
    settings: dict[str, dict[str, Any]] = {}
    not_turned: dict[str, None] = {}
    for part in parts:
        for summary in part.relearning.summaries() if part.relearning is not None else []:
            value = summary.lowest_forget.value
            if value is not None and math.isfinite(value):
                name_of_attack = summary.attack.name
                settings[name_of_attack] = summary.attack._asdict()
                attacks.setdefault(name_of_attack, []).append(value)
                if STEPS in summary.edges:
                    not_turned[name_of_attack] = None
    strongest = [part.strongest for part in parts if part.strongest is not None]
    reached = [bool(part.strongest.recovered) for part in parts if part.strongest and part.before]
    first = parts[0]
    return {
        "name": first.result.name,
        "method": first.result.method,
        "method_title": first.result.method_title,
        "method_role": first.result.method_role,
        "rule": first.rule,
        "start": first.start,
        "seeds": [part.result.seed for part in parts],
        "figures": {figure: _over_seeds([table[figure] for table in tables]) for figure in tables[0]},
        "attacks": {attack: mean_interval(values).to_dict() for attack, values in attacks.items()},
        "attack_settings": settings,
        "attacks_at_the_last_step": list(not_turned),
        "at_most": sorted({name for part in parts for name in part.at_most}),
        "edges": list(dict.fromkeys(edge for attack in strongest for edge in attack.edges)),
        "recovered": sum(reached),
        "at_the_start": sum(attack.recovery == AT_THE_START for attack in strongest),
        "attacked": len(reached),
    }


def _over_seeds(values: Sequence[float | None]) -> dict[str, Any]:
    measured = [value for value in values if value is not None]
    # A mean over some of the seeds only would be compared with means over all of them.
    return (mean_interval(measured) if len(measured) == len(values) else Estimate(None)).to_dict()
