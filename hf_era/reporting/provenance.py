"""Where a result comes from, and what it does not say: data, training, versions, what was not tested. Plain text."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from hf_era.evaluation.model_evaluation import words_message
from hf_era.evaluation.relearn.result import FORGET
from hf_era.evaluation.results import AnyResult, RunResult
from hf_era.evaluation.summary import rule_label, summary_of
from hf_era.reporting.labels import (
    ATTACK_KINDS,
    COUNTS,
    LOST_LABELS,
    MACHINE,
    OF_MODULES,
    PARTS,
    RULE_TEXTS,
    SETTINGS,
    SOURCES,
    layer_order,
)
from hf_era.reporting.numbers import counted, format_count, format_share, is_number
from hf_era.reporting.tables import Table
from hf_era.reporting.text import NOT_RECORDED, cut, name_of, pairs_text, recorded, source_kind, source_text, visible
from hf_era.utils.yaml_text import dump_yaml

_SECRET = re.compile(r"(?i)(^|_)(token|password|secret|credentials?|api_?key)$")
_DIRECTORY = re.compile(r"^(~|/|\.\.?[\\/]|[A-Za-z]:[\\/])")
MAXIMUM_LISTING = 100_000


def section(result: AnyResult, name: str) -> dict[str, Any]:
    """A section of the config that was run; empty if it is missing."""
    values = result.config.get(name) if isinstance(result, RunResult) else None
    return values if isinstance(values, dict) else {}


# ---- Data ----


def data_warnings(result: AnyResult) -> list[str]:
    """What is odd about the data of a model's result, where nothing but words and files say what is to be forgotten."""
    data = result.data
    if isinstance(result, RunResult) or "forget_stories_with_a_forget_word" not in data:
        return []
    message = words_message(data.get("forget_words") or [], data)
    return [] if message is None else [f"The forget words do not fit the examples. {cut(message, 900)}"]


def labelling_kind(result: AnyResult) -> str:
    """`words`, `column`, `score` or `sources`; `files` where the file that it is in says it; or `not recorded`."""
    otherwise = "files" if not isinstance(result, RunResult) else "words" if forget_words(result) else NOT_RECORDED
    return str((result.data.get("labelling") or {}).get("kind") or otherwise)


def labelling_text(result: AnyResult) -> str:
    """What made an example a forget example, and which have no label, in a sentence or two."""
    kind, labelling = labelling_kind(result), result.data.get("labelling") or {}
    column, modules = quoted([labelling.get("column")]), _of_modules(labelling)
    if kind == "files":
        return "The file that an example is in says whether it is a forget or a retain example."
    if kind == "column":
        forget, retain = (quoted(labelling.get(f"{name}_labels") or []) for name in ("forget", "retain"))
        others = f"{retain} a retain example, and all others are unlabelled" if retain else ""
        others = others or "any other value a retain example, and those without a value are unlabelled"
        return f"{modules or forget} in the column {column} makes a forget example, {others}."
    if kind == "score":
        return (
            f"The column {column} holds the probability that it is a forget example: from 0.5 on it counts as one, and its "
            "routing weight is 1 minus that. Those without a value are unlabelled."
        )
    if kind == "sources":
        return "Forget and retain examples come from two sources; what comes from a third one is unlabelled."
    words = labelling.get("forget_words") or forget_words(result)
    if not words:
        return NOT_RECORDED
    return (
        f"A forget example has one of these words in its text, as a whole word in any case: {modules or quoted(words)}. All "
        "others are retain examples."
    )


def _lost_labels(result: AnyResult) -> str | None:
    """Which labels are wrong on purpose, and how, in a sentence or two; `None` if none is."""
    fraction, errors = section(result, "data").get("labelled_fraction"), result.data.get("label_errors") or {}
    kind, threshold = errors.get("kind", "random"), errors.get("threshold")
    if threshold is not None:
        return (
            f"A classifier of words labelled the training examples: forget from a probability of {recorded(threshold)} on. "
            "Forget examples below it lost their label, and retain examples above it were labelled forget by mistake."
        )
    if not is_number(fraction) or fraction == 1:
        return None
    return f"{format_share(fraction)} of the forget training examples kept their label. {LOST_LABELS.get(kind, '')}".strip()


