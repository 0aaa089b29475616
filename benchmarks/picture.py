"""Draws the README's picture from the stored matrix: what the cut does, and what an attack brings back.

python benchmarks/picture.py           # writes docs/images/cut_and_attack.svg and, for dark pages, cut_and_attack_dark.svg
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_era.evaluation import RunResult
from hf_era.reporting.plots.style import FORGET, RETAIN

ROOT = Path(__file__).resolve().parents[1]
MATRIX, PICTURE = ROOT / "benchmarks" / "results" / "matrix_small", ROOT / "docs" / "images" / "cut_and_attack.svg"
RECIPE, SEEDS, STORIES = "scratch_fullseq", (0, 1, 2), 64
ATTACKED = {  # name, colour, and where its label stands beside the end of its line
    "data_filtering": ("data filtering", "#009e73", 0.0),
    RECIPE: ("gradient routing", "#7a3db8", 0.0),
    "untouched_base": ("the model before", "#8a8a8f", -0.012),
}
INKS = {"": "#1f2328", "_dark": "#e6edf3"}
LIGHTER = {"#7a3db8": "#b48cf2", "#009e73": "#2dbd93"}  # on a dark page


def results(name: str) -> list[RunResult]:
    return [RunResult.load(MATRIX / f"seed{seed}" / f"{name}.json") for seed in SEEDS]


def differences(name: str, keys: tuple[str, ...]) -> np.ndarray[Any, Any]:
    """Shape (seeds, keys)."""
    return np.array([[result.differences[key]["value"] for key in keys] for result in results(name)])


def attack_curves(result: RunResult) -> dict[int, float]:
    """Step -> forget loss under the attacks with most examples, minus that before the method on the same examples."""
    assert result.attack is not None
    before = result.attack["before"]["forget"]
    trials = [trial for trial in result.attack["trials"] if trial["stories"] == STORIES]
    steps = [point["step"] for point in trials[0]["curve"]["points"]]
    losses = np.mean([[point["forget_loss"] for point in trial["curve"]["points"]] for trial in trials], axis=0)
    return dict(zip(steps, losses - before, strict=True))


def draw_cut(axes: Axes, ink: str) -> None:
    values = differences(RECIPE, ("ablation_gap", "retain_ablation_gap"))
    bars = axes.bar(["forget\nexamples", "retain\nexamples"], values.mean(0), color=[FORGET, RETAIN], width=0.55)
    axes.bar_label(bars, fmt="{:+.2f}", padding=10, color=ink, fontsize=12, fontweight="bold")
    for place, column in enumerate(values.T):
        axes.plot([place] * len(column), column, "o", color=ink, markersize=3, alpha=0.6)
    axes.set_title("The module is cut out:\nwhat that adds to the loss")
    axes.set_ylabel("nats a token")


def draw_attack(axes: Axes, ink: str) -> None:
    for name, (label, colour, shift) in ATTACKED.items():
        colour = LIGHTER.get(colour, colour) if ink == INKS["_dark"] else colour
        curves = [attack_curves(result) for result in results(name)]
        steps = list(curves[0])
        values = np.array([list(curve.values()) for curve in curves])
        axes.plot(steps, values.mean(0), color=colour, linewidth=2.5)
        axes.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
        axes.text(steps[-1] + 0.4, values.mean(0)[-1] + shift, label, color=colour, va="center", fontweight="bold")
    axes.axhline(0, color=ink, linewidth=0.8, linestyle="--", alpha=0.6)
    axes.set_xlim(0, 29)
    axes.set_ylim(-0.055, 0.34)
    axes.set_xticks([0, 5, 10, 15, 20])
    axes.set_title(f"Then {STORIES} forget examples are given back:\nforget loss above the model before")
    axes.set_xlabel("steps of the attack")


def main() -> None:
    for suffix, ink in INKS.items():
        colours = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink)
        style = {"svg.hashsalt": "hf_era", "font.size": 10.5, "axes.titlesize": 11.5, "axes.spines.top": False,
                 "axes.spines.right": False, **colours}  # fmt: skip
        with mpl.rc_context({**mpl.rcParamsDefault, **style}):
            figure = Figure(figsize=(8.6, 3.3), layout="constrained")
            left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1, 1.9])
            draw_cut(left, ink)
            draw_attack(right, ink)
            path = PICTURE.with_stem(PICTURE.stem + suffix)
            path.parent.mkdir(exist_ok=True)
            figure.savefig(path, metadata={"Date": None, "Creator": None}, transparent=True)
            print(f"Wrote {path}")


if __name__ == "__main__":
    main()
