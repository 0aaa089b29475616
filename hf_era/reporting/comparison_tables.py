"""The tables of a comparison, as plain text that each renderer escapes: every result, means over seeds, attacks.

Over seeds a figure is a mean with the 95 % interval of Student's t: with three seeds a wide one, which is what three seeds
can say. Intervals of single results are over examples; the two are never mixed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hf_era.evaluation.intervals import Estimate
from hf_era.evaluation.relearn.result import Attack
from hf_era.evaluation.results import ABLATED, CONTROL, AnyResult
from hf_era.evaluation.summary import ROBUST, ResultSummary, estimate_of, recipe_of, summary_of
from hf_era.reporting.labels import (
    AT_MOST,
    ATTACK_DIFFERENCES,
    ATTACK_LOSSES,
    DIFFERENCES,
    LOSSES,
    METRICS,
    attack_title,
    edges_text,
    effort_text,
    lowest_text,
    method_title,
    recovered_text,
    short_attack_title,
)
from hf_era.reporting.numbers import format_count, format_estimate, format_number
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


FIRST = ("unlearning", "retain_tax", ROBUST, "ablation_gap", "retain_ablation_gap", "forget_words_unlearning")
"""The differences, in the order of their columns in every format; losses follow."""
_TITLES = {name: label.short for name, label in (DIFFERENCES | ATTACK_DIFFERENCES).items()}
_EXAMPLES = "Robust unlearning is measured on the examples of the attack, all else on those of the evaluation"


def results_table(results: Sequence[AnyResult]) -> Table:
    """Differences and losses, one row per result."""
    shown = [summary_of(result) for result in results]
    rows = [
        [
            *_names(figures),
            *(_cell(figures.differences[name], True, name in figures.at_most) for name in FIRST),
            *(_cell(loss) for loss in _losses(figures)),
            name_of(method_title(figures)),
            name_of(figures.start or "-"),
        ]
        for figures in shown
    ]
    header = ["Result", "Seed", *(_TITLES[name] for name in FIRST), *LOSSES.values(), "Method", "Start"]
    columns = [[figures.differences[name].value for figures in shown] for name in FIRST]
    columns += [[loss and loss.value for loss in column] for column in zip(*map(_losses, shown), strict=True)]
    caption = (
        "Differences and losses, nats a token, each with the 95 % interval of its own run, over examples: none says how "
        f"much another seed would differ. {_EXAMPLES}. {AT_MOST}."
    )
    controls = frozenset(number for number, figures in enumerate(shown) if figures.is_control)
    caption = _with_controls(caption, [shown[number].start for number in controls])
    table = Table(caption, header, rows, 2, controls, dict(enumerate(columns, 2)))
    return _measured(table)


def task_rows(results: Sequence[AnyResult]) -> list[dict[str, Any]]:
    """One flat dict per result, task of lm-eval and metric, as a comparison's JSON has them: `name`, `seed`, `task`,
    `metric`, `examples`, `chance`, and of each of `TASK_STAGES` an `Estimate` as a dict or `None`. Members of a group that
    has figures of its own are left out."""
    rows = []
    for result in results:
        tasks = {stage: result.tasks.get(name) or {} for stage, name in _task_stages(result).items()}
        for name, found in {name: found for part in tasks.values() for name, found in part.items()}.items():
            if found.get("group") is not None:
                continue
            for metric in found["metrics"]:
                measured = [(part.get(name) or {}).get("metrics", {}).get(metric) for part in tasks.values()]
                figures = dict(zip(tasks, map(_figure, measured), strict=True))
                about = {"examples": found.get("examples"), "chance": found.get("chance")}
                rows.append(
                    {"name": result.name, "seed": result.seed, "task": name, "metric": metric, **about, **figures}
                )
    return rows


TASK_STAGES = {"before": "Before the method", "final": "This model", "ablated": "Its modules ablated"}
"""What a comparison says of tasks: key of `task_rows` -> title."""


def _task_stages(result: AnyResult) -> dict[str, str]:
    """Key of `TASK_STAGES` -> stage of the result."""
    return {"before": "before", "final": result.final_stage, "ablated": ABLATED}


def _figure(metric: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if metric is None else {name: metric.get(name) for name in ("value", "low", "high")}


def tasks_of_results_table(results: Sequence[AnyResult]) -> Table | None:
    """One row per result, task of lm-eval and metric; `None` if no task was measured."""
    found = task_rows(results)
    stages = [stage for stage in TASK_STAGES if any(row[stage] for row in found)]
    rows = [
        [
            *(name_of(row[key]) for key in ("name", "seed", "task")),
            METRICS.get(row["metric"], name_of(row["metric"])),
            *(_cell(estimate_of(row[stage])) for stage in stages),
            format_count(row["examples"]),
            format_number(row["chance"]) if row["chance"] else "-",
        ]
        for row in found
    ]
    header = ["Result", "Seed", "Task", "Metric", *(TASK_STAGES[stage] for stage in stages), "Examples", "Chance"]
    caption = (
        "Tasks of lm-evaluation-harness, with 95 % intervals over their examples: none says how much another seed would "
        "differ. Chance is the accuracy of guessing."
    )
    return Table(caption, header, rows, text_columns=4) if rows else None


def _measured(table: Table) -> Table:
    """Without the columns of figures that no row has, such as those of forget words where there are none."""
    empty = {column for column, values in table.sort_by.items() if all(value is None for value in values)}
    kept = [column for column in range(len(table.header)) if column not in empty]
    header, *rows = ([row[column] for column in kept] for row in (table.header, *table.rows))
    sort_by = {place: table.sort_by[column] for place, column in enumerate(kept) if column in table.sort_by}
    return replace(table, header=header, rows=rows, sort_by=sort_by)


def _losses(figures: ResultSummary) -> list[Estimate | None]:
    """Those of `LOSSES`, in that order."""
    stages = {"before": figures.before, "final": figures.final}
    return [stages[stage].get(kind) for kind, stage in (name.split("_loss_") for name in LOSSES)]


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
                *(_cell(figures.differences[name], True, name in figures.at_most) for name in ATTACK_DIFFERENCES),
                "-" if not before else format_number(before["forget"]),
                format_number(attack.start_forget),
                lowest_text(attack),
                format_number(attack.start_retain),
                format_estimate(attack.retain_at_lowest),
                edges_text(attack.edges),
                recovered_text(attack),
                effort_text(attack),
            ]
        )
    header = ["Result", "Seed", "Strongest attack", *(_TITLES[name] for name in ATTACK_DIFFERENCES),
              "Forget before", "Forget at its start", "Forget under attack", "Retain at its start", "Retain there",
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


def over_seeds_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Differences and losses per recipe, in the columns of `results_table`."""
    differences, losses = differences_over_seeds(rows), losses_over_seeds(rows)
    body = [[*left, *right[1:]] for left, right in zip(differences.rows, losses.rows, strict=True)]
    caption = (
        "Differences and losses, nats a token: mean and 95 % interval over seeds (Student's t). "
        f"{_EXAMPLES}. {AT_MOST}."
    )
    columns = [[row["figures"].get(name, {}).get("value") for row in rows] for name in (*FIRST, *LOSSES)]
    header = [*differences.header, *losses.header[1:]]
    controls = differences.strong
    caption = _with_controls(caption, [rows[number]["start"] for number in controls])
    table = Table(caption, header, body, 1, controls, dict(enumerate(columns, 2)))
    return _measured(table)


