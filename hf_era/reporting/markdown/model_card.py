"""The model card: what was removed, how, how well, and what is not known. Rendered from the result alone.

The text is in `model_card_template.md`; what the method says of itself comes with the result. The same result always gives
the same text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from hf_era.evaluation.results import RunResult
from hf_era.evaluation.summary import ResultSummary, summary_of
from hf_era.reporting import provenance, tables
from hf_era.reporting.headline import before_text, cautions, headline_sentences
from hf_era.reporting.labels import AT_MOST, KINDS, stage_title
from hf_era.reporting.markdown.tables import escape_markdown, markdown_prose, markdown_table
from hf_era.reporting.numbers import any_interval, format_count, format_share, is_number
from hf_era.reporting.provenance import section
from hf_era.reporting.seeds import seeds_sentence, seeds_table
from hf_era.reporting.text import NOT_RECORDED, name_of, source_kind
from hf_era.utils.files import write_text

TEMPLATE = Path(__file__).with_name("model_card_template.md")
ROUTED_TOKENS = 10
"""Rows of the table of routed tokens."""


def render_model_card(
    result: RunResult, repository: str | None = None, license: str | None = None, seeds: Sequence[RunResult] = ()
) -> str:
    """The text of `README.md` for the final checkpoint of a run.

    Args:
        result (`RunResult`): of the run. What it does not hold shows as "not measured" or "not recorded". Settings come
            from `config`; a dict `training["arguments"]` with the resolved Trainer arguments, if there is one, wins.
        repository (`str`, *optional*): hub id of the model, `name` or `owner/name`. Not given: "path/to/this/folder".
        license (`str`, *optional*): identifier for the metadata, e.g. `apache-2.0`. Not given: left out.
        seeds (`list[RunResult]`, *optional*): of other seeds: means over them stand beside the run's own figures. Results of
            another recipe are left out.

    Raises:
        ValueError: if `repository` is no valid repository id.
    """
    if repository is not None:
        try:
            validate_repo_id(repository)
        except HFValidationError as error:
            raise ValueError(f"`repository` should be a hub id such as `owner/name`: {error}") from error
    data = card_data(result, repository, license)
    card = ModelCard.from_template(data, template_path=str(TEMPLATE), **_context(result, repository, seeds))
    return str(card).rstrip() + "\n"


def write_model_card(
    result: RunResult,
    folder: str | Path,
    repository: str | None = None,
    license: str | None = None,
    seeds: Sequence[RunResult] = (),
) -> Path:
    """Writes the card to `README.md` in a folder, in one go, and returns its path. Arguments: `render_model_card`."""
    return write_text(Path(folder) / "README.md", render_model_card(result, repository, license, seeds))


# ---- Metadata ----


def card_data(result: RunResult, repository: str | None = None, license: str | None = None) -> ModelCardData:
    """The metadata at the top of the card; the final checkpoint's figures (nats a token) are its evaluation results."""
    entries = _evaluation_results(result)
    base, train = section(result, "model").get("base"), result.data.get("source")
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        license=license,
        tags=["hf_era", result.method.replace("_", "-"), "unlearning"],
        base_model=base if source_kind(base)[0] == "hub" else None,
        datasets=[train] if train and source_kind(train)[0] == "hub" else None,
        model_name=(repository or result.name) if entries else None,
        eval_results=entries or None,
    )


def _evaluation_results(result: RunResult) -> list[EvalResult]:
    """Of the final checkpoint only, without what was not measured."""
    stage = result.final_stage
    measured: list[tuple[str, str, float | None]] = [
        ("loss", f"{kind} loss {stage}".replace("_", " "), result.loss(stage, kind)) for kind in KINDS
    ]
    measured += [
        ("loss difference", name.replace("_", " "), getattr(result, name))
        for name in ("ablation_gap", "retain_ablation_gap", "unlearning", "retain_tax")
    ]
    kind, name = source_kind(result.data.get("validation_source") or result.data.get("source"))
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=name if kind == "hub" else kind,
            dataset_name="built-in example generator of hf_era (synthetic)" if kind == "generator" else name,
            dataset_split="validation",
            metric_type=metric_type,
            metric_name=f"{metric_name} (nats/token)",
            metric_value=round(float(value), 4),
        )
        for metric_type, metric_name, value in measured
        if value is not None and is_number(value)
    ]


