"""Profiles of several modules: the loss on each kind of examples with each combination of modules on, as a heat map."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from hf_era.evaluation.results import AnyResult
from hf_era.reporting.module_tables import profile_columns, profile_losses
from hf_era.reporting.numbers import format_number, is_number
from hf_era.reporting.plots.style import FORGET, INK, Results, label, new_figure

STRONGEST = 0.75
"""Opacity of the highest loss, so that a number on it stays legible."""
SMALLEST_SPAN = 0.1
"""Nats a token between white and darkest at least: less is no difference to speak of, and should not look like one."""


def has_data(results: Results) -> bool:
    return any(is_number(value) for row in _losses(results[0]) for value in row)


def caption(results: Results) -> str:
    return (
        "Loss, nats a token, with each combination of modules on (rows) on each kind of examples (columns). The darker, the "
        "higher above the lowest of its column: a module should darken its own column, and no other, where it is off."
    )


def draw(results: Results) -> Figure:
    """A cell per profile and kind of examples; each column has a scale of its own, for some examples are harder."""
    result = results[0]
    rows, titles = _losses(result), list(profile_columns(result).values())
    figure, [[panel]] = new_figure(1.1 + 0.3 * len(rows))
    spans = [max(known) - min(known) for known in map(_known, zip(*rows, strict=True)) if known]
    span = max([SMALLEST_SPAN, *spans])
    for column, values in enumerate(zip(*rows, strict=True)):
        lowest = min(_known(values), default=0.0)
        for row, value in enumerate(values):
            if is_number(value):
                opacity = STRONGEST * (value - lowest) / span
                panel.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, color=FORGET, alpha=opacity, linewidth=0))
            panel.text(column, row, format_number(value, 2), ha="center", va="center", color=INK)
    panel.set_xlim(-0.5, len(titles) - 0.5)
    panel.set_ylim(len(rows) - 0.5, -0.5)
    names = [label(title.removesuffix(": forget examples"), 18) for title in titles]
    panel.set_xticks(range(len(titles)), names, rotation=30, ha="right", rotation_mode="anchor")
    panel.set_yticks(range(len(rows)), [label(profile.get("name"), 30) for profile in result.profiles])
    panel.tick_params(length=0)
    panel.grid(False)
    return figure


def _losses(result: AnyResult) -> list[list[Any]]:
    """(profiles, kinds of examples), `None` where there is none."""
    columns = profile_columns(result)
    table = [profile_losses(profile) for profile in result.profiles]
    return [[(losses.get(key) or {}).get("loss") for key in columns] for losses in table]


def _known(values: Any) -> list[float]:
    return [float(value) for value in values if is_number(value)]
