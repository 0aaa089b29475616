"""Markdown tables of a result. Losses are token-weighted, in nats a token, with their 95 % interval over stories."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from hf_era.evaluation.result import STAGES, RunResult

NOT_MEASURED = "not measured"
KINDS = {"forget": "Forget stories", "retain": "Retain stories", "forget_words": "Forget words"}
STAGE_LABELS = {
    "before": "Before the method",
    "before_ablation": "Before ablation",
    "after_ablation": "After ablation",
    "after_coherence": "After coherence",
}
BEFORE_LABELS = {"pretrained": "pretrained base", "base_control": "base control"}

_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;"}
_MARKDOWN = set("\\`*[]#~$")
# An underscore between letters or digits is no markup; "://" and "www." would become links.
_MARKDOWN_IN_CONTEXT = re.compile(r"(?<![^\W_])_|_(?![^\W_])|(?<=:/)/|(?i:(?<=\bwww)\.)")


def losses_table(result: RunResult) -> str:
    """One row per stage, one column per kind of token: `1.234 [1.210, 1.260]`."""
    rows = []
    for stage in STAGES:
        estimates = result.losses.get(stage, {})
        rows.append([_stage_label(result, stage), *(format_loss(estimates.get(kind)) for kind in KINDS)])
    return markdown_table(["Stage", *KINDS.values()], rows)


def selectivity_table(result: RunResult) -> str:
    """One row per target layer: activation of the auxiliary module on forget stories over that on retain stories."""
    rows = [[escape_markdown(layer), format_number(result.selectivity[layer], 2)] for layer in layers_of(result)]
    return markdown_table(["Layer", "Selectivity"], rows or [["all", NOT_MEASURED]])


def routing_table(result: RunResult, rows: int = 10) -> str:
    """The frequency rule's tokens, most strongly routed first; frequencies are per 10,000 tokens.

    Args:
        result (`RunResult`): with a `routing_table`; other rules leave it empty.
        rows (`int`, *optional*, defaults to `10`): how many tokens, at least 1.

    Returns: the table, or an empty string if the result has none.

    Raises:
        ValueError: if `rows` is below 1.
    """
    if rows < 1:
        raise ValueError(f"`rows` should be at least 1, got {rows}.")
    if not result.routing_table:
        return ""
    ordered = sorted(result.routing_table, key=_routing_order)
    header = ["Token", "Routing weight", "Forget stories, per 10,000", "Retain stories, per 10,000"]
    body = [
        [
            format_token(row.get("token")),
            format_number(row.get("weight")),
            format_number(row.get("forget_per_10k"), 1),
            format_number(row.get("retain_per_10k"), 1),
        ]
        for row in ordered[:rows]
    ]
    return markdown_table(header, body)


def comparison_table(results: Sequence[RunResult]) -> str:
    """One row per run, in the order given; differences are in nats a token, with their sign.

    Raises:
        ValueError: if there is no result.
    """
    if not results:
        raise ValueError("`results` is empty. Pass at least one result.")
    header = [
        "Recipe", "Seed", "Rule", "Start", "Ablation gap", "Retain ablation gap", "Unlearning", "Retain tax",
        "Final forget loss", "Final retain loss",
    ]  # fmt: skip
    rows = []
    for result in results:
        final = result.losses.get(result.final_stage, {})
        differences = (result.ablation_gap, result.retain_ablation_gap, result.unlearning, result.retain_tax)
        rows.append(
            [
                escape_markdown(result.name),
                str(result.seed),
                escape_markdown(rule_label(result)),
                escape_markdown(section(result, "model").get("start") or "not recorded"),
                *(format_difference(value) for value in differences),
                *(format_loss(final.get(kind)) for kind in ("forget", "retain")),
            ]
        )
    return markdown_table(header, rows, text_columns=4)


# ---- Parts of a result ----


def section(result: RunResult, name: str) -> dict[str, Any]:
    """A section of the config that was run; empty if it is missing."""
    values = result.config.get(name)
    return values if isinstance(values, dict) else {}


def rule_label(result: RunResult) -> str:
    """The mask rule with its weighting, as plain text: `full_seq (frequency)`, `concept`, `none`."""
    routing = section(result, "routing")
    rule = str(routing.get("rule") or "not recorded")
    return f"{rule} ({routing['weighting']})" if rule == "full_seq" and routing.get("weighting") else rule


def layers_of(result: RunResult) -> list[str]:
    """The target layers whose selectivity was measured, in order."""
    return sorted(result.selectivity, key=lambda layer: (int(layer), "") if layer.isdecimal() else (10**9, layer))


def has_interval(estimate: dict[str, Any]) -> bool:
    """Whether a `LossEstimate` as a dict has an interval."""
    return is_number(estimate.get("low")) and is_number(estimate.get("high"))


def _stage_label(result: RunResult, stage: str) -> str:
    label = STAGE_LABELS[stage]
    if stage == "before" and result.before_kind is not None:
        label += f" ({escape_markdown(BEFORE_LABELS.get(result.before_kind, result.before_kind))})"
    return label


def _routing_order(row: dict[str, Any]) -> tuple[float, float, str]:
    weight, frequency = (row[name] if is_number(row.get(name)) else math.inf for name in ("weight", "forget_per_10k"))
    return float(weight), -float(frequency), str(row.get("token"))


# ---- Text ----


def is_number(value: object) -> bool:
    """Whether it is a finite number (`bool` is none)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def format_number(value: Any, digits: int = 3) -> str:
    """`1.234`; "not measured" for `None`, "not finite" for NaN and infinity."""
    if value is None:
        return NOT_MEASURED
    return f"{value:.{digits}f}" if is_number(value) else "not finite"


def format_difference(value: Any, digits: int = 3) -> str:
    """`+0.123`; "not measured" for `None`."""
    return f"{value:+.{digits}f}" if is_number(value) else format_number(value)


def format_count(value: Any) -> str:
    """`12,345`; "not measured" for `None`."""
    return f"{value:,}" if is_number(value) else format_number(value)


def format_loss(estimate: dict[str, Any] | None) -> str:
    """A `LossEstimate` as a dict -> `1.234 [1.210, 1.260]`, without the brackets where there is no interval."""
    if not estimate:
        return NOT_MEASURED
    text = format_number(estimate.get("loss"))
    return f"{text} [{estimate['low']:.3f}, {estimate['high']:.3f}]" if has_interval(estimate) else text


def format_token(token: Any) -> str:
    """A token in quotation marks, so that a leading space shows; control characters as in JSON."""
    return escape_markdown(json.dumps(str(token), ensure_ascii=False))


def escape_markdown(value: Any) -> str:
    """Text that Markdown and HTML show as it is, on one line, in a paragraph as in a table cell."""
    text = "".join(character if character.isprintable() else " " for character in str(value))
    escaped = "".join(
        f"\\{character}" if character in _MARKDOWN else _HTML.get(character, character) for character in text
    )
    return _MARKDOWN_IN_CONTEXT.sub(lambda match: f"\\{match.group()}", escaped)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """A Markdown table of cells that are escaped already.

    Args:
        header (`Sequence[str]`): column titles.
        rows: as many cells each as the header.
        text_columns (`int`, *optional*, defaults to `1`): so many columns on the left are text; the others are aligned
            on the right.
    """
    rule = ["---" if index < text_columns else "---:" for index in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))