def _of_modules(labelling: dict[str, Any]) -> str:
    """`"genetics", "anatomy" (module biology), "acids" (module chemistry)`; empty where labels name no modules."""
    modules = labelling.get("modules")
    given = modules.items() if isinstance(modules, dict) else ()
    return ", ".join(f"{quoted(values or [])} (module {name_of(module)})" for module, values in given)


def forget_words(result: AnyResult) -> list[str]:
    """The words that are measured and counted; none where there are none."""
    return [str(word) for word in result.data.get("forget_words") or section(result, "data").get("forget_words") or []]


def quoted(names: Sequence[object]) -> str:
    """`"tree", "forest"`; of many or long ones the beginning."""
    return cut(", ".join(f'"{name_of(name)}"' for name in names), 600)


def data_table(result: AnyResult) -> Table:
    """What it was trained, evaluated and attacked on; of local files only the name."""
    data = result.data
    rows = [[label, source_text(data[key])] for key, label in SOURCES.items() if data.get(key)]
    rows.append(["Labels", labelling_text(result)])
    if (lost := _lost_labels(result)) is not None:
        rows.append(["Labels taken away", lost])
    words, cuts = forget_words(result), _cuts(result)
    if words and labelling_kind(result) != "words":
        rows.append(["Forget words", quoted(words)])
    if cuts:
        rows.append(["An example is cut at", cuts])
    rows += [[label, _count(data, key)] for key, label in COUNTS.items() if data.get(key) is not None]
    rows += [
        [f"Module {name_of(module)}: {label}", _count(own, f"{part}_stories")]
        for module, own in (data.get("modules") or {}).items()
        for part, label in OF_MODULES.items()
        if own.get(f"{part}_stories") is not None
    ]
    if data.get("fingerprint"):
        rows.append(["Fingerprint of the examples", name_of(data["fingerprint"])])
    return Table("Data", ["Data", "Value"], rows, text_columns=2)


def _count(data: dict[str, Any], key: str) -> str:
    """`100 examples, 15,312 tokens`; `5,123 (0.91 % of all)` of the tokens that are routed."""
    value, all_tokens = data[key], data.get("train_tokens")
    tokens = data.get(f"{key.removesuffix('_stories')}_tokens") if key.endswith("_stories") else None
    if tokens is not None:
        return f"{counted(value, 'example', 'examples')}, {format_count(tokens)} tokens"
    if key == "train_tokens_routed_as_forget" and is_number(value) and is_number(all_tokens) and all_tokens:
        return f"{format_count(value)} ({format_share(value / all_tokens)} of all)"
    return format_count(value)


def _cuts(result: AnyResult) -> str:
    settings = section(result, "data")
    cuts = [("max_characters", "characters (before it is labelled)"), ("max_tokens", "tokens")]
    return ", then ".join(
        f"{format_count(settings[key])} {unit}" for key, unit in cuts if settings.get(key) is not None
    )


# ---- Training ----


def training_table(result: RunResult) -> Table:
    """Method, start and settings of the training; what belongs to an auxiliary module only where there was one."""
    settings = {**section(result, "training"), **(result.training.get("arguments") or {})}
    given = [f"{label} {name_of(settings[key])}" for key, label in SETTINGS.items() if key in settings]
    steps = result.training.get("steps", settings.get("max_steps"))
    architecture = pairs_text(section(result, "model").get("architecture"))
    rows = [
        ["Recipe", name_of(result.name)],
        ["Method", name_of(result.method_title)],
        ["Start", _start(result)],
        ["Architecture", architecture or "that of the base"],
        *(_module_rows(result, settings) if result.has_module else []),
        ["Steps", NOT_RECORDED if steps is None else format_count(steps)],
        ["Training settings", "; ".join([*given, "all others as hf_era sets them by default"])],
        *([["Base control", _base_control(result, settings)]] if result.before_kind == "base_control" else []),
        *([["Data filtering", _data_filtering(result, settings)]] if result.data_filtering else []),
    ]
    if result.config.get("method_settings"):
        rows.append(["Settings of the method", pairs_text(section(result, "method_settings"))])
    if result.has_module or result.coherence.get("enabled"):
        rows.append(["Coherence fine-tuning", _coherence(result)])
    return Table("Training", ["Training", "Value"], rows, text_columns=2)


