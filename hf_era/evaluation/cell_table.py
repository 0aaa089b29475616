"""The table of a matrix: of each row in each testbed the figures over its seeds, out of the lines of its cells."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from hf_era.evaluation.cell_lines import Key, Line, key_of
from hf_era.evaluation.intervals import Estimate, mean_interval
from hf_era.evaluation.relearn.result import STORIES
from hf_era.evaluation.share_of_filtering import LEAST_RANGE
from hf_era.evaluation.yardsticks import MEAN, References, TestbedYardsticks, attacked_loss, value_at

_OF_A_LINE: dict[str, tuple[str, ...]] = {
    "retain_loss": ("retain_loss",),
    "forget_loss": ("forget_loss",),
    "attacked_forget_loss": ("attack", "lowest_forget"),
    "attacked_retain_loss": ("attack", "retain_at_lowest"),
    "robust_unlearning": ("attack", "robust_unlearning"),
    "accuracy": ("attack", "start_accuracy"),
    "attacked_accuracy": ("attack", "accuracy"),
    "attack_tokens": ("attack", "tokens"),
    **{f"{kind}_loss_with_modules": ("with_modules", kind) for kind in ("forget", "retain")},
    "base_distance": ("base_distance", "relative"),
    **{f"barrier_{kind}": ("base_distance", "barrier", kind) for kind in ("forget", "retain")},
    "seconds": ("seconds",),
    "share_of_filtering": ("share_of_filtering", "loss"),
    "share_of_filtering_error": ("share_of_filtering", "error"),
    **{
        f"compute_ratio_{kind}": ("compute_ratio", kind, "value")
        for kind in ("retain", "forget", "forget_attacked", "retain_with_modules", "forget_with_modules")
    },
}
"""Figures of a row -> where a line has them."""
_FRONTIER = ("training_share", "over_continuing", "forget_recovery", "retain_recovery")
"""Figures of rows of the frontier alone."""
_COMPARED = ("retain_tax", "over_filtering", "retain_over_filtering", "of_filtering", "highest_accuracy", *_FRONTIER)
"""Figures that need the line of another row with the same seed, or two of their own."""


def table_of(lines: Sequence[Line], rows: Sequence[str], references: References) -> tuple[list[Line], dict[str, Any]]:
    """The lines with their yardsticks, and the table.

    Args:
        lines: of all cells, in any order. rows: names of rows, in the order of the table; lines of others stay out of it.
        references: rows that the others are measured against.

    Returns: the lines, each with `compute_ratio` and `share_of_filtering`, and a dict. Its `testbeds`: one entry each, with
    `name`, `range` (D - A, for `loss` and `error`), `curves` (A and D, means over seeds), `compute_curves` and `notes`. Its
    `rows`: one entry for each row of each testbed, with what its lines have in common, `seeds`, `figures` (name -> an
    `Estimate` as a dict, mean and 95 % interval of Student's t over seeds, and `seeds` where only some have it: then without
    a value), `bounds` (figure -> `at least`, `at most`, or both), `attacks`, the strongest ones, and where lines have
    several kinds of attack `attack_kinds`: kind and mixture -> `figures` and `bounds` of the strongest of these.
    """
    testbeds = list(dict.fromkeys(line["testbed"] for line in lines))
    found: dict[str, Any] = {"testbeds": [], "rows": []}
    measured: list[Line] = []
    for testbed in testbeds:
        own = [line for line in lines if line["testbed"] == testbed]
        yardsticks = TestbedYardsticks.of(own, references)
        own = [line | yardsticks.of_line(line) for line in own]
        measured += own
        found["testbeds"].append(_testbed(testbed, yardsticks))
        by_key = {key_of(line): line for line in own}
        for row in rows:
            part = sorted((line for line in own if line["row"] == row), key=lambda line: line["seed"])
            if part:
                found["rows"].append(_row(part, by_key, references))
    return measured, found


def _testbed(name: str, yardsticks: TestbedYardsticks) -> dict[str, Any]:
    curves = {
        measure: {
            which: {"retain": list(curve.retain), "forget": list(curve.forget)}
            for which, part in (("base", yardsticks.base), ("filtering", yardsticks.filtering))
            if (curve := part.get(measure, {}).get(MEAN)) is not None
        }
        for measure in yardsticks.base
    }
    compute = {
        kind: curves[MEAN].to_dict() | {"seeds": [seed for seed in curves if seed != MEAN]}
        for kind, curves in yardsticks.compute.items()
        if MEAN in curves
    }
    return {
        "name": name,
        "range": {measure: part.to_dict() for measure, part in yardsticks.ranges.items()},
        "curves": curves,
        "compute_curves": compute,
        "base_control_compute": yardsticks.reference.get(MEAN),
        "notes": yardsticks.notes,
    }


def _row(lines: Sequence[Line], by_key: Mapping[Key, Line], references: References) -> dict[str, Any]:
    first = lines[0]
    figures: dict[str, Any] = {
        name: _over_seeds([value_at(line, *place) for line in lines]) for name, place in _OF_A_LINE.items()
    }
    compared = [_compared(line, by_key, references) for line in lines]
    figures |= {name: _over_seeds([part[name] for part in compared]) for name in _COMPARED}
    same = ("testbed", "row", "method", "role", "router", "start", "labelled_fraction", "label_errors", "settings")
    return {
        **{name: first.get(name) for name in same},
        "seeds": [line["seed"] for line in lines],
        "figures": {name: part for name, part in figures.items() if part},
        "bounds": _bounds(lines, by_key, references),
        **_attack_kinds(lines, by_key, references),
        "attacks": sorted({name for line in lines if (name := value_at(line, "attack", "name"))}),
    }


def _compared(line: Line, by_key: Mapping[Key, Line], references: References) -> dict[str, float | None]:
    """`retain_tax`: retain loss over that of the base control, or of the model before the method where the matrix has none;
    `over_filtering`, `retain_over_filtering`: forget loss after the attack, and retain loss before it, over those of data
    filtering; `of_filtering`: its robust unlearning as a share of that of data filtering; `highest_accuracy`: of all steps
    of the strongest attack that the line has. Of rows of the frontier also `training_share`: compute of the method over
    that of the pretraining; `over_continuing`: retain loss over that of the row that continued on everything with the same
    compute; `forget_recovery`, `retain_recovery`: losses before the attack minus those after it."""

    def other(row: str | None) -> Line:
        return by_key.get((line["testbed"], str(row), line["seed"]), {})

    base, filtered = other(references.base_control), other(references.controls.get(line["row"]))
    tax = _difference(line.get("retain_loss"), base.get("retain_loss"))
    own, robust = (value_at(part, "attack", "robust_unlearning") for part in (line, filtered))
    return {
        "retain_tax": line.get("retain_tax") if tax is None else tax,
        "over_filtering": _difference(attacked_loss(line), attacked_loss(filtered)),
        "retain_over_filtering": _difference(line.get("retain_loss"), filtered.get("retain_loss")),
        "highest_accuracy": _highest_accuracy(line),
        "of_filtering": None if own is None or not (robust or 0) > 0 else own / robust,
        **_on_frontier(line, by_key, references),
    }


def _highest_accuracy(line: Line) -> float | None:
    """Of earlier lines, of the steps that they kept."""
    highest: float | None = value_at(line, "attack", "highest_accuracy")
    kept = value_at(line, "attack", "curve", "accuracy") or ()
    return max((value for value in (highest, *kept) if value is not None), default=None)


def _on_frontier(line: Line, by_key: Mapping[Key, Line], references: References) -> dict[str, float | None]:
    if line["row"] not in references.on_frontier:
        return dict.fromkeys(_FRONTIER)

    def others(rows: Iterable[str]) -> list[Line]:
        keys = [(line["testbed"], row, line["seed"]) for row in rows]
        return [by_key[key] for key in keys if key in by_key]

    own, share = line.get("own_compute"), line.get("training_share")
    if share is None and own is not None and line.get("start") == "scratch":  # of the base control's training
        rows = references.base if references.base_control is None else [references.base_control]
        whole = max((part.get("compute") or 0 for part in others(rows)), default=0)
        share = own / whole if whole else None
    same = [part for part in others(references.continuing) if part.get("own_compute") == own]
    over = _difference(line.get("retain_loss"), same[0].get("retain_loss")) if same else None
    return {"training_share": share, "over_continuing": over, **_recovery(line.get("attack"))}


def _recovery(attack: Line | None) -> dict[str, float | None]:
    """What an attack brought back of the forget examples, and of the retain examples beside it."""
    return {
        f"{kind}_recovery": _difference(value_at(attack or {}, f"start_{kind}"), value_at(attack or {}, place))
        for kind, place in (("forget", "lowest_forget"), ("retain", "retain_at_lowest"))
    }


def _attack_kinds(lines: Sequence[Line], by_key: Mapping[Key, Line], references: References) -> dict[str, Any]:
    """The strongest attack of each kind and mixture; nothing where no line has several. `between_controls`: where its forget
    loss lies between that of the base control (0) and that of data filtering (1) under the same kind of attack, whatever
    their retain losses."""
    kinds = dict.fromkeys(kind for line in lines for kind in value_at(line, "attack", "kinds") or ())
    found = {}
    for kind in kinds:

        def attacks(row: str | None, kind: str = kind) -> list[Line]:
            keys = [(line["testbed"], str(row), line["seed"]) for line in lines]
            return [value_at(by_key.get(key, {}), "attack", "kinds", kind) or {} for key in keys]

        row, control = lines[0]["row"], references.controls.get(lines[0]["row"])
        own, others, bases = attacks(row), attacks(control), attacks(references.base_control)
        figures = {
            "attacked_forget_loss": [part.get("lowest_forget") for part in own],
            "over_filtering": [
                _difference(part.get("lowest_forget"), other.get("lowest_forget"))
                for part, other in zip(own, others, strict=True)
            ],
            "between_controls": [
                _between(*(part.get("lowest_forget") for part in parts))
                for parts in zip(own, bases, others, strict=True)
            ],
            **{name: [_recovery(part)[name] for part in own] for name in ("forget_recovery", "retain_recovery")},
        }
        bounds = _Bounds()
        if any(map(_is_open, own)):
            bounds.of_own_attack(figures)
            bounds.add(["between_controls"], "at most", figures)
        if row != control and any(map(_is_open, others)):
            bounds.add([*_RISE_WITH_CONTROL, "between_controls"], "at least", figures)
        if row != references.base_control and any(map(_is_open, bases)):
            bounds.add(["between_controls"], "at least", figures)
        found[kind] = {
            "figures": {name: part for name, values in figures.items() if (part := _over_seeds(values))},
            "bounds": bounds.texts(),
        }
    return {"attack_kinds": found} if found else {}


def _between(own: float | None, base: float | None, filtered: float | None) -> float | None:
    """0 at the base control, 1 at data filtering; none where the two are no further apart than what tells methods apart."""
    if own is None or base is None or filtered is None or not filtered - base >= LEAST_RANGE:
        return None
    return (own - base) / (filtered - base)


def _difference(own: float | None, other: float | None) -> float | None:
    return None if own is None or other is None else own - other


def _over_seeds(values: Sequence[float | None]) -> dict[str, Any] | None:
    """Mean and interval; `None` if no seed has it. A mean over some of the seeds only would be compared with means over all:
    there is none."""
    measured = [value for value in values if value is not None]
    if not measured:
        return None
    if len(measured) < len(values):
        return Estimate(None).to_dict() | {"seeds": len(measured)}
    return mean_interval(measured).to_dict()


_FALL = ("attacked_forget_loss", "robust_unlearning", "over_filtering", "of_filtering", "share_of_filtering",
         "share_of_filtering_error")  # fmt: skip
_RISE = ("attacked_accuracy", "compute_ratio_forget_attacked", "forget_recovery")
"""Figures that more of the attack on a row itself can only lower, or raise."""
_RISE_WITH_REFERENCES = ("share_of_filtering", "share_of_filtering_error")
_RISE_WITH_CONTROL = ("over_filtering", "of_filtering")
"""Figures that more of the attacks on the reference models, or on data filtering, can only raise."""


class _Bounds:
    """Which figures are bounds, and from which side."""

    def __init__(self) -> None:
        self._found: dict[str, set[str]] = {}

    def add(self, names: Iterable[str], bound: str, known: Collection[str] | None = None) -> None:
        """Of these names those that are `known`; all, if that is not given."""
        for name in names:
            if known is None or name in known:
                self._found.setdefault(name, set()).add(bound)

    def of_own_attack(self, known: Collection[str] | None = None) -> None:
        """An attack on the row itself had not converged."""
        self.add(_FALL, "at most", known)
        self.add(_RISE, "at least", known)

    def texts(self) -> dict[str, str]:
        return {name: " and ".join(sorted(bounds)) for name, bounds in self._found.items()}


def _is_open(attack: Line | None) -> bool:
    """Whether its minimum lies at an edge of what was tried; that no attack had more examples makes it none."""
    return bool(set((attack or {}).get("edges") or ()) - {STORIES})


def _bounds(lines: Sequence[Line], by_key: Mapping[Key, Line], references: References) -> dict[str, str]:
    """Figures that are bounds in a seed, and so in the mean. An attack's loss is one where its minimum lies at an edge of
    what was tried, and so is what follows from it."""
    bounds = _Bounds()
    for line in lines:
        for kind, ratio in (line.get("compute_ratio") or {}).items():
            if ratio.get("bound"):
                bounds.add([f"compute_ratio_{kind}"], ratio["bound"])

        def is_open(row: str | None, line: Line = line) -> bool:
            return _is_open(by_key.get((line["testbed"], str(row), line["seed"]), {}).get("attack"))

        control = references.controls.get(line["row"])
        if is_open(line["row"]):
            bounds.of_own_attack()
        if any(is_open(row) for row in {*references.base, *references.filtering} - {line["row"]}):
            bounds.add(_RISE_WITH_REFERENCES, "at least")
        if control != line["row"] and is_open(control):
            bounds.add(_RISE_WITH_CONTROL, "at least")
    return bounds.texts()
