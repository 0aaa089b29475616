"""The tables of a result, as plain text that each renderer escapes. Losses are in nats a token."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hf_era.evaluation.intervals import Estimate
from hf_era.evaluation.relearn.result import AttackSummary, RelearnResult
from hf_era.evaluation.results import CONTROL, UNTOUCHED, AnyResult, RunResult
from hf_era.evaluation.summary import ResultSummary, estimate_of, summary_of
from hf_era.reporting.labels import (
    AT_MOST,
    ATTACK_DIFFERENCES,
    DIFFERENCES,
    KINDS,
    METRICS,
    NEED_A_MODULE,
    attack_title,
    edges_text,
    effort_text,
    layer_order,
    lowest_text,
    reached_text,
    recovered_text,
    robust_text,
    stage_title,
)
from hf_era.reporting.numbers import NOT_MEASURED, format_count, format_estimate, format_number, is_number
from hf_era.reporting.text import name_of, token_text

KINDS_OF_ALL = ("forget", "retain")
"""Kinds that a table has even where they were not measured."""
RECOVERED = 7
"""The column of an attack's row that says how often the level before the method was reached."""


@dataclass(frozen=True)
class Table:
    """A table with a caption; so many columns on the left are text, the others are aligned on the right."""

    caption: str
    header: list[str]
    rows: list[list[str]]
    text_columns: int = 1
    strong: frozenset[int] = frozenset()
    """Rows that stand out, by number."""
    sort_by: dict[int, list[float | None]] = field(default_factory=dict)
    """Columns by which a page can sort the rows -> the number of each row there."""
    kind: str = "table"


def losses_table(result: AnyResult) -> Table:
    """One row per stage, one column per kind of token."""
    figures = summary_of(result)
    stages = dict.fromkeys([*result.stage_titles, *figures.losses])
    kinds = _measured_kinds(figures)
    rows = [
        [name_of(stage_title(figures, stage)), *(format_estimate(figures.losses.get(stage, {}).get(k)) for k in kinds)]
        for stage in stages
    ]
    caption = (
        f"Losses, nats a token, with the 95 % intervals of this run, over examples. Measured on {counts_text(result)}."
    )
    return Table(caption, ["Stage", *(KINDS[kind] for kind in kinds)], rows)


def _measured_kinds(figures: ResultSummary) -> list[str]:
    """Forget and retain, and what else any stage was measured on."""
    measured = {kind for part in figures.losses.values() for kind in part if part[kind].value is not None}
    return [kind for kind in KINDS if kind in KINDS_OF_ALL or kind in measured]


def figures_table(result: AnyResult) -> Table:
    """What the verdict compares: losses before the method, of this model, and of data filtering where it is known."""
    figures = summary_of(result)
    attack, control = figures.strongest, figures.control
    rows = []
    for kind in _measured_kinds(figures):
        measured = (figures.before, figures.final, {} if control is None else control.losses)
        rows.append([KINDS[kind], *(format_estimate(part.get(kind), missing="-") for part in measured)])
    if attack is not None:
        before = (figures.relearning and figures.relearning.before) or {}
        cells = [format_number(before["forget"]) if "forget" in before else "-", lowest_text(attack)]
        rows.append(["Forget examples, under the strongest attack", *cells, "-"])
    header = ["Loss, nats a token", "Before the method", "This model", "Data filtering"]
    if control is None:
        header, rows = header[:-1], [row[:-1] for row in rows]
    caption = "In brackets 95 % intervals of this run, over examples; under attack over trials."
    return Table(caption, header, rows)


def counts_text(result: AnyResult) -> str:
    """Examples and tokens behind each column of the losses: `forget examples: 18,705 tokens in 120 examples; ...`."""
    stages = result.losses.values() if isinstance(result, RunResult) else [result.losses]
    parts = []
    for kind in _measured_kinds(summary_of(result)):
        label = KINDS[kind]
        found: dict[str, Any] = next((stage[kind] for stage in stages if stage.get(kind)), {})
        tokens, stories = (format_count(found.get(name)) for name in ("tokens", "stories"))
        parts.append(f"{label.lower()}: {tokens} tokens in {stories} examples" if found else f"{label.lower()}: not")
    return "; ".join(parts)


def tasks_table(result: AnyResult) -> Table | None:
    """One row per metric of each task of lm-eval, a column for each stage; `None` if no task was measured. Members of a
    group that has figures of its own are left out."""
    stages = [stage for stage in dict.fromkeys([*result.stage_titles, *result.tasks]) if stage in result.tasks]
    if not stages:
        return None
    rows = []
    for name, task in result.tasks[stages[-1]].items():
        if task.get("group") is not None:
            continue
        about = [format_count(task.get("examples")), format_number(task["chance"]) if task.get("chance") else "-"]
        for metric in task["metrics"]:
            found = [result.tasks[stage].get(name, {}).get("metrics", {}).get(metric) for stage in stages]
            cells = [format_estimate(one and Estimate(one["value"], one["low"], one["high"])) for one in found]
            rows.append([name_of(name), METRICS.get(metric, name_of(metric)), *cells, *about])
    figures = summary_of(result)
    titles = [name_of(stage_title(figures, stage)) for stage in stages]
    caption = (
        "Tasks of lm-evaluation-harness, with 95 % intervals over their examples: Wilson's of accuracies, else from the "
        "standard error. Chance is the accuracy of guessing."
    )
    return Table(caption, ["Task", "Metric", *titles, "Examples", "Chance"], rows, text_columns=2)


