"""The model card: what was removed, how, how well, and what is not known. Rendered from the result alone.

The text is in `model_card_template.md`; this module fills it. The same result always gives the same text.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id

from hf_era.evaluation.result import RunResult
from hf_era.files import write_text
from hf_era.reporting import tables
from hf_era.reporting.tables import escape_markdown, format_count, format_difference, format_loss, section

TEMPLATE = Path(__file__).with_name("model_card_template.md")
TAGS = ["hf_era", "gradient-routing", "unlearning"]
GENERATOR = "generator"
DEFAULT_THRESHOLD = 0.05
"""Nats a token; an unlearning below the run's `minimum_ablation_gap`, or this where it has none, counts as none."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_DATA_FILE = re.compile(r"\.(jsonl|json|txt|parquet)$", re.IGNORECASE)
_RULES = {
    "full_seq (uniform)": "every token of a labelled forget story is routed (weight 0)",
    "full_seq (frequency)": "a token of a labelled forget story is routed the more, the commoner it is in forget stories "
    "than in retain stories: w = 1 - sigmoid(scale (f/r - r/f) + bias)",
    "concept": "only the tokens of the forget words in labelled forget stories are routed (weight 0)",
    "none": "no token is routed: this run is a control",
}
_TRAINING_SETTINGS = {
    "optim": "optimizer",
    "learning_rate": "peak learning rate",
    "lr_scheduler_type": "schedule",
    "warmup_steps": "warm-up steps",
    "minimum_learning_rate_ratio": "final over peak learning rate",
    "adam_beta1": "AdamW beta 1",
    "adam_beta2": "AdamW beta 2",
    "weight_decay": "weight decay",
    "max_grad_norm": "gradient clipping",
    "l1_coefficient": "L1 coefficient",
    "auxiliary_learning_rate_factor": "learning-rate factor of the auxiliary module",
    "auxiliary_weight_decay": "weight decay of the auxiliary module",
    "per_device_train_batch_size": "stories per device and step",
    "gradient_accumulation_steps": "accumulated batches",
    "bf16": "bf16",
    "fp16": "fp16",
}


def render_model_card(result: RunResult, repository: str | None = None, license: str | None = None) -> str:
    """The text of `README.md` for the final checkpoint of a run.

    Args:
        result (`RunResult`): of the run. What it does not hold shows as "not measured" or "not recorded". Settings come
            from `config`; a dict `training["arguments"]` with the resolved Trainer arguments, if there is one, wins.
        repository (`str`, *optional*): hub id of the model, `name` or `owner/name`. Not given: the card speaks of a folder.
        license (`str`, *optional*): identifier for the metadata, e.g. `apache-2.0`. Not given: left out.

    Raises:
        ValueError: if `repository` is no valid repository id.
    """
    if repository is not None:
        validate_repo_id(repository)
    data = card_data(result, repository, license)
    card = ModelCard.from_template(data, template_path=str(TEMPLATE), **_context(result, repository))
    return str(card).rstrip() + "\n"


def write_model_card(
    result: RunResult, folder: str | Path, repository: str | None = None, license: str | None = None
) -> Path:
    """Writes the card to `README.md` in a folder, in one go, and returns its path. Arguments: `render_model_card`."""
    return write_text(Path(folder) / "README.md", render_model_card(result, repository, license))


def card_data(result: RunResult, repository: str | None = None, license: str | None = None) -> ModelCardData:
    """The metadata at the top of the card: the final checkpoint's losses (nats a token) as evaluation results."""
    stage = result.final_stage.replace("_", " ")
    measured: list[tuple[str, str, float | None]] = [
        ("loss", f"{kind.replace('_', ' ')} loss {stage} (nats/token)", result.loss(result.final_stage, kind))
        for kind in tables.KINDS
    ]
    measured += [
        ("loss difference", f"{name} (nats/token)", value)
        for name, value in (
            ("ablation gap", result.ablation_gap),
            ("retain ablation gap", result.retain_ablation_gap),
            ("unlearning", result.unlearning),
            ("retain tax", result.retain_tax),
        )
    ]
    source = result.data.get("validation_source") or result.data.get("source")
    kind, name = _source_kind(source)
    entries = [
        EvalResult(
            task_type="text-generation",
            dataset_type=name if kind == "hub" else kind,
            dataset_name={GENERATOR: "built-in story generator of hf_era (synthetic)"}.get(kind, name),
            dataset_split="validation",
            metric_type=metric_type,
            metric_name=metric_name,
            metric_value=round(float(value), 4),
        )
        for metric_type, metric_name, value in measured
        if value is not None and tables.is_number(value)
    ]
    base, train = section(result, "model").get("base"), result.data.get("source")
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        license=license,
        tags=list(TAGS),
        base_model=base if _source_kind(base)[0] == "hub" else None,
        datasets=[train] if train and _source_kind(train)[0] == "hub" else None,
        model_name=(repository or result.name) if entries else None,
        eval_results=entries or None,
    )


