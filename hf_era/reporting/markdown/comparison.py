"""Several results side by side: one row each, and one row per name over its seeds, as Markdown, CSV and JSON.

Over seeds a figure is a mean with the 95 % interval of Student's t: with three seeds a wide one, which is what three seeds
can say. Intervals of single results are over stories; the two are never mixed.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from hf_era.evaluation.intervals import Estimate, mean_interval
from hf_era.evaluation.results import ModelResult, RunResult
from hf_era.evaluation.summary import DIFFERENCES, LOSS_KINDS, ResultSummary, summary_of
from hf_era.reporting.markdown.formatting import (
    escape_markdown,
    format_difference,
    format_estimate,
    is_number,
    markdown_table,
)

Result = RunResult | ModelResult
FILTERED = "data_filtering"
LABELS = {
    "ablation_gap": "Ablation gap",
    "retain_ablation_gap": "Retain ablation gap",
    "unlearning": "Unlearning",
    "retain_tax": "Retain tax",
    "forget_words_unlearning": "Forget words",
    "robust_unlearning": "Robust unlearning",
}
"""Differences in nats a token, as tables call them."""
_METHOD_LABELS = {"gradient_routing": "", "data_filtering": "data filtering", "base": "before the method", "model": ""}


def figure_values(figures: ResultSummary) -> dict[str, float | None]:
    """All figures of one result as plain numbers, by name; `None` where one was not measured."""
    values: dict[str, float | None] = {}
    for stage, losses in (("before", figures.before), ("final", figures.final)):
        for kind in LOSS_KINDS:
            values[f"{kind}_loss_{stage}"] = losses[kind].value if kind in losses else None
    values |= {name: figures.differences[name].value for name in DIFFERENCES}
    strongest = figures.strongest
    values["attacked_forget_loss"] = None if strongest is None else strongest.lowest_forget.value
    values["attacked_retain_loss"] = None if strongest is None else strongest.retain_at_lowest.value
    values["robust_unlearning"] = None if strongest is None else strongest.robust_unlearning.value
    return values


def comparison_rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One flat dict per result, in the order given: what CSV and JSON hold.

    Raises:
        ValueError: if there is no result.
    """
    if not results:
        raise ValueError("`results` is empty. Pass at least one result.")
    rows = []
    for result in results:
        figures = summary_of(result)
        row: dict[str, Any] = {name: getattr(figures, name) for name in ("name", "seed", "method", "rule", "start")}
        row |= {"before": figures.before_name, "stories": str(result.data.get("fingerprint") or "")[:8]}
        row |= figure_values(figures)
        for name in DIFFERENCES:
            row |= {f"{name}_low": figures.differences[name].low, f"{name}_high": figures.differences[name].high}
        row |= _attack_columns(figures)
        rows.append(row)
    return rows


def _attack_columns(figures: ResultSummary) -> dict[str, Any]:
    names = ("kind", "stories", "learning_rate", "trials", "lowest_step", "recovered", "steps_to_recover")
    strongest = figures.strongest
    return {f"attack_{name}": None if strongest is None else getattr(strongest, name) for name in names}


# ---- Over seeds ----