def _start(result: RunResult) -> str:
    model = section(result, "model")
    if model.get("start") == "scratch":
        return "random weights"
    if model.get("start") is None:
        return NOT_RECORDED
    if model.get("base") is None:
        return "a base model pretrained here on the same examples, the forget examples among them"
    kind, name = source_kind(model["base"])
    return f"the pretrained model {name_of(name)}{'' if kind == 'hub' else ' (local)'}"


def _base_control(result: RunResult, settings: dict[str, Any]) -> str:
    """What the run differs from its base control in. Of an earlier version, that had no L1 term."""
    own, control = settings.get("l1_coefficient"), result.base_training.get("l1_coefficient", 0.0)
    text = "a stock model trained on all examples, with the same steps, schedule and seed"
    if own is None:
        return text
    if own == control:
        return f"{text}, and {'the same' if own else 'like this one without an'} L1 term"
    return (
        f"{text}, but with an L1 coefficient of {name_of(control)}: differences to it are partly those of the L1 term"
    )


def _data_filtering(result: RunResult, settings: dict[str, Any]) -> str:
    """What the run differs from the data filtering beside it in. Of an earlier version, that knew all labels."""
    control = (result.data_filtering or {}).get("training") or {}
    own, coefficient = settings.get("l1_coefficient"), control.get("l1_coefficient") or 0.0
    text = "a stock model trained from random weights without the examples labelled forget, "
    text += (
        "with the same L1 term" if own and own == coefficient else f"with an L1 coefficient of {name_of(coefficient)}"
    )
    unlabelled = result.data.get("train_forget_unlabelled")
    trained_on = control.get("unlabelled_stories")
    if trained_on == 0 and (unlabelled or result.data.get("train_unlabelled")):
        text += "; it left the examples without a label out"
    elif unlabelled and trained_on is None:
        counts = counted(unlabelled, "forget example", "forget examples")
        text += f"; it did not see the {counts} without a label either: it knew more than this run"
    return text


def _module_rows(result: RunResult, settings: dict[str, Any]) -> list[list[str]]:
    expansion = section(result, "expansion")
    several = expansion.get("modules") or []
    rows = [[f"Auxiliary module {name_of(module.get('name'))}", _module(result, module)] for module in several]
    routing, rule = section(result, "routing"), rule_label(result.config)
    text = name_of(rule) + (f": {RULE_TEXTS[rule]}" if rule in RULE_TEXTS else "")
    if rule == "full_seq (frequency)":
        scale, bias = (recorded(routing.get(f"frequency_{name}")) for name in ("scale", "bias"))
        text += f"; scale {scale}, bias {bias}"
    return [
        *(rows or [["Auxiliary module", _module(result, expansion)]]),
        ["Mask rule", text],
        _router_row(result.config.get("router"), settings),
    ]


def _module(result: RunResult, module: dict[str, Any]) -> str:
    layers, kind = module.get("target_layers"), module.get("kind", "mlp")
    known = layers if layers is not None else sorted(result.selectivity, key=layer_order)
    named = ", ".join(map(name_of, known)) or NOT_RECORDED
    where = f"all layers ({named})" if layers is None else f"layers {named}"
    width, ratio = recorded(module.get("width")), module.get("width_ratio")
    if kind == "heads":
        size = f"{width} units together" if ratio is None else f"{recorded(ratio)} times the units of the model's own"
        return f"attention heads of {size} beside the heads of {where}"
    size = f"{width} hidden units" if ratio is None else f"{recorded(ratio)} times the hidden units of the model's own"
    return f"{'an MLP' if kind == 'mlp' else name_of(kind)} with {size} beside the MLP of {where}"


def _router_row(router: Any, settings: dict[str, Any]) -> list[str]:
    """Who said what a token teaches: the built-in router by its multipliers, another one by name and settings."""
    values = dict(router) if isinstance(router, dict) else {"name": router}
    name = values.pop("name", None)
    if name in (None, "activation"):
        return ["Gradient multipliers", _multipliers(settings.get("multipliers"))]
    return ["Router", ", ".join(filter(None, [name_of(name), pairs_text(values)]))]


