"""Relearn curves: forget and retain loss over the steps of an attack, mean and 95 % interval over trials.

One result: a line per number of examples N, for each N the attack that brought back most. Several results: a row of panels
per N, a line per result, the seeds of one recipe in the same colour. A trial that stopped early keeps its last loss,
because that is where its attacker stopped; a mean over the trials still running would jump whenever one leaves.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hf_era.evaluation.intervals import Estimate, mean_interval
from hf_era.evaluation.relearn.result import RECOVERY_MARGIN, AttackSummary, RelearnResult, RelearnTrial
from hf_era.reporting.labels import short_attack_title
from hf_era.reporting.numbers import counted, is_number
from hf_era.reporting.plots.style import INK, Look, Results, label, legend_below, look, looks, new_figure

MAXIMUM_ROWS = 4
MAXIMUM_BANDS = 6
"""Lines of a panel; above this the bands would hide each other and are left out."""
Attacked = tuple[str, RelearnResult, dict[int, AttackSummary]]
"""Name, attacks, and the strongest attack per number of examples."""


def has_data(results: Results) -> bool:
    return bool(_attacked(results))


def caption(results: Results) -> str:
    lines = (
        "One line per number of examples that the attacker has: of the attacks with so many, the one that brought back most."
        if len(results) == 1
        else "Of each result the attack that brought back most, among those with so many examples; the largest numbers of "
        "examples are shown."
    )
    left_out = "" if len(results) == 1 else " (left out where the results do not share it)"
    crowded = max(len(results), 1) > MAXIMUM_BANDS
    return (
        f"{lines} Mean over trials{'' if crowded else ' with its 95 % interval'}; a trial that stopped early keeps its "
        "last loss. A step reads all the attacker's examples. Dashed: the loss before the method; dotted: that plus "
        f"{RECOVERY_MARGIN:g}, the level that counts as recovered{left_out}."
    )


def draw(results: Results) -> Figure:
    """Two columns, forget and retain; steps against nats a token."""
    attacked = _attacked(results)
    return _draw_one(*attacked[0][1:]) if len(results) == 1 else _draw_several(attacked, looks(results))


def trials_mean(trials: Sequence[RelearnTrial], name: str) -> tuple[list[int], list[Estimate]]:
    """The steps that any trial of an attack measured, and at each the mean and interval over trials of `forget_loss` or
    `retain_loss`; a trial counts with its last loss at or before the step."""
    steps = sorted({point.step for trial in trials for point in trial.curve.points})
    estimates = []
    for step in steps:
        passed = [[point for point in trial.curve.points if point.step <= step] for trial in trials]
        estimates.append(mean_interval([getattr(points[-1], name) for points in passed if points]))
    return steps, estimates


def strongest_per_stories(relearning: RelearnResult) -> dict[int, AttackSummary]:
    """N -> the attack with so many examples and the lowest mean of the lowest forget losses, by rising N."""
    found: dict[int, AttackSummary] = {}
    finite = [part for part in relearning.summaries() if is_number(part.lowest_forget.value)]
    for part in sorted(finite, key=lambda part: part.lowest_forget.value or 0.0):
        found.setdefault(part.stories, part)
    return dict(sorted(found.items()))


def _attacked(results: Results) -> list[Attacked]:
    pairs = [(result.name, result.relearning) for result in results]
    found = [(name, part, strongest_per_stories(part)) for name, part in pairs if part is not None]
    return [attacked for attacked in found if attacked[-1]]


def _draw_one(relearning: RelearnResult, strongest: dict[int, AttackSummary]) -> Figure:
    figure, [panels] = new_figure(3.6, 1, 2)
    handles, labels = [], []
    for number, (stories, part) in enumerate(strongest.items()):
        style = look(number)
        _line(panels, relearning, part, style, banded=number < MAXIMUM_BANDS)
        handles.append(_handle(style))
        labels.append(label(short_attack_title(part.kind, str(stories), f"{part.learning_rate:g}")))
    _levels(panels, [relearning])
    _name_axes(panels)
    legend_below(figure, handles, labels)
    return figure


def _draw_several(attacked: list[Attacked], styles: dict[str, Look]) -> Figure:
    numbers = sorted({stories for *_, strongest in attacked for stories in strongest})[-MAXIMUM_ROWS:]
    names = list(dict.fromkeys(name for name, *_ in attacked))
    banded = len(attacked) <= MAXIMUM_BANDS
    figure, rows = new_figure(2.3 * len(numbers) + 0.6 + 0.12 * len(names), len(numbers), 2, sharex=True)
    for stories, panels in zip(numbers, rows, strict=True):
        for name, relearning, strongest in attacked:
            part = strongest.get(stories)
            if part is not None:
                _line(panels, relearning, part, styles[name], banded)
        _levels(panels, [relearning for _, relearning, _ in attacked])
        _name_axes(panels, f", {counted(stories, 'example', 'examples')}", stories == numbers[-1])
    legend_below(figure, [_handle(styles[name]) for name in names], [label(name) for name in names])
    return figure


def _line(panels: list[Axes], relearning: RelearnResult, part: AttackSummary, style: Look, banded: bool) -> None:
    attack = part.kind, part.stories, part.learning_rate
    trials = [trial for trial in relearning.trials if trial.attack == attack]
    for panel, name in zip(panels, ("forget_loss", "retain_loss"), strict=True):
        steps, estimates = trials_mean(trials, name)
        values = [_or_nan(estimate.value) for estimate in estimates]
        panel.plot(steps, values, color=style.color, linestyle=style.line_style, linewidth=1.6)
        if len(steps) == 1:
            panel.plot(steps, values, color=style.color, marker=style.marker)
        low, high = (
            [_or_nan(estimate.low) for estimate in estimates],
            [_or_nan(estimate.high) for estimate in estimates],
        )
        if banded and any(map(is_number, low)):
            panel.fill_between(steps, low, high, color=style.color, alpha=0.18, linewidth=0)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _levels(panels: list[Axes], relearnings: Sequence[RelearnResult]) -> None:
    """The losses before the method, where all results share them."""
    known = [relearning.before for relearning in relearnings if relearning.before is not None]
    for panel, name in zip(panels, ("forget", "retain"), strict=True):
        levels = {round(before[name], 4) for before in known if is_number(before.get(name))}
        if len(levels) != 1:
            continue
        [level] = levels
        panel.axhline(level, color=INK, linestyle="--", linewidth=1)
        if name == "forget":
            panel.axhline(level + RECOVERY_MARGIN, color=INK, linestyle=":", linewidth=1)


def _name_axes(panels: list[Axes], more: str = "", with_steps: bool = True) -> None:
    for panel, name in zip(panels, ("Forget", "Retain"), strict=True):
        panel.set_title(f"{name} loss{more}", loc="left")
        panel.set_ylabel("nats a token")
        if with_steps:
            panel.set_xlabel("step of the attack")


def _handle(style: Look) -> Line2D:
    return Line2D([], [], color=style.color, linestyle=style.line_style, linewidth=1.6)
