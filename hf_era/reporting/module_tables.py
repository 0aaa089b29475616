"""The tables of several modules, as plain text that each renderer escapes: each by itself, and their profiles.

Losses are in nats a token. Whatever is said of one module is said by what says it of a whole result
(`hf_era.evaluation.module_results`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hf_era.evaluation.intervals import Estimate
from hf_era.evaluation.module_results import result_of_module
from hf_era.evaluation.modules import ALONE_OFF
from hf_era.evaluation.results import AnyResult, RunResult
from hf_era.evaluation.summary import ROBUST, estimate_of, summary_of
from hf_era.reporting.labels import AT_MOST, ATTACK_DIFFERENCES, DIFFERENCES, KINDS, layer_order
from hf_era.reporting.numbers import format_estimate, is_number
from hf_era.reporting.tables import Table
from hf_era.reporting.text import cut, name_of
from hf_era.reporting.verdict import QUESTIONS, VerdictLine, verdict

OWN_INTERVALS = "with the 95 % intervals of this run, over examples"


def verdicts(result: AnyResult) -> dict[str, list[VerdictLine]]:
    """Module -> the verdict on it alone; empty where there are not several."""
    if not isinstance(result, RunResult):
        return {}
    return {name: verdict(result_of_module(result, name)) for name in result.modules}


def differing_verdicts(result: AnyResult) -> dict[str, list[VerdictLine]]:
    """Module -> the lines of its verdict that answer otherwise than those of the whole result; modules without any are left
    out."""
    whole = [line.answer for line in verdict(result)]
    found = {
        name: [line for line, answer in zip(lines, whole, strict=True) if line.answer != answer]
        for name, lines in verdicts(result).items()
    }
    return {name: lines for name, lines in found.items() if lines}


def modules_table(result: AnyResult) -> Table | None:
    """One row per module: its own forget examples at each stage and attacked, and the answers of its verdict; `None` where
    there are not several."""
    if not isinstance(result, RunResult) or not result.modules:
        return None
    rows = []
    for name, lines in verdicts(result).items():
        figures = summary_of(result_of_module(result, name))
        alone = ((result.modules[name].get("losses") or {}).get(ALONE_OFF) or {}).get("forget")
        stages = (figures.before, figures.losses.get("before_ablation", {}))
        losses = [*(stage.get("forget") for stage in stages), _loss(alone), figures.final.get("forget")]
        differences = [
            format_estimate(figures.differences[kind], True, missing="-", at_most=kind in figures.at_most)
            for kind in ("unlearning", ROBUST)
        ]
        cells = [format_estimate(loss, missing="-") for loss in losses]
        rows.append([name_of(name), *(line.answer for line in lines), *cells, *differences])
    header = ["Module", *QUESTIONS, "Before the method", "All modules on", "This one off", "This model",
              "Unlearning", "Robust unlearning"]  # fmt: skip
    caption = (
        f"Each module on its own forget examples: losses and differences, nats a token, {OWN_INTERVALS}; robust unlearning, "
        f"over trials, under the strongest attack with examples of that module. {AT_MOST}."
    )
    return Table(caption, header, rows, text_columns=1 + len(QUESTIONS))


def attack_notes(result: AnyResult) -> list[str]:
    """What is to be said of the attacks with each module's own examples: that one has none, or fewer trials."""
    notes = []
    for name, own in result.modules.items():
        attack = own.get("attack")
        if attack:
            notes += [f"{name_of(name)}: {cut(note, 500)}" for note in attack.get("notes") or []]
        elif result.attack is not None:
            notes.append(f"{name_of(name)}: no attack with its own forget examples was made.")
    return notes


def crosstalk_table(result: AnyResult) -> Table | None:
    """One row per module: what switching it off alone adds to the loss on every module's forget examples and on retain
    examples; `None` where that was not measured."""
    modules = result.modules
    if not any(own.get("ablation_gap") for own in modules.values()):
        return None
    rows = []
    for name, own in modules.items():
        gaps = {**(own.get("crosstalk") or {}), name: own.get("ablation_gap")}
        estimates = [estimate_of(gaps.get(other)) for other in modules] + [estimate_of(own.get("retain_ablation_gap"))]
        rows.append([name_of(name), *(format_estimate(estimate, True, missing="-") for estimate in estimates)])
    header = ["Switched off", *(f"{name_of(name)}: forget examples" for name in modules), KINDS["retain"]]
    caption = (
        f"What switching one module off, all others on, adds to the loss, nats a token, {OWN_INTERVALS}. On the diagonal "
        "its own ablation gap; beside it crosstalk, which should be near 0."
    )
    return Table(caption, header, rows)


OF_A_MODULE = ("unlearning", ROBUST, "ablation_gap", "retain_ablation_gap")
"""The differences that a comparison shows of each module."""


