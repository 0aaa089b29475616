"""The parts of a model card that are tables of a label and a value: data, training, reproducibility."""

from __future__ import annotations

import json
from typing import Any

from hf_era.evaluation.intervals import Estimate
from hf_era.evaluation.results import RunResult
from hf_era.evaluation.summary import rule_label
from hf_era.reporting.markdown import formatting, tables
from hf_era.reporting.markdown.card_text import NOT_RECORDED, source_text, start_text
from hf_era.reporting.markdown.formatting import escape_markdown, format_count
from hf_era.reporting.markdown.tables import section

_RULES = {
    "full_seq (uniform)": "every token of a labelled forget story is routed (weight 0)",
    "full_seq (frequency)": "a token of a labelled forget story is routed the more, the commoner it is in forget "
    "stories than in retain stories: w = 1 - sigmoid(scale (f/r - r/f) + bias)",
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
    "per_device_train_batch_size": "stories per device and batch",
    "gradient_accumulation_steps": "accumulated batches",
    "bf16": "bf16",
    "fp16": "fp16",
}


def data_table(result: RunResult) -> str:
    data = result.data
    routed, tokens = data.get("train_tokens_routed_as_forget"), data.get("train_tokens")
    known = formatting.is_number(routed) and formatting.is_number(tokens)
    share = f" ({float(routed) / float(tokens):.2%} of all)" if known and tokens else ""  # type: ignore[arg-type]
    rows = [("Training data", source_text(data.get("source")))]
    if data.get("validation_source"):
        rows.append(("Validation data", source_text(data["validation_source"])))
    rows += [
        ("A story is cut at", _cuts(result)),
        ("Training stories", _stories(data, "train")),
        ("... labelled as forget", format_count(data.get("train_forget_labelled"))),
        ("... forget, but unlabelled: trained as retain", format_count(data.get("train_forget_unlabelled"))),
        ("... retain", format_count(data.get("train_retain"))),
        ("Training tokens of forget words", format_count(data.get("train_forget_word_tokens"))),
        ("Training tokens with a routing weight below 0.5", format_count(routed) + share),
        ("Forget stories to evaluate on", _stories(data, "validation_forget")),
        ("Retain stories to evaluate on", _stories(data, "validation_retain")),
        ("Forget stories held back for a relearn attack", _stories(data, "attack_forget")),
        ("Repeated stories that were dropped", format_count(data.get("duplicates_dropped"))),
    ]
    return formatting.markdown_table(["Data", "Value"], rows, text_columns=2)


def ablation_audit_table(result: RunResult) -> str:
    """What ablation removes, one layer at a time; empty if it was not measured."""
    audit = result.leak_audit.get("ablation") or {}
    layers = sorted((name for name in audit if name.isdecimal()), key=int)
    rows = [
        [
            "all layers" if name == "all" else f"layer {name}",
            *(formatting.format_estimate(Estimate(**audit[name][kind]), signed=True) for kind in ("forget", "retain")),
        ]
        for name in [*layers, *(["all"] if "all" in audit else [])]
    ]
    return formatting.markdown_table(["Ablated", "Forget stories", "Retain stories"], rows) if rows else ""


def training_table(result: RunResult) -> str:
    settings = {**section(result, "training"), **(result.training.get("arguments") or {})}
    given = [
        f"{label} {escape_markdown(settings[key])}" for key, label in _TRAINING_SETTINGS.items() if key in settings
    ]
    steps = result.training.get("steps", settings.get("max_steps"))
    width = _recorded(section(result, "expansion").get("width"))
    if result.method == "data_filtering":
        rows = [
            ("Recipe", escape_markdown(result.name)),
            ("Architecture", _pairs(section(result, "model").get("architecture")) or "that of the base control"),
            ("Steps", NOT_RECORDED if steps is None else format_count(steps)),
            ("Training settings", "; ".join([*given, "all others as hf_era sets them by default"])),
        ]
        return formatting.markdown_table(["Training", "Value"], rows, text_columns=2)
    rows = [
        ("Recipe", escape_markdown(result.name)),
        ("Start", start_text(result)),
        ("Architecture", _pairs(section(result, "model").get("architecture")) or "that of the base model"),
        ("Auxiliary module", f"an MLP with {width} hidden units beside the MLP of {_target_layers(result)}"),
        ("Mask rule", _rule(result)),
        ("Gradient multipliers", _multipliers(settings.get("multipliers"))),
        ("Steps of routed training", NOT_RECORDED if steps is None else format_count(steps)),
        ("Training settings", "; ".join([*given, "all others as hf_era sets them by default"])),
        ("Coherence fine-tuning", _coherence(result)),
    ]
    return formatting.markdown_table(["Training", "Value"], rows, text_columns=2)