def _context(result: RunResult, repository: str | None) -> dict[str, Any]:
    """What the template shows; all that comes from data or config is escaped here."""
    return {
        "title": escape_markdown(repository or result.name),
        "load_from": repository or "path/to/this/folder",
        "words": ", ".join(escape_markdown(word) for word in _forget_words(result)) or "not recorded",
        "warnings": _warnings(result),
        "headline": _headline(result),
        "losses": tables.losses_table(result),
        "final_stage": tables.STAGE_LABELS[result.final_stage],
        "counts": _evaluation_counts(result),
        "has_intervals": any(is_interval(part) for stage in result.losses.values() for part in stage.values()),
        "selectivity": tables.selectivity_table(result),
        "routing": tables.routing_table(result),
        "data_table": _data_table(result),
        "training_table": _training_table(result),
        "reproducibility_table": _reproducibility_table(result),
        "label_fraction": _percentage(section(result, "data").get("labelled_fraction")),
        "cut": _recorded(section(result, "data").get("max_characters"), "not cut"),
        "synthetic": _source_kind(result.data.get("source"))[0] == GENERATOR,
        "coherence_ran": "after_coherence" in result.losses,
        "before": _before(result),
        "has_before": result.before_kind is not None,
        "version": escape_markdown(result.versions.get("hf-era", "unknown")),
    }


def is_interval(estimate: dict[str, Any]) -> bool:
    return tables.is_number(estimate.get("low")) and tables.is_number(estimate.get("high"))


# ---- In words ----


def _warnings(result: RunResult) -> list[str]:
    """What a reader has to know before anything else; empty if nothing is wrong."""
    gap, unlearning, tax = result.ablation_gap, result.unlearning, result.retain_tax
    found = []
    if result.localised is None:
        found.append("**Not known whether anything was localised.** The ablation gap, or its threshold, was not measured.")
    elif not result.localised:
        found.append(
            "**NOTHING WAS LOCALISED.** Ablating the auxiliary module changed the forget loss by "
            f"{format_difference(gap)} nats a token, less than the threshold of {_threshold(result):g}. Do not take this "
            "model for one that has lost a capability by gradient routing."
        )
    if unlearning is not None and not unlearning >= _threshold(result):
        found.append(
            f"**The capability was not removed.** On forget stories the final loss is {format_difference(unlearning)} "
            f"nats a token against {_before(result)}, less than the threshold of {_threshold(result):g}."
        )
    elif unlearning is not None and tax is not None and tax >= unlearning:
        found.append(
            f"**The retain loss rose as much as the forget loss** ({format_difference(tax)} against "
            f"{format_difference(unlearning)} nats a token). That is general damage, not the removal of one capability."
        )
    return found


def _headline(result: RunResult) -> list[str]:
    gap, retain_gap = format_difference(result.ablation_gap), format_difference(result.retain_ablation_gap)
    lines = [
        f"**Ablation gap: {gap}.** By so many nats a token the forget loss changed when the auxiliary module was switched "
        f"off. On retain stories: {retain_gap}."
    ]
    if result.before_kind is None:
        return [
            *lines,
            f"**Unlearning: {tables.NOT_MEASURED}. Retain tax: {tables.NOT_MEASURED}.** There is no model from before the "
            "method to compare with.",
        ]
    before = _before(result)
    return [
        *lines,
        f"**Unlearning: {format_difference(result.unlearning)}.** Forget loss of this checkpoint minus that of {before}.",
        f"**Retain tax: {format_difference(result.retain_tax)}.** Retain loss of this checkpoint minus that of {before}.",
    ]


def _threshold(result: RunResult) -> float:
    value = result.training.get("minimum_ablation_gap")
    return float(value) if value is not None and tables.is_number(value) else DEFAULT_THRESHOLD