def _multipliers(values: Any) -> str:
    if isinstance(values, str):
        try:
            values = json.loads(values)
        except json.JSONDecodeError:
            return name_of(values)
    if not isinstance(values, dict) or not values:
        return "hf_era's defaults"
    parts = []
    for part, label in PARTS.items():
        retain, forget = (recorded(values.get(f"{part}_{kind}"), "default") for kind in ("retain", "forget"))
        parts.append(f"{label} {retain} on retain, {forget} on forget tokens")
    return "; ".join(parts)


def _coherence(result: RunResult) -> str:
    settings, best = section(result, "coherence"), result.coherence.get("best_step")
    if settings.get("enabled") is False:
        return "left out"
    if settings.get("steps") is None:
        return NOT_RECORDED
    rate, stories = (recorded(settings.get(name)) for name in ("learning_rate", "stories"))
    unlabelled = settings.get("unlabelled") and result.data.get("train_forget_unlabelled")
    kind = "examples that are not labelled forget" if unlabelled else "retain examples"
    chosen_on = "the retain validation examples"
    if own := result.data.get("coherence_validation_stories"):
        chosen_on = f"{format_count(own)} other retain examples, which no figure is measured on,"
    text = (
        f"at most {format_count(settings['steps'])} steps at a constant learning rate of {rate}, each on the same {stories} "
        f"{kind}; the weights with the lowest loss on {chosen_on} were kept"
    )
    if best is None:
        return text
    return f"{text}: {'those from before the first step' if best == 0 else f'those of step {format_count(best)}'}"


# ---- How it was made ----


def run_table(result: AnyResult) -> Table:
    """Seed, time, revision, versions and machine."""
    rows = [["Seed", name_of(result.seed)], ["Finished", name_of(result.created or NOT_RECORDED)]]
    if isinstance(result, RunResult):
        revision = str(result.git_revision or NOT_RECORDED)
        changed = " (with uncommitted changes)" if revision.endswith("-dirty") else ""
        rows.append(["Git revision of hf_era", name_of(revision.removesuffix("-dirty")) + changed])
    else:
        rows.append(["Model", source_text(result.model)])
    machine = {label: result.machine[key] for key, label in MACHINE.items() if result.machine.get(key) is not None}
    seconds = {name: f"{value:,.0f} s" for name, value in result.seconds.items() if is_number(value)}
    rows += [
        [label, pairs_text(values) or NOT_RECORDED]
        for label, values in (("Versions", result.versions), ("Machine", machine), ("Time per phase", seconds))
    ]
    return Table("Run", ["Run", "Value"], rows, text_columns=2)


def config_text(config: dict[str, Any]) -> str:
    """A config as YAML, without secrets and without the directories of this machine."""
    text = dump_yaml(_public("", config), width=110)
    return cut(text, MAXIMUM_LISTING)


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


# ---- What was not tested ----


def not_tested(result: AnyResult, has_seeds: bool = False) -> list[str]:
    """What this result says nothing about: what was left out, and what hf_era does not measure at all. `has_seeds`: whether
    other seeds stand beside it."""
    figures = summary_of(result)
    found, relearning = [], figures.relearning
    if relearning is None or not relearning.trials:
        found.append("No relearn attack was made.")
    else:
        kinds, most = {trial.kind for trial in relearning.trials}, max(trial.stories for trial in relearning.trials)
        found += [cut(note, 500) for note in relearning.notes]
        found += [f"No attack by {label.long}." for kind, label in ATTACK_KINDS.items() if kind not in kinds]
        others = "other data than held-back forget examples"
        if any(trial.mixture != FORGET for trial in relearning.trials):
            others = "other data than held-back forget examples and retain examples"
        found.append(f"Attacks with more than {format_count(most)} forget examples, or with {others}.")
    if figures.control is None and not figures.is_control and not figures.is_untouched:
        found.append(
            "No comparison with data filtering: how much a model would forget that never saw the data is not known."
        )
    if isinstance(result, RunResult) and result.has_module and not result.leak_audit:
        found.append("No leak audit was made.")
    if not result.generations:
        found.append("No text was generated.")
    if not has_seeds:
        found.append("Other seeds: a single run says nothing about how much another seed would differ.")
    return [
        *found,
        "Attacks by prompting, quantising or editing the weights; what the capability is worth beyond these examples; other "
        "languages; paraphrases of the forget words.",
    ]