def accuracy_table(result: AnyResult) -> Table | None:
    """One row per stage: the share of examples with a prompt whose completion is right; `None` if none has one."""
    stages = [
        stage for stage in dict.fromkeys([*result.stage_titles, *result.accuracies]) if stage in result.accuracies
    ]
    if not stages:
        return None
    figures, names = summary_of(result), {f"{kind}_accuracy": KINDS[kind] for kind in KINDS_OF_ALL}
    rows = [
        [
            name_of(stage_title(figures, stage)),
            *(format_estimate(estimate_of(result.accuracies[stage].get(name)), digits=2) for name in names),
        ]
        for stage in stages
    ]
    counts = [
        f"{format_count(found['examples'])} {kind}"
        for kind in KINDS_OF_ALL
        if (found := result.accuracies[stages[-1]].get(f"{kind}_accuracy"))
    ]
    caption = (
        f"Accuracy: share of the examples with a prompt ({', '.join(counts)}) whose completion is right, token for token, "
        f"with 95 % intervals over examples{chance_text(result)}."
    )
    return Table(caption, ["Stage", *names.values()], rows)


def chance_text(result: AnyResult) -> str:
    """`; guessing gives 0.125`, where that is known."""
    chance = result.data.get("chance_accuracy")
    return f"; guessing gives {format_number(chance)}" if is_number(chance) else ""


def batch_means_table(result: AnyResult) -> Table | None:
    """The losses as means of batch means; `None` if they were not computed."""
    figures, values = summary_of(result), result.mean_of_batch_means
    stages = {stage: part for stage, part in values.items() if isinstance(part, dict)}
    if not stages:
        return None
    rows = [
        [name_of(stage_title(figures, stage)), *(format_number(part.get(kind)) for kind in ("forget", "retain"))]
        for stage, part in stages.items()
    ]
    size = name_of(values.get("batch_size", "unknown size"))
    caption = f"The same as means of the means of batches of {size} examples."
    return Table(caption, ["Stage", KINDS["forget"], KINDS["retain"]], rows)


def differences_table(result: AnyResult) -> Table | None:
    """One row per difference that this kind of run has, beside it that of data filtering; `None` if none was measured."""
    figures = summary_of(result)
    control, rows = figures.control, []
    for name, label in (DIFFERENCES | ATTACK_DIFFERENCES).items():
        estimate = figures.differences[name]
        if estimate.value is None and (figures.is_untouched or (name in NEED_A_MODULE and not result.has_module)):
            continue
        cells = [format_estimate(estimate, signed=True, at_most=name in figures.at_most)]
        if control is not None:
            beside = control.differences[name]
            cells.append(format_estimate(beside, signed=True, at_most=name in control.at_most))
        rows.append([label.long, *cells])
    if all(estimate.value is None for estimate in figures.differences.values()):
        return None
    header = ["Difference, nats a token", "This result"]
    if control is not None:
        header.append(f"Data filtering ({name_of(control.name)})")
    caption = (
        "Differences with the 95 % intervals of this run: over examples, in pairs; those of the attack over trials, and on "
        f"its own examples: compare them with each other. {AT_MOST}."
    )
    return Table(caption, header, rows)


def attacks_table(result: AnyResult) -> Table | None:
    """One row per attack, the strongest one set off; `None` if there was no attack."""
    figures = summary_of(result)
    if figures.relearning is None or not figures.relearning.trials:
        return None
    summaries, control = figures.relearning.summaries(), figures.control
    rows, strong = [], set()
    for number, part in enumerate(summaries):
        row = _attack_row(part, attack_title(part))
        if control is not None:
            row.append(format_estimate(control.attacks.get(part.attack), signed=True))
        if part == figures.strongest:
            strong.add(number)
            row[0] += " (strongest)"
        rows.append(row)
    before = figures.relearning.before_attacked
    if before is not None:
        row = _attack_row(before, "the strongest, on the model before the method")
        row[RECOVERED : RECOVERED + 2] = ["-", "-"]  # it lost nothing
        rows.append([*row, "-"] if control is not None else row)
    header = [
        "Attack", "Trials", "Lowest forget loss", "at step (mean)", "Retain loss there", "Robust unlearning",
        "Lowest at the edge in", "Recovered", "It took (median)", "Retain loss there",
        *(["Data filtering: robust unlearning"] if control else []),
    ]  # fmt: skip
    if any(part.start_accuracy is not None for part in summaries):
        header.append("Accuracy there")
        parts = [*summaries, *([before] if before is not None else [])]
        rows = [
            [*row, format_estimate(part.accuracy_at_lowest, missing="-")] for row, part in zip(rows, parts, strict=True)
        ]
    return Table(_attacks_caption(figures.relearning, summaries[0]), header, rows, strong=frozenset(strong))


