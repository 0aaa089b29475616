"""What relearn attacks found: all curves, and what follows from them per kind of attack."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from hf_era.evaluation.intervals import Estimate, mean_interval

RECOVERY_MARGIN = 0.05
"""Nats a token: an attack has recovered the capability once the forget loss is below that before the method plus this."""


@dataclass(frozen=True)
class RelearnPoint:
    """Losses after `step` steps of the attack, nats a token, token-weighted."""

    step: int
    forget_loss: float
    retain_loss: float


@dataclass(frozen=True)
class RelearnCurve:
    """The curve of one trial; its first point is step 0, before the attack. Raises `ValueError` without any point."""

    points: list[RelearnPoint]

    def __post_init__(self) -> None:
        if not self.points:
            raise ValueError("A relearn curve needs at least the point of step 0, got none.")

    @property
    def lowest(self) -> RelearnPoint:
        """The point of the lowest forget loss, the first of equals: what the attack brought back at best.

        Points that are not finite count only if there are no others: `min` of a list with NaN could be any of its values.
        """
        finite = [point for point in self.points if math.isfinite(point.forget_loss)]
        return min(finite or self.points[:1], key=lambda point: point.forget_loss)

    def first_below(self, loss: float) -> RelearnPoint | None:
        """The first point whose forget loss is below `loss`."""
        return next((point for point in self.points if point.forget_loss < loss), None)


def rises_at_the_end(points: list[RelearnPoint]) -> int:
    """How many of the last points each have a higher forget loss than the one before: what patience counts."""
    rises = 0
    for earlier, later in zip(points[-2::-1], points[:0:-1], strict=True):
        if not later.forget_loss > earlier.forget_loss:
            break
        rises += 1
    return rises


@dataclass(frozen=True)
class RelearnTrial:
    """One attack: how it was made, and its curve.

    Attributes:
        kind (`str`): `full` (all weights) or `lora`.
        stories (`int`): forget stories of the attacker, N. learning_rate (`float`): AdamW's, constant.
        trial (`int`): from 0; trials of the same kind share no story. seed (`int`): of its stories and adapters.
    """

    kind: str
    stories: int
    learning_rate: float
    trial: int
    seed: int
    curve: RelearnCurve

    @property
    def attack(self) -> tuple[str, int, float]:
        """What trials are averaged over."""
        return self.kind, self.stories, self.learning_rate

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it from all other trials of an experiment."""
        return *self.attack, self.trial, self.seed

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RelearnTrial:
        """The inverse of `to_dict`."""
        points = [RelearnPoint(**point) for point in values["curve"]["points"]]
        return cls(**{**values, "curve": RelearnCurve(points)})


@dataclass(frozen=True)
class AttackSummary:
    """What the trials of one attack (same kind, N and learning rate) did. Losses are in nats a token.

    Attributes:
        start_forget, start_retain (`float`): before the attack.
        lowest_forget (`Estimate`): lowest forget loss of a curve; mean and 95 % interval over trials.
        lowest_step (`float`): its step, mean. retain_at_lowest (`Estimate`): retain loss there.
        robust_unlearning (`Estimate`): lowest forget loss minus that before the method; no value where that is unknown.
        recovered (`int`): trials that came below the loss before the method + `RECOVERY_MARGIN`; None where unknown.
        steps_to_recover (`float`, *optional*): median over those. retain_at_recovery (`Estimate`): retain loss there.
    """

    kind: str
    stories: int
    learning_rate: float
    trials: int
    start_forget: float
    start_retain: float
    lowest_forget: Estimate
    lowest_step: float
    retain_at_lowest: Estimate
    robust_unlearning: Estimate
    recovered: int | None
    steps_to_recover: float | None
    retain_at_recovery: Estimate

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class RelearnResult:
    """All attacks on one model.

    Attributes:
        trials (`list[RelearnTrial]`): every attack that was made.
        before (`dict`, *optional*): `forget`, `retain` -> loss of the model before the method on the same stories.
        settings (`dict`): of the attacks. measured (`dict`): `forget_stories`, `forget_tokens`, `retain_stories`,
            `retain_tokens`: what the losses were measured on. pool_stories (`int`): forget stories that attacks drew from.
        notes (`list[str]`): what was asked for and could not be done in full, in words.
    """

    trials: list[RelearnTrial]
    before: dict[str, float] | None
    settings: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, int] = field(default_factory=dict)
    pool_stories: int = 0
    notes: list[str] = field(default_factory=list)

    def summaries(self) -> list[AttackSummary]:
        """One per attack, in the order in which they were made."""
        groups: dict[tuple[str, int, float], list[RelearnTrial]] = {}
        for trial in self.trials:
            groups.setdefault(trial.attack, []).append(trial)
        before = None if self.before is None else self.before["forget"]
        return [_summary(trials, before) for trials in groups.values()]

    def strongest(self) -> AttackSummary | None:
        """The attack with the lowest mean of the lowest forget losses: the headline. `None` without trials."""
        found = [(part.lowest_forget.value, part) for part in self.summaries()]
        finite = [(value, part) for value, part in found if value is not None and math.isfinite(value)]
        return min(finite, key=lambda pair: pair[0])[1] if finite else None

    @property
    def unlearning(self) -> float | None:
        """Forget loss at the start of the attacks minus that before the method, on the same stories as robust unlearning,
        nats a token; `None` where one is not known."""
        if self.before is None or not self.trials:
            return None
        return self.trials[0].curve.points[0].forget_loss - self.before["forget"]

    def to_dict(self) -> dict[str, Any]:
        """As JSON, with the summaries and the strongest attack for readers without hf_era."""
        strongest = self.strongest()
        return {
            **asdict(self),
            "summaries": [part.to_dict() for part in self.summaries()],
            "strongest": None if strongest is None else strongest.to_dict(),
            "unlearning": self.unlearning,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RelearnResult:
        """The inverse of `to_dict`; raises `KeyError` or `TypeError` if something is missing."""
        trials = [RelearnTrial.from_dict(trial) for trial in values["trials"]]
        given = {name: values[name] for name in ("before", "settings", "measured", "pool_stories", "notes")}
        return cls(trials=trials, **given)


def _summary(trials: list[RelearnTrial], before: float | None) -> AttackSummary:
    lowest = [trial.curve.lowest for trial in trials]
    reached = [] if before is None else [trial.curve.first_below(before + RECOVERY_MARGIN) for trial in trials]
    recovered = [point for point in reached if point is not None]
    robust = Estimate(None) if before is None else mean_interval([point.forget_loss - before for point in lowest])
    kind, stories, learning_rate = trials[0].attack
    return AttackSummary(
        kind=kind,
        stories=stories,
        learning_rate=learning_rate,
        trials=len(trials),
        start_forget=trials[0].curve.points[0].forget_loss,
        start_retain=trials[0].curve.points[0].retain_loss,
        lowest_forget=mean_interval([point.forget_loss for point in lowest]),
        lowest_step=sum(point.step for point in lowest) / len(lowest),
        retain_at_lowest=mean_interval([point.retain_loss for point in lowest]),
        robust_unlearning=robust,
        recovered=None if before is None else len(recovered),
        steps_to_recover=float(median(point.step for point in recovered)) if recovered else None,
        retain_at_recovery=mean_interval([point.retain_loss for point in recovered]),
    )
