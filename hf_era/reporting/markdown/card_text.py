"""The parts of a model card that are sentences: its warnings, its headline, and where things came from.

All texts are Markdown; what comes from data or config is escaped.
"""

from __future__ import annotations

import re
from typing import Any

from hf_era.evaluation.results import RunResult
from hf_era.reporting.headline import headline_sentences, minimum_gap
from hf_era.reporting.markdown import formatting, tables
from hf_era.reporting.markdown.formatting import escape_markdown, format_count, format_difference
from hf_era.reporting.markdown.tables import section

NOT_RECORDED = "not recorded"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_DATA_FILE = re.compile(r"\.(jsonl|json|txt|parquet)$", re.IGNORECASE)


def warnings(result: RunResult) -> list[str]:
    """What a reader has to know before anything else; empty if nothing is wrong."""
    unlearning, tax, threshold = result.unlearning, result.retain_tax, minimum_gap(result)
    found = []
    if not all(part.get("loss") is None or formatting.is_number(part["loss"]) for part in estimates(result)):
        found.append("**A loss is not finite.** The model broke while training, or while it was evaluated.")
    if result.method != "gradient_routing":
        pass  # a control has no module that could be ablated
    elif result.localised is None:
        found.append(
            "**Not known whether anything was localised.** The ablation gap, or its threshold, was not measured."
        )
    elif not result.localised:
        found.append(
            "**NOTHING WAS LOCALISED.** Ablating the auxiliary module changed the forget loss by "
            f"{format_difference(result.ablation_gap)} nats a token, less than the threshold of {threshold:g}. Do not "
            "take this for a model whose capability was localised and cut out."
        )
    if unlearning is not None and unlearning < threshold:
        meaning = (
            "this checkpoint predicts forget stories *better* than that model"
            if unlearning < 0
            else f"less than the threshold of {threshold:g}"
        )
        found.append(
            "**The capability was not removed.** The forget loss of this checkpoint minus that of "
            f"{before(result)} is {format_difference(unlearning)} nats a token: {meaning}.{_words_apart(result)}"
        )
    elif unlearning is not None and tax is not None and tax >= unlearning:
        found.append(
            f"**The retain loss rose as much as the forget loss** ({format_difference(tax)} against "
            f"{format_difference(unlearning)} nats a token). That is general damage, not the removal of one capability."
        )
    return found


def headline(result: RunResult) -> list[str]:
    """The figures that a run is judged by, in sentences: those of the report."""
    lines = [escape_markdown(sentence) for sentence in headline_sentences(result)]
    if result.retain_tax is not None and result.retain_tax < -minimum_gap(result):
        lines.append(
            "**The model also went on learning**: its retain loss is lower than before. The comparison mixes "
            "what was removed with what the further steps taught; the ablation gap does not."
        )
    return lines


def attack_settings(settings: dict[str, Any]) -> str:
    """How the attacks were made, in words."""
    steps, patience, every = (settings.get(name) for name in ("steps", "patience", "evaluate_every"))
    text = f"AdamW, betas 0.9 and 0.95, at most {format_count(steps)} steps, measured every {format_count(every or 1)}"
    return text + (f", stopped after {format_count(patience)} rises in a row" if patience else "")


def attack_measured(measured: dict[str, int]) -> str:
    """What the attacks were measured on, in words."""
    parts = [
        f"{format_count(measured.get(f'{kind}_stories'))} {kind} stories "
        f"({format_count(measured.get(f'{kind}_tokens'))} tokens)"
        for kind in ("forget", "retain")
    ]
    return " and ".join(parts)


def _words_apart(result: RunResult) -> str:
    """What the loss on the forget words alone says, where it tells another story than that on whole stories."""
    words = result.difference("forget_words", result.final_stage, "before")
    if words is None or words < minimum_gap(result):
        return ""
    return (
        f" On the forget words alone the loss rose by {format_difference(words)} nats a token: the model avoids the words "
        "and predicts the rest of such stories as well as before."
    )


def before(result: RunResult) -> str:
    """What "before the method" is, to follow "that of"."""
    if result.before_kind == "base_control":
        return "the base control (a stock model with the same data, steps and seed, without routing)"
    if result.before_kind == "pretrained":
        base = section(result, "model").get("base")
        if base is None:
            return "the base model that was pretrained here on the same stories"
        return f"the pretrained base model {escape_markdown(source_kind(base)[1])}"
    return formatting.NOT_MEASURED


def evaluation_counts(result: RunResult) -> str:
    """Stories and tokens behind each column of the losses."""
    parts = []
    for kind, label in tables.KINDS.items():
        found = [stage[kind] for stage in result.losses.values() if stage.get(kind)]
        stories, tokens = (format_count(found[0].get(name) if found else None) for name in ("stories", "tokens"))
        parts.append(f"{label.lower()}: {tokens} tokens in {stories} stories")
    return "; ".join(parts)


def forget_words(result: RunResult) -> str:
    words = result.data.get("forget_words") or section(result, "data").get("forget_words") or []
    return ", ".join(f'"{escape_markdown(word)}"' for word in words) or NOT_RECORDED


def percentage(value: Any) -> str:
    """A share in [0, 1] as `12.5 %`."""
    return f"{100 * value:g} %" if formatting.is_number(value) else NOT_RECORDED


def estimates(result: RunResult) -> list[dict[str, Any]]:
    """All loss estimates of all stages."""
    return [part for stage in result.losses.values() for part in stage.values() if part]


# ---- Sources ----


def source_kind(source: Any) -> tuple[str, str]:
    """`generator`, `hub` or `local`, and a name that can be shown: of something local never its directory.

    A relative folder such as `stories/small` cannot be told from a hub id by its name; it counts as one.
    """
    text = str(source or "")
    if text == "generator":
        return "generator", text
    if _HUB_ID.fullmatch(text) and not _DATA_FILE.search(text) and ".." not in text:
        return "hub", text
    parts = [part for part in re.split(r"[\\/]", text) if part not in ("", ".", "..", "~")]
    return "local", parts[-1] if parts else NOT_RECORDED


def source_text(source: Any) -> str:
    """Where stories came from, in words."""
    kind, name = source_kind(source)
    if kind == "generator":
        return "hf_era's built-in story generator (synthetic, written by templates)"
    if name == NOT_RECORDED:
        return NOT_RECORDED
    return escape_markdown(name) + (" (hub data set)" if kind == "hub" else " (local)")


def start_text(result: RunResult) -> str:
    """What the routed training started from, in words."""
    model = section(result, "model")
    if model.get("start") == "scratch":
        return "random weights"
    if model.get("start") is None:
        return NOT_RECORDED
    if model.get("base") is None:
        return "a base model pretrained here on the same stories, the forget stories among them"
    kind, name = source_kind(model["base"])
    return f"the pretrained model {escape_markdown(name)}{'' if kind == 'hub' else ' (local)'}"
