"""The table of a matrix as Markdown: of each testbed its range and a row for each row of the matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_era.evaluation.share_of_filtering import LEAST_RANGE
from hf_era.evaluation.summary import estimate_of
from hf_era.reporting.markdown.tables import escape_markdown, markdown_table
from hf_era.reporting.numbers import format_estimate, format_number
from hf_era.reporting.tables import Table
from hf_era.reporting.text import name_of

MISSING = "-"
_SIGNS = {"at least": "≥", "at most": "≤", "at least and at most": "≈"}
_PLOT = (
    "Forget loss after the attack against retain loss before it, with the curves of base controls and data filtering"
)
_FRONTIER = "Share of filtering after the attack, and retain loss, against compute as a share of the pretraining's"
_UNITS = {"loss": (1, 3, "nats a token"), "error": (100, 1, "points of accuracy")}
"""What is measured -> factor, digits and unit in which it is shown."""
_RECOVERY = (
    ("Attack lowers: forget loss", "forget_recovery", True, 3),
    ("retain loss", "retain_recovery", True, 3),
)
_COLUMNS = (  # title, figure, signed, digits
    ("Training, share of pretraining", "training_share", False, 2),
    ("Retain loss", "retain_loss", False, 3),
    ("Forget loss", "forget_loss", False, 3),
    ("Forget loss with the module", "forget_loss_with_modules", False, 3),
    ("retain loss with it", "retain_loss_with_modules", False, 3),
    ("Retain tax", "retain_tax", True, 3),
    ("Retain loss over continuing", "over_continuing", True, 3),
    ("Forget loss after the attack", "attacked_forget_loss", False, 3),
    ("Retain loss after the attack", "attacked_retain_loss", False, 3),
    ("Tokens of the attack", "attack_tokens", False, 0),
    *_RECOVERY,
    ("Over filtering", "over_filtering", True, 3),
    ("Retain loss over filtering", "retain_over_filtering", True, 3),
    ("Of filtering's robustness", "of_filtering", False, 2),
    ("Share of filtering", "share_of_filtering", False, 2),
    ("Compute ratio: retain", "compute_ratio_retain", False, 2),
    ("forget", "compute_ratio_forget", False, 2),
    ("forget after the attack", "compute_ratio_forget_attacked", False, 2),
    ("Distance to the base", "base_distance", False, 2),
    ("Barrier: forget", "barrier_forget", False, 3),
    ("retain", "barrier_retain", False, 3),
    ("Accuracy", "accuracy", False, 2),
    ("Accuracy after the attack", "attacked_accuracy", False, 2),
    ("Highest during the attack", "highest_accuracy", False, 2),
    ("Share of filtering, accuracy", "share_of_filtering_error", False, 2),
)

_OF_A_KIND = (
    ("Forget loss after the attack", "attacked_forget_loss", False, 3),
    ("Over filtering", "over_filtering", True, 3),
    ("Between base control and filtering", "between_controls", False, 2),
    *_RECOVERY,
)


def matrix_markdown(table: Mapping[str, Any], plot: str | None = None, frontier: str | None = None) -> str:
    """A page of a table as `hf_era.evaluation.cell_table.table_of` makes it, with the pictures at these paths."""
    pictures = ((frontier, _FRONTIER), (plot, _PLOT))
    blocks = ["# Matrix", *(f"![{text}]({path})" for path, text in pictures if path)]
    for testbed in table["testbeds"]:
        rows = [row for row in table["rows"] if row["testbed"] == testbed["name"]]
        blocks += [f"## {escape_markdown(testbed['name'])}"] if testbed["name"] else []
        blocks += [escape_markdown(text) for text in [*range_texts(testbed), *curve_texts(testbed), *testbed["notes"]]]
        shown = rows_table(rows)
        blocks += [shown.caption, markdown_table(shown)]
        if (kinds := kinds_table(rows)) is not None:
            blocks += [kinds.caption, markdown_table(kinds)]
    return "\n\n".join(blocks) + "\n"


def range_texts(testbed: Mapping[str, Any]) -> list[str]:
    """D - A, and whether methods can be told apart."""
    texts = []
    for measure, part in testbed["range"].items():
        factor, digits, unit = _UNITS[measure]
        mean, lowest, highest = (format_number(factor * part[name], digits) for name in ("mean", "lowest", "highest"))
        text = (
            "D - A, what a model that never saw a forget example lacks after the attack against one that did, at equal "
            f"retain loss: {mean} {unit} ({lowest} to {highest} at retain losses from {part['retain'][0]:.3f} to "
            f"{part['retain'][1]:.3f})."
        )
        if not part["discriminates"]:
            text += f" Below {factor * LEAST_RANGE:g}: this testbed is unable to discriminate between methods."
        texts.append(text)
    return texts


def curve_texts(testbed: Mapping[str, Any]) -> list[str]:
    """The power laws, with how well they fit."""
    parts = [
        f"{kind.replace('_', ' ')} {curve['floor']:.3f} + {curve['scale']:.3f} x^-{curve['exponent']:.3f} (R² "
        f"{curve['r_squared']:.4f}, off by at most {curve['largest_residual']:.3f})"
        for kind, curve in testbed["compute_curves"].items()
    ]
    if not parts:
        return []
    budgets = next(iter(testbed["compute_curves"].values()))["compute"]
    return [
        f"Losses of the base controls of {len(budgets)} budgets, x their share of the largest, means over seeds: "
        f"{'; '.join(parts)}."
    ]


def rows_table(rows: list[Mapping[str, Any]]) -> Table:
    """One line per row of the matrix, with the columns that any of them has."""
    columns = [column for column in _COLUMNS if any(column[1] in row["figures"] for row in rows)]
    header = ["Row", "Method", "Labels", "Seeds", *(column[0] for column in columns)]
    lines = [
        [
            name_of(row["row"]),
            method_text(row),
            labels_text(row),
            str(len(row["seeds"])),
            *(_cell(row, figure, signed, digits) for _, figure, signed, digits in columns),
        ]
        for row in rows
    ]
    caption = (
        "Means over seeds with 95 % intervals (Student's t), losses in nats a token. Over filtering: forget loss after the "
        "attack minus that of data filtering, in pairs of seeds; retain loss over filtering likewise; of filtering's "
        "robustness: robust unlearning (forget loss after the attack minus that before the method) as a share of that of "
        "data filtering. ≤ and ≥: in some seed it is a bound, ≈: in some from below and in some from above. In place of a "
        "mean: how many seeds have the figure."
    )
    shown = {column[1] for column in columns}
    if "training_share" in shown:
        caption += (
            " Training, share of pretraining: compute of the method alone; over continuing: than a model that trained on "
            "with everything for as long; attack lowers: losses before the attack minus those after it."
        )
    if "highest_accuracy" in shown:
        caption += " Accuracies are those at the step with the lowest loss; highest: of any step, on the same examples."
    return Table(caption, header, lines, text_columns=3)


def kinds_table(rows: list[Mapping[str, Any]]) -> Table | None:
    """One line for each kind and mixture of attack on each row, of those rows that have several; `None` without any."""
    known = {name for row in rows for part in _kinds(row).values() for name in part["figures"]}
    columns = [column for column in _OF_A_KIND if column[1] in known]
    lines = [
        [
            name_of(row["row"]),
            labels_text(row),
            name_of(kind),
            *(_cell({**row, **part}, name, signed, digits) for _, name, signed, digits in columns),
        ]
        for row in rows
        for kind, part in _kinds(row).items()
    ]
    caption = (
        "The strongest attack of each kind: it trains all weights, or through LoRA; on forget examples, on half forget and "
        "half retain examples, or on retain examples alone. Means over seeds with 95 % intervals, nats a token; over "
        "filtering: than data filtering under the same kind of attack; between: 0 is the base control's forget loss under "
        "that kind, 1 that of data filtering, whatever their retain losses."
    )
    header = ["Row", "Labels", "Attack", *(column[0] for column in columns)]
    return Table(caption, header, lines, text_columns=3) if lines else None


def _kinds(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return row.get("attack_kinds") or {}


def _cell(row: Mapping[str, Any], figure: str, signed: bool, digits: int) -> str:
    values = row["figures"].get(figure)
    if values is None:
        return MISSING
    if values["value"] is None:
        return f"{values['seeds']} of {len(row['seeds'])} seeds"
    bound, text = row["bounds"].get(figure), format_estimate(estimate_of(values), signed, digits)
    return text if bound is None else f"{_SIGNS.get(bound, bound)} {text}"


def method_text(row: Mapping[str, Any]) -> str:
    """Method, and its router where it has one."""
    router = row.get("router")
    return name_of(f"{row['method']}, {router}" if router else row["method"])


def labels_text(row: Mapping[str, Any]) -> str:
    """Share of the forget examples that are labelled, and which ones are not where that is not by chance."""
    fraction, errors = row.get("labelled_fraction"), row.get("label_errors") or "random"
    if fraction is None:
        return name_of(errors)
    share = f"{format_number(100 * fraction, 0)} %"
    return share if errors == "random" or fraction == 1 else f"{share}, {name_of(errors)}"
