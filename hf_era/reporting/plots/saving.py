"""Which plots there are, and files of those that a result has figures for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from hf_era.evaluation.results import ModelResult, RunResult
from hf_era.reporting.plots import leak_audit, relearn, selectivity, token_weights, trade_off, training
from hf_era.reporting.plots.svg import figure_svg
from hf_era.utils.files import write_text

Results = Sequence[RunResult | ModelResult]


@dataclass(frozen=True)
class PlotKind:
    """One kind of plot.

    Attributes:
        name (`str`): of its file, without the ending. title (`str`): in words.
        draw: results -> the figure; one that says what is missing where nothing was measured.
        caption: results -> how to read it, as plain text.
        has_data: results -> whether there is anything to draw.
        compares (`bool`): whether it shows several results; else only the first is drawn.
    """

    name: str
    title: str
    draw: Callable[[Results], Figure]
    caption: Callable[[Results], str]
    has_data: Callable[[Results], bool]
    compares: bool


PLOT_KINDS = tuple(
    PlotKind(name, title, module.draw, module.caption, module.has_data, compares)
    for name, title, module, compares in (
        ("relearn_curves", "What a relearn attack brings back", relearn, True),
        ("trade_off", "Forget loss against retain loss", trade_off, True),
        ("selectivity", "Selectivity of the auxiliary module per layer", selectivity, True),
        ("token_weights", "Tokens that are routed", token_weights, False),
        ("training", "Losses and ablation gap while training", training, False),
        ("leak_audit", "Where the gradient of forget stories goes, and what ablation removes", leak_audit, False),
    )
)


def plot_kinds(results: Results) -> list[PlotKind]:
    """The kinds of plot that these results have figures for: all kinds for one result, those that compare for several.

    Raises:
        ValueError: if there is no result.
    """
    if not results:
        raise ValueError("`results` is empty. Pass at least one result.")
    return [kind for kind in PLOT_KINDS if (kind.compares or len(results) == 1) and kind.has_data(results)]


def save_plots(results: Results, folder: str | Path) -> list[Path]:
    """Writes an SVG file per kind of plot that there are figures for, each in one go, and returns their paths.

    Args:
        results: one result for all kinds of plots, several for those that compare.
        folder (`str` or `Path`): made if it is not there.

    Raises:
        ValueError: if there is no result.
    """
    kinds = plot_kinds(results)
    return [write_text(Path(folder) / f"{kind.name}.svg", figure_svg(kind.draw(results))) for kind in kinds]
