"""The model card: what was removed, how, how well, and what is not known. Rendered from the result alone.

The text is in `model_card_template.md`, its parts are made in `card_text` and `card_tables`. The same result always
gives the same text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from hf_era.evaluation.results import RunResult
from hf_era.reporting.markdown import card_tables, card_text, formatting, tables
from hf_era.reporting.markdown.formatting import escape_markdown
from hf_era.reporting.markdown.tables import section
from hf_era.utils.files import write_text

TEMPLATE = Path(__file__).with_name("model_card_template.md")
TAGS = ["hf_era", "gradient-routing", "unlearning"]


def render_model_card(result: RunResult, repository: str | None = None, license: str | None = None) -> str:
    """The text of `README.md` for the final checkpoint of a run.

    Args:
        result (`RunResult`): of the run. What it does not hold shows as "not measured" or "not recorded". Settings come
            from `config`; a dict `training["arguments"]` with the resolved Trainer arguments, if there is one, wins.
        repository (`str`, *optional*): hub id of the model, `name` or `owner/name`. Not given: "path/to/this/folder".
        license (`str`, *optional*): identifier for the metadata, e.g. `apache-2.0`. Not given: left out.

    Raises:
        ValueError: if `repository` is no valid repository id.
    """
    if repository is not None:
        try:
            validate_repo_id(repository)
        except HFValidationError as error:
            raise ValueError(f"`repository` should be a hub id such as `owner/name`: {error}") from error
    data = card_data(result, repository, license)
    card = ModelCard.from_template(data, template_path=str(TEMPLATE), **_context(result, repository))
    return str(card).rstrip() + "\n"


def write_model_card(
    result: RunResult, folder: str | Path, repository: str | None = None, license: str | None = None
) -> Path:
    """Writes the card to `README.md` in a folder, in one go, and returns its path. Arguments: `render_model_card`."""
    return write_text(Path(folder) / "README.md", render_model_card(result, repository, license))


def card_data(result: RunResult, repository: str | None = None, license: str | None = None) -> ModelCardData:
    """The metadata at the top of the card; the final checkpoint's figures (nats a token) are its evaluation results."""
    entries = _evaluation_results(result)
    base, train = section(result, "model").get("base"), result.data.get("source")
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        license=license,
        tags=list(TAGS),
        base_model=base if card_text.source_kind(base)[0] == "hub" else None,
        datasets=[train] if train and card_text.source_kind(train)[0] == "hub" else None,
        model_name=(repository or result.name) if entries else None,
        eval_results=entries or None,
    )


def _evaluation_results(result: RunResult) -> list[EvalResult]:
    """Of the final checkpoint only, without what was not measured."""
    stage = result.final_stage
    measured: list[tuple[str, str, float | None]] = [
        ("loss", f"{kind} loss {stage}".replace("_", " "), result.loss(stage, kind)) for kind in tables.KINDS
    ]
    measured += [
        ("loss difference", name.replace("_", " "), getattr(result, name))
        for name in ("ablation_gap", "retain_ablation_gap", "unlearning", "retain_tax")
    ]
    kind, name = card_text.source_kind(result.data.get("validation_source") or result.data.get("source"))
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=name if kind == "hub" else kind,
            dataset_name="built-in story generator of hf_era (synthetic)" if kind == "generator" else name,
            dataset_split="validation",
            metric_type=metric_type,
            metric_name=f"{metric_name} (nats/token)",
            metric_value=round(float(value), 4),
        )
        for metric_type, metric_name, value in measured
        if value is not None and formatting.is_number(value)
    ]


def _context(result: RunResult, repository: str | None) -> dict[str, Any]:
    """What the template shows; all that comes from data or config is escaped."""
    estimates = card_text.estimates(result)
    return {
        **_attack_context(result),
        "is_control": result.method == "data_filtering",
        "seed": escape_markdown(result.seed),
        "has_difference_intervals": any(formatting.has_interval(part) for part in result.differences.values()),
        "differences_table": tables.differences_table(result),
        "ablation_audit_table": card_tables.ablation_audit_table(result),
        "title": escape_markdown(repository or result.name),
        "load_from": repository or "path/to/this/folder",
        "version": escape_markdown(result.versions.get("hf-era", "unknown")),
        "plain_version": re.sub(r"[^\w.+-]", "", result.versions.get("hf-era", "unknown")),
        "words": card_text.forget_words(result),
        "label_fraction": card_text.percentage(section(result, "data").get("labelled_fraction")),
        "before": card_text.before(result),
        "has_before": result.before_kind is not None,
        "final_stage": tables.STAGE_LABELS[result.final_stage],
        "has_intervals": any(formatting.has_interval(part) for part in estimates),
        "has_coherence": "after_coherence" in result.losses,
        "is_synthetic": card_text.source_kind(result.data.get("source"))[0] == "generator",
        "warnings": card_text.warnings(result),
        "headline": card_text.headline(result),
        "counts": card_text.evaluation_counts(result),
        "losses_table": tables.losses_table(result),
        "selectivity_table": tables.selectivity_table(result),
        "routing_table": tables.routing_table(result),
        "data_table": card_tables.data_table(result),
        "training_table": card_tables.training_table(result),
        "reproducibility_table": card_tables.reproducibility_table(result),
    }


def _attack_context(result: RunResult) -> dict[str, Any]:
    """What the template shows of the relearn attacks; an empty table if there were none."""
    relearning, filtered = result.relearning, result.data_filtering or {}
    context: dict[str, Any] = {"filtered_name": escape_markdown(filtered.get("name") or ""), "attack_table": ""}
    if relearning is None or not relearning.trials:
        return context
    return {
        **context,
        "attack_table": tables.attack_table(
            relearning.summaries(), relearning.strongest(), list(filtered.get("attacks") or [])
        ),
        "attack_settings": card_text.attack_settings(relearning.settings),
        "attack_measured": card_text.attack_measured(relearning.measured),
        "attack_notes": [escape_markdown(note) for note in relearning.notes],
    }
