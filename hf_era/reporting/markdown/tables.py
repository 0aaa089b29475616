"""Markdown tables of a result. Losses are token-weighted, in nats a token, with their 95 % interval over stories."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hf_era.evaluation.intervals import Estimate
from hf_era.evaluation.relearn.result import AttackSummary
from hf_era.evaluation.results import STAGES, RunResult
from hf_era.reporting.markdown.formatting import (
    NOT_MEASURED,
    escape_markdown,
    format_estimate,
    format_loss,
    format_number,
    format_token,
    is_number,
    markdown_table,
)

KINDS = {"forget": "Forget stories", "retain": "Retain stories", "forget_words": "Forget words"}
STAGE_LABELS = {
    "before": "Before the method",
    "before_ablation": "Before ablation",
    "after_ablation": "After ablation",
    "after_coherence": "After coherence",
    "after_training": "After training on retain stories alone",
}
DIFFERENCE_LABELS = {
    "ablation_gap": "Ablation gap (forget, after the cut minus before it)",
    "retain_ablation_gap": "The same on retain stories",
    "unlearning": "Unlearning (forget, at the end minus before the method)",
    "retain_tax": "Retain tax (the same on retain stories)",
    "forget_words_unlearning": "The same on the forget words alone",
}
BEFORE_LABELS = {"pretrained": "pretrained base", "base_control": "base control"}


def losses_table(result: RunResult) -> str:
    """One row per stage, one column per kind of token: `1.234 [1.210, 1.260]`."""
    rows = []
    for stage in STAGES:
        estimates = result.losses.get(stage, {})
        if not estimates and stage not in stages_of(result):
            continue
        rows.append([_stage_label(result, stage), *(format_loss(estimates.get(kind)) for kind in KINDS)])
    return markdown_table(["Stage", *KINDS.values()], rows)


def stages_of(result: RunResult) -> tuple[str, ...]:
    """The stages that a run of this method has, whether they were measured or not."""
    if result.method == "base":
        return ("before",)
    if result.method == "data_filtering":
        return ("before", "after_training")
    return ("before", "before_ablation", "after_ablation", "after_coherence")


def differences_table(result: RunResult) -> str:
    """One row per difference, with its interval over stories and the same figure of data filtering, if it is known."""
    filtered = (result.data_filtering or {}).get("differences", {})
    header = ["Difference, nats a token", "This run", *(["Data filtering"] if filtered else [])]
    rows = []
    for name, label in DIFFERENCE_LABELS.items():
        beside = [format_estimate(Estimate(**filtered[name]), signed=True) if name in filtered else NOT_MEASURED]
        rows.append([label, format_estimate(result.estimate(name), signed=True), *(beside if filtered else [])])
    return markdown_table(header, rows)


def attack_table(summaries: Sequence[AttackSummary], strongest: AttackSummary | None, filtered: list[dict]) -> str:
    """One row per attack: lowest forget loss and its step, robust unlearning, steps to recover, retain loss there.

    Args:
        summaries: of the attacks, in the order in which they were made.
        strongest (*optional*): is marked.
        filtered: the same attacks on data filtering, as dicts; empty if not known.
    """
    known = {(part["kind"], part["stories"], part["learning_rate"]): part for part in filtered}
    header = [
        "Attack", "Trials", "Lowest forget loss", "at step", "Robust unlearning",
        *(["Data filtering: robust unlearning"] if filtered else []), "Recovered", "Steps to recover",
        "Retain loss at the lowest",
    ]  # fmt: skip
    rows = []
    for part in summaries:
        other = known.get((part.kind, part.stories, part.learning_rate))
        beside = Estimate(**other["robust_unlearning"]) if other is not None else None
        name = attack_label(part.kind, part.stories, part.learning_rate)
        recovered = NOT_MEASURED if part.recovered is None else f"{part.recovered} of {part.trials}"
        rows.append(
            [
                f"**{name} (strongest)**" if part == strongest else name,
                str(part.trials),
                format_estimate(part.lowest_forget),
                format_number(part.lowest_step, 0),
                format_estimate(part.robust_unlearning, signed=True),
                *([format_estimate(beside, signed=True)] if filtered else []),
                recovered,
                "-" if part.steps_to_recover is None else format_number(part.steps_to_recover, 0),
                format_estimate(part.retain_at_lowest),
            ]
        )
    return markdown_table(header, rows)


def attack_label(kind: str, stories: int, learning_rate: float) -> str:
    """`64 stories, 0.0002`, `64 stories, LoRA, 0.001`."""
    what = f"{stories} {'story' if stories == 1 else 'stories'}"
    return f"{what}, {'LoRA, ' if kind == 'lora' else ''}learning rate {learning_rate:g}"


def selectivity_table(result: RunResult) -> str:
    """One row per target layer: activation of the auxiliary module on forget stories over that on retain stories."""
    rows = [
        [escape_markdown(layer), format_estimate(Estimate(**result.selectivity[layer]), digits=2)]
        for layer in layers_of(result)
    ]
    return markdown_table(["Layer", "Selectivity"], rows or [["all", NOT_MEASURED]])


def routing_table(result: RunResult, rows: int = 10) -> str:
    """The frequency rule's tokens, most strongly routed first; frequencies are per 10,000 tokens.

    Args:
        result (`RunResult`): with a `routing_table`; other rules leave it empty.
        rows (`int`, *optional*, defaults to `10`): how many tokens, at least 1.

    Returns: the table, or an empty string if the result has none.

    Raises:
        ValueError: if `rows` is below 1.
    """
    if rows < 1:
        raise ValueError(f"`rows` should be at least 1, got {rows}.")
    if not result.routing_table:
        return ""
    ordered = sorted(result.routing_table, key=_routing_order)
    header = ["Token", "Routing weight", "Forget stories, per 10,000", "Retain stories, per 10,000"]
    body = [
        [
            format_token(row.get("token")),
            format_number(row.get("weight")),
            format_number(row.get("forget_per_10k"), 1),
            format_number(row.get("retain_per_10k"), 1),
        ]
        for row in ordered[:rows]
    ]
    return markdown_table(header, body)


# ---- Parts of a result ----


def section(result: RunResult, name: str) -> dict[str, Any]:
    """A section of the config that was run; empty if it is missing."""
    values = result.config.get(name)
    return values if isinstance(values, dict) else {}


def layers_of(result: RunResult) -> list[str]:
    """The target layers whose selectivity was measured, in order."""
    return sorted(result.selectivity, key=lambda layer: (int(layer), "") if layer.isdecimal() else (10**9, layer))


def _stage_label(result: RunResult, stage: str) -> str:
    label = STAGE_LABELS[stage]
    if stage == "before" and result.before_kind is not None:
        label += f" ({escape_markdown(BEFORE_LABELS.get(result.before_kind, result.before_kind))})"
    return label


def _routing_order(row: dict[str, Any]) -> tuple[float, float, str]:
    weight, frequency = (row[name] if is_number(row.get(name)) else math.inf for name in ("weight", "forget_per_10k"))
    return float(weight), -float(frequency), str(row.get("token"))