def differences_over_seeds(rows: Sequence[dict[str, Any]]) -> Table:
    """Differences per recipe; the control's row is set off."""
    body = [
        [
            name_of(row["name"]),
            str(len(row["seeds"])),
            *(_cell(estimate_of(row["figures"].get(name)), True, name in _at_most(row)) for name in FIRST),
        ]
        for row in rows
    ]
    caption = "Differences, nats a token: mean and 95 % interval over seeds (Student's t)."
    return Table(caption, ["Result", "Seeds", *(_TITLES[name] for name in FIRST)], body, strong=_controls(rows))


def _controls(rows: Sequence[dict[str, Any]]) -> frozenset[int]:
    return frozenset(number for number, row in enumerate(rows) if row["method_role"] == CONTROL)


def _with_controls(caption: str, starts: Sequence[str | None]) -> str:
    """The caption, and what is set off: controls that started so. One that trained further saw what its base had seen."""
    if not starts:
        return caption
    if "pretrained" not in starts:
        return f"{caption} Set off: the control, a model that never saw the forget examples."
    others = " One from random weights never saw the forget examples." if set(starts) != {"pretrained"} else ""
    return f"{caption} Set off: controls. One that trained a pretrained model further knows what that one knew.{others}"


def _at_most(row: dict[str, Any]) -> set[str]:
    """Figures that are upper bounds in any seed."""
    return {*row.get("at_most", ()), *(["attacked_forget_loss", ROBUST] if row.get("edges") else [])}