def _before(result: RunResult) -> str:
    """What "before the method" is, to follow "that of"."""
    if result.before_kind == "base_control":
        return "the base control (same data, steps and seed, no routing)"
    if result.before_kind == "pretrained":
        own = section(result, "model").get("base") is None
        return "the base model, pretrained here on the same stories" if own else "the pretrained base model"
    return tables.NOT_MEASURED


def _start(result: RunResult) -> str:
    model = section(result, "model")
    if model.get("start") == "scratch":
        return "random weights"
    if model.get("start") is None:
        return "not recorded"
    if model.get("base") is None:
        return "a base model pretrained here, on the same stories with the forget stories among them"
    kind, name = _source_kind(model["base"])
    return f"the pretrained model {'' if kind == 'hub' else 'in the local folder '}{escape_markdown(name)}"


def _evaluation_counts(result: RunResult) -> str:
    """Stories and tokens behind each column of the losses."""
    parts = []
    for kind, label in tables.KINDS.items():
        found = [part[kind] for part in result.losses.values() if kind in part]
        stories, tokens = (format_count(found[0].get(name) if found else None) for name in ("stories", "tokens"))
        parts.append(f"{label.lower()}: {tokens} tokens in {stories} stories")
    return "; ".join(parts)


# ---- Tables ----


def _data_table(result: RunResult) -> str:
    data = result.data
    routed, tokens = data.get("train_tokens_routed_as_forget"), data.get("train_tokens")
    share = f" ({routed / tokens:.2%} of all)" if tables.is_number(routed) and tables.is_number(tokens) and tokens else ""
    rows = [("Training data", _source(data.get("source")))]
    if data.get("validation_source"):
        rows.append(("Validation data", _source(data["validation_source"])))
    rows.append(("Training stories, all", _stories(data, "train")))
    rows += [
        (label, format_count(data.get(key)))
        for label, key in (
            ("... labelled as forget", "train_forget_labelled"),
            ("... forget, but unlabelled (trained as retain)", "train_forget_unlabelled"),
            ("... retain", "train_retain"),
            ("Training tokens of forget words", "train_forget_word_tokens"),
        )
    ]
    rows.append(("Training tokens with a routing weight below 0.5", format_count(routed) + share))
    rows += [
        (label, _stories(data, key))
        for label, key in (
            ("Validation stories, forget", "validation_forget"),
            ("Validation stories, retain", "validation_retain"),
            ("Forget stories held back for a relearn attack", "attack_forget"),
        )
    ]
    rows.append(("Repeated stories that were dropped", format_count(data.get("duplicates_dropped"))))
    return tables.markdown_table(["", ""], rows, text_columns=2)


def _training_table(result: RunResult) -> str:
    expansion, routing, model = (section(result, name) for name in ("expansion", "routing", "model"))
    settings = _training_settings(result)
    rule = tables.rule_label(result)
    text = f"{escape_markdown(rule)}: {_RULES.get(rule, 'not recorded')}"
    if rule == "full_seq (frequency)":
        text += f"; scale {_recorded(routing.get('frequency_scale'))}, bias {_recorded(routing.get('frequency_bias'))}"
    layers = expansion.get("target_layers")
    listed = ", ".join(sorted(result.selectivity, key=lambda layer: (len(layer), layer))) if layers is None else layers
    layers_text = escape_markdown(", ".join(map(str, listed)) if layers is not None else f"all ({listed or '?'})")
    given = [f"{label} {escape_markdown(settings[key])}" for key, label in _TRAINING_SETTINGS.items() if key in settings]
    steps = result.training.get("steps", settings.get("max_steps"))
    rows = [
        ("Recipe", escape_markdown(result.name)),
        ("Start", _start(result)),
        ("Architecture", _pairs(model.get("architecture")) or "that of the base model"),
        ("Auxiliary module", f"width {_recorded(expansion.get('width'))} in layers: {layers_text}"),
        ("Mask rule", text),
        ("Gradient multipliers", _multipliers(settings.get("multipliers"))),
        ("Routed training", f"{format_count(steps)} steps" if steps is not None else "steps not recorded"),
        ("Training settings", "; ".join([*given, "otherwise the defaults of hf\\_era"])),
        ("Coherence fine-tuning", _coherence(result)),
    ]
    return tables.markdown_table(["", ""], rows, text_columns=2)
