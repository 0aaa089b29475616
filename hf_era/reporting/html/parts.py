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


@dataclass(frozen=True)
class Paragraphs:
    """Sentences; as a list with bullets if `bullets`."""

    texts: list[str]
    bullets: bool = False
    kind: str = "paragraphs"


@dataclass(frozen=True)
class Plot:
    """A picture with its caption; `svg` is HTML."""

    svg: Markup
    caption: str
    kind: str = "plot"


@dataclass(frozen=True)
class Listing:
    """Text whose lines are kept."""

    text: str
    kind: str = "listing"


@dataclass(frozen=True)
class Sample:
    """What several models wrote after one prompt: title of the model -> HTML."""

    prompt: str
    texts: dict[str, Markup]
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
        made.append(Plot(Markup(plots.inline_svg(kind.draw(results), kind.name, caption)), caption))
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
