"""What a page is made of: sections of paragraphs, tables, plots and texts; and the page around them.

Everything here is plain text that the template escapes; only `Plot.svg` and the texts of `Sample` are HTML, made by
`plots.inline_svg` and `generations.continuation`. Tables are those of `hf_era.reporting.tables`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from hf_era.evaluation.results import AnyResult
from hf_era.reporting.numbers import is_number
from hf_era.reporting.tables import Table


@dataclass(frozen=True)
class Paragraphs:
    """Sentences; as a list with bullets if `bullets`."""

    texts: list[str]
    bullets: bool = False
    kind: str = "paragraphs"


@dataclass(frozen=True)
class Sortable:
    """A table that the reader can sort by the columns of `sort_by`; `name`, a plain word, is that of its radio buttons."""

    table: Table
    name: str
    kind: str = "sortable"

    def places(self) -> list[str]:
        """Of each row the style with its place by each column, largest and smallest first; no number comes last."""
        styles: list[list[str]] = [[] for _ in self.table.rows]
        for column, numbers in self.table.sort_by.items():
            known = [number for number, value in enumerate(numbers) if is_number(value)]
            for way, sign in (("down", -1.0), ("up", 1.0)):
                order = sorted(known, key=lambda number: sign * float(numbers[number] or 0.0))
                places = {number: place for place, number in enumerate(order)}
                for number, style in enumerate(styles):
                    style.append(f"--{way}-{column}: {places.get(number, len(styles))}")
        return ["; ".join(style) for style in styles]


@dataclass(frozen=True)
class Plot:
    """A picture with its caption; `svg` is HTML. `columns`: how many panels it has side by side."""

    svg: Markup
    caption: str
    columns: int
    kind: str = "plot"


@dataclass(frozen=True)
class Listing:
    """Text whose lines are kept."""

    text: str
    kind: str = "listing"


@dataclass(frozen=True)
class Sample:
    """What several models wrote after one prompt: title of the model -> HTML. `about`: the kind of prompt, if known."""

    prompt: str
    texts: dict[str, Markup]
    about: str = ""
    kind: str = "sample"


@dataclass(frozen=True)
class Folded:
    """Parts that show once the reader opens them."""

    summary: str
    parts: list[Any]
    kind: str = "folded"


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it; `anchor` is a plain word."""

    anchor: str
    title: str
    parts: list[Any] = field(default_factory=list)


def plots_of(results: Sequence[AnyResult], names: Sequence[str]) -> list[Plot]:
    """The plots of these names, in this order, without those that nothing was measured for."""
    from hf_era.reporting import plots  # imports matplotlib, which takes a second

    made = []
    kinds = {kind.name: kind for kind in plots.plot_kinds(results)}
    for kind in (kinds[name] for name in names if name in kinds):
        caption = f"{kind.title}. {kind.caption(results)}"
        figure = kind.draw(results)
        svg = Markup(plots.inline_svg(figure, kind.name, caption))
        grid = figure.axes[0].get_gridspec()
        made.append(Plot(svg, caption, 1 if grid is None else grid.ncols))
    return made


def render_page(template: str, **values: Any) -> str:
    """Fills a template of this folder; autoescape is on, and a name that is missing is an error."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).render(**values)
    return page.encode("utf-8", "replace").decode("utf-8").rstrip() + "\n"  # a lone surrogate cannot be written
