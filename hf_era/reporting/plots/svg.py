"""SVG of a figure: a file of its own, or a part of a page whose colours follow the page.

In a page, text and axes take the colour of the page's text, the grid and every series a CSS variable, so that a
dark page stays legible. Text stays text: it is written by matplotlib as XML, parsed, and written again.
"""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

from matplotlib.figure import Figure

from hf_era.reporting.plots.style import GRID, INK, MUTED, SERIES, own_style

_SVG = "http://www.w3.org/2000/svg"
# The style sheet would hold for the whole page; what it says is said in the root's `style`.
_LEFT_OUT = {f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"}
_HREF = "{http://www.w3.org/1999/xlink}href"
_COLOURS = {
    INK: "currentColor",
    GRID: f"var(--plot-grid, {GRID})",
    MUTED: f"var(--plot-muted, {MUTED})",
    **{colour: f"var(--series-{number}, {colour})" for number, colour in enumerate(SERIES)},
}
_COLOUR = re.compile("|".join(_COLOURS))
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


def figure_svg(figure: Figure) -> str:
    """A whole SVG file on a white ground. The same figure always gives the same text."""
    with own_style(), io.StringIO() as file:
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white")
        return file.getvalue()


def inline_svg(figure: Figure, identifier: str, label: str) -> str:
    """An `<svg>` element to stand in a page, on a transparent ground; the figure has the colours of `style`.

    The identifier, a plain word, is put before every id, so that several plots of one page do not share any. The label says
    what the picture shows, for readers who cannot see it.
    """
    with own_style(), io.StringIO() as file:
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
        root = ElementTree.fromstring(file.getvalue())
    for parent in list(root.iter()):
        for part in [child for child in parent if child.tag in _LEFT_OUT]:
            parent.remove(part)
        _adapt(parent, identifier)
    width = float(root.attrib.pop("width").removesuffix("pt"))
    for name in ("height", "version"):
        del root.attrib[name]
    root.set("role", "img")
    root.set("aria-label", label)
    root.set("style", f"stroke-linejoin: round; max-width: {width * 96 / 72:.0f}px")
    ElementTree.register_namespace("", _SVG)
    return ElementTree.tostring(root, encoding="unicode")


def _adapt(element: ElementTree.Element, identifier: str) -> None:
    """Ids and references get the prefix, colours become variables."""
    if "id" in element.attrib:
        element.set("id", f"{identifier}-{element.attrib['id']}")
    if _HREF in element.attrib:
        element.set("href", f"#{identifier}-{element.attrib.pop(_HREF).removeprefix('#')}")
    for name in ("style", "clip-path", "fill", "stroke"):
        value = element.attrib.get(name)
        if value is not None:
            value = _REFERENCE.sub(rf"url(#{identifier}-\1)", value)
            element.set(name, _COLOUR.sub(lambda found: _COLOURS[found.group()], value))
