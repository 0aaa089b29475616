"""What methods for a model that exists reach with how much compute: share of filtering after the attack, and retain loss
over that of training on with everything for as long. A column of panels for each testbed, or of one testbed both side by
side; a line for each method. Those with one budget alone stand beside one another around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from hf_era.evaluation.summary import estimate_of
from hf_era.reporting.numbers import is_number
from hf_era.reporting.plots.style import (
    MUTED,
    SERIES,
    Look,
    bounds,
    label,
    legend_below,
    look,
    new_figure,
    nothing_to_show,
    own_style,
)

_X = "training_share"
_PANELS = (  # figure, axis, levels that nothing is meant to pass, and their limits
    ("share_of_filtering", "share of filtering", (0.0, 1.0)),
    ("over_continuing", "retain loss over continuing\non everything, nats a token", (0.0,)),
)
_SPREAD = 1.6
"""The room that methods share which have the same budget alone, a ratio of shares."""


def draw(table: Mapping[str, Any], frontier: Mapping[str, Sequence[str]]) -> Figure:
    """Draws the rows of a frontier.

    Args:
        table: as `hf_era.evaluation.cell_table.table_of` makes it. frontier: method -> its rows.
    """
    rows = {(row["testbed"], row["row"]): row for row in table["rows"] if _value(row, _X) is not None}
    testbeds = list(dict.fromkeys(testbed for testbed, _ in rows))
    shown = [name for name, own in frontier.items() if any(row in own for _, row in rows)]
    with own_style():
        if not shown:
            return nothing_to_show("No row of the frontier has a result.")
        styles = {name: look(number // len(SERIES), SERIES[number % len(SERIES)]) for number, name in enumerate(shown)}
        height = (3.4 if len(testbeds) == 1 else 5.6) + 0.19 * -(-len(shown) // (2 * len(testbeds)))
        if len(testbeds) == 1:
            figure, (beside,) = new_figure(height, 1, len(_PANELS))
            panels = [[panel] for panel in beside]
        else:
            figure, panels = new_figure(height, len(_PANELS), len(testbeds), sharex="col")
        for column, testbed in enumerate(testbeds):
            places = _places(rows, testbed, [frontier[name] for name in shown])
            for place, (measure, axis, levels) in enumerate(_PANELS):
                panel = panels[place][column]
                for level in levels:
                    panel.axhline(level, color=MUTED, linewidth=0.8, linestyle=":")
                for name in shown:
                    own = {row: rows[testbed, row] for row in frontier[name] if (testbed, row) in rows}
                    _line(panel, [(places[row], one) for row, one in own.items()], measure, styles[name])
                if column == 0:
                    panel.set_ylabel(axis)
                if place == len(_PANELS) - 1 or len(testbeds) == 1:
                    _shares(
                        panel,
                        [value for (name, _), row in rows.items() if name == testbed if (value := _value(row, _X))],
                    )
            panels[0][column].set_title(label(testbed or "all cells"))
        handles = [
            Line2D(
                [], [], color=style.color, marker=style.marker, markerfacecolor=style.face, linestyle=style.line_style
            )
            for style in styles.values()
        ]
        legend_below(figure, handles, list(map(label, styles)))
        return figure


def _places(
    rows: Mapping[tuple[str, str], Mapping[str, Any]], testbed: str, methods: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Row -> where it stands: at its share of compute, or where it is its method's only one, beside others of that share."""
    shares = {row: _value(found, _X) or 0.0 for (name, row), found in rows.items() if name == testbed}
    alone = [own[0] for method in methods if len(own := [row for row in method if row in shares]) == 1]
    places = dict(shares)
    for share in {round(shares[row], 2) for row in alone}:
        near = list(dict.fromkeys(row for row in alone if round(shares[row], 2) == share))
        for number, row in enumerate(near):
            places[row] = shares[row] * _SPREAD ** ((number + 0.5) / len(near) - 0.5)
    return places


def _line(panel: Axes, rows: Sequence[tuple[float, Mapping[str, Any]]], measure: str, style: Look) -> None:
    points = [(x, estimate_of(row["figures"].get(measure))) for x, row in rows]
    points = sorted((point for point in points if point[1].value is not None), key=lambda point: point[0])
    if not points:
        return
    widths = [bounds(estimate) for _, estimate in points]
    panel.errorbar(
        [x for x, _ in points], [estimate.value or 0.0 for _, estimate in points],
        yerr=[[lower for lower, _ in widths], [upper for _, upper in widths]], color=style.color, marker=style.marker,
        markerfacecolor=style.face, linestyle=style.line_style, capsize=2, elinewidth=0.8, markersize=5,
    )  # fmt: skip


def _shares(panel: Axes, values: Sequence[float]) -> None:
    """Shares of compute on a logarithmic axis, in percent, at the budgets that there are."""
    texts = {f"{100 * value:.2g}": value for value in sorted(values)}  # near ones, as of several seeds, share a tick
    panel.set_xscale("log")
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xticks(list(texts.values()), [f"{float(text):g} %" for text in texts])
    panel.set_xlabel("compute, share of the pretraining")


def _value(row: Mapping[str, Any], name: str) -> float | None:
    value = (row["figures"].get(name) or {}).get("value")
    return value if value is not None and is_number(value) else None