def module_rows(results: Sequence[AnyResult]) -> list[dict[str, Any]]:
    """One flat dict per result and module, as a comparison's JSON has them: `name`, `seed`, `module`, `OF_A_MODULE` and
    `largest_crosstalk` (the one farthest from 0), each an `Estimate` as a dict; `at_most`: which of these are bounds."""
    rows = []
    for result in (one for one in results if isinstance(one, RunResult)):
        for name, own in result.modules.items():
            figures = summary_of(result_of_module(result, name))
            crosstalk = [part for part in (own.get("crosstalk") or {}).values() if is_number(part.get("value"))]
            largest = estimate_of(max(crosstalk, key=lambda part: abs(part["value"]), default=None))
            rows.append({
                "name": result.name,
                "seed": result.seed,
                "module": name,
                **{kind: figures.differences[kind].to_dict() for kind in OF_A_MODULE},
                "largest_crosstalk": largest.to_dict(),
                "at_most": [kind for kind in OF_A_MODULE if kind in figures.at_most],
            })  # fmt: skip
    return rows


def modules_of_results_table(results: Sequence[AnyResult]) -> Table | None:
    """The modules of several results, one row each; `None` if none has several."""
    figures = (*OF_A_MODULE, "largest_crosstalk")
    rows = [
        [
            *(name_of(row[key]) for key in ("name", "seed", "module")),
            *(
                format_estimate(estimate_of(row[key]), True, missing="-", at_most=key in row["at_most"])
                for key in figures
            ),
        ]
        for row in module_rows(results)
    ]
    titles = {name: label.short for name, label in (DIFFERENCES | ATTACK_DIFFERENCES).items()}
    header = ["Result", "Seed", "Module", *(titles[kind] for kind in OF_A_MODULE), "Largest crosstalk"]
    caption = (
        "Each module on its own forget examples, switched off alone; differences, nats a token, each with the 95 % interval "
        "of its own run, over examples. Crosstalk: the gap on another module's forget examples. "
        f"{AT_MOST}."
    )
    return Table(caption, header, rows, text_columns=3) if rows else None


def module_selectivity_table(result: AnyResult) -> Table | None:
    """One row per layer, one column per module: its activation on its own forget examples over that on retain examples;
    `None` where that was not measured."""
    measured = {name: own.get("selectivity") or {} for name, own in result.modules.items()}
    layers = sorted({layer for part in measured.values() for layer in part}, key=layer_order)
    if not layers:
        return None
    rows = []
    for layer in layers:
        estimates = [estimate_of(part.get(layer)) for part in measured.values()]
        rows.append([name_of(layer), *(format_estimate(one, digits=2, missing="-") for one in estimates)])
    caption = (
        "Mean absolute activation of each module on its own forget examples over that on retain examples, "
        f"{OWN_INTERVALS}. -: it is not in that layer."
    )
    return Table(caption, ["Layer", *map(name_of, measured)], rows)


def _loss(values: dict[str, Any] | None) -> Estimate:
    """A `LossEstimate` as a dict -> the estimate; without a value if there is none."""
    return estimate_of({**values, "value": values.get("loss")} if values else None)


# ---- Profiles ----


def profile_columns(result: AnyResult) -> dict[str, str]:
    """What profiles were measured on: each module's forget examples by its name, or all where that is not known, and retain
    examples; key of `profile_losses` -> title."""
    names = list(dict.fromkeys(name for profile in result.profiles for name in _of_modules(profile)))
    of_modules = {f"module {name}": f"{name_of(name)}: forget examples" for name in names}
    return {**(of_modules or {"forget": KINDS["forget"]}), "retain": KINDS["retain"]}


def profile_losses(profile: dict[str, Any]) -> dict[str, Any]:
    """The losses of a profile by the keys of `profile_columns`, each a `LossEstimate` as a dict."""
    losses = profile.get("losses") or {}
    named = {f"module {name}": part for name, part in _of_modules(profile).items()}
    return {**{kind: losses.get(kind) for kind in ("forget", "retain")}, **named}


def _of_modules(profile: dict[str, Any]) -> dict[str, Any]:
    return (profile.get("losses") or {}).get("modules") or {}


def profiles_table(result: AnyResult) -> Table | None:
    """One row per profile, one column per kind of examples; `None` if none were measured."""
    if not result.profiles:
        return None
    columns, rows = profile_columns(result), []
    for profile in result.profiles:
        losses = profile_losses(profile)
        rows.append([name_of(profile.get("name")), *(format_estimate(_loss(losses.get(key))) for key in columns)])
    caption = (
        f"Losses with each combination of modules on, nats a token, {OWN_INTERVALS}. core: all of them off, which is what "
        "the contracted model computes."
    )
    return Table(caption, ["Profile", *columns.values()], rows)
