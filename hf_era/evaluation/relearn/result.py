"""What relearn attacks found: all curves, and what follows from them per kind of attack."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

from hf_era.evaluation.intervals import Estimate, mean_interval

RECOVERY_MARGIN = 0.05
"""Nats a token: an attack has recovered the capability once the forget loss is below that before the method plus this."""

STEPS, STORIES, LEARNING_RATE = "steps", "stories", "learning rate"
"""What a minimum can lie at the edge of."""
AT_THE_START, REACHED, NOT_REACHED, UNKNOWN = "at the start", "reached", "not reached", "unknown"
"""How an attack stands to the level before the method: `AttackSummary.recovery`."""


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


def spaced(points: list[RelearnPoint], evaluate_every: int) -> list[RelearnPoint]:
    """Those that patience counts: the first steps are all measured, and the last one is wherever it lies."""
    return [point for point in points if point.step % evaluate_every == 0]


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
        stories (`int`): forget examples of the attacker, N. learning_rate (`float`): AdamW's, constant.
        trial (`int`): from 0; trials of the same kind share no example. seed (`int`): of its examples and adapters.
        tokens (`int`, *optional*): that a step learns from. None: not recorded.
    """

    kind: str
    stories: int
    learning_rate: float
    trial: int
    seed: int
    curve: RelearnCurve
    tokens: int | None = None

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
class Effort:
    """What an attacker spent, medians over trials. A step reads all its examples, so that steps of attacks with different
    numbers of examples are not alike: compare tokens, or where they were not recorded examples.

    Attributes:
        steps (`float`): of the optimizer. examples (`float`): read, each as often as it was.
        tokens (`float`, *optional*): learnt from. None: not recorded.
    """

    steps: float
    stories: float
    tokens: float | None = None


