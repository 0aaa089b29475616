"""Forget loss after the attack against retain loss before it, a panel for each testbed, with the two reference curves.

Between the curves lies what can be removed: on A a model knows as much as one that saw the forget examples, on D as little
as one that never did. To the right is what a method costs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hf_era.evaluation.results import CONTROL, UNTOUCHED
from hf_era.evaluation.summary import estimate_of
from hf_era.reporting.labels import STARTS
from hf_era.reporting.numbers import is_number
from hf_era.reporting.plots.style import (
    CONTROL_COLOUR,
    METHOD_COLOURS,
    SERIES,
    UNTOUCHED_COLOUR,
    Look,
    bounds,
    label,
    legend_below,
    look,
    new_figure,
    nothing_to_show,
    own_style,
)

_CURVES = (("base", UNTOUCHED_COLOUR, "A: trained on all"), ("filtering", CONTROL_COLOUR, "D: data filtering"))
_COLOURS = (*METHOD_COLOURS, SERIES[0], SERIES[1], SERIES[6])
_X, _Y = "retain_loss", "attacked_forget_loss"


def draw(table: Mapping[str, Any], left_out: Sequence[str] = ()) -> Figure:
    """A table as `hf_era.evaluation.cell_table.table_of` makes it; rows that are `left_out` are points of the curves.
    Testbeds side by side; where some rows start from random weights and some from a model that exists, one below another,
    with the two beside each other."""
    rows = [row for row in table["rows"] if row["row"] not in left_out and _is_whole(row)]
    testbeds = [part for part in table["testbeds"] if part["curves"].get("loss") or _of(rows, part)]
    starts = list(dict.fromkeys(row.get("start") for row in rows)) or [None]
    with own_style():
        if not testbeds:
            return nothing_to_show("No attack was made.")
        styles = looks_of_rows(rows)
        shape = (1, len(testbeds)) if len(starts) == 1 else (len(testbeds), len(starts))
        legend = 0.19 * -(-(len(styles) + 2) // max(shape[1], 1))
        figure, grid = new_figure(3.8 * shape[0] + legend, *shape)
        panels = [panel for panels_of_testbed in grid for panel in panels_of_testbed]
        for panel, (testbed, start) in zip(panels, itertools.product(testbeds, starts), strict=True):
            curves = testbed["curves"].get("loss") or {}
            _curves(panel, curves)
            for row in _of(rows, testbed):
                if row.get("start") == start:
                    _point(panel, row, styles[row["row"]], _limits(curves))
            below = "" if len(starts) == 1 else f"\n{STARTS.get(str(start), start)}"
            panel.set_title(f"{_title(testbed)}{below}")
            panel.margins(0.08)
        for panels_of_testbed in grid:
            panels_of_testbed[0].set_ylabel("forget loss after the attack, nats a token")
        for panel in grid[-1]:
            panel.set_xlabel("retain loss before the attack, nats a token")
        handles = [_handle(Look(colour, "-", ".")) for _, colour, _ in _CURVES] + list(map(_handle, styles.values()))
        legend_below(figure, handles, [*(text for *_, text in _CURVES), *map(label, styles)])
        return figure


def looks_of_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, Look]:
    """Row -> look: a colour for each method with its router, one for all controls, and a marker for each of its rows."""
    colours_of_roles = {UNTOUCHED: UNTOUCHED_COLOUR, CONTROL: CONTROL_COLOUR}
    kinds = list(dict.fromkeys(_kind(row) for row in rows if row.get("role") not in colours_of_roles))
    found: dict[str, Look] = {}
    for row in {row["row"]: row for row in rows}.values():
        colour = colours_of_roles.get(str(row.get("role"))) or _COLOURS[kinds.index(_kind(row)) % len(_COLOURS)]
        found[row["row"]] = look(sum(other.color == colour for other in found.values()), colour)
    return found


def _kind(row: Mapping[str, Any]) -> tuple[Any, Any]:
    return row["method"], row.get("router")


def _title(testbed: Mapping[str, Any]) -> str:
    found = testbed["range"].get("loss")
    name = label(testbed["name"] or "all cells")
    return f"{name}: D - A {found['mean']:.2f} nats" if found else name


def _curves(panel: Axes, curves: Mapping[str, Any]) -> None:
    for name, colour, _ in _CURVES:
        if name in curves:
            panel.plot(curves[name]["retain"], curves[name]["forget"], color=colour, marker=".", linewidth=1.4)


def _limits(curves: Mapping[str, Any]) -> tuple[float, float]:
    """Retain losses of the left and the right edge: one model that forgot everything, or one wide interval, would press all
    others together."""
    retain = [value for curve in curves.values() for value in curve["retain"]]
    if not retain:
        return -math.inf, math.inf
    margin = 0.25 * (max(retain) - min(retain))
    return min(retain) - margin, max(retain) + margin


def _point(panel: Axes, row: Mapping[str, Any], style: Look, limits: tuple[float, float]) -> None:
    """The mean with its intervals; beyond the right edge at the edge, with its retain loss beside it."""
    x, y = (estimate_of(row["figures"][name]) for name in (_X, _Y))
    place, is_beyond = min(x.value or 0.0, limits[1]), (x.value or 0.0) > limits[1]
    lower, upper = (0.0, 0.0) if is_beyond else bounds(x)
    widths = [[max(min(lower, place - limits[0]), 0.0)], [max(min(upper, limits[1] - place), 0.0)]]
    panel.errorbar(
        [place], [y.value or 0.0], xerr=widths, yerr=[[part] for part in bounds(y)], color=style.color,
        marker=style.marker, markerfacecolor=style.face, linestyle="none", capsize=2, elinewidth=0.8, markersize=6,
    )  # fmt: skip
    if is_beyond:
        panel.annotate(
            f"at {x.value:.1f} \u2192", (place, y.value or 0.0), xytext=(-7, 0), textcoords="offset points",
            ha="right", va="center", fontsize="small", color=style.color,
        )  # fmt: skip


def _handle(style: Look) -> Line2D:
    is_curve = style.marker == "."
    return Line2D(
        [], [], color=style.color, marker=style.marker, markerfacecolor=style.face, linestyle="-" if is_curve else "none",
        markersize=8 if is_curve else 6,
    )  # fmt: skip


def _of(rows: Sequence[Mapping[str, Any]], testbed: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["testbed"] == testbed["name"]]


def _is_whole(row: Mapping[str, Any]) -> bool:
    return all(is_number((row["figures"].get(name) or {}).get("value")) for name in (_X, _Y))
