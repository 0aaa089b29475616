"""Relearn curves: forget and retain loss over the steps of an attack.

One result: a line per number of examples N, for each N the attack that brought back most; mean and 95 % interval over
trials. Several results: a panel per N, a line per recipe. Each seed has examples of its own, so losses of several seeds are
only averaged as differences from the loss before the method on the same examples; the band reaches from the lowest seed to
the highest, since with the usual three seeds an interval of Student's t covers the panel. A trial that stopped early keeps
its last loss, because that is where its attacker stopped; a mean over the trials still running would jump whenever one
leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hf_era.evaluation.intervals import Estimate, mean_interval
from hf_era.evaluation.relearn.result import (
    RECOVERY_MARGIN,
    AttackSummary,
    RelearnResult,
    RelearnTrial,
    strongest_of,
)
from hf_era.evaluation.results import AnyResult
from hf_era.evaluation.summary import recipe_of
from hf_era.reporting.labels import short_attack_title
from hf_era.reporting.numbers import counted, is_number
from hf_era.reporting.plots.style import (
    INK,
    Look,
    Results,
    label,
    legend_below,
    look,
    looks,
    method_colour,
    new_figure,
)  # fmt: skip

MAXIMUM_COLUMNS = 4
MAXIMUM_BANDS = 8
"""Lines of a panel; above this the bands would hide each other and are left out."""
_KINDS = ("forget", "retain")
Curve = list[tuple[int, float]]
"""Step and value, by rising step."""


@dataclass
class _Seed:
    """The attacks on one result, and the strongest of them per number of examples."""

    relearning: RelearnResult
    strongest: dict[int, AttackSummary]


@dataclass
class _Recipe:
    """The results that are drawn as one line: seeds of one recipe, those that were attacked."""

    name: str
    seeds: list[_Seed] = field(default_factory=list)


def has_data(results: Results) -> bool:
    return bool(_attacked(results))


def caption(results: Results) -> str:
    attacked = _attacked(results)
    banded = len(attacked) <= MAXIMUM_BANDS
    mean = f"mean over trials{' with its 95 % interval' if banded else ''}"
    recovered = f"dotted: {RECOVERY_MARGIN:g} above, the level that counts as recovered."
    if len(results) == 1:
        lines = (
            "One line per number of examples that the attacker has: of the attacks with so many, the one that brought back "
            f"most; {mean}."
        )
        zero = f"Dashed: the loss before the method; {recovered}"
    else:
        lines = (
            "Of each result the attack that brought back most, among those with so many examples; the largest numbers of "
            f"examples are shown. A line is the {mean}"
        )
        if any(len(recipe.seeds) > 1 for recipe in attacked):
            band = "; the band reaches from the lowest seed to the highest" if banded else ""
            lines += f", and where a recipe has several seeds, over seeds{band}"
        zero = "Losses as they are: that before the method is not known of all."
        if _relative(attacked):
            zero = (
                "0, dashed, is the loss before the method on the same examples: a forget loss there has come back whole; "
                f"{recovered}"
            )
        lines += "."
    halves = any(seed.relearning.measured.get("selection_stories") for recipe in attacked for seed in recipe.seeds)
    if halves:
        lines += " Which one that is was chosen on forget examples other than these."
    return f"{lines} A trial that stopped early keeps its last loss. {_steps_text(attacked)} {zero}"


def _steps_text(attacked: Sequence[_Recipe]) -> str:
    """What a step reads."""
    sizes = {seed.relearning.settings.get("batch_stories") for recipe in attacked for seed in recipe.seeds}
    if sizes == {None}:
        return "A step reads all the attacker's examples."
    told = ", ".join(str(size) for size in sorted(size for size in sizes if size is not None))
    return f"A step reads {told} of the attacker's examples{', or all' if None in sizes else ''}."


def draw(results: Results) -> Figure:
    """Forget and retain: side by side for one result, else a row each; steps against nats a token."""
    attacked = _attacked(results)
    return _draw_one(attacked[0], results[0]) if len(results) == 1 else _draw_several(attacked, looks(results))


def trials_mean(trials: Sequence[RelearnTrial], name: str) -> tuple[list[int], list[Estimate]]:
    """The steps that any trial of an attack measured, and at each the mean and interval over trials of `forget_loss` or
    `retain_loss`; a trial counts with its last loss at or before the step."""
    columns = _columns([[(point.step, getattr(point, name)) for point in trial.curve.points] for trial in trials])
    return list(columns), [mean_interval(values) for values in columns.values()]


def _columns(curves: Sequence[Curve]) -> dict[int, list[float]]:
    """Step -> the last value of each curve at or before it, without curves that begin later."""
    steps = sorted({step for curve in curves for step, _ in curve})
    passed = {step: [[value for at, value in curve if at <= step] for curve in curves] for step in steps}
    return {step: [values[-1] for values in parts if values] for step, parts in passed.items()}


def strongest_per_stories(relearning: RelearnResult) -> dict[int, AttackSummary]:
    """N -> the strongest attack with so many examples, by rising N."""
    summaries = relearning.summaries()
    parts = {
        stories: [part for part in summaries if part.stories == stories] for stories in {p.stories for p in summaries}
    }
    found = {stories: strongest_of(own) for stories, own in sorted(parts.items())}
    return {stories: part for stories, part in found.items() if part is not None}


def _attacked(results: Results) -> list[_Recipe]:
    """In the order of their first results."""
    recipes: dict[frozenset[tuple[str, str]], _Recipe] = {}
    for result in results:
        strongest = {} if result.relearning is None else strongest_per_stories(result.relearning)
        if result.relearning is not None and strongest:
            recipe = recipes.setdefault(frozenset(recipe_of(result).items()), _Recipe(result.name))
            recipe.seeds.append(_Seed(result.relearning, strongest))
    return list(recipes.values())


def _relative(attacked: Sequence[_Recipe]) -> bool:
    """Whether the losses before the method are known of all, on the examples of the attack."""
    known = [seed.relearning.before or {} for recipe in attacked for seed in recipe.seeds]
    return all(is_number(before.get(kind)) for before in known for kind in _KINDS)


def _draw_one(recipe: _Recipe, result: AnyResult) -> Figure:
    """The method's colour, the stronger the more examples the attacker has."""
    [seed] = recipe.seeds
    figure, [panels] = new_figure(3.4, 1, 2)
    handles, labels = [], []
    for number, part in enumerate(seed.strongest.values()):
        style = look(number, method_colour(result))
        strength = 0.4 + 0.6 * (number + 1) / len(seed.strongest)
        for panel, kind in zip(panels, _KINDS, strict=True):
            _line(panel, *trials_mean(_trials(seed, part), f"{kind}_loss"), style, number < MAXIMUM_BANDS, strength)
        handles.append(_handle(style, strength))
        labels.append(label(short_attack_title(part.attack)))
    before = seed.relearning.before or {}
    for panel, kind in zip(panels, _KINDS, strict=True):
        _level(panel, kind, before.get(kind))
        _name_axes(panel, f"{kind.capitalize()} loss")
    legend_below(figure, handles, labels)
    return figure


