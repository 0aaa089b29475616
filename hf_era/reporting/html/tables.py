"""Tables of a page, as plain text: losses, differences, attacks, the leak audit, routed tokens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hf_era.evaluation.intervals import Estimate
from hf_era.evaluation.relearn.result import AttackSummary
from hf_era.evaluation.results import STAGES, ModelResult, RunResult
from hf_era.evaluation.summary import DIFFERENCES, LOSS_KINDS, summary_of
from hf_era.reporting.headline import ATTACK_KINDS
from hf_era.reporting.html.parts import Table
from hf_era.reporting.html.text import name_of, token_text
from hf_era.reporting.markdown.formatting import (
    format_count,
    format_estimate,
    format_loss,
    format_number,
    is_number,
)  # fmt: skip

METHOD_TITLES = {
    "gradient_routing": "gradient routing",
    "data_filtering": "data filtering",
    "base": "the model before the method",
    "model": "a model that was evaluated",
}
STAGE_TITLES = {
    "before": "Before the method",
    "before_ablation": "After routing, module on",
    "after_ablation": "After ablation",
    "after_coherence": "After coherence",
    "after_training": "After training",
    "final": "This model",
}
KIND_TITLES = {"forget": "Forget stories", "retain": "Retain stories", "forget_words": "Forget words alone"}
DIFFERENCE_TITLES = {
    "ablation_gap": "Ablation gap: forget loss after ablation minus before it",
    "retain_ablation_gap": "Retain ablation gap: the same on retain stories",
    "unlearning": "Unlearning: forget loss at the end minus before the method",
    "retain_tax": "Retain tax: retain loss at the end minus before the method",
    "forget_words_unlearning": "Unlearning on the forget words alone",
}
ROBUST_TITLE = "Robust unlearning: lowest forget loss under the strongest attack minus before the method"
ROUTED_TOKENS = 40
"""Rows of the table of routed tokens."""


def stages_of(result: RunResult | ModelResult) -> dict[str, dict[str, Any]]:
    """Stage -> kind -> `LossEstimate` as a dict, of a result of either kind."""
    if isinstance(result, RunResult):
        return {stage: result.losses[stage] for stage in STAGES if result.losses.get(stage)}
    before = (result.before or {}).get("losses")
    return {name: part for name, part in (("before", before), ("final", result.losses)) if part}


def stage_titles(result: RunResult | ModelResult, stages: Iterable[str]) -> dict[str, str]:
    """Stage -> its title; with the name of the model before the method."""
    before = summary_of(result).before_name
    titles = {stage: STAGE_TITLES.get(stage, name_of(stage)) for stage in stages}
    if before and "before" in titles:
        titles["before"] += f" ({name_of(before)})"
    return titles


def losses_table(result: RunResult | ModelResult) -> Table:
    """One row per stage, one column per kind of token."""
    stages = stages_of(result)
    titles, counts = stage_titles(result, stages), []
    for kind, title in KIND_TITLES.items():
        found = next((part[kind] for part in stages.values() if part.get(kind)), None)
        if found is not None:
            tokens, stories = (format_count(found.get(name)) for name in ("tokens", "stories"))
            counts.append(f"{title.lower()}: {tokens} tokens in {stories} stories")
    rows = [[titles[stage], *(format_loss(part.get(kind)) for kind in LOSS_KINDS)] for stage, part in stages.items()]
    caption = f"Losses, nats a token, with 95 % intervals over stories ({'; '.join(counts)})."
    return Table(caption, ["Stage", *KIND_TITLES.values()], rows)


def batch_means_table(result: RunResult | ModelResult) -> Table | None:
    """The losses as means of batch means; `None` if they were not computed."""
    values = result.mean_of_batch_means
    stages = {stage: part for stage, part in values.items() if isinstance(part, dict)}
    if not stages:
        return None
    titles = stage_titles(result, stages)
    rows = [
        [titles[stage], *(format_number(part.get(kind)) for kind in ("forget", "retain"))]
        for stage, part in stages.items()
    ]
    caption = (
        f"The same as means of the means of batches of {name_of(values.get('batch_size', 'unknown size'))} stories."
    )
    return Table(caption, ["Stage", "Forget stories", "Retain stories"], rows)


def differences_table(result: RunResult | ModelResult) -> Table:
    """One row per difference that was measured; beside it the same of data filtering, where there is one."""
    figures = summary_of(result)
    quoted = figures.data_filtering
    estimates = {DIFFERENCE_TITLES[name]: (figures.differences[name], _quoted(quoted, name)) for name in DIFFERENCES}
    if figures.strongest is not None:
        beside = ((quoted or {}).get("strongest") or {}).get("robust_unlearning")
        estimates[ROBUST_TITLE] = (figures.strongest.robust_unlearning, _estimate(beside))
    header, rows = ["Difference", "This result"], []
    for title, (estimate, other) in estimates.items():
        if estimate.value is not None or other.value is not None:
            rows.append([title, *map(_cell, (estimate, other))][: 3 if quoted else 2])
    if quoted:
        header.append(f"Data filtering ({name_of(quoted.get('name'))})")
    return Table("Differences, nats a token, with 95 % intervals.", header, rows)


def attacks_table(result: RunResult | ModelResult) -> Table | None:
    """One row per attack, the strongest one set off; `None` if there was no attack."""
    figures = summary_of(result)
    if figures.relearning is None or not figures.relearning.trials:
        return None
    quoted = {
        (part.get("kind"), part.get("stories"), part.get("learning_rate")): part
        for part in (figures.data_filtering or {}).get("attacks") or []
    }
    header = [
        "Attack", "Stories", "Learning rate", "Trials", "Forget loss at the start", "Lowest forget loss", "at step (mean)",
        "Retain loss there", "Robust unlearning", "Recovered", "Steps to recover (median)", "Retain loss there",
    ]  # fmt: skip
    rows, strong = [], set()
    for number, part in enumerate(figures.relearning.summaries()):
        row = _attack_row(part)
        if quoted:
            other = quoted.get((part.kind, part.stories, part.learning_rate)) or {}
            row.append(format_estimate(_estimate(other.get("robust_unlearning")), signed=True))
        rows.append(row)
        if part == figures.strongest:
            strong.add(number)
            row[0] += " (strongest)"
    if quoted:
        header.append("Robust unlearning of data filtering")
    caption = "All attacks; losses in nats a token, means over trials with 95 % intervals (Student's t)."
    return Table(caption, header, rows, strong=frozenset(strong))


def _attack_row(part: AttackSummary) -> list[str]:
    recovered = "unknown" if part.recovered is None else f"{part.recovered} of {part.trials}"
    return [
        name_of(ATTACK_KINDS.get(part.kind, part.kind)),
        format_count(part.stories),
        f"{part.learning_rate:g}",
        format_count(part.trials),
        format_number(part.start_forget),
        format_estimate(part.lowest_forget),
        format_number(part.lowest_step, 1),
        format_estimate(part.retain_at_lowest),
        format_estimate(part.robust_unlearning, signed=True),
        recovered,
        "-" if part.steps_to_recover is None else f"{part.steps_to_recover:g}",
        "-" if part.retain_at_recovery.value is None else format_estimate(part.retain_at_recovery),
    ]


def routed_tokens_table(result: RunResult) -> Table | None:
    """The tokens with the lowest routing weights; `None` if the run has no such table."""
    rows = [row for row in result.routing_table if is_number(row.get("weight"))]
    if not rows:
        return None
    rows.sort(key=lambda row: (row["weight"], str(row.get("token"))))
    body = [
        [
            token_text(row.get("token")),
            format_number(row["weight"]),
            *(format_number(row.get(name), 1) for name in ("forget_per_10k", "retain_per_10k")),
        ]
        for row in rows[:ROUTED_TOKENS]
    ]
    caption = f"Routing weights, the lowest {len(body)} of {len(rows)}: 0 is treated as forget, 1 as retain."
    header = ["Token", "Routing weight", "Forget stories, per 10,000 tokens", "Retain stories, per 10,000 tokens"]
    return Table(caption, header, body)


def _cell(estimate: Estimate) -> str:
    """A dash where there is none: without an auxiliary module there is no ablation gap."""
    return "-" if estimate.value is None else format_estimate(estimate, signed=True)


def _quoted(quoted: dict[str, Any] | None, name: str) -> Estimate:
    return _estimate(((quoted or {}).get("differences") or {}).get(name))


def _estimate(values: Any) -> Estimate:
    if not isinstance(values, dict):
        return Estimate(None)
    return Estimate(values.get("value"), values.get("low"), values.get("high"))
