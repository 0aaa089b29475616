"""The tables of a comparison, as plain text that each renderer escapes: every result, means over seeds, attacks.

Over seeds a figure is a mean with the 95 % interval of Student's t: with three seeds a wide one, which is what three seeds
can say. Intervals of single results are over examples; the two are never mixed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hf_era.evaluation.intervals import Estimate
from hf_era.evaluation.results import CONTROL, AnyResult
from hf_era.evaluation.summary import ROBUST, ResultSummary, estimate_of, recipe_of, summary_of
from hf_era.reporting.labels import (
    AT_MOST,
    ATTACK_DIFFERENCES,
    ATTACK_LOSSES,
    DIFFERENCES,
    LOSSES,
    attack_title,
    edges_text,
    effort_text,
    lowest_text,
    method_title,
    recovered_text,
    short_attack_title,
)
from hf_era.reporting.numbers import format_difference, format_estimate, format_number
from hf_era.reporting.seeds import seeds_of
from hf_era.reporting.tables import Table
from hf_era.reporting.text import name_of
from hf_era.reporting.verdict import QUESTIONS, reference_name, verdict


def verdict_table(results: Sequence[AnyResult]) -> Table:
    """The answers of the verdict, one row per recipe, over its seeds."""
    rows: dict[str, list[str]] = {}
    for result in results:
        key = json.dumps(recipe_of(result), sort_keys=True)
        if key not in rows:
            seeds = seeds_of(result, results)
            answers = [line.answer for line in verdict(result, seeds)]
            numbers = ", ".join(name_of(one.seed) for one in seeds)
            rows[key] = [name_of(result.name), numbers, reference_name(result), *answers]
    caption = (
        "Was the capability removed, what did that cost, does it come back: each against one level, over the seeds."
    )
    return Table(caption, ["Result", "Seeds", "Against", *QUESTIONS], list(rows.values()), text_columns=6)


def results_table(results: Sequence[AnyResult]) -> Table:
    """Losses and differences, one row per result."""
    names = ("forget_loss_before", "retain_loss_before", "forget_loss_final", "retain_loss_final")
    header = [*(LOSSES[name] for name in names), *(label.short for label in DIFFERENCES.values())]
    rows = []
    for figures in map(summary_of, results):
        losses = [part.get(kind) for part in (figures.before, figures.final) for kind in ("forget", "retain")]
        rows.append(
            [
                *_names(figures),
                name_of(method_title(figures)),
                name_of(figures.start or "-"),
                *map(_cell, losses),
                *(_cell(figures.differences[name], signed=True) for name in DIFFERENCES),
            ]
        )
    caption = (
        "Losses and differences, nats a token, each with the 95 % interval of its own run, over examples. None says how "
        "much another seed would differ."
    )
    return Table(caption, ["Result", "Seed", "Method", "Start", *header], rows, text_columns=4)


def strongest_attacks_table(results: Sequence[AnyResult]) -> Table | None:
    """The strongest attack on each result; `None` if none was attacked."""
    rows = []
    for figures in map(summary_of, results):
        attack = figures.strongest
        if attack is None:
            continue
        before = figures.relearning and figures.relearning.before
        rows.append(
            [
                *_names(figures),
                name_of(attack_title(attack)),
                "-" if not before else format_number(before["forget"]),
                format_number(attack.start_forget),
                lowest_text(attack),
                format_number(attack.start_retain),
                format_estimate(attack.retain_at_lowest),
                *(_cell(figures.differences[name], True, name in figures.at_most) for name in ATTACK_DIFFERENCES),
                edges_text(attack.edges),
                recovered_text(attack),
                effort_text(attack),
            ]
        )
    header = ["Result", "Seed", "Strongest attack", "Forget before", "Forget at its start", "Forget under attack",
              "Retain at its start", "Retain there", *(label.short for label in ATTACK_DIFFERENCES.values()),
              "Lowest at the edge in", "Recovered", "It took (median)"]  # fmt: skip
    caption = (
        "The strongest attack on each result; losses in nats a token, on the examples and in the precision of the attack; "
        f"means over trials with 95 % intervals. {AT_MOST}."
    )
    return Table(caption, header, rows, text_columns=3) if rows else None


def _cell(estimate: Estimate | None, signed: bool = False, at_most: bool = False) -> str:
    return format_estimate(estimate, signed, missing="-", at_most=at_most)


def _names(figures: ResultSummary) -> list[str]:
    return [name_of(figures.result.name), name_of(figures.result.seed)]


# ---- Over seeds: rows are those of `aggregate` ----


def differences_over_seeds(rows: Sequence[dict[str, Any]]) -> Table:
    """Differences per name; in each cell's last part the same figure of the control, where there is one."""
    control = next((row for row in rows if row["method_role"] == CONTROL), None)
    header = ["Result", "Seeds", *(label.short for label in DIFFERENCES.values())]
    body = [
        [name_of(row["name"]), str(len(row["seeds"])), *(_beside(row, name, control) for name in DIFFERENCES)]
        for row in rows
    ]
    return Table("Differences, nats a token: mean and 95 % interval over seeds (Student's t).", header, body)


