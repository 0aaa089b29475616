"""Losses and ablation gap while the routed training runs: does the capability settle in the auxiliary module?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hf_era.reporting.numbers import is_number
from hf_era.reporting.plots.style import FORGET, INK, MUTED, RETAIN, Results, first_run, legend_below, new_figure

# Key of the log, colour, line style, marker, label.
_LOSSES = (
    ("loss", MUTED, "-", "", "training loss"),
    ("eval_forget_loss", FORGET, "-", "o", "forget, module on"),
    ("eval_forget_loss_ablated", FORGET, "--", "s", "forget, ablated"),
    ("eval_retain_loss", RETAIN, "-", "o", "retain, module on"),
    ("eval_retain_loss_ablated", RETAIN, "--", "s", "retain, ablated"),
)
_GAPS = (
    ("eval_ablation_gap", FORGET, "-", "o", "ablation gap"),
    ("eval_retain_ablation_gap", RETAIN, "-", "o", "retain ablation gap"),
)


def has_data(results: Results) -> bool:
    return any(_curve(results, name) for name, *_ in (*_LOSSES, *_GAPS))


def caption(results: Results) -> str:
    if not any(_curve(results, name) for name, *_ in _GAPS):
        return "Losses on validation examples, and the training loss of the batches."
    text = (
        "Losses on validation examples with the auxiliary module on and ablated, and the difference of both: the ablation "
        "gap. The training loss is that of the batches; the forward pass does not depend on the routing."
    )
    if _minimum(results) is not None:
        text += " Dotted: the gap from which on the capability counts as localised."
    return text


def draw(results: Results) -> Figure:
    """Losses on the left, gaps on the right (left out if there is none), against optimizer steps."""
    with_gaps = any(_curve(results, name) for name, *_ in _GAPS)
    figure, [panels] = new_figure(3.6, 1, 2 if with_gaps else 1)
    lines = _lines(panels[0], results, _LOSSES)
    panels[0].set_title("Loss", loc="left")
    if with_gaps:
        lines += _lines(panels[1], results, _GAPS)
        minimum = _minimum(results)
        if minimum is not None:
            panels[1].axhline(minimum, color=INK, linestyle=":", linewidth=1)
        panels[1].axhline(0, color=INK, linewidth=0.8)
        panels[1].set_title("Ablated minus module on", loc="left")
    for panel in panels:
        panel.set_xlabel("optimizer step")
        panel.set_ylabel("nats a token")
    legend_below(figure, [handle for handle, _ in lines], [text for _, text in lines])
    return figure


def _lines(panel: Axes, results: Results, parts: Sequence[tuple[str, ...]]) -> list[tuple[Line2D, str]]:
    """What was drawn, with its label."""
    lines = []
    has_module = bool(_curve(results, "eval_forget_loss_ablated") or _curve(results, "eval_ablation_gap"))
    for name, colour, line_style, marker, text in parts:
        curve = _curve(results, name)
        if curve:
            shown = "" if len(curve) > 25 else marker or ("." if len(curve) == 1 else "")
            options: dict[str, Any] = {"color": colour, "linestyle": line_style, "linewidth": 1.4, "markersize": 4}
            [handle] = panel.plot(*zip(*curve, strict=True), marker=shown, **options)
            lines.append((handle, text if has_module else text.removesuffix(", module on")))
    return lines


def _curve(results: Results, name: str) -> list[tuple[int, float]]:
    """Step and value of everything that the first result's log has under this name."""
    run = first_run(results)
    log = [] if run is None else run.training.get("log_history") or []
    return [
        (entry["step"], entry[name]) for entry in log if is_number(entry.get("step")) and is_number(entry.get(name))
    ]


def _minimum(results: Results) -> float | None:
    run = first_run(results)
    value = None if run is None else run.training.get("minimum_ablation_gap")
    return value if is_number(value) else None