@dataclass(frozen=True)
class AttackSummary:
    """What the trials of one attack (same kind, N and learning rate) did. Losses are in nats a token.

    Attributes:
        start_forget, start_retain (`float`): before the attack.
        lowest_forget (`Estimate`): lowest forget loss of a curve; mean and 95 % interval over trials.
        lowest_step (`float`): its step, mean. retain_at_lowest (`Estimate`): retain loss there.
        robust_unlearning (`Estimate`): lowest forget loss minus that before the method; no value where that is unknown.
        recovered (`int`): trials that came below the loss before the method + `RECOVERY_MARGIN`; None where unknown.
        steps_to_recover (`float`, *optional*): median over all trials, those that did not recover above those that did;
            None where that is no number of steps. retain_at_recovery (`Estimate`): retain loss there, of those that did.
        edges (`tuple[str, ...]`): at which edges of what was tried the minimum lies. `steps`: a trial ran out of steps
            before its forget loss had turned, as patience counts it. Of the strongest attack also `stories` (no attack of
            its kind had more) and `learning rate` (none with so many examples had a lower one, or a higher one). With any
            of them `lowest_forget` and `robust_unlearning` are upper bounds: more of the same may bring back more.
        recovery (`str`): `reached`: the median trial recovered; `not reached`; `at the start`: the forget loss was at the
            level before the attack already; `unknown`.
        effort (`Effort`, *optional*): what recovery took; where it was not reached, it takes more than this.
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
    edges: tuple[str, ...] = ()
    recovery: str = UNKNOWN
    effort: Effort | None = None

    @property
    def attack(self) -> tuple[str, int, float]:
        """What it is a summary of."""
        return self.kind, self.stories, self.learning_rate

    @property
    def converged(self) -> bool:
        """Whether with so many examples neither more steps nor another learning rate promise a lower forget loss."""
        return STEPS not in self.edges and LEARNING_RATE not in self.edges

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "edges": list(self.edges)}


@dataclass(frozen=True)
class RelearnResult:
    """All attacks on one model.

    Attributes:
        trials (`list[RelearnTrial]`): every attack that was made.
        before (`dict`, *optional*): `forget`, `retain` -> loss of the model before the method on the same examples.
        settings (`dict`): of the attacks. measured (`dict`): `forget_stories`, `forget_tokens`, `retain_stories`,
            `retain_tokens`: what the losses were measured on. pool_stories (`int`): forget examples that attacks drew from.
        notes (`list[str]`): what was asked for and could not be done in full, in words.
        before_trials (`list[RelearnTrial]`): of the strongest attack on the model before the method; empty if not made.
    """

    trials: list[RelearnTrial]
    before: dict[str, float] | None
    settings: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, int] = field(default_factory=dict)
    pool_stories: int = 0
    notes: list[str] = field(default_factory=list)
    before_trials: list[RelearnTrial] = field(default_factory=list)

    def summaries(self) -> list[AttackSummary]:
        """One per attack, in the order in which they were made."""
        groups: dict[tuple[str, int, float], list[RelearnTrial]] = {}
        for trial in self.trials:
            groups.setdefault(trial.attack, []).append(trial)
        found = [self._summary(trials) for trials in groups.values()]
        strongest = _strongest(found)
        return [
            replace(part, edges=(*part.edges, *_edges_of_the_grid(part, found))) if part is strongest else part
            for part in found
        ]

    def strongest(self) -> AttackSummary | None:
        """The attack with the lowest mean of the lowest forget losses: the headline. `None` without trials."""
        return _strongest(self.summaries())

    @property
    def before_attacked(self) -> AttackSummary | None:
        """What the strongest attack does to the model before the method, for `robust_unlearning` to be compared with; `None`
        if that was not tried."""
        return self._summary(self.before_trials) if self.before_trials else None

    def _summary(self, trials: list[RelearnTrial]) -> AttackSummary:
        before = None if self.before is None else self.before["forget"]
        return _summary(trials, before, self.settings)

    @property
    def unlearning(self) -> float | None:
        """Forget loss at the start of the attacks minus that before the method, on the same examples as robust unlearning,
        nats a token; `None` where one is not known."""
        if self.before is None or not self.trials:
            return None
        return self.trials[0].curve.points[0].forget_loss - self.before["forget"]

    def to_dict(self) -> dict[str, Any]:
        """As JSON, with the summaries and the strongest attack for readers without hf_era."""
        strongest, before = self.strongest(), self.before_attacked
        return {
            **asdict(self),
            "summaries": [part.to_dict() for part in self.summaries()],
            "strongest": None if strongest is None else strongest.to_dict(),
            "before_attacked": None if before is None else before.to_dict(),
            "unlearning": self.unlearning,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RelearnResult:
        """The inverse of `to_dict`; raises `KeyError` or `TypeError` if something is missing."""
        trials, before_trials = (
            [RelearnTrial.from_dict(trial) for trial in part]
            for part in (values["trials"], values.get("before_trials") or [])
        )
        given = {name: values[name] for name in ("before", "settings", "measured", "pool_stories", "notes")}
        return cls(trials=trials, before_trials=before_trials, **given)


def _strongest(summaries: Sequence[AttackSummary]) -> AttackSummary | None:
    found = [(part.lowest_forget.value, part) for part in summaries]
    finite = [(value, part) for value, part in found if value is not None and math.isfinite(value)]
    return min(finite, key=lambda pair: pair[0])[1] if finite else None


def _edges_of_the_grid(strongest: AttackSummary, summaries: Sequence[AttackSummary]) -> list[str]:
    """Beyond which of the numbers of examples and learning rates that were tried a stronger attack may lie."""
    alike = [part for part in summaries if part.kind == strongest.kind]
    rates = [part.learning_rate for part in alike if part.stories == strongest.stories]
    edges = [STORIES] if strongest.stories == max(part.stories for part in alike) else []
    return [*edges, LEARNING_RATE] if strongest.learning_rate in (min(rates), max(rates)) else edges


def _ran_out_of_steps(curve: RelearnCurve, settings: Mapping[str, Any]) -> bool:
    """Whether a trial ended at the last step that it was given (not known: its last one) before patience had counted enough
    evaluations since its lowest forget loss, or without patience any. One that ended earlier had turned, or its next loss
    was not finite."""
    last = curve.points[-1].step
    if not 0 < last >= (settings.get("steps") or last):
        return False
    lowest = curve.lowest.step
    since = [point for point in curve.points if point.step > lowest]
    patience = settings.get("patience")
    return not since if patience is None else len(spaced(since, settings.get("evaluate_every") or 1)) < patience


def _summary(trials: list[RelearnTrial], before: float | None, settings: Mapping[str, Any]) -> AttackSummary:
    lowest = [trial.curve.lowest for trial in trials]
    level = -math.inf if before is None else before + RECOVERY_MARGIN
    reached = [trial.curve.first_below(level) for trial in trials]
    recovered = [point for point in reached if point is not None]
    robust = Estimate(None) if before is None else mean_interval([point.forget_loss - before for point in lowest])
    start = trials[0].curve.points[0]
    recovery = UNKNOWN if before is None else AT_THE_START if start.forget_loss < level else _recovery(reached)
    effort = None if before is None else _effort(trials, reached)
    kind, stories, learning_rate = trials[0].attack
    return AttackSummary(
        kind=kind,
        stories=stories,
        learning_rate=learning_rate,
        trials=len(trials),
        start_forget=start.forget_loss,
        start_retain=start.retain_loss,
        lowest_forget=mean_interval([point.forget_loss for point in lowest]),
        lowest_step=sum(point.step for point in lowest) / len(lowest),
        retain_at_lowest=mean_interval([point.retain_loss for point in lowest]),
        robust_unlearning=robust,
        recovered=None if before is None else len(recovered),
        steps_to_recover=effort.steps if effort is not None and recovery in (AT_THE_START, REACHED) else None,
        retain_at_recovery=mean_interval([point.retain_loss for point in recovered]),
        edges=(STEPS,) if any(_ran_out_of_steps(trial.curve, settings) for trial in trials) else (),
        recovery=recovery,
        effort=effort,
    )


def _recovery(reached: Sequence[RelearnPoint | None]) -> str:
    steps = median(math.inf if point is None else point.step for point in reached)
    return REACHED if math.isfinite(steps) else NOT_REACHED


def _effort(trials: Sequence[RelearnTrial], reached: Sequence[RelearnPoint | None]) -> Effort:
    """Medians over trials. Where the median trial recovered, those that did not count as above it; elsewhere as what they
    were given, which the true median exceeds."""
    is_reached = _recovery(reached) == REACHED
    steps = [
        point.step if point is not None else math.inf if is_reached else trial.curve.points[-1].step
        for trial, point in zip(trials, reached, strict=True)
    ]
    tokens = [trial.tokens for trial in trials]
    known = [number for number in tokens if number is not None]
    read = [step * number for step, number in zip(steps, known, strict=False)]
    return Effort(
        steps=float(median(steps)),
        stories=float(median(steps) * trials[0].stories),
        tokens=float(median(read)) if len(known) == len(trials) else None,
    )