def _attacks_caption(relearning: RelearnResult, start: AttackSummary) -> str:
    """What the losses are before the attacks, and how the figures were chosen."""
    raw = ""
    if relearning.raw is not None:
        raw = (
            " after the bias of the LM head was recalibrated (before that "
            f"{format_number(relearning.raw['forget'])} and {format_number(relearning.raw['retain'])})"
        )
    accuracy = ""
    if start.start_accuracy is not None:
        before = format_number(start.start_accuracy)
        accuracy = f" Accuracy: share of the forget examples whose answer is right, {before} before."
    halves = (
        " Attacks and steps were chosen on other forget examples than these." if start.selection is not None else ""
    )
    return (
        f"All attacks, from a forget loss of {format_number(start.start_forget)} and a retain loss of "
        f"{format_number(start.start_retain)} on the same examples{raw}; losses in nats a token, means over trials with "
        f"95 % intervals (Student's t).{halves}{accuracy} {AT_MOST}. A trial that did not recover counts as above those "
        "that did."
    )


def _attack_row(part: AttackSummary, title: str) -> list[str]:
    return [
        name_of(title),
        format_count(part.trials),
        lowest_text(part),
        reached_text(part),
        format_estimate(part.retain_at_lowest),
        robust_text(part),
        edges_text(part.edges),
        recovered_text(part),
        effort_text(part),
        format_estimate(part.retain_at_recovery, missing="-"),
    ]


def distance_table(result: AnyResult) -> Table | None:
    """How far the final model is from the pretrained one before the method; `None` if it was not measured."""
    found = result.base_distance
    if not found:
        return None
    names = {"l2": "Distance of the weights (L2)", "relative": "The same over the norm of the weights before"}
    rows = [[text, format_number(found[name])] for name, text in names.items()]
    rows += [
        [f"Loss barrier, {kind} examples", format_number(value)] for kind, value in (found.get("barrier") or {}).items()
    ]
    barrier = " Loss barrier: how far the loss rises on the straight line between them, nats a token."
    caption = "From the model before the method to the final one." + (barrier if found.get("barrier") else "")
    return Table(caption, ["From the model before", "Figure"], rows)


def selectivity_table(result: RunResult) -> Table:
    """One row per target layer: activation of the auxiliary module on forget examples over that on retain examples."""
    rows = [
        [name_of(layer), format_estimate(Estimate(**result.selectivity[layer]), digits=2)]
        for layer in sorted(result.selectivity, key=layer_order)
    ]
    caption = (
        "Mean absolute activation of the auxiliary module on forget examples over that on retain examples, with the 95 % "
        "intervals of this run, over examples."
    )
    return Table(caption, ["Layer", "Selectivity"], rows or [["all", NOT_MEASURED]])


def ablation_table(result: RunResult) -> Table | None:
    """What ablation removes, one layer at a time; `None` if it was not measured."""
    audit = result.leak_audit.get("ablation") or {}
    rows = [
        [
            "all layers" if layer == "all" else f"layer {name_of(layer)}",
            *(format_estimate(estimate_of((audit[layer] or {}).get(kind)), True) for kind in ("forget", "retain")),
        ]
        for layer in sorted(audit, key=layer_order)
    ]
    caption = (
        "What ablating the auxiliary module of one layer, or of all, adds to the loss, nats a token, with the 95 % "
        "intervals of this run, over examples."
    )
    return Table(caption, ["Ablated", "Forget loss", "Retain loss"], rows) if rows else None


def routing_table(result: RunResult, rows: int) -> Table | None:
    """The tokens that are routed most strongly; `None` if the run has no such table."""
    routed = routed_tokens(result)
    if not routed:
        return None
    frequencies = ("forget_per_10k", "retain_per_10k")
    body = [
        [
            token_text(row.get("token")),
            format_number(row["weight"]),
            *(format_number(row.get(n), 1) for n in frequencies),
        ]
        for row in routed[:rows]
    ]
    caption = f"Routing weights, the lowest {len(body)} of {len(routed)}: 0 is treated as forget, 1 as retain."
    header = ["Token", "Routing weight", "Forget examples, per 10,000 tokens", "Retain examples, per 10,000 tokens"]
    return Table(caption, header, body)


def routed_tokens(result: AnyResult) -> list[dict[str, Any]]:
    """The rows of the routing table that have a weight, the most strongly routed tokens first; none of a control."""
    if not isinstance(result, RunResult) or result.method_role in (CONTROL, UNTOUCHED):
        return []
    return sorted((row for row in result.routing_table if is_number(row.get("weight"))), key=_routing_order)


def _routing_order(row: dict[str, Any]) -> tuple[float, float, str]:
    frequency = row.get("forget_per_10k")
    return row["weight"], -frequency if is_number(frequency) else 0.0, str(row.get("token"))  # type: ignore[operator]