def _draw_several(attacked: list[_Recipe], styles: dict[str, Look]) -> Figure:
    numbers = sorted({stories for recipe in attacked for seed in recipe.seeds for stories in seed.strongest})
    numbers = numbers[-MAXIMUM_COLUMNS:]
    relative, names = _relative(attacked), sorted({recipe.name for recipe in attacked})
    figure, rows = new_figure(5.8 + 0.08 * len(names), 2, len(numbers), sharey="row")
    for kind, panels in zip(_KINDS, rows, strict=True):
        for panel, stories in zip(panels, numbers, strict=True):
            panel.tick_params(labelleft=True)  # on a phone they stand one below another
            for recipe in attacked:
                seeds = [seed for seed in recipe.seeds if stories in seed.strongest]
                if seeds:
                    curve = _over_seeds(seeds, stories, kind, relative)
                    _line(panel, *curve, styles[recipe.name], len(attacked) <= MAXIMUM_BANDS)
            _level(panel, kind, 0.0 if relative else None)
            up = "nats a token above before" if relative else "nats a token"
            _name_axes(panel, f"{kind.capitalize()} loss, {counted(stories, 'example', 'examples')}", up)
    legend_below(figure, [_handle(styles[name]) for name in names], [label(name) for name in names])
    return figure


def _trials(seed: _Seed, part: AttackSummary) -> list[RelearnTrial]:
    return [trial for trial in seed.relearning.trials if trial.attack == part.attack]


def _over_seeds(seeds: list[_Seed], stories: int, kind: str, relative: bool) -> tuple[list[int], list[Estimate]]:
    """Of one seed the mean over trials with its interval; of several seeds their mean, with the lowest and the highest of
    them. Less the loss before the method if `relative`."""
    curves = []
    for seed in seeds:
        before = (seed.relearning.before or {})[kind] if relative else 0.0
        steps, estimates = trials_mean(_trials(seed, seed.strongest[stories]), f"{kind}_loss")
        curves.append((steps, [Estimate(*(_or_nan(part) - before for part in _parts(one))) for one in estimates]))
    if len(curves) == 1:
        return curves[0]
    columns = _columns([[(step, _or_nan(one.value)) for step, one in zip(*curve, strict=True)] for curve in curves])
    means = [mean_interval(values).value for values in columns.values()]
    bounds = [(min(values), max(values)) for values in columns.values()]
    return list(columns), [Estimate(mean, *bound) for mean, bound in zip(means, bounds, strict=True)]


def _parts(estimate: Estimate) -> tuple[float | None, float | None, float | None]:
    return estimate.value, estimate.low, estimate.high


def _line(
    panel: Axes, steps: list[int], estimates: list[Estimate], style: Look, banded: bool, strength: float = 1.0
) -> None:
    values, low, high = ([_or_nan(part) for part in column] for column in zip(*map(_parts, estimates), strict=True))
    every = -(-len(steps) // 8)
    panel.plot(
        steps, values, color=style.color, linestyle=style.line_style, linewidth=1.6, marker=style.marker, markersize=4,
        markerfacecolor=style.face,
        markevery=every, alpha=strength,
    )  # fmt: skip
    if banded and any(map(is_number, low)):
        panel.fill_between(steps, low, high, color=style.color, alpha=0.15 * strength, linewidth=0)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _level(panel: Axes, kind: str, level: float | None) -> None:
    """The loss before the method, and that of recovery."""
    if level is None or not is_number(level):
        return
    panel.axhline(level, color=INK, linestyle="--", linewidth=1)
    if kind == "forget":
        panel.axhline(level + RECOVERY_MARGIN, color=INK, linestyle=":", linewidth=1)


def _name_axes(panel: Axes, title: str, up: str = "nats a token") -> None:
    panel.set_title(title, loc="left")
    panel.set_ylabel(up)
    panel.set_xlabel("step of the attack")


def _handle(style: Look, strength: float = 1.0) -> Line2D:
    return Line2D(
        [], [], color=style.color, linestyle=style.line_style, linewidth=1.6, marker=style.marker, markersize=4,
        markerfacecolor=style.face,
        alpha=strength,
    )  # fmt: skip
