"""Draws the README's picture from the stored bake-off: how near to data filtering each method comes, and what it costs.

python benchmarks/picture.py     # writes docs/images/share_of_filtering.svg and, for dark pages, share_of_filtering_dark.svg
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
TABLE, PICTURE = ROOT / "benchmarks/results/bakeoff/table.json", ROOT / "docs/images/share_of_filtering.svg"
INKS = {"": "#1f2328", "_dark": "#e6edf3"}
LIMITS = (-0.1, 1.2)
"""Of the shares that are drawn; what lies beyond is cost."""
TESTBEDS = {"language": "A second language", "facts": "Facts"}


class Group(NamedTuple):
    """Rows of the bake-off below one heading. `cost_over`: the row whose retain loss theirs is compared with."""

    heading: str
    cost_over: str
    colours: tuple[str, str]  # on a light and on a dark page
    rows: dict[str, str]


GROUPS = (
    Group(
        "From random weights, all examples labelled",
        "base",
        ("#0072b2", "#56b4e9"),
        {
            "gram_strict": "core learns no forget example (gram, p 0)",
            "gram": "GRAM as published",
            "sgtm": "SGTM",
            "era_uniform": "Expand-Route-Ablate",
        },
    ),
    Group(
        "From random weights, half of the labels",
        "base",
        ("#c04f00", "#f0883e"),
        {
            "filtering_strict_50": "filtering, on labelled retain examples",
            "filtering_50": "filtering, unlabelled examples kept",
            "gram_strict_50": "core learns no forget example",
            "robust_50": "the same, fast module (scratch_robust)",
        },
    ),
    Group(
        "A pretrained model, a third of its steps more",
        "continue_all",
        ("#7a3db8", "#b48cf2"),
        {
            "noise_and_retain": "noise and retain",
            "noise_and_route": "noise and route (posttrain_robust)",
            "noise_retain": "noise on all weights, retain",
            "continue_retain": "continue on retain alone",
            "undo": "UNDO",
            "gradient_difference": "gradient difference",
            "npo": "NPO",
            "era_posttrain": "Expand-Route-Ablate",
            "rmu": "RMU",
        },
    ),
)


def draw(axes: Axes, rows: dict[str, dict[str, Any]], ink: str, with_labels: bool) -> None:
    """One testbed: a dot and its 95 % interval for every row, and what the row costs beside it."""
    place, ticks = 0.0, {}
    for group in GROUPS:
        ticks[place] = group.heading
        place += 1
        colour = group.colours[ink == INKS["_dark"]]
        for name, label in group.rows.items():
            ticks[place] = label
            if name in rows:
                _draw_row(axes, place, rows[name], rows[group.cost_over], colour, ink)
            place += 1
        place += 0.4
    axes.set_yticks(list(ticks), list(ticks.values()) if with_labels else [""] * len(ticks))
    for label in axes.get_yticklabels():
        if label.get_text() in {group.heading for group in GROUPS}:
            label.set_fontweight("bold")
    axes.set_ylim(place - 0.6, -0.7)
    axes.set_xlim(-0.15, 1.45)
    axes.set_xticks([0, 0.5, 1], ["0\nas if it saw all", "0.5", "1\nas if it never did"])
    for line in (0, 1):
        axes.axvline(line, color=ink, linewidth=0.8, linestyle="--", alpha=0.4, zorder=0)
    axes.tick_params(axis="y", length=0)


def _draw_row(axes: Axes, place: float, row: dict[str, Any], compared: dict[str, Any], colour: str, ink: str) -> None:
    figures = row["figures"]
    cost = figures["retain_loss"]["value"] - compared["figures"]["retain_loss"]["value"]
    text = f"{cost:+.2f}".replace("-0.00", "0.00").replace("+0.00", "0.00")
    axes.text(1.43, place, text, color=ink, va="center", ha="right", fontsize=9)
    share = figures.get("share_of_filtering")
    if share is None or share.get("low") is None:
        axes.text(
            0.5, place, "outside the curves in some seed", color=ink, va="center", ha="center", fontsize=8, alpha=0.7
        )
        return
    low, high = max(share["low"], LIMITS[0]), min(share["high"], LIMITS[1])
    axes.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="round")
    bound = row["bounds"].get("share_of_filtering")
    hollow = {"markerfacecolor": "none"} if bound else {}
    axes.plot(share["value"], place, "o", color=colour, markersize=6, **hollow)


def main() -> None:
    found = json.loads(TABLE.read_text(encoding="utf-8"))["rows"]
    for suffix, ink in INKS.items():
        colours = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink)
        style = {"svg.hashsalt": "hf_era", "font.size": 9.5, "axes.titlesize": 11, "axes.spines.top": False,
                 "axes.spines.right": False, "axes.spines.left": False, **colours}  # fmt: skip
        with mpl.rc_context({**mpl.rcParamsDefault, **style}):
            figure = Figure(figsize=(9.6, 5.4), layout="constrained")
            for index, axes in enumerate(figure.subplots(1, len(TESTBEDS))):
                testbed, title = list(TESTBEDS.items())[index]
                draw(axes, {row["row"]: row for row in found if row["testbed"] == testbed}, ink, index == 0)
                axes.set_title(title)
                axes.set_xlabel("share of filtering after the attack")
                axes.text(1.43, -0.6, "cost, nats", color=ink, ha="right", fontsize=9, alpha=0.7)
            path = PICTURE.with_stem(PICTURE.stem + suffix)
            path.parent.mkdir(exist_ok=True)
            figure.savefig(path, metadata={"Date": None, "Creator": None}, transparent=True)
            print(f"Wrote {path}")


if __name__ == "__main__":
    main()
