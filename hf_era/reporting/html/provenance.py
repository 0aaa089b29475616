"""Where a result comes from, and what it does not say: data, config, versions, what was not tested."""

from __future__ import annotations

import re
from typing import Any

import yaml

from hf_era.evaluation.results import ModelResult, RunResult
from hf_era.evaluation.summary import summary_of
from hf_era.reporting.html.parts import Folded, Listing, Table
from hf_era.reporting.html.text import cut, name_of, visible
from hf_era.reporting.markdown.card_text import source_kind
from hf_era.reporting.markdown.formatting import format_count, is_number

_DATA_TITLES = {
    "train_stories": "Training stories",
    "train_tokens": "Training tokens",
    "train_forget_labelled": "Training stories labelled as forget",
    "train_forget_unlabelled": "Forget stories without a label: trained as retain",
    "train_retain": "Retain stories to train on",
    "train_forget_word_tokens": "Training tokens of forget words",
    "train_tokens_routed_as_forget": "Training tokens with a routing weight below 0.5",
    "validation_forget_stories": "Forget stories to evaluate on",
    "validation_forget_tokens": "... their tokens",
    "validation_retain_stories": "Retain stories to evaluate on",
    "validation_retain_tokens": "... their tokens",
    "attack_forget_stories": "Forget stories held back for attacks",
    "attack_forget_tokens": "... their tokens",
    "duplicates_dropped": "Repeated stories that were dropped",
    "blanks_dropped": "Empty stories that were dropped",
}
_MACHINE = {"system": "System", "cpu_cores": "CPU cores", "device": "Device"}  # anything else may name the machine
_SECRET = re.compile(r"(?i)(^|_)(token|password|secret|credentials?|api_?key)$")
_DIRECTORY = re.compile(r"^(~|/|\.\.?[\\/]|[A-Za-z]:[\\/])")
MAXIMUM_LISTING = 100_000


def data_table(result: RunResult | ModelResult) -> Table:
    """What it was trained, evaluated and attacked on; of local files only the name."""
    data = result.data
    rows = [
        [title, source_text(data[key])]
        for key, title in (("source", "Training data"), ("validation_source", "Validation data"))
        if data.get(key)
    ]
    words = data.get("forget_words") or []
    if words:
        rows.append(["Forget words", cut(", ".join(map(str, words)))])
    rows += [[title, format_count(data[key])] for key, title in _DATA_TITLES.items() if data.get(key) is not None]
    if data.get("fingerprint"):
        rows.append(["Fingerprint of the stories", name_of(data["fingerprint"])])
    return Table("Data", ["Data", "Value"], rows or [["Data", "not recorded"]], text_columns=2)


def provenance_parts(result: RunResult | ModelResult) -> list[Any]:
    """Seed, versions and machine as a table; the config folded."""
    rows = [["Seed", name_of(result.seed)], ["Finished", name_of(result.created or "not recorded")]]
    if isinstance(result, RunResult):
        revision = str(result.git_revision or "not recorded")
        changed = " (with uncommitted changes)" if revision.endswith("-dirty") else ""
        rows.append(["Git revision of hf_era", name_of(revision.removesuffix("-dirty")) + changed])
    else:
        rows.append(["Model", source_text(result.model)])
    rows += [[f"Version of {name_of(name)}", name_of(version)] for name, version in result.versions.items()]
    rows += [
        [title, name_of(result.machine[key])] for key, title in _MACHINE.items() if result.machine.get(key) is not None
    ]
    rows += [
        [f"Time for {name_of(name)}", f"{value:,.0f} s"] for name, value in result.seconds.items() if is_number(value)
    ]
    parts: list[Any] = [Table("Run", ["Run", "Value"], rows, text_columns=2)]
    if isinstance(result, RunResult) and result.config:
        parts.append(Folded("The whole config, as run", [Listing(config_text(result.config))]))
    relearning = result.relearning
    if relearning is not None and relearning.settings:
        parts.append(Folded("Settings of the attacks", [Listing(config_text(relearning.settings))]))
    return parts


def config_text(config: dict[str, Any]) -> str:
    """A config as YAML, without secrets and without the directories of this machine."""
    text = yaml.safe_dump(_public("", config), sort_keys=False, allow_unicode=True, width=110)
    return cut(text, MAXIMUM_LISTING)


def not_tested(result: RunResult | ModelResult) -> list[str]:
    """What this result says nothing about: what was left out, and what hf_era does not measure at all."""
    figures = summary_of(result)
    found = []
    relearning = figures.relearning
    if relearning is None or not relearning.trials:
        found.append("No relearn attack was made.")
    else:
        found += [cut(note, 500) for note in relearning.notes]
        kinds = {trial.kind for trial in relearning.trials}
        found += [
            f"No attack by {title}."
            for kind, title in (("full", "full fine-tuning"), ("lora", "LoRA"))
            if kind not in kinds
        ]
        most = max(trial.stories for trial in relearning.trials)
        found.append(
            f"Attacks with more than {format_count(most)} forget stories, or with other data than held-back stories."
        )
    if figures.data_filtering is None and figures.method not in ("data_filtering", "base"):
        found.append(
            "No comparison with data filtering: how much a model would forget that never saw the data is not known."
        )
    if isinstance(result, RunResult) and figures.method == "gradient_routing" and not result.leak_audit:
        found.append("No leak audit was made.")
    if not result.generations:
        found.append("No text was generated.")
    return [
        *found,
        "Other seeds: a single run says nothing about how much another seed would differ.",
        "Attacks by prompting, quantising or editing the weights; what the capability is worth beyond these stories; other "
        "languages; paraphrases of the forget words.",
    ]


def source_text(source: Any) -> str:
    """Where something came from, without directories."""
    kind, name = source_kind(source)
    if kind == "generator":
        return "hf_era's built-in story generator (synthetic, written by templates)"
    return name_of(name) + {"hub": "", "local": " (local)"}[kind]


def _public(key: str, value: Any) -> Any:
    if _SECRET.search(key) and value is not None and not isinstance(value, (bool, int, float)):
        return "(left out)"
    if isinstance(value, dict):
        return {visible(name)[:200]: _public(str(name), part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_public(key, part) for part in value]
    if isinstance(value, str):
        parts = re.split(r"[\\/]", value)
        return f".../{cut(parts[-1], 500)}" if _DIRECTORY.match(value) else cut(value, 500)
    return value if value is None or isinstance(value, (bool, int, float)) else visible(value)
