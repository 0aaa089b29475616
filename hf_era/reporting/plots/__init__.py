"""Plots of results: each kind in a module of its own, with `draw`, `caption` and `has_data`.

They read result objects only, touch no state of pyplot, and the same result always gives the same picture. Importing
this package imports matplotlib.
"""

from hf_era.reporting.plots.saving import PLOT_KINDS, PlotKind, plot_kinds, save_plots
from hf_era.reporting.plots.svg import figure_svg, inline_svg

__all__ = ["PLOT_KINDS", "PlotKind", "figure_svg", "inline_svg", "plot_kinds", "save_plots"]
