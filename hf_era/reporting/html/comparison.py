"""A page that compares results: all of them in one table, means over seeds, plots, and what each writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_era.evaluation.intervals import Estimate
from hf_era.evaluation.results import ModelResult, RunResult
from hf_era.evaluation.summary import ResultSummary, summary_of
from hf_era.reporting.headline import attack_name, warning_sentences
from hf_era.reporting.html.generations import generation_parts
from hf_era.reporting.html.parts import Folded, Paragraphs, Section, Table, plots_of, render_page
from hf_era.reporting.html.tables import METHOD_TITLES
from hf_era.reporting.html.text import name_of
from hf_era.reporting.markdown.comparison import aggregate
from hf_era.reporting.markdown.formatting import format_estimate
from hf_era.utils.files import write_text
from hf_era.version import __version__

Results = Sequence[RunResult | ModelResult]
_DIFFERENCES = {
    "ablation_gap": "Ablation gap",
    "retain_ablation_gap": "Retain ablation gap",
    "unlearning": "Unlearning",
    "retain_tax": "Retain tax",
    "forget_words_unlearning": "Unlearning, forget words",
}
_OVER_SEEDS = {
    "forget_loss_final": "Final forget loss",
    "retain_loss_final": "Final retain loss",
    **_DIFFERENCES,
    "attacked_forget_loss": "Lowest forget loss under attack",
    "robust_unlearning": "Robust unlearning",
}


def render_comparison(results: Results, title: str = "Comparison") -> str:
    """The page as text. The same results in the same order always give the same text.

    Args:
        results: at least one; those of the same name count as seeds of one recipe.
        title (`str`, *optional*, defaults to `"Comparison"`): of the page.

    Raises:
        ValueError: if there is no result.
    """
    if not results:
        raise ValueError("`results` is empty. Pass at least one result.")
    names = list(dict.fromkeys(result.name for result in results))
    return render_page(
        "comparison_template.html",
        title=name_of(title),
        subtitle=f"{_number(len(results), 'result')} under {_number(len(names), 'name')}",
        warnings=comparability_warnings(results),
        sections=[section for section in _sections(results) if section.parts],
        version=__version__,
    )


def write_comparison(results: Results, path: str | Path, title: str = "Comparison") -> Path:
    """Writes the page to `path`, in one go, and returns it. Arguments and errors: `render_comparison`."""
    return write_text(path, render_comparison(results, title))


def comparability_warnings(results: Results) -> list[str]:
    """Why losses of these results may not be compared; empty if nothing speaks against it."""
    prints: dict[int, set[str]] = {}
    for result in results:
        if result.data.get("fingerprint"):
            prints.setdefault(result.seed, set()).add(str(result.data["fingerprint"]))
    found = []
    if any(len(found_prints) > 1 for found_prints in prints.values()):  # each seed has a split of its own
        found.append(
            "These results were not measured on the same stories (their fingerprints differ): losses of different stories "
            "cannot be compared; only differences of the same result can, with care."
        )
    pairs = [(result.name, result.seed) for result in results]
    twice = sorted({name_of(name) for name, seed in pairs if pairs.count((name, seed)) > 1})
    if twice:
        found.append(
            f"The same name and seed stands here more than once: {', '.join(twice)}. Means over seeds count each."
        )
    return found


def _sections(results: Results) -> list[Section]:
    shown = [summary_of(result) for result in results]
    return [
        Section("results", "All results", [_results_table(shown), *_flagged(results)]),
        Section("seeds", "Over seeds", _over_seeds(results)),
        Section("trade-off", "Forgetting and its price", [*plots_of(results, ["trade_off"])]),
        Section("attacks", "Relearn attacks", [*plots_of(results, ["relearn_curves"]), *_attacks(shown)]),
        Section("selectivity", "Selectivity", [*plots_of(results, ["selectivity"])]),
        Section("generations", "What they write", _generations(results)),
    ]


def _results_table(shown: Sequence[ResultSummary]) -> Table:
    header = ["Result", "Seed", "Rule", "Start", "Before the method, forget", "retain", "Final, forget", "retain"]
    header += [*_DIFFERENCES.values(), "Robust unlearning"]
    rows = []
    for figures in shown:
        losses = [part.get(kind) for part in (figures.before, figures.final) for kind in ("forget", "retain")]
        robust = None if figures.strongest is None else figures.strongest.robust_unlearning
        rows.append(
            [
                name_of(figures.name),
                name_of(figures.seed),
                name_of(figures.rule or METHOD_TITLES.get(figures.method, figures.method)),
                name_of(figures.start or "-"),
                *(_cell(estimate) for estimate in losses),
                *(_cell(estimate, signed=True) for estimate in (*map(figures.differences.get, _DIFFERENCES), robust)),
            ]
        )
    return Table(
        "Losses and differences, nats a token, with 95 % intervals over stories (robust: over trials).", header, rows, 4
    )


def _flagged(results: Results) -> list[Any]:
    """What is wrong with single results."""
    texts = [
        f"{name_of(result.name)}, seed {result.seed}: {text}"
        for result in results
        for text in warning_sentences(result)
    ]
    return [Folded(_number(len(texts), "warning"), [Paragraphs(texts, bullets=True)])] if texts else []


def _over_seeds(results: Results) -> list[Any]:
    rows = []
    for group in aggregate(results):
        if len(group["seeds"]) > 1:
            cells = [
                _cell(Estimate(**group["figures"][name]), name in {*_DIFFERENCES, "robust_unlearning"})
                for name in _OVER_SEEDS
            ]
            rows.append([name_of(group["name"]), ", ".join(map(str, group["seeds"])), *cells])
    if not rows:
        return []
    caption = "Means over seeds with 95 % intervals (Student's t), nats a token; names with several seeds only."
    return [Table(caption, ["Name", "Seeds", *_OVER_SEEDS.values()], rows, 2)]


def _attacks(shown: Sequence[ResultSummary]) -> list[Table]:
    header = [
        "Result",
        "Seed",
        "Strongest attack",
        "Lowest forget loss",
        "Retain loss there",
        "Robust unlearning",
        "Recovered",
    ]
    rows = []
    for figures in shown:
        attack = figures.strongest
        if attack is None:
            continue
        back = "unknown" if attack.recovered is None else f"{attack.recovered} of {attack.trials}"
        if attack.steps_to_recover is not None:
            back += f", after {attack.steps_to_recover:g} steps"
        rows.append(
            [
                name_of(figures.name),
                name_of(figures.seed),
                name_of(attack_name(attack)),
                _cell(attack.lowest_forget),
                _cell(attack.retain_at_lowest),
                _cell(attack.robust_unlearning, signed=True),
                back,
            ]
        )
    caption = "The strongest attack on each result; losses in nats a token, means over trials with 95 % intervals."
    return [Table(caption, header, rows, 3)] if rows else []


def _generations(results: Results) -> list[Any]:
    parts = [(f"{name_of(result.name)}, seed {result.seed}", generation_parts(result)) for result in results]
    return [Folded(title, part) for title, part in parts if part]


def _cell(estimate: Estimate | None, signed: bool = False) -> str:
    return "-" if estimate is None or estimate.value is None else format_estimate(estimate, signed=signed)


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
