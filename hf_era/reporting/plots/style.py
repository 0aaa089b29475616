"""How every plot looks: fonts, a palette for colour-blind readers, and text that is shown as it is.

The colours are those of Okabe and Ito (2008) without yellow, which is not legible on white, and a purple. A colour says
what kind of thing is drawn, in every plot of every page the same: forget or retain examples where both are in one panel,
else the method. What else differs, line style and marker say.
"""

from __future__ import annotations

import unicodedata
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from hf_era.evaluation.intervals import Estimate
from hf_era.evaluation.results import CONTROL, UNTOUCHED, AnyResult, RunResult
from hf_era.evaluation.summary import rule_label
from hf_era.reporting.numbers import is_number

INK = "#1a1a1b"
GRID = "#cfcfd2"
MUTED = "#767679"
FORGET = "#d55e00"
RETAIN = "#0072b2"
SERIES = (RETAIN, FORGET, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8b6914", "#7a3db8")
CONTROL_COLOUR, UNTOUCHED_COLOUR, NO_ROUTING = SERIES[2], INK, SERIES[6]
"""Of a result of these roles (a method's name says nothing here), and of a run whose mask rule routes no token: a control of
its own."""
METHOD_COLOURS = (SERIES[4], SERIES[5], SERIES[7], SERIES[3])
"""Of all other methods, by their names alone."""
Results = Sequence[AnyResult]
LineStyle = Literal["-", "--", ":", "-.", "none"]
LINE_STYLES: tuple[LineStyle, ...] = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "d", "h")
PANEL_WIDTH = 3.8
"""Inches of a panel: as wide as a phone, so that a page can set panels side by side or one below another."""
MAXIMUM_TICKS = 12

_SETTINGS = {
    "text.parse_math": False,  # a model called "$x$" is called "$x$"
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "hf_era",  # the same result always gives the same file
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.labelsize": 9.5,
    "legend.fontsize": 9.0,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
}


@dataclass(frozen=True)
class Look:
    """How one series is drawn."""

    color: str
    line_style: LineStyle
    marker: str
    filled: bool = True

    @property
    def face(self) -> str:
        """The colour within the marker."""
        return self.color if self.filled else "none"


def look(number: int, colour: str) -> Look:
    """The look of the series of that number, from 0, among those of one colour; 24 of them differ."""
    around, place = divmod(number, len(MARKERS))
    return Look(colour, LINE_STYLES[number % len(LINE_STYLES)], MARKERS[place], filled=around % 2 == 0)


def looks(results: Results) -> dict[str, Look]:
    """Name -> look, whatever the order of the results: the colour is that of the method (`method_colour`) whatever else is
    shown; line style and marker tell the names of one colour apart."""
    colours = {result.name: method_colour(result) for result in results}
    found: dict[str, Look] = {}
    for name in sorted(colours):
        before = sum(part.color == colours[name] for part in found.values())
        found[name] = look(before, colours[name])
    return found


def method_colour(result: AnyResult) -> str:
    """The colour of a result's method; of a model from elsewhere, whose method is not known, that of its name."""
    if isinstance(result, RunResult):
        if result.method_role in (CONTROL, UNTOUCHED):
            return CONTROL_COLOUR if result.method_role == CONTROL else UNTOUCHED_COLOUR
        if result.has_module and rule_label(result.config) == "none":
            return NO_ROUTING
    name = result.method if isinstance(result, RunResult) else result.name
    # Python's own hash differs from process to process.
    return METHOD_COLOURS[zlib.crc32(name.encode("utf-8", "replace")) % len(METHOD_COLOURS)]


def first_run(results: Results) -> RunResult | None:
    """The first result, for plots that show only one; `None` if it is not of a run."""
    return results[0] if results and isinstance(results[0], RunResult) else None


@contextmanager
def own_style() -> Iterator[None]:
    """Matplotlib's defaults with the settings above, whatever the user has set; afterwards all is as it was.

    That a font lacks a letter is no reason for a warning: the reader's browser has other fonts.
    """
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(Glyph .* missing from font|Matplotlib currently does not support)")
        mpl.rcdefaults()
        mpl.rcParams.update(cast(Any, _SETTINGS))
        yield


def new_figure(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, list[list[Axes]]]:
    """A figure of panels of the common width, `height` in inches, with rows of axes that have a grid."""
    figure = Figure(figsize=(PANEL_WIDTH * columns, height), layout=ConstrainedLayoutEngine(w_pad=0.07, h_pad=0.07))
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for panel in axes.flat:
        panel.grid(True)
    return figure, [list(row) for row in axes]


def nothing_to_show(reason: str) -> Figure:
    """A figure that says why there is nothing in it."""
    figure, [[panel]] = new_figure(1.2)
    panel.set_axis_off()
    panel.text(0.5, 0.5, reason, ha="center", va="center", transform=panel.transAxes)
    return figure


def label(text: object, limit: int = 34) -> str:
    """Text of unknown origin, fit for one line of a plot: long text is cut, what cannot be printed becomes U+FFFD."""
    shown = "".join(
        "\ufffd" if unicodedata.category(letter) in ("Cc", "Cs", "Cf", "Zl", "Zp") else letter for letter in str(text)
    )
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def legend_below(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """One legend below all panels, in as many columns as fit."""
    longest = max((len(text) for text in labels), default=0)
    columns = max(1, min(len(labels), int(13 * figure.get_figwidth() / (longest + 7))))
    legend = figure.legend(handles, [" "] * len(labels), loc="outside lower center", ncols=columns)
    for entry, text in zip(legend.get_texts(), labels, strict=True):
        entry.set_text(text)  # given here, a label that starts with an underscore is shown too


def name_places(panel: Axes, names: Sequence[str]) -> None:
    """Names at 0, 1, ... on the x axis; of many only every second, third, ..., so that none covers another."""
    every = -(-len(names) // MAXIMUM_TICKS)
    panel.set_xticks(range(0, len(names), every), [label(name, 8) for name in names[::every]])


def bounds(estimate: Estimate) -> tuple[float, float]:
    """How far the interval reaches below and above the value; 0 where there is none."""
    value, low, high = estimate.value, estimate.low, estimate.high
    if value is None or low is None or high is None or not all(map(is_number, (value, low, high))):
        return 0.0, 0.0
    return max(0.0, value - low), max(0.0, high - value)


def point(panel: Axes, x: float, estimate: Estimate, style: Look, **options: Any) -> None:
    """A point at (x, value) with its interval; nothing where there is no finite value."""
    if estimate.value is None or not is_number(estimate.value):
        return
    below, above = bounds(estimate)
    panel.errorbar(
        [x], [estimate.value], yerr=[[below], [above]], color=style.color, marker=style.marker, linestyle="none",
        markerfacecolor=style.face, capsize=2.5, markersize=5, **options,
    )  # fmt: skip
