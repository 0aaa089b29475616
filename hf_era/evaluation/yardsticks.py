"""The yardsticks of a matrix: compute ratios and shares of filtering of its cells, and the range of each testbed.

The reference models are cells too: `base_curve` names rows of base controls, `filtering_curve` rows of data filtering, each
of several budgets. A cell is measured against those of its own seed, which have its examples; where the seed has too few,
against the mean over the seeds that have them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from hf_era.evaluation import compute_ratio, share_of_filtering
from hf_era.evaluation.cell_lines import Line
from hf_era.evaluation.compute_ratio import ComputeCurve, fit_compute_curve
from hf_era.evaluation.share_of_filtering import FilteringRange, ReferenceCurve, range_of_testbed

Figure = Callable[[Line], float | None]
MEAN = "mean of the seeds"
"""In place of a seed's number: reference models of all seeds together."""


@dataclass(frozen=True)
class References:
    """Which rows are reference models.

    Attributes:
        base (`tuple[str, ...]`): rows of base controls with several budgets.
        filtering (`tuple[str, ...]`): rows of data filtering with several budgets.
        base_control (`str`, *optional*): the row whose compute is 1. Not given: that of `base` with the most.
        controls (`dict[str, str]`): row -> the row of data filtering that it is compared with.
        frontier (`dict[str, tuple[str, ...]]`): method -> its rows of several budgets.
        continuing (`tuple[str, ...]`): those of them that trained on with everything: what a retain loss at the same compute
            is compared with.
    """

    base: tuple[str, ...] = ()
    filtering: tuple[str, ...] = ()
    base_control: str | None = None
    controls: dict[str, str] = field(default_factory=dict)
    frontier: dict[str, tuple[str, ...]] = field(default_factory=dict)
    continuing: tuple[str, ...] = ()

    @property
    def on_frontier(self) -> frozenset[str]:
        """All rows of the frontier."""
        return frozenset(row for rows in self.frontier.values() for row in rows)


def value_at(line: Line, *names: str) -> Any:
    """A value inside; `None` where a part is not there."""
    for name in names:
        line = (line or {}).get(name)  # type: ignore[assignment]
    return line


def attacked_loss(line: Line) -> float | None:
    """Forget loss after the strongest attack."""
    return value_at(line, "attack", "lowest_forget")


def attacked_error(line: Line) -> float | None:
    """Share of the forget examples that are answered wrongly after the strongest attack; `None` without answers."""
    accuracy = value_at(line, "attack", "accuracy")
    return None if accuracy is None else 1 - accuracy


LOSSES: dict[str, Figure] = {
    "retain": lambda line: line.get("retain_loss"),
    "forget": lambda line: line.get("forget_loss"),
    "forget_attacked": attacked_loss,
}
"""What has a compute ratio -> its loss in a line. Of a base all of these are losses of a model trained on everything."""
_ALSO: dict[str, Figure] = {
    "retain_with_modules": lambda line: value_at(line, "with_modules", "retain"),
    "forget_with_modules": lambda line: value_at(line, "with_modules", "forget"),
}
"""Measured on the curve of the loss that they are named after."""
MEASURES = {"loss": attacked_loss, "error": attacked_error}
"""What has a share of filtering: nats a token, and where there are answers the error rate."""