# ---- Text ----


def _context(result: RunResult, repository: str | None, seeds: Sequence[RunResult]) -> dict[str, Any]:
    """What the template shows; all that comes from data, config or the method is escaped."""
    figures = summary_of(result)
    losses = [estimate for part in figures.losses.values() for estimate in part.values()]
    version, settings = str(result.versions.get("hf-era", "unknown")), section(result, "data")
    words, fraction = result.data.get("forget_words") or settings.get("forget_words"), settings.get("labelled_fraction")
    shown = {
        "losses_table": tables.losses_table(result),
        "differences_table": tables.differences_table(result),
        "ablation_table": tables.ablation_table(result),
        "selectivity_table": tables.selectivity_table(result) if result.has_module else None,
        "routing_table": tables.routing_table(result, ROUTED_TOKENS),
        "seeds_table": seeds_table(result, seeds),
        "attack_table": tables.attacks_table(result),
        "data_table": provenance.data_table(result),
        "training_table": provenance.training_table(result),
        "run_table": provenance.run_table(result),
    }
    headline = [*filter(None, [seeds_sentence(result, seeds)]), *headline_sentences(result)]
    return {
        **{name: markdown_table(table) for name, table in shown.items()},
        **_method_texts(result, version),
        **_attack_texts(figures),
        "seed": escape_markdown(result.seed),
        "title": escape_markdown(repository or result.name),
        "load_from": repository or "path/to/this/folder",
        "plain_version": re.sub(r"[^\w.+-]", "", version),
        "words": ", ".join(f'"{escape_markdown(word)}"' for word in words or []) or NOT_RECORDED,
        "label_fraction": format_share(fraction) if is_number(fraction) else NOT_RECORDED,
        "before": escape_markdown(before_text(result)),
        "has_before": result.before_kind is not None,
        "final_stage": escape_markdown(stage_title(figures, result.final_stage)),
        "has_intervals": any_interval(losses),
        "has_difference_intervals": any_interval(list(figures.differences.values())),
        "has_coherence": "after_coherence" in result.losses,
        "is_synthetic": source_kind(result.data.get("source"))[0] == "generator",
        "lacks_control": figures.control is None and not figures.is_control,
        "warnings": [
            f"**{escape_markdown(part.lead)}.** {escape_markdown(part.text)}" for part in cautions(result, seeds)
        ],
        "headline": [escape_markdown(sentence) for sentence in headline],
        "counts": escape_markdown(tables.counts_text(result)),
    }


def _method_texts(result: RunResult, version: str) -> dict[str, str]:
    """The method's own prose. Where it has no introduction, one that holds for all."""
    made = (
        f'A causal language model that was made by hf_era {{version}} with the method "{name_of(result.method_title)}".'
    )
    texts = {name: str(result.method_texts.get(name) or "") for name in ("introduction", "training", "labels")}
    texts["introduction"] = texts["introduction"] or made
    return {name: markdown_prose(text.replace("{version}", version)) for name, text in texts.items()}


def _attack_texts(figures: ResultSummary) -> dict[str, Any]:
    """How the relearn attacks were made and what they were measured on, in words."""
    relearning = figures.relearning
    if relearning is None:
        return {}
    steps, patience, every = (relearning.settings.get(name) for name in ("steps", "patience", "evaluate_every"))
    made = f"AdamW, betas 0.9 and 0.95, at most {format_count(steps)} steps"
    made += f", measured at least every {format_count(every or 1)}"
    made += f", stopped after {format_count(patience)} rises in a row" if patience else ""
    measured = relearning.measured
    parts = [
        f"{format_count(measured.get(f'{kind}_stories'))} {kind} examples "
        f"({format_count(measured.get(f'{kind}_tokens'))} tokens)"
        for kind in ("forget", "retain")
    ]
    return {
        "attack_settings": escape_markdown(made),
        "at_most": escape_markdown(AT_MOST),
        "attack_measured": escape_markdown(" and ".join(parts)),
        "attack_notes": [escape_markdown(note) for note in relearning.notes],
    }
