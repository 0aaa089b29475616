"""A page about one result: one HTML file that needs nothing else, runs no script and asks no network for anything.

The text of names, tokens, prompts, generated examples and configs comes from anywhere; the template escapes all of it, and
the page's own policy forbids scripts, frames, forms and requests even if something got through.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_era.evaluation.results import AnyResult, RunResult
from hf_era.evaluation.summary import summary_of
from hf_era.reporting import provenance, tables
from hf_era.reporting.html.generations import generation_parts
from hf_era.reporting.html.leak_audit import leak_audit_parts
from hf_era.reporting.html.modules import module_parts
from hf_era.reporting.html.parts import Folded, Listing, Paragraphs, Section, plots_of, render_page
from hf_era.reporting.labels import STARTS
from hf_era.reporting.seeds import seeds_table
from hf_era.reporting.tables import Table
from hf_era.reporting.text import name_of
from hf_era.reporting.verdict import is_judged, verdict
from hf_era.utils.files import write_text
from hf_era.version import __version__

ROUTED_TOKENS = 40
"""Rows of the table of routed tokens."""


def render_report(result: AnyResult, seeds: Sequence[AnyResult] = ()) -> str:
    """The page about a run or a model, as text: what was not measured is left out, or shows as that. The same result always
    gives the same text. `seeds`: results of other seeds, to be shown beside; those of another recipe are left out."""
    figures = summary_of(result)
    about = [
        result.method_title,
        figures.rule and f"mask rule {figures.rule}",
        STARTS.get(figures.start, ""),
        f"seed {result.seed}",
    ]
    return render_page(
        "report_template.html",
        title=name_of(result.name),
        subtitle=name_of(", ".join(part for part in about if part)),
        about=str(result.method_texts.get("summary") or ""),
        warnings=provenance.data_warnings(result),
        verdict=verdict(result, seeds) if is_judged(result) else [],
        sections=[section for section in _sections(result, seeds_table(result, seeds)) if section.parts],
        version=__version__,
    )


def write_report(result: AnyResult, path: str | Path, seeds: Sequence[AnyResult] = ()) -> Path:
    """Writes the page to `path`, in one go, and returns it. Arguments: `render_report`."""
    return write_text(path, render_report(result, seeds))


def _sections(result: AnyResult, over_seeds: Table | None) -> list[Section]:
    """First what shows at a glance, then what is looked up, and where it all comes from folded at the end."""
    untested = provenance.not_tested(result, has_seeds=over_seeds is not None)
    kinds = ["relearn_curves", "trade_off", "training", "selectivity", "leak_audit", "token_weights"]
    return [
        Section("generations", "What it writes", generation_parts(result)),
        Section("plots", "Plots", plots_of([result], kinds)),
        Section("modules", "Modules", module_parts(result)),
        Section("losses", "Losses", _losses(result)),
        Section("tasks", "Tasks", [*filter(None, [tables.tasks_table(result)])]),
        Section("seeds", "Over seeds", [*filter(None, [over_seeds])]),
        Section("attacks", "Relearn attacks", _attacks(result)),
        Section("audit", "Leak audit", leak_audit_parts(result) if isinstance(result, RunResult) else []),
        Section("tokens", "Routed tokens", _routed_tokens(result)),
        Section("untested", "What was not tested", [Paragraphs(untested, bullets=True)]),
        Section("provenance", "How it was made", _provenance(result)),
    ]


def _losses(result: AnyResult) -> list[Any]:
    if not summary_of(result).losses:
        return [Paragraphs(["No losses were measured."])]
    batch_means = tables.batch_means_table(result)
    folded = [Folded("Averaged over batches, as the reference does", [batch_means])] if batch_means is not None else []
    others = [tables.accuracy_table(result), tables.differences_table(result), tables.distance_table(result)]
    return [tables.losses_table(result), *filter(None, others), *folded]


def _attacks(result: AnyResult) -> list[Any]:
    return [tables.attacks_table(result) or Paragraphs(["No relearn attack was made."])]


def _routed_tokens(result: AnyResult) -> list[Any]:
    table = tables.routing_table(result, ROUTED_TOKENS) if isinstance(result, RunResult) else None
    return [Folded("Routing weight of each token", [table])] if table is not None else []


def _provenance(result: AnyResult) -> list[Any]:
    """All of it folded: data; seed, versions and machine; the configs."""
    parts: list[Any] = [
        Folded("Data", [provenance.data_table(result)]),
        Folded("Seed, versions and machine", [provenance.run_table(result)]),
    ]
    if isinstance(result, RunResult) and result.config:
        parts.append(Folded("The whole config, as run", [Listing(provenance.config_text(result.config))]))
    relearning = result.relearning
    if relearning is not None and relearning.settings:
        parts.append(Folded("Settings of the attacks", [Listing(provenance.config_text(relearning.settings))]))
    return parts