def aggregate(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One dict per name over its seeds: `name`, `method`, `rule`, `start`, `seeds`, `figures` (name -> an `Estimate` as a
    dict: mean over seeds, 95 % interval), `attacks` (kind, N and learning rate -> the same), `recovered`, `attacked`
    (seeds whose strongest attack recovered the capability in any trial, of those that were attacked)."""
    groups: dict[str, list[ResultSummary]] = {}
    for result in results:
        groups.setdefault(result.name, []).append(summary_of(result))
    return [_aggregated(name, parts) for name, parts in groups.items()]


def _aggregated(name: str, parts: list[ResultSummary]) -> dict[str, Any]:
    tables = [figure_values(part) for part in parts]
    attacks: dict[str, list[float]] = {}
    for part in parts:
        for summary in part.relearning.summaries() if part.relearning is not None else []:
            value = summary.lowest_forget.value
            if value is not None and is_number(value):
                attacks.setdefault(f"{summary.kind} {summary.stories} {summary.learning_rate:g}", []).append(value)
    reached = [bool(part.strongest.recovered) for part in parts if part.strongest and part.before]
    return {
        "name": name,
        "method": parts[0].method,
        "rule": parts[0].rule,
        "start": parts[0].start,
        "seeds": [part.seed for part in parts],
        "figures": {figure: _over_seeds([table[figure] for table in tables]) for figure in tables[0]},
        "attacks": {attack: mean_interval(values).to_dict() for attack, values in attacks.items()},
        "recovered": sum(reached),
        "attacked": len(reached),
    }


def _over_seeds(values: Sequence[float | None]) -> dict[str, Any]:
    measured = [value for value in values if value is not None]
    # A mean over some of the seeds only would be compared with means over all of them.
    return (mean_interval(measured) if len(measured) == len(values) else Estimate(None)).to_dict()


# ---- Markdown ----


def comparison_markdown(results: Sequence[Result]) -> str:
    """The tables: every result, then over seeds where a name has several, with data filtering beside each difference."""
    blocks = ["# Comparison", "Losses are token-weighted, in nats a token.", _results_table(results)]
    rows = aggregate(results)
    if any(len(row["seeds"]) > 1 for row in rows):
        blocks += [
            "## Over seeds",
            "Mean and 95 % interval over seeds (Student's t).",
            differences_table(rows),
            losses_over_seeds_table(rows),
        ]
    if any(row["attacks"] for row in rows):
        blocks += ["## Relearn attacks", ATTACK_NOTE, attacks_table(rows)]
    return "\n\n".join(blocks) + "\n"


ATTACK_NOTE = (
    "Lowest forget loss that an attack reached, mean over trials and seeds, by kind, number of forget stories and learning "
    "rate. Lower is more relearnt; compare with the row of the model before the method and with that of data filtering."
)


def _results_table(results: Sequence[Result]) -> str:
    header = ["Result", "Seed", "Rule", *(f"{label}" for label in LABELS.values()), "Forget loss", "Retain loss"]
    rows = []
    for result in results:
        figures = summary_of(result)
        estimates = {**figures.differences}
        if figures.strongest is not None:
            estimates["robust_unlearning"] = figures.strongest.robust_unlearning
        rows.append(
            [
                escape_markdown(figures.name),
                str(figures.seed),
                escape_markdown(figures.rule or _METHOD_LABELS[figures.method] or "-"),
                *(format_estimate(estimates.get(name), signed=True) for name in LABELS),
                *(format_estimate(figures.final.get(kind)) for kind in ("forget", "retain")),
            ]
        )
    return markdown_table(header, rows, text_columns=3)


def differences_table(rows: Sequence[dict[str, Any]]) -> str:
    """Differences per name over seeds; in each column's last part the same figure of data filtering, where there is one."""
    yardstick = next((row for row in rows if row["method"] == FILTERED), None)
    header = ["Result", "Seeds", *LABELS.values(), "Under attack at the level before"]
    body = []
    for row in rows:
        cells = []
        for name in LABELS:
            text = format_estimate(Estimate(**row["figures"][name]), signed=True)
            filtered = None if yardstick is None else yardstick["figures"][name]["value"]
            if filtered is not None and row is not yardstick and row["figures"][name]["value"] is not None:
                text += f" (filtering {format_difference(filtered)})"
            cells.append(text)
        recovered = f"{row['recovered']} of {row['attacked']} seeds" if row["attacked"] else "-"
        body.append([escape_markdown(row["name"]), str(len(row["seeds"])), *cells, recovered])
    return markdown_table(header, body, text_columns=1)


def losses_over_seeds_table(rows: Sequence[dict[str, Any]]) -> str:
    """Losses before the method, at the end and under the strongest attack, per name over seeds."""
    columns = {
        "forget_loss_before": "Forget before",
        "forget_loss_final": "Forget at the end",
        "attacked_forget_loss": "Forget under attack",
        "retain_loss_before": "Retain before",
        "retain_loss_final": "Retain at the end",
        "attacked_retain_loss": "Retain under attack",
        "forget_words_loss_final": "Forget words at the end",
    }
    body = [
        [escape_markdown(row["name"]), *(format_estimate(Estimate(**row["figures"][name])) for name in columns)]
        for row in rows
    ]
    return markdown_table(["Result", *columns.values()], body)


def attacks_table(rows: Sequence[dict[str, Any]]) -> str:
    """Lowest forget loss under each attack, one column per attack, one row per name."""
    attacks = list(dict.fromkeys(attack for row in rows for attack in row["attacks"]))
    body = []
    for row in rows:
        cells = [
            format_estimate(Estimate(**row["attacks"][name])) if name in row["attacks"] else "-" for name in attacks
        ]
        body.append([escape_markdown(row["name"]), *cells])
    return markdown_table(["Result", *(_attack_label(attack) for attack in attacks)], body)


def _attack_label(attack: str) -> str:
    kind, stories, learning_rate = attack.split(" ")
    return f"{'LoRA' if kind == 'lora' else 'full'}, N = {stories}, {learning_rate}"


# ---- CSV ----


def comparison_csv(results: Sequence[Result]) -> str:
    """One line per result. A cell that a spreadsheet would take for a formula is prefixed with an apostrophe."""
    rows = comparison_rows(results)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _harmless(value) for name, value in row.items()} for row in rows)
    return file.getvalue()


def _harmless(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def comparison_json(results: Sequence[Result]) -> dict[str, Any]:
    """`results`: the rows; `over_seeds`: one entry per name."""
    return {"results": comparison_rows(results), "over_seeds": aggregate(results)}