@dataclass
class TestbedYardsticks:
    """The reference curves of one testbed, by seed, and of the mean over seeds.

    Attributes:
        compute (`dict`): kind of loss -> seed or `MEAN` -> its power law.
        base, filtering (`dict`): `loss` or `error` -> seed or `MEAN` -> A, and D.
        reference (`dict`): seed or `MEAN` -> compute of the base control.
        notes (`list[str]`): which could not be made, and why.
    """

    __test__ = False  # no test, whatever pytest thinks of the name

    compute: dict[str, dict[Any, ComputeCurve]] = field(default_factory=dict)
    base: dict[str, dict[Any, ReferenceCurve]] = field(default_factory=dict)
    filtering: dict[str, dict[Any, ReferenceCurve]] = field(default_factory=dict)
    reference: dict[Any, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, lines: Sequence[Line], references: References) -> TestbedYardsticks:
        """Those of the lines of one testbed."""
        found = cls()
        bases = _of_rows(lines, references.base)
        filtered = _of_rows(lines, references.filtering)
        for seed, part in bases.items():
            control = references.base_control
            own = [line["compute"] for row, line in part.items() if control in (None, row) and line.get("compute")]
            if own:
                found.reference[seed] = max(own)
        for kind, of in LOSSES.items():
            found.compute[kind] = found._made(_compute_curve, bases, of, f"compute ratio of the {kind} loss")
        for measure, of in MEASURES.items():
            if measure == "error" and not any(of(line) is not None for line in lines):
                continue
            for name, parts, curves in (("A", bases, found.base), ("D", filtered, found.filtering)):
                curves[measure] = found._made(_reference_curve, parts, of, f"share of filtering ({measure}), {name}")
        return found

    def _made(
        self, make: Callable[[list[Line], Figure], Any], parts: dict[Any, dict[str, Line]], of: Figure, what: str
    ) -> dict[Any, Any]:
        """Seed -> curve, of the seeds that have enough models; a note where not even all together have."""
        curves, why = {}, ""
        for seed, part in parts.items():
            try:
                curves[seed] = make(list(part.values()), of)
            except ValueError as error:
                why = str(error)
        if parts and not curves:
            self.notes.append(f"No {what}: {why}")
        return curves

    @property
    def ranges(self) -> dict[str, FilteringRange]:
        """`loss` or `error` -> D - A of the means over seeds, where both are known."""
        found = {}
        for measure in self.base:
            known, unknown = self.base[measure].get(MEAN), self.filtering.get(measure, {}).get(MEAN)
            if known and unknown and (part := range_of_testbed(known, unknown)) is not None:
                found[measure] = part
        return found

    def of_line(self, line: Line) -> Line:
        """`compute_ratio`: kind of loss -> value and bound; `share_of_filtering`: `loss`, `error` -> the share, null outside
        the range of the curves. Only what there are curves for."""
        ratios = {}
        for kind, loss_of in (LOSSES | _ALSO).items():
            curve, loss = _own(self.compute.get(kind.removesuffix("_with_modules"), {}), line), loss_of(line)
            reference = _own(self.reference, line)
            if curve is not None and loss is not None and reference is not None:
                ratio = curve.ratio(loss, reference)
                ratios[kind] = {"value": round(ratio.value, 4), **({"bound": ratio.bound} if ratio.bound else {})}
        shares = {}
        for measure, of in MEASURES.items():
            curves = [_own(part.get(measure, {}), line) for part in (self.base, self.filtering)]
            value, retain = of(line), line.get("retain_loss")
            if None not in curves and value is not None and retain is not None:
                share = share_of_filtering.share_of_filtering(value, retain, *curves)
                shares[measure] = None if share is None else round(share, 4)
        return {"compute_ratio": ratios, "share_of_filtering": shares}


def _own(by_seed: dict[Any, Any], line: Line) -> Any:
    return by_seed.get(line["seed"], by_seed.get(MEAN))


def _of_rows(lines: Iterable[Line], rows: Sequence[str]) -> dict[Any, dict[str, Line]]:
    """Seed -> row -> line, and under `MEAN` row -> the means of what is measured over its seeds."""
    found: dict[Any, dict[str, Line]] = {}
    together: dict[str, list[Line]] = {}
    for line in lines:
        if line["row"] in rows:
            found.setdefault(line["seed"], {})[line["row"]] = line
            together.setdefault(line["row"], []).append(line)
    if together:
        found[MEAN] = {row: _mean_line(part) for row, part in together.items()}
    return found


def _mean_line(lines: Sequence[Line]) -> Line:
    def over(of: Figure) -> float | None:
        values = [value for line in lines if (value := of(line)) is not None]
        return mean(values) if values else None

    error = over(attacked_error)
    return {
        "compute": over(lambda line: line.get("compute")),
        "retain_loss": over(LOSSES["retain"]),
        "forget_loss": over(LOSSES["forget"]),
        "attack": {"lowest_forget": over(attacked_loss), "accuracy": None if error is None else 1 - error},
    }


def _compute_curve(lines: list[Line], of: Figure) -> ComputeCurve:
    points = [(line["compute"], loss) for line in lines if (loss := of(line)) is not None]
    return fit_compute_curve([point[0] for point in points], [point[1] for point in points])


def _reference_curve(lines: list[Line], of: Figure) -> ReferenceCurve:
    points = [(line["retain_loss"], value) for line in lines if (value := of(line)) is not None]
    return ReferenceCurve.of([point[0] for point in points], [point[1] for point in points])


def check_references(references: References) -> None:
    """Raises `ValueError` for curves with too few rows."""
    least = compute_ratio.LEAST_BUDGETS
    if references.base and len(references.base) < least:
        raise ValueError(
            f"`base_curve` names {len(references.base)} rows; a compute ratio needs base controls of at least {least} "
            "budgets. Add rows, or leave it out."
        )
    least = share_of_filtering.LEAST_BUDGETS
    if references.filtering and min(len(references.filtering), len(references.base)) < least:
        raise ValueError(
            f"`filtering_curve` names {len(references.filtering)} rows and `base_curve` {len(references.base)}; a share of "
            f"filtering needs at least {least} budgets of each. Add rows, or leave `filtering_curve` out."
        )
