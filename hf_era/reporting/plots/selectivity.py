"""Selectivity per layer: how much more active the auxiliary module is on forget examples than on retain examples."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hf_era.evaluation.intervals import Estimate
from hf_era.evaluation.results import RunResult
from hf_era.evaluation.summary import estimate_of
from hf_era.reporting.labels import layer_order
from hf_era.reporting.numbers import is_number
from hf_era.reporting.plots.style import INK, Results, label, legend_below, looks, name_places, new_figure, point


def has_data(results: Results) -> bool:
    return bool(_measured(results))


def caption(results: Results) -> str:
    return (
        "Mean absolute activation of the auxiliary module on forget examples over that on retain examples, with its 95 % "
        "interval of each run, over examples. 1 (the line): the module is no more active on forget examples."
    )


def draw(results: Results) -> Figure:
    """One group of points per layer, one point in it per result."""
    measured = _measured(results)
    layers = sorted({layer for _, part in measured for layer in part}, key=layer_order)
    styles, names = looks(results), list(dict.fromkeys(name for name, _ in measured))
    figure, [[panel]] = new_figure(3.4 + 0.12 * len(names))
    spread = 0.7 if len(measured) > 1 else 0.0
    for number, (name, part) in enumerate(measured):
        offset = spread * ((number + 0.5) / len(measured) - 0.5)
        for position, layer in enumerate(layers):
            if layer in part:
                point(panel, position + offset, part[layer], styles[name])
    panel.axhline(1, color=INK, linewidth=1)
    name_places(panel, layers)
    panel.set_xlim(-0.6, len(layers) - 0.4)
    panel.grid(False, axis="x")
    panel.set_xlabel("target layer")
    panel.set_ylabel("activation, forget / retain")
    if len(names) > 1:
        shown = [styles[name] for name in names]
        handles = [
            Line2D([], [], color=style.color, marker=style.marker, markerfacecolor=style.face, linestyle="none")
            for style in shown
        ]
        legend_below(figure, handles, [label(name) for name in names])
    return figure


def _measured(results: Results) -> list[tuple[str, dict[str, Estimate]]]:
    """By name, so that the seeds of one stand beside each other."""
    found = []
    for result in sorted(results, key=lambda result: (result.name, result.seed)):
        values = result.selectivity if isinstance(result, RunResult) else {}
        estimates = {str(layer): estimate_of(part) for layer, part in values.items()}
        known = {layer: estimate for layer, estimate in estimates.items() if is_number(estimate.value)}
        if known:
            found.append((result.name, known))
    return found