def losses_over_seeds(rows: Sequence[dict[str, Any]]) -> Table:
    """Losses before the method and at the end, per name."""
    body = [[name_of(row["name"]), *(_cell(estimate_of(row["figures"][name])) for name in LOSSES)] for row in rows]
    caption = "Losses, nats a token: mean and 95 % interval over seeds (Student's t)."
    return Table(caption, ["Result", *LOSSES.values()], body, strong=_controls(rows))


def strongest_attack_over_seeds(rows: Sequence[dict[str, Any]]) -> Table | None:
    """Losses before the method, at the start of the strongest attack and under it, and their differences, per name, on the
    examples and in the precision of the attack; `None` if there was no attack."""
    attacked = [row for row in rows if row["attacks"]]
    body = []
    for row in attacked:
        bounds = _at_most(row)
        differences = [
            _cell(estimate_of(row["figures"].get(name)), True, name in bounds) for name in ATTACK_DIFFERENCES
        ]
        losses = [_cell(estimate_of(row["figures"].get(name)), at_most=name in bounds) for name in ATTACK_LOSSES]
        body.append(
            [name_of(row["name"]), *differences, *losses, edges_text(row.get("edges", ())), _recovered_over_seeds(row)]
        )
    header = ["Result", *(_TITLES[name] for name in ATTACK_DIFFERENCES), *ATTACK_LOSSES.values(),
              "Lowest at the edge in", "At the level before"]  # fmt: skip
    caption = (
        "The strongest attack, on its own examples and in its own precision, nats a token: mean and 95 % interval over "
        f"seeds (Student's t). {AT_MOST}."
    )
    return Table(caption, header, body, strong=_controls(attacked)) if body else None


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
        "Lowest forget loss that an attack reached, mean over trials and seeds, by kind, number of forget examples N, "
        "learning rate, schedule and mixture. Lower is more relearnt; compare with the rows of the model before the method "
        "and of data filtering. "
        "≤: not turned at its last step, so more steps may go lower."
    )
    settings = {name: values for row in rows for name, values in row["attack_settings"].items()}
    header = [name_of(short_attack_title(Attack.from_dict(settings[attack]))) for attack in attacks]
    return Table(caption, ["Result", *header], body)


def attack_tables(results: Sequence[AnyResult], rows: Sequence[dict[str, Any]]) -> list[Table]:
    """All tables of attacks: the strongest on each result, over seeds where a name has several, and every attack."""
    several = any(len(row["seeds"]) > 1 for row in rows)
    over_seeds = strongest_attack_over_seeds(rows) if several else None
    return list(filter(None, [strongest_attacks_table(results), over_seeds, attacks_over_seeds(rows)]))


def comparability_warnings(results: Sequence[AnyResult]) -> list[str]:
    """Why losses of these results may not be compared; empty if nothing speaks against it."""
    prints = {(result.seed, str(result.data["fingerprint"])) for result in results if result.data.get("fingerprint")}
    found = []
    if len(prints) > len({seed for seed, _ in prints}):  # each seed has a split of its own
        found.append(
            "These results were not measured on the same examples (their fingerprints differ): losses of different examples "
            "cannot be compared; only differences of the same result can, with care."
        )
    recipes = [(result.name, json.dumps(recipe_of(result), sort_keys=True)) for result in results]
    pairs = [(*recipe, result.seed) for recipe, result in zip(recipes, results, strict=True)]
    twice = sorted({name_of(pair[0]) for pair in pairs if pairs.count(pair) > 1})
    if twice:
        found.append(
            f"The same name and seed stands here more than once: {', '.join(twice)}. Means over seeds count one of them."
        )
    names = [name for name, _ in set(recipes)]
    several = sorted({name_of(name) for name in names if names.count(name) > 1})
    if several:
        found.append(
            f"Different methods or settings stand here under the same name: {', '.join(several)}. They are no seeds of one "
            "recipe: means over seeds are of each by itself."
        )
    return found
