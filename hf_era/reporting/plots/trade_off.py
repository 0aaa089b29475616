"""Forget loss against retain loss: where each model ends, where it came from, and where data filtering stands.

Up is more forgetting, right is a dearer one: the best place is up and left.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hf_era.evaluation.intervals import Estimate
from hf_era.evaluation.summary import ResultSummary, summary_of
from hf_era.reporting.numbers import is_number
from hf_era.reporting.plots.style import (
    CONTROL_COLOUR,
    MUTED,
    Look,
    Results,
    bounds,
    label,
    legend_below,
    looks,
    new_figure,
)

Losses = dict[str, Estimate]


def has_data(results: Results) -> bool:
    return any(_is_whole(summary_of(result).final) for result in results)


def caption(results: Results) -> str:
    return (
        "Filled: the final model with 95 % intervals of each run, over examples; hollow, at the foot of the arrow: "
        "the model before the method. Up is more forgetting, to the right the retain loss is paid for it. The star is data "
        "filtering, a model that never saw forget examples: above it, a model is worse at forget examples than one that "
        "does not know them."
    )


def draw(results: Results) -> Figure:
    """One point per result, one look per name; both axes in nats a token."""
    shown = sorted(map(summary_of, results), key=lambda figures: figures.result.name)
    styles = looks(results)
    figure, [[panel]] = new_figure(4.4 + 0.1 * len(styles))
    handles, labels, named = [], [], set()
    for figures in shown:
        if not _is_whole(figures.final):
            continue
        style = styles[figures.result.name]
        if figures.is_control:
            style = Look(style.color, "none", "*")
        if _is_whole(figures.before) and not figures.is_untouched:
            _arrow(panel, figures, style)
        _cross(panel, figures.final, style)
        if figures.result.name not in named:
            handles.append(_handle(style))
            labels.append(label(figures.result.name))
            named.add(figures.result.name)
    for name, losses in _compared_with(shown):
        style = Look(CONTROL_COLOUR, "none", "*")
        _cross(panel, losses, style)
        handles.append(_handle(style))
        labels.append(name)
    panel.set_xlabel("retain loss, nats a token")
    panel.set_ylabel("forget loss, nats a token")
    panel.margins(0.08)
    legend_below(figure, handles, labels)
    return figure


def _compared_with(shown: Sequence[ResultSummary]) -> list[tuple[str, Losses]]:
    """Data-filtering runs that results only quote, each once, without those that are shown themselves."""
    found: dict[tuple[str, int], Losses] = {}
    for figures in shown:
        control = figures.control
        if control is not None and _is_whole(control.losses):
            found.setdefault((control.name, control.seed), control.losses)
    for figures in shown:
        if figures.is_control:
            found.pop((figures.result.name, figures.result.seed), None)
    return [(f"{label(name)} (data filtering)", losses) for (name, _), losses in found.items()]


def _arrow(panel: Axes, figures: ResultSummary, style: Look) -> None:
    start, end = (_place(losses) for losses in (figures.before, figures.final))
    panel.annotate(
        "", end, start, arrowprops={"arrowstyle": "->", "color": style.color, "alpha": 0.6, "linewidth": 1.1},
    )  # fmt: skip
    panel.plot([start[0]], [start[1]], marker="o", color=MUTED, markerfacecolor="none", linestyle="none")


def _cross(panel: Axes, losses: Losses, style: Look) -> None:
    place = _place(losses)
    sideways, upward = (bounds(losses[kind]) for kind in ("retain", "forget"))
    panel.errorbar(
        [place[0]], [place[1]], xerr=[[part] for part in sideways],
        yerr=[[part] for part in upward], color=style.color, marker=style.marker, linestyle="none", capsize=2,
        markerfacecolor=style.face, elinewidth=0.8, markersize=11 if style.marker == "*" else 6,
    )  # fmt: skip


def _handle(style: Look) -> Line2D:
    size = 10 if style.marker == "*" else 6
    return Line2D(
        [], [], color=style.color, marker=style.marker, markerfacecolor=style.face, linestyle="none", markersize=size
    )


def _place(losses: Losses) -> tuple[float, float]:
    """Retain and forget loss: x and y."""
    x, y = (losses[kind].value for kind in ("retain", "forget"))
    return float("nan") if x is None else x, float("nan") if y is None else y


def _is_whole(losses: Losses) -> bool:
    return all(kind in losses and is_number(losses[kind].value) for kind in ("forget", "retain"))
