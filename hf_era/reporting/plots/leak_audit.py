"""The leak audit: where the gradient of forget examples goes with routing on and off, and what ablation removes.

First each part's share of the squared gradient norm, per layer; then how much of the gradient is left of that without
routing (1: the same, 0: blocked, below 0: un-teaching); then how the losses change when a layer's auxiliary module is
ablated.
"""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from hf_era.evaluation.intervals import Estimate
from hf_era.reporting.labels import MOMENTS, PARTS, layer_order
from hf_era.reporting.numbers import NOT_MEASURED, is_number
from hf_era.reporting.plots.style import (
    FORGET,
    INK,
    MUTED,
    RETAIN,
    SERIES,
    Look,
    Results,
    first_run,
    legend_below,
    name_places,
    new_figure,
    point,
)  # fmt: skip

_SHARES = (
    ("original_up_share", SERIES[5], f"{PARTS['original']}, up projection"),
    ("original_down_share", RETAIN, f"{PARTS['original']}, down projection"),
    ("auxiliary_share", FORGET, PARTS["auxiliary"]),
)
_EDGE: dict[str, Any] = {"edgecolor": INK, "linewidth": 0.5}
_UNROUTED = "////"
"""Hatching of what is without routing."""


def has_data(results: Results) -> bool:
    audit = audit_of(results)
    return gradient_moment(audit) is not None or bool(audit.get("ablation"))


def caption(results: Results) -> str:
    moment = gradient_moment(audit_of(results))
    when = f" {MOMENTS[moment]}" if moment else ""
    return (
        f"Shares of the squared norm of the gradient of forget examples{when}; left bar of a layer: routing on, right bar, "
        "hatched: routing off. The rest is everything outside the routed MLPs. Alignment with the gradient without routing: "
        "1 the same, 0 blocked, below 0 un-teaching. What ablation removes: how ablating one layer's auxiliary module, or "
        "all, changes the losses, with 95 % intervals of this run, over examples."
    )


def draw(results: Results) -> Figure:
    """Shares, alignment and ablation side by side. A panel without figures says so."""
    audit = audit_of(results)
    moment = gradient_moment(audit)
    gradient = (audit.get("gradient") or {}).get(moment) or {}
    figure, [[shares, alignment, ablation]] = new_figure(3.8, 1, 3)
    _shares(shares, gradient)
    _alignment(alignment, gradient.get("alignment") or {})
    _ablation(ablation, audit.get("ablation") or {})
    entries = [(colour, text) for _, colour, text in _SHARES] + [(MUTED, "rest")]
    handles = [Patch(facecolor=colour, **_EDGE) for colour, _ in entries]
    handles.append(Patch(facecolor="none", hatch=_UNROUTED, **_EDGE))
    legend_below(figure, handles, [*(text for _, text in entries), "routing off"])
    return figure


def audit_of(results: Results) -> dict[str, Any]:
    """The first result's audit; empty if it has none."""
    run = first_run(results)
    return run.leak_audit if run is not None else {}


def gradient_moment(audit: dict[str, Any]) -> str | None:
    """The moment whose gradient is shown: `trained`, else `start`; `None` if neither was measured."""
    gradient = audit.get("gradient") or {}
    return next((name for name in reversed(MOMENTS) if gradient.get(name)), None)


def _shares(panel: Axes, gradient: dict[str, Any]) -> None:
    routed, unrouted = (gradient.get(name) or {} for name in ("routed", "unrouted"))
    layers = sorted({*(routed.get("layers") or {}), *(unrouted.get("layers") or {})}, key=layer_order)
    panel.set_title("Gradient of forget examples", loc="left")
    if not layers:
        return _without(panel)
    for side, part in ((-0.21, routed), (0.21, unrouted)):
        drawn = {**_EDGE, "width": 0.38, "hatch": None if part is routed else _UNROUTED}
        for place, layer in enumerate(layers):
            bottom = 0.0
            for name, colour, _ in _SHARES:
                share = ((part.get("layers") or {}).get(layer) or {}).get(name)
                if share is not None and is_number(share):
                    panel.bar(place + side, share, bottom=bottom, color=colour, **drawn)
                    bottom += share
        if is_number(part.get("rest_share")):
            panel.bar(len(layers) + side, part["rest_share"], color=MUTED, **drawn)
    name_places(panel, [*layers, "rest"])
    panel.set_xlabel("target layer")
    panel.set_ylabel("share of the squared norm")
    panel.grid(True, axis="y")


def _alignment(panel: Axes, alignment: dict[str, Any]) -> None:
    panel.set_title("Alignment with the unrouted gradient", loc="left")
    layers = sorted(alignment, key=layer_order)
    if not layers:
        return _without(panel)
    for name, colour, marker in (("original", RETAIN, "s"), ("auxiliary", FORGET, "o")):
        found = [(place, alignment[layer].get(name)) for place, layer in enumerate(layers)]
        known = [(place, value) for place, value in found if is_number(value)]
        if known:
            panel.plot(*zip(*known, strict=True), color=colour, marker=marker, markersize=5, label=PARTS[name])
    _name_axes(panel, layers, "target layer", "1: unchanged, 0: blocked")
    _legend(panel, panel.get_legend_handles_labels())


def _ablation(panel: Axes, ablation: dict[str, Any]) -> None:
    panel.set_title("What ablation removes", loc="left")
    layers = sorted(ablation, key=layer_order)
    if not layers:
        return _without(panel)
    handles = []
    for side, (kind, colour, marker) in ((-0.12, ("forget", FORGET, "o")), (0.12, ("retain", RETAIN, "s"))):
        for place, layer in enumerate(layers):
            values = (ablation[layer] or {}).get(kind)
            if values:
                point(panel, place + side, Estimate(**values), Look(colour, "none", marker))
        handles.append(Line2D([], [], color=colour, marker=marker, linestyle="none", markersize=5))
    _name_axes(panel, layers, "ablated layer", "added nats a token")
    _legend(panel, (handles, ["forget loss", "retain loss"]))


def _legend(panel: Axes, entries: tuple[list[Any], list[Any]]) -> None:
    """Below the panel, where it covers nothing."""
    panel.legend(*entries, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)


def _name_axes(panel: Axes, layers: list[str], across: str, up: str) -> None:
    panel.axhline(0, color=INK, linewidth=0.8)
    name_places(panel, layers)
    panel.set_xlim(-0.5, len(layers) - 0.5)
    panel.set_xlabel(across)
    panel.set_ylabel(up)
    panel.grid(True, axis="y")


def _without(panel: Axes) -> None:
    panel.set_axis_off()
    panel.text(0.5, 0.5, NOT_MEASURED, ha="center", va="center", transform=panel.transAxes)
