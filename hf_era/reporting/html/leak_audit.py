"""The leak audit in words and as tables."""

from __future__ import annotations

from typing import Any

from hf_era.evaluation.results import RunResult
from hf_era.reporting.html.parts import Folded, Paragraphs
from hf_era.reporting.labels import MOMENTS, PARTS, layer_order
from hf_era.reporting.numbers import format_count, format_number, format_share, is_number
from hf_era.reporting.tables import Table, ablation_table
from hf_era.reporting.text import name_of


def leak_audit_parts(result: RunResult) -> list[Any]:
    """Sentences and tables; empty if the audit was not made."""
    gradient = result.leak_audit.get("gradient") or {}
    moments = {name: gradient[name] for name in MOMENTS if gradient.get(name)}
    texts = [text for name, part in moments.items() for text in _sentences(name, part)]
    parts: list[Any] = [Paragraphs(texts)] if texts else []
    ablation = ablation_table(result)
    if ablation is not None:
        parts.append(ablation)
    tables = [table for name, part in moments.items() for table in _gradient_tables(name, part)]
    return [*parts, Folded("Gradient per layer, with routing on and off", tables)] if tables else parts


def _sentences(moment: str, audit: dict[str, Any]) -> list[str]:
    routed, unrouted = (audit.get(name) or {} for name in ("routed", "unrouted"))
    shares = [part.get(f"{name}_share") for part in (routed, unrouted) for name in PARTS]
    found = []
    if all(map(is_number, shares)):
        on, on_auxiliary, off, off_auxiliary = map(format_share, shares)
        counts = f"{format_count(audit.get('stories'))} forget examples"
        found.append(
            f"Of the squared gradient norm {MOMENTS[moment]}, on {counts}, {on} fall on the original dims of the target "
            f"layers and {on_auxiliary} on the auxiliary module with routing on; {off} and {off_auxiliary} with routing "
            "off. The rest falls on everything else: attention, embeddings, norms, and the MLPs of other layers."
        )
    others = [part.get("other_modules_share") for part in (routed, unrouted)]
    if all(map(is_number, others)):
        on, off = map(format_share, others)
        found.append(f"On all other modules fall {on} with routing on, and {off} with routing off.")
    layers = audit.get("alignment") or {}
    known = {name: part.get("original") for name, part in layers.items() if is_number(part.get("original"))}
    if known:
        highest = max(known, key=lambda name: known[name])
        found.append(
            f"The original dims follow the unrouted forget gradient most in layer {name_of(highest)}: alignment "
            f"{format_number(known[highest], 2)} (1: as without routing, 0: blocked, below 0: un-teaching)."
        )
    return found


def _gradient_tables(moment: str, audit: dict[str, Any]) -> list[Table]:
    routed, unrouted = ((audit.get(name) or {}).get("layers") or {} for name in ("routed", "unrouted"))
    alignment = audit.get("alignment") or {}
    header = [
        "Layer", "Original dims, routing on", "routing off", "Auxiliary module, routing on", "routing off",
        "Alignment, original", "Alignment, auxiliary",
    ]  # fmt: skip
    rows = []
    for layer in sorted({*routed, *unrouted, *alignment}, key=layer_order):
        shares = [
            format_share((part.get(layer) or {}).get(f"{name}_share")) for name in PARTS for part in (routed, unrouted)
        ]
        aligned = [format_number((alignment.get(layer) or {}).get(name), 2) for name in PARTS]
        rows.append([name_of(layer), *shares, *aligned])
    caption = f"Shares of the squared norm of the gradient of forget examples, {MOMENTS[moment]}."
    return [Table(caption, header, rows)] if rows else []
