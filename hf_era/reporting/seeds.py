"""What several seeds of one recipe say together, for the card and the report of one of them.

An interval over examples is of one run. How far another run would be from it, only other seeds can tell: their spread is
often many times the width of that interval.
"""

from __future__ import annotations

from collections.abc import Sequence

from hf_era.evaluation.intervals import Estimate, mean_interval
from hf_era.evaluation.results import AnyResult
from hf_era.evaluation.summary import (
    LOSS_KINDS,
    ResultSummary,
    aggregate,
    estimate_of,
    figure_values,
    recipe_of,
    summary_of,
)
from hf_era.reporting.labels import AT_MOST, ATTACK_DIFFERENCES, DIFFERENCES, KINDS
from hf_era.reporting.numbers import format_estimate
from hf_era.reporting.tables import Table
from hf_era.reporting.text import cut, name_of

_DIFFERENCES = DIFFERENCES | ATTACK_DIFFERENCES


def seeds_of(result: AnyResult, others: Sequence[AnyResult]) -> list[AnyResult]:
    """The result and those of its recipe (`recipe_of`) with other seeds, by seed, each seed once; it alone where there are
    none."""
    recipe = recipe_of(result)
    found = {other.seed: other for other in others if recipe_of(other) == recipe}
    found[result.seed] = result
    return [found[seed] for seed in sorted(found)]


def check_seeds(result: AnyResult, others: Sequence[AnyResult]) -> None:
    """Raises `ValueError` if one of the others is no other seed of the result's recipe (but it may be among them itself), or
    there is no other seed."""
    recipe = recipe_of(result)
    for other in others:
        found = recipe_of(other)
        names = [name for name in {**recipe, **found} if recipe.get(name) != found.get(name)]
        here, there = ([part.get(name, "not given") for name in names[:1]] for part in (recipe, found))
        why = [f"`{names[0]}` is {cut(there[0], 80)} in one of them and {cut(here[0], 80)} here"] if names else []
        if not names and other.seed == result.seed and other != result:
            why = [f"another of its results has seed {result.seed}, too"]
        if why:
            raise ValueError(
                f"`--seeds` should be other seeds of {result.name!r}, but {why[0]}. Leave it out, or see `hf-era compare`."
            )
    if others and len(seeds_of(result, others)) < 2:
        raise ValueError(
            f"`--seeds` holds no other seed than {result.seed}. Give results of other seeds, or leave it out."
        )


def seeds_table(result: AnyResult, others: Sequence[AnyResult]) -> Table | None:
    """One row per figure: this run, the mean over seeds, and that of data filtering where each has it beside; `None` where
    there is one seed."""
    seeds = seeds_of(result, others)
    if len(seeds) < 2:
        return None
    over, own = aggregate(seeds)[0]["figures"], figure_values(summary_of(result))
    rows, with_control, summaries = [], False, [summary_of(one) for one in seeds]
    own_bounds, bounds = summary_of(result).at_most, _at_most(seeds)
    control_bounds = {name for part in summaries if part.control is not None for name in part.control.at_most}
    for name, title in _titles().items():
        estimate, control = estimate_of(over[name]), of_control(name, summaries)
        if estimate.value is None:
            continue
        signed = name in _DIFFERENCES
        with_control = with_control or control.value is not None
        cells = [
            format_estimate(part, signed, missing="-", at_most=name in at_most)
            for part, at_most in ((Estimate(own[name]), own_bounds), (estimate, bounds), (control, control_bounds))
        ]
        rows.append([title, *cells])
    header = ["Nats a token", f"This run (seed {name_of(result.seed)})", _over(seeds), "Data filtering, over seeds"]
    if not with_control:
        header, rows = header[:-1], [row[:-1] for row in rows]
    caption = "Means with their 95 % intervals over seeds (Student's t)."
    if bounds or control_bounds:
        caption += f" {AT_MOST}."
    return Table(caption, header, rows) if rows else None


def _at_most(seeds: Sequence[AnyResult]) -> set[str]:
    """Differences that are upper bounds in any seed, and so in the mean."""
    return {name for one in seeds for name in summary_of(one).at_most}


def _over(seeds: Sequence[AnyResult]) -> str:
    return f"Over {len(seeds)} seeds ({', '.join(name_of(one.seed) for one in seeds)})"


def _titles() -> dict[str, str]:
    """Names in `figure_values` -> what they are called here: losses at the end, then differences."""
    losses = {f"{kind}_loss_final": f"{KINDS[kind]}: loss at the end" for kind in LOSS_KINDS}
    return {**losses, **{name: label.long for name, label in _DIFFERENCES.items()}}


def of_control(name: str, seeds: Sequence[ResultSummary]) -> Estimate:
    """The same of data filtering; without a value unless each seed has it."""
    values = []
    for control in (one.control for one in seeds):
        if control is None:
            return Estimate(None)
        kind = name.removesuffix("_loss_final")
        estimate = control.differences.get(name) if name in _DIFFERENCES else control.losses.get(kind)
        if estimate is None or estimate.value is None:
            return Estimate(None)
        values.append(estimate.value)
    return mean_interval(values)