def _beside(row: dict[str, Any], name: str, control: dict[str, Any] | None) -> str:
    """A difference, in brackets that of the control."""
    estimate = estimate_of(row["figures"].get(name))
    text = _cell(estimate, signed=True, at_most=name in _at_most(row))
    beside = None if control is None else control["figures"].get(name, {}).get("value")
    if control is None or beside is None or row is control or estimate.value is None:
        return text
    most = "≤ " if name in _at_most(control) else ""
    return f"{text} ({name_of(control['method_title'])} {most}{format_difference(beside)})"


def _at_most(row: dict[str, Any]) -> set[str]:
    """Figures that are upper bounds in any seed."""
    return {*row.get("at_most", ()), *(["attacked_forget_loss", ROBUST] if row.get("edges") else [])}


def losses_over_seeds(rows: Sequence[dict[str, Any]]) -> Table:
    """Losses before the method and at the end, per name."""
    body = [[name_of(row["name"]), *(_cell(estimate_of(row["figures"][name])) for name in LOSSES)] for row in rows]
    caption = "Losses, nats a token: mean and 95 % interval over seeds (Student's t)."
    return Table(caption, ["Result", *LOSSES.values()], body)


def strongest_attack_over_seeds(rows: Sequence[dict[str, Any]]) -> Table | None:
    """Losses before the method, at the start of the strongest attack and under it, and their differences, per name, on the
    examples and in the precision of the attack; `None` if there was no attack."""
    attacked = [row for row in rows if row["attacks"]]
    control = next((row for row in attacked if row["method_role"] == CONTROL), None)
    body = []
    for row in attacked:
        bounds = _at_most(row)
        losses = [_cell(estimate_of(row["figures"].get(name)), at_most=name in bounds) for name in ATTACK_LOSSES]
        # What the attack does to the model before the method is the zero for all rows, the control's too.
        differences = [
            _beside(row, name, None if name == "before_under_attack" else control) for name in ATTACK_DIFFERENCES
        ]
        body.append(
            [name_of(row["name"]), *losses, *differences, edges_text(row.get("edges", ())), _recovered_over_seeds(row)]
        )
    header = ["Result", *ATTACK_LOSSES.values(), *(label.short for label in ATTACK_DIFFERENCES.values()),
              "Lowest at the edge in", "At the level before"]  # fmt: skip
    caption = (
        "The strongest attack, on its own examples and in its own precision, nats a token: mean and 95 % interval over "
        f"seeds (Student's t). {AT_MOST}."
    )
    return Table(caption, header, body) if body else None


def _recovered_over_seeds(row: dict[str, Any]) -> str:
    """`2 of 3 seeds`; those that were there before the attack apart."""
    seeds, at_the_start = row["attacked"], row.get("at_the_start", 0)
    if not seeds:
        return "-"
    reached = f"{row['recovered'] - at_the_start} of {seeds} seeds"
    if not at_the_start:
        return reached
    already = f"already at the start in {at_the_start} of {seeds} seeds"
    return already if at_the_start == seeds else f"{reached}, {already}"


def attacks_over_seeds(rows: Sequence[dict[str, Any]]) -> Table | None:
    """Lowest forget loss under each attack, one column per attack, one row per name; `None` if there was no attack."""
    attacks = list(dict.fromkeys(attack for row in rows for attack in row["attacks"]))
    if not attacks:
        return None
    body = []
    for row in rows:
        last = row.get("attacks_at_the_last_step", ())
        cells = [_cell(estimate_of(row["attacks"].get(name)), at_most=name in last) for name in attacks]
        body.append([name_of(row["name"]), *cells])
    caption = (
        "Lowest forget loss that an attack reached, mean over trials and seeds, by kind, number of forget examples N and "
        "learning rate. Lower is more relearnt; compare with the rows of the model before the method and of data filtering. "
        "≤: not turned at its last step, so more steps may go lower."
    )
    header = [name_of(short_attack_title(*attack.rsplit(" ", 2))) for attack in attacks]
    return Table(caption, ["Result", *header], body)


def attack_tables(results: Sequence[AnyResult], rows: Sequence[dict[str, Any]]) -> list[Table]:
    """All tables of attacks: the strongest on each result, over seeds where a name has several, and every attack."""
    several = any(len(row["seeds"]) > 1 for row in rows)
    over_seeds = strongest_attack_over_seeds(rows) if several else None
    return list(filter(None, [strongest_attacks_table(results), over_seeds, attacks_over_seeds(rows)]))
