"""Which plots there are, and files of those that a result has figures for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from hf_era.reporting.plots import leak_audit, profiles, relearn, selectivity, token_weights, trade_off, training
from hf_era.reporting.plots.style import Results, nothing_to_show, own_style
from hf_era.reporting.plots.svg import figure_svg
from hf_era.utils.files import write_text


@dataclass(frozen=True)
class PlotKind:
    """One kind of plot."""

    name: str  # of its file, without the ending
    title: str
    module: Any  # with `draw`, `caption` (how to read it, as plain text) and `has_data`
    compares: bool  # whether it shows several results; else only the first is drawn
    nothing: str  # stands in its place where nothing was measured

    def caption(self, results: Results) -> str:
        return str(self.module.caption(results))

    def draw(self, results: Results) -> Figure:
        with own_style():
            return self.module.draw(results) if self.module.has_data(results) else nothing_to_show(self.nothing)


PLOT_KINDS = (
    PlotKind(
        "relearn_curves", "What a relearn attack brings back", relearn, True, "No relearn attack was made."
    ),
    PlotKind("trade_off", "Forget loss against retain loss", trade_off, True, "No losses were measured."),
    PlotKind(
        "selectivity", "Selectivity of the auxiliary module per layer", selectivity, True, "Selectivity was not measured."
    ),
    PlotKind(
        "token_weights", "Tokens that are routed", token_weights, False,
        "No table of routing weights: no rule by token frequency.",
    ),
    PlotKind(
        "training", "Losses and ablation gap while training", training, False, "No loss was logged while training."
    ),
    PlotKind(
        "leak_audit", "Where the gradient of forget examples goes, and what ablation removes", leak_audit, False,
        "No leak audit was made.",
    ),
    PlotKind(
        "profiles", "Losses with each combination of modules on", profiles, False, "No profiles were measured."
    ),
)  # fmt: skip


def plot_kinds(results: Results) -> list[PlotKind]:
    """The kinds of plot that these results have figures for: all kinds for one result, those that compare for several.
    Raises `ValueError` if there is no result."""
    if not results:
        raise ValueError("`results` is empty. Pass at least one result.")
    return [kind for kind in PLOT_KINDS if (kind.compares or len(results) == 1) and kind.module.has_data(results)]


def save_plots(results: Results, folder: str | Path) -> list[Path]:
    """Writes an SVG file of each of `plot_kinds`, in one go, and returns their paths. The folder need not be there."""
    kinds = plot_kinds(results)
    return [write_text(Path(folder) / f"{kind.name}.svg", figure_svg(kind.draw(results))) for kind in kinds]
