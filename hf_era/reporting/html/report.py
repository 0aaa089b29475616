"""A page about one result: one HTML file that needs nothing else, runs no script and asks no network for anything.

The text of names, tokens, prompts, generated stories and configs comes from anywhere; the template escapes all of it, and
the page's own policy forbids scripts, frames, forms and requests even if something got through.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_era.evaluation.results import ModelResult, RunResult
from hf_era.evaluation.summary import summary_of
from hf_era.reporting.headline import headline_sentences, warning_sentences
from hf_era.reporting.html.comparison import render_comparison, write_comparison
from hf_era.reporting.html.generations import generation_parts
from hf_era.reporting.html.leak_audit import leak_audit_parts
from hf_era.reporting.html.parts import Folded, Paragraphs, Section, plots_of, render_page
from hf_era.reporting.html.provenance import data_table, not_tested, provenance_parts
from hf_era.reporting.html.tables import (
    METHOD_TITLES,
    attacks_table,
    batch_means_table,
    differences_table,
    losses_table,
    routed_tokens_table,
    stages_of,
)  # fmt: skip
from hf_era.reporting.html.text import cut, name_of
from hf_era.utils.files import write_text
from hf_era.version import __version__

__all__ = ["render_comparison", "render_report", "write_comparison", "write_report"]

STARTS = {"scratch": "from random weights", "pretrained": "from a pretrained model"}


def render_report(result: RunResult | ModelResult) -> str:
    """The page about a run or a model, as text. The same result always gives the same text.

    Args:
        result (`RunResult` or `ModelResult`): what it does not hold is left out, or shows as not measured.
    """
    figures = summary_of(result)
    method = METHOD_TITLES.get(figures.method, figures.method)
    about = [
        method,
        figures.rule and f"mask rule {figures.rule}",
        STARTS.get(figures.start, ""),
        f"seed {figures.seed}",
    ]
    return render_page(
        "report_template.html",
        title=name_of(result.name),
        subtitle=name_of(", ".join(part for part in about if part)),
        warnings=[cut(text, 1_000) for text in warning_sentences(result)],
        headline=[cut(text, 1_000) for text in headline_sentences(result)],
        sections=[section for section in _sections(result) if section.parts],
        version=__version__,
    )


def write_report(result: RunResult | ModelResult, path: str | Path) -> Path:
    """Writes the page to `path`, in one go, and returns it. Arguments: `render_report`."""
    return write_text(path, render_report(result))


def _sections(result: RunResult | ModelResult) -> list[Section]:
    sections = [Section("losses", "Losses", _losses(result)), Section("attacks", "Relearn attacks", _attacks(result))]
    if isinstance(result, RunResult):
        routed = routed_tokens_table(result)
        sections += [
            Section("audit", "Leak audit", [*plots_of([result], ["leak_audit"]), *leak_audit_parts(result)]),
            Section("selectivity", "Selectivity", [*plots_of([result], ["selectivity"])]),
            Section(
                "tokens",
                "Routed tokens",
                [*plots_of([result], ["token_weights"]), *([Folded("As a table", [routed])] if routed else [])],
            ),
            Section("training", "Training", [*plots_of([result], ["training"])]),
        ]
    return [
        *sections,
        Section("generations", "What it writes", generation_parts(result)),
        Section("data", "Data", [data_table(result)]),
        Section("run", "How it was made", provenance_parts(result)),
        Section("untested", "What was not tested", [Paragraphs(not_tested(result), bullets=True)]),
    ]


def _losses(result: RunResult | ModelResult) -> list[Any]:
    if not stages_of(result):
        return [Paragraphs(["No losses were measured."])]
    differences, batch_means = differences_table(result), batch_means_table(result)
    parts: list[Any] = [losses_table(result)]
    if differences.rows:
        parts.append(differences)
    parts += plots_of([result], ["trade_off"])
    if batch_means is not None:
        parts.append(Folded("Averaged over batches, as the reference does", [batch_means]))
    return parts


def _attacks(result: RunResult | ModelResult) -> list[Any]:
    table = attacks_table(result)
    if table is None:
        return [Paragraphs(["No relearn attack was made."])]
    return [*plots_of([result], ["relearn_curves"]), table]