def reproducibility_table(result: RunResult) -> str:
    known = {"system": "system", "cpu_cores": "CPU cores", "device": "device"}  # others may name the machine
    machine = {label: result.machine[key] for key, label in known.items() if result.machine.get(key) is not None}
    seconds = {name: f"{value:,.0f} s" for name, value in result.seconds.items() if formatting.is_number(value)}
    revision = str(result.git_revision or NOT_RECORDED)
    changed = " (with uncommitted changes)" if revision.endswith("-dirty") else ""
    rows = [
        ("Seed", escape_markdown(result.seed)),
        ("Finished", escape_markdown(result.created)),
        ("Git revision of hf_era", escape_markdown(revision.removesuffix("-dirty")) + changed),
        ("Versions", _pairs(result.versions) or NOT_RECORDED),
        ("Machine", _pairs(machine) or NOT_RECORDED),
        ("Time per phase", _pairs(seconds) or NOT_RECORDED),
    ]
    return formatting.markdown_table(["Run", "Value"], rows, text_columns=2)


def _target_layers(result: RunResult) -> str:
    layers = section(result, "expansion").get("target_layers")
    if layers is None:
        return f"all layers ({', '.join(map(escape_markdown, tables.layers_of(result))) or NOT_RECORDED})"
    return f"layers {', '.join(map(escape_markdown, layers))}"


def _rule(result: RunResult) -> str:
    routing, rule = section(result, "routing"), rule_label(result)
    text = escape_markdown(rule) + (f": {_RULES[rule]}" if rule in _RULES else "")
    if rule == "full_seq (frequency)":
        scale, bias = (_recorded(routing.get(f"frequency_{name}")) for name in ("scale", "bias"))
        text += f"; scale {scale}, bias {bias}"
    return text


def _multipliers(values: Any) -> str:
    if isinstance(values, str):
        try:
            values = json.loads(values)
        except json.JSONDecodeError:
            return escape_markdown(values)
    if not isinstance(values, dict) or not values:
        return "hf_era's defaults"
    parts = []
    for part, label in (("original", "original dims"), ("auxiliary", "auxiliary module")):
        retain, forget = (_recorded(values.get(f"{part}_{kind}"), "default") for kind in ("retain", "forget"))
        parts.append(f"{label} {retain} on retain, {forget} on forget tokens")
    return "; ".join(parts)


def _coherence(result: RunResult) -> str:
    settings, report = section(result, "coherence"), result.coherence
    if settings.get("enabled") is False:
        return "left out"
    steps = settings.get("steps")
    if steps is None:
        return NOT_RECORDED
    rate, stories = (_recorded(settings.get(name)) for name in ("learning_rate", "stories"))
    text = (
        f"at most {format_count(steps)} steps at a constant learning rate of {rate}, each on the same {stories} retain "
        "stories; the weights with the lowest loss on the retain validation stories were kept"
    )
    best = report.get("best_step")
    if best is None:
        return text
    return f"{text}: {'those from before the first step' if best == 0 else f'those of step {format_count(best)}'}"


def _stories(data: dict[str, Any], name: str) -> str:
    stories, tokens = data.get(f"{name}_stories"), data.get(f"{name}_tokens")
    return (
        f"{format_count(stories)} stories, {format_count(tokens)} tokens"
        if stories is not None
        else formatting.NOT_MEASURED
    )


def _cuts(result: RunResult) -> str:
    settings = section(result, "data")
    cuts = [("max_characters", "characters (before it is labelled)"), ("max_tokens", "tokens")]
    found = [f"{format_count(settings[name])} {unit}" for name, unit in cuts if settings.get(name) is not None]
    return ", then ".join(found) or NOT_RECORDED


def _pairs(values: Any) -> str:
    return ", ".join(f"{escape_markdown(name)} {escape_markdown(value)}" for name, value in (values or {}).items())


def _recorded(value: Any, otherwise: str = NOT_RECORDED) -> str:
    return otherwise if value is None else escape_markdown(value)
