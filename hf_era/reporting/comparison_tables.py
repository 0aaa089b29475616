"""The tables of a comparison, as plain text that each renderer escapes: every result, means over seeds, attacks.

Over seeds a figure is a mean with the 95 % interval of Student's t: with three seeds a wide one, which is what three seeds
can say. Intervals of single results are over stories; the two are never mixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hf_era.evaluation.intervals import Estimate
from hf_era.evaluation.results import CONTROL, AnyResult
from hf_era.evaluation.summary import ResultSummary, estimate_of, summary_of
from hf_era.reporting.labels import DIFFERENCES, LOSSES, attack_title, method_title, short_attack_title
from hf_era.reporting.numbers import format_difference, format_estimate
from hf_era.reporting.tables import Table, recovered_text
from hf_era.reporting.text import name_of


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
        "Losses and differences, nats a token, each with the 95 % interval of its own run, over stories (robust unlearning: "
        "over trials). None says how much another seed would differ."
    )
    return Table(caption, ["Result", "Seed", "Method", "Start", *header], rows, text_columns=4)


def strongest_attacks_table(results: Sequence[AnyResult]) -> Table | None:
    """The strongest attack on each result; `None` if none was attacked."""
    rows = []
    for figures in map(summary_of, results):
        attack = figures.strongest
        if attack is None:
            continue
        steps = "" if attack.steps_to_recover is None else f", after {attack.steps_to_recover:g} steps"
        rows.append(
            [
                *_names(figures),
                name_of(attack_title(attack)),
                format_estimate(attack.lowest_forget),
                format_estimate(attack.retain_at_lowest),
                _cell(attack.robust_unlearning, signed=True),
                f"{recovered_text(attack)}{steps}",
            ]
        )
    header = ["Result", "Seed", "Strongest attack", "Lowest forget loss", "Retain loss there", "Robust unlearning",
              "Recovered"]  # fmt: skip
    caption = "The strongest attack on each result; losses in nats a token, means over trials with 95 % intervals."
    return Table(caption, header, rows, text_columns=3) if rows else None


def _cell(estimate: Estimate | None, signed: bool = False) -> str:
    return format_estimate(estimate, signed, missing="-")


def _names(figures: ResultSummary) -> list[str]:
    return [name_of(figures.result.name), name_of(figures.result.seed)]


# ---- Over seeds: rows are those of `aggregate` ----


def differences_over_seeds(rows: Sequence[dict[str, Any]]) -> Table:
    """Differences per name; in each cell's last part the same figure of the control, where there is one."""
    control = next((row for row in rows if row["method_role"] == CONTROL), None)
    header = ["Result", "Seeds", *(label.short for label in DIFFERENCES.values()), "Under attack at the level before"]
    body = []
    for row in rows:
        cells = []
        for name in DIFFERENCES:
            estimate = estimate_of(row["figures"][name])
            text = _cell(estimate, signed=True)
            beside = None if control is None else control["figures"][name]["value"]
            if control is not None and beside is not None and row is not control and estimate.value is not None:
                text += f" ({name_of(control['method_title'])} {format_difference(beside)})"
            cells.append(text)
        recovered = f"{row['recovered']} of {row['attacked']} seeds" if row["attacked"] else "-"
        body.append([name_of(row["name"]), str(len(row["seeds"])), *cells, recovered])
    return Table("Differences, nats a token: mean and 95 % interval over seeds (Student's t).", header, body)


def losses_over_seeds(rows: Sequence[dict[str, Any]]) -> Table:
    """Losses before the method, at the end and under the strongest attack, per name."""
    body = [[name_of(row["name"]), *(_cell(estimate_of(row["figures"][name])) for name in LOSSES)] for row in rows]
    caption = "Losses, nats a token: mean and 95 % interval over seeds (Student's t)."
    return Table(caption, ["Result", *LOSSES.values()], body)


def attacks_over_seeds(rows: Sequence[dict[str, Any]]) -> Table | None:
    """Lowest forget loss under each attack, one column per attack, one row per name; `None` if there was no attack."""
    attacks = list(dict.fromkeys(attack for row in rows for attack in row["attacks"]))
    if not attacks:
        return None
    body = [[name_of(row["name"]), *(_cell(estimate_of(row["attacks"].get(name))) for name in attacks)] for row in rows]
    caption = (
        "Lowest forget loss that an attack reached, mean over trials and seeds, by kind, number of forget stories N and "
        "learning rate. Lower is more relearnt; compare with the rows of the model before the method and of data filtering."
    )
    header = [name_of(short_attack_title(*attack.rsplit(" ", 2))) for attack in attacks]
    return Table(caption, ["Result", *header], body)
