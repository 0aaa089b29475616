"""The tokens that the frequency rule routes: their weight, and how often they stand in forget and retain examples."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import StrMethodFormatter

from hf_era.evaluation.results import AnyResult
from hf_era.reporting.numbers import is_number
from hf_era.reporting.plots.style import FORGET, MUTED, RETAIN, SERIES, Results, label, legend_below, new_figure
from hf_era.reporting.tables import routed_tokens
from hf_era.reporting.text import token_text

STRONGLY = 0.5
MODERATELY = 0.85
"""Tokens with a routing weight below these are routed strongly and moderately."""
SHOWN = 20


def has_data(results: Results) -> bool:
    return bool(routed_tokens(results[0]))


def caption(results: Results) -> str:
    strongly, moderately, listed = counts(results[0])
    return (
        f"The {min(listed, SHOWN)} tokens with the lowest routing weight of {listed} that are frequent enough "
        f"to be listed: {strongly} strongly routed (weight below {STRONGLY:g}), {moderately} moderately (below "
        f"{MODERATELY:g}). Weight 0 is treated as forget, 1 as retain."
    )


def counts(result: AnyResult) -> tuple[int, int, int]:
    """How many tokens are routed strongly, how many moderately, and how many are listed."""
    weights = [row["weight"] for row in routed_tokens(result)]
    strongly = sum(weight < STRONGLY for weight in weights)
    return strongly, sum(weight < MODERATELY for weight in weights) - strongly, len(weights)


def draw(results: Results) -> Figure:
    """A line per token: on the left its weight, on the right its frequencies per 10,000 tokens."""
    rows = routed_tokens(results[0])[:SHOWN]
    figure, [[left, right]] = new_figure(1.5 + 0.22 * len(rows), 1, 2, sharey=True)
    seen: list[float] = []
    for place, row in enumerate(rows):
        left.barh(place, max(row["weight"], 0.004), color=_colour(row["weight"]), height=0.7)
        ends = [row[name] if is_number(row.get(name)) else None for name in ("forget_per_10k", "retain_per_10k")]
        known = [float(end) for end in ends if end is not None]
        seen += known
        right.plot(known, [place] * len(known), color=MUTED, linewidth=1, zorder=1)
        for end, colour, marker in zip(ends, (FORGET, RETAIN), ("o", "s"), strict=True):
            if end is not None:
                right.plot([end], [place], color=colour, marker=marker, markersize=5, linestyle="none")
    left.set_yticks(range(len(rows)), [label(token_text(row["token"]), 18) for row in rows])
    right.tick_params(labelleft=True)  # on a phone it stands below the other
    left.set_ylim(len(rows) - 0.4, -0.6)
    left.set_xlim(0, 1)
    left.set_xlabel("routing weight")
    right.set_xscale("symlog", linthresh=1)
    right.set_xlim(-0.15, 1.3 * max([10.0, *seen]))
    right.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))  # the scale's own writes powers as formulas
    right.set_xlabel("per 10,000 tokens")
    bars = (SERIES[1], "strongly routed"), (SERIES[4], "moderately routed"), (MUTED, "hardly routed")
    dots = (FORGET, "o", "in forget examples"), (RETAIN, "s", "in retain examples")
    handles = [Line2D([], [], color=colour, linewidth=6) for colour, _ in bars]
    handles += [Line2D([], [], color=colour, marker=marker, linestyle="none") for colour, marker, _ in dots]
    legend_below(figure, handles, [part[-1] for part in (*bars, *dots)])
    return figure


def _colour(weight: float) -> str:
    return SERIES[1] if weight < STRONGLY else SERIES[4] if weight < MODERATELY else MUTED
