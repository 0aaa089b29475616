"""SVG of a figure: a file of its own, or a part of a page whose colours and width follow the page.

In a page, text and axes take the colour of the page's text, the grid and every series a CSS variable, so that a
dark page stays legible. Text stays text: it is written by matplotlib as XML, parsed, and written again. The figure is cut
into its panels, which the page sets side by side where there is room and one below another on a phone, so that their text
need not shrink; its legend becomes a list of the page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from xml.etree import ElementTree

from markupsafe import escape
from matplotlib.artist import Artist
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
    """An element to stand in a page, on a transparent ground: a picture of an `<svg>` per panel, and the legend as a list;
    the figure has the colours of `style`.

    The identifier, a plain word, is put before every id, so that several plots of one page do not share any. The label says
    what the picture shows, for readers who cannot see it.
    """
    figure.dpi = 72  # SVG's own: a legend is laid out in pixels
    for number, panel in enumerate(figure.axes):
        panel.set_gid(f"panel-{number}")
    legends = [(legend.legend_handles, legend.get_texts()) for legend in figure.legends]
    entries = [entry for handles, texts in legends for entry in zip(handles, texts, strict=True)]
    for number, (handle, _) in enumerate(entries):
        if handle is not None:
            handle.set_gid(f"entry-{number}")
    with own_style(), io.StringIO() as file:
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
        root = ElementTree.fromstring(file.getvalue())
    for parent in list(root.iter()):
        for part in [child for child in parent if child.tag in _LEFT_OUT]:
            parent.remove(part)
        _adapt(parent, identifier)
    groups = {group.get("id"): group for group in root.iter(f"{{{_SVG}}}g")}
    shared = [part for part in root if part.tag == f"{{{_SVG}}}defs"]  # clip paths and hatches, of any panel
    panels = [
        _cut(figure, [groups[f"{identifier}-panel-{number}"], *(shared if number == 0 else [])], panel)
        for number, panel in enumerate(figure.axes)
    ]
    keys = [
        f"<li>{_cut(figure, [groups[f'{identifier}-entry-{number}']], handle)} {escape(text.get_text())}</li>"
        for number, (handle, text) in enumerate(entries)
    ]
    picture = f'<div class="panels" role="img" aria-label="{escape(label)}">{"".join(panels)}</div>'
    legend = f'<ul class="legend">{"".join(keys)}</ul>' if keys else ""
    return f'<div class="plot">{picture}{legend}</div>'


def _cut(figure: Figure, parts: Sequence[ElementTree.Element], artist: Artist | None) -> str:
    """An `<svg>` of parts of the drawn figure, as large as the artist among them, as it was laid out."""
    assert artist is not None
    box = (artist.get_tightbbox() or artist.get_window_extent()).padded(3)
    left, top = box.x0, figure.bbox.height - box.y1
    ElementTree.register_namespace("", _SVG)
    inner = "".join(ElementTree.tostring(part, encoding="unicode") for part in parts)
    return (
        f'<svg xmlns="{_SVG}" viewBox="{left:.1f} {top:.1f} {box.width:.1f} {box.height:.1f}"'
        f' style="stroke-linejoin: round; --width: {box.width * 96 / 72:.0f}px">{inner}</svg>'
    )


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
