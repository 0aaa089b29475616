"""What relearn attacks found: all curves, and what follows from them per kind of attack."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import mean, median
from typing import Any, NamedTuple

from hf_era.evaluation.intervals import Estimate, mean_interval

RECOVERY_MARGIN = 0.05
"""Nats a token: an attack has recovered the capability once the forget loss is below that before the method plus this."""

CONVERGED_MARGIN = 0.01
"""Nats a token: what brings back less than this more, a longer schedule or another learning rate, brings back as much."""

FULL, LORA = "full", "lora"
"""Kinds of attack: all weights are trained, or low-rank adapters only."""
CONSTANT, COSINE = "constant", "cosine"
"""Schedules of the learning rate: as it is; or 10 % warm-up, then down to zero on a cosine."""
FORGET, HALF, RETAIN = "forget", "half", "retain"
"""Mixtures: what an attack trains on. In `half` every step has as many retain as forget examples."""

STEPS, STORIES, LEARNING_RATE = "steps", "stories", "learning rate"
"""What a minimum can lie at the edge of."""
AT_THE_START, REACHED, NOT_REACHED, UNKNOWN = "at the start", "reached", "not reached", "unknown"
"""How an attack stands to the level before the method: `AttackSummary.recovery`."""


class Attack(NamedTuple):
    """What tells attacks apart: kind, forget examples N, (peak) learning rate, schedule, mixture, and of the schedule
    `cosine` its length in steps."""

    kind: str
    stories: int
    learning_rate: float
    schedule: str = CONSTANT
    mixture: str = FORGET
    steps: int | None = None

    @classmethod
    def of(cls, part: Any) -> Attack:
        """That of what has these attributes."""
        return cls(*(getattr(part, name) for name in cls._fields))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Attack:
        """That of a summary or trial as JSON; earlier ones have a kind, N and a learning rate."""
        return cls(**{name: values[name] for name in cls._fields if name in values})

    @property
    def name(self) -> str:
        """`full 64 0.0002`, and what is not constant and forget examples alone: `full 64 0.0002 cosine-300 half`."""
        more = [] if self.schedule == CONSTANT else [f"{self.schedule}-{self.steps}"]
        more += [] if self.mixture == FORGET else [self.mixture]
        return " ".join([self.kind, str(self.stories), f"{self.learning_rate:g}", *more])


@dataclass(frozen=True)
class RelearnPoint:
    """After `step` steps of the attack. Losses are in nats a token, token-weighted.

    Attributes:
        forget_loss (`float`): on the half of the forget examples that is reported. retain_loss (`float`).
        selection_loss (`float`, *optional*): on the half that the strongest attack and its step are chosen on. None, in
            earlier results: chosen on what is reported.
        tokens (`int`, *optional*): that the attack has learnt from by then. None: not recorded.
        forget_accuracy (`float`, *optional*): share of the forget examples of the reported half whose labelled tokens are
            all the likeliest ones, in [0, 1]; where examples have labels on a completion alone.
    """

    step: int
    forget_loss: float
    retain_loss: float
    selection_loss: float | None = None
    tokens: int | None = None
    forget_accuracy: float | None = None

    @property
    def chosen_by(self) -> float:
        """The forget loss that points and attacks are chosen by."""
        return self.forget_loss if self.selection_loss is None else self.selection_loss


@dataclass(frozen=True)
class RelearnCurve:
    """The curve of one trial; its first point is step 0, before the attack. Raises `ValueError` without any point."""

    points: list[RelearnPoint]

    def __post_init__(self) -> None:
        if not self.points:
            raise ValueError("A relearn curve needs at least the point of step 0, got none.")

    @property
    def lowest(self) -> RelearnPoint:
        """What the attack brought back at best: the point of the lowest forget loss on the half for choosing, the first of
        equals; its own forget loss is that of the other half.

        Points that are not finite count only if there are no others: `min` of a list with NaN could be any of its values.
        """
        finite = [point for point in self.points if math.isfinite(point.chosen_by)]
        return min(finite or self.points[:1], key=lambda point: point.chosen_by)

    def first_below(self, loss: float) -> RelearnPoint | None:
        """The first point whose forget loss is below `loss`, if that of the lowest one is: the first of many that dips
        there by chance is no recovery."""
        if not self.lowest.forget_loss < loss:
            return None
        return next(point for point in self.points if point.forget_loss < loss)


def spaced(points: list[RelearnPoint], evaluate_every: int) -> list[RelearnPoint]:
    """Those that patience counts: the first steps are all measured, and the last one is wherever it lies."""
    return [point for point in points if point.step % evaluate_every == 0]


def nothing_improves(points: Sequence[RelearnPoint], patience: int) -> bool:
    """Whether none of the last `patience` points is below the one before them: what patience waits for. (Not: since the
    lowest one. AdamW overshoots at first, and comes back from above.)"""
    if len(points) <= patience:
        return False
    earlier, *last = points[-patience - 1 :]
    return all(not point.chosen_by < earlier.chosen_by for point in last)


@dataclass(frozen=True)
class RelearnTrial:
    """One attack: how it was made, and its curve.

    Attributes:
        kind (`str`): `full` (all weights) or `lora`.
        stories (`int`): forget examples of the attacker, N. learning_rate (`float`): AdamW's, the peak of a schedule.
        trial (`int`): from 0; trials of the same kind share no example. seed (`int`): of its examples and adapters.
        tokens (`int`, *optional*): that a step learns from, on average. None: not recorded.
        schedule, mixture (`str`): see `CONSTANT` and `FORGET`. steps (`int`, *optional*): length of the schedule `cosine`.
    """

    kind: str
    stories: int
    learning_rate: float
    trial: int
    seed: int
    curve: RelearnCurve
    tokens: int | None = None
    schedule: str = CONSTANT
    mixture: str = FORGET
    steps: int | None = None

    @property
    def attack(self) -> Attack:
        """What trials are averaged over."""
        return Attack.of(self)

    def tokens_at(self, point: RelearnPoint) -> int | None:
        """What it had learnt from at a point; of earlier results from the tokens of a step, all alike."""
        if point.tokens is not None:
            return point.tokens
        return None if self.tokens is None else point.step * self.tokens

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it from all other trials of an experiment."""
        return self.attack, self.trial, self.seed

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RelearnTrial:
        """The inverse of `to_dict`."""
        points = [RelearnPoint(**point) for point in values["curve"]["points"]]
        return cls(**{**values, "curve": RelearnCurve(points)})


@dataclass(frozen=True)
class Effort:
    """What an attacker spent, medians over trials. Steps of attacks with different numbers of examples are not alike:
    compare tokens, or where they were not recorded examples.

    Attributes:
        steps (`float`): of the optimizer. examples (`float`): read, each as often as it was.
        tokens (`float`, *optional*): learnt from. None: not recorded.
    """

    steps: float
    stories: float
    tokens: float | None = None


@dataclass(frozen=True)
class AttackSummary:
    """What the trials of one attack (`Attack`) did. Losses are in nats a token. The step of a trial that counts is the one
    with the lowest forget loss on the half for choosing; all that is said of it was measured on the other half.

    Attributes:
        start_forget, start_retain (`float`): before the attack.
        lowest_forget (`Estimate`): forget loss at that step; mean and 95 % interval over trials.
        lowest_step (`float`): its number, mean. retain_at_lowest (`Estimate`): retain loss there.
        robust_unlearning (`Estimate`): lowest forget loss minus that before the method; no value where that is unknown.
        recovered (`int`): trials that came below the loss before the method + `RECOVERY_MARGIN`; None where unknown.
        steps_to_recover (`float`, *optional*): median over all trials, those that did not recover above those that did;
            None where that is no number of steps. retain_at_recovery (`Estimate`): retain loss there, of those that did.
        edges (`tuple[str, ...]`): at which edges of what was tried the minimum lies. `steps`: a trial ran out of steps
            before its forget loss had turned, as patience counts it; with the schedule `cosine`, whose end is where it is,
            also not if another length brought back as much, to `CONVERGED_MARGIN`. Of the strongest attack also `stories`
            (no attack of its kind and mixture had more) and `learning rate` (none alike had a lower one, or a higher one,
            and the one beside it did not bring back as much).
            With any of them `lowest_forget` and `robust_unlearning` are upper bounds: more of the same may bring back more.
        recovery (`str`): `reached`: the median trial recovered; `not reached`; `at the start`: the forget loss was at the
            level before the attack already; `unknown`.
        effort (`Effort`, *optional*): what recovery took; where it was not reached, it takes more than this.
        schedule, mixture (`str`), steps (`int`, *optional*): as in `RelearnTrial`.
        selection (`float`, *optional*): lowest forget loss on the half for choosing, mean: what the strongest attack has
            the lowest of.
        tokens_to_lowest, tokens (`float`, *optional*): learnt from up to that step, and up to the end of the trial, means.
        start_accuracy (`float`, *optional*), accuracy_at_lowest (`Estimate`): of `RelearnPoint.forget_accuracy`.
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
    schedule: str = CONSTANT
    mixture: str = FORGET
    steps: int | None = None
    selection: float | None = None
    tokens_to_lowest: float | None = None
    tokens: float | None = None
    start_accuracy: float | None = None
    accuracy_at_lowest: Estimate = field(default_factory=lambda: Estimate(None))

    @property
    def attack(self) -> Attack:
        """What it is a summary of."""
        return Attack.of(self)

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
            `retain_tokens`: what the losses were measured on; `selection_stories`, `selection_tokens`: the half that the
            strongest attack was chosen on. pool_stories (`int`): forget examples that attacks drew from.
        notes (`list[str]`): what was asked for and could not be done in full, in words.
        before_trials (`list[RelearnTrial]`): of the strongest attack on the model before the method; empty if not made.
        raw (`dict`, *optional*): `forget`, `retain` -> loss of the model as it is, where the bias of its head was
            recalibrated before the attacks: their step 0 is after that.
    """

    trials: list[RelearnTrial]
    before: dict[str, float] | None
    settings: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, int] = field(default_factory=dict)
    pool_stories: int = 0
    notes: list[str] = field(default_factory=list)
    before_trials: list[RelearnTrial] = field(default_factory=list)
    raw: dict[str, float] | None = None

    def summaries(self) -> list[AttackSummary]:
        """One per attack, in the order in which they were made."""
        found = self._summaries()
        strongest = strongest_of(found)
        return [_at_the_edges(part, found) if part is strongest else part for part in found]

    def _summaries(self) -> list[AttackSummary]:
        """Without the edges that the strongest has of its grid."""
        groups: dict[Attack, list[RelearnTrial]] = {}
        for trial in self.trials:
            groups.setdefault(trial.attack, []).append(trial)
        made = [self._summary(trials) for trials in groups.values()]
        return [replace(part, edges=()) if part.edges and _is_long_enough(part, made) else part for part in made]

    def strongest(self) -> AttackSummary | None:
        """The attack with the lowest mean of the lowest forget losses, on the half for choosing: the headline. `None`
        without trials."""
        return strongest_of(self.summaries())

    def strongest_of_each_kind(self) -> list[AttackSummary]:
        """The strongest with all weights and through LoRA, each with each mixture, in the order in which they were made; as
        `strongest`, their edges are those of the grid of their own kind and mixture."""
        made = self._summaries()
        kinds = dict.fromkeys((part.kind, part.mixture) for part in made)
        found = [strongest_of([part for part in made if (part.kind, part.mixture) == kind]) for kind in kinds]
        return [_at_the_edges(part, made) for part in found if part is not None]

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
        return cls(trials=trials, before_trials=before_trials, raw=values.get("raw"), **given)


def strongest_of(summaries: Sequence[AttackSummary]) -> AttackSummary | None:
    """The one with the lowest forget loss on the half for choosing, where there is one that is finite."""
    found = [(part.lowest_forget.value if part.selection is None else part.selection, part) for part in summaries]
    finite = [(value, part) for value, part in found if value is not None and math.isfinite(value)]
    return min(finite, key=lambda pair: pair[0])[1] if finite else None


def _at_the_edges(strongest: AttackSummary, summaries: Sequence[AttackSummary]) -> AttackSummary:
    return replace(strongest, edges=(*strongest.edges, *_edges_of_the_grid(strongest, summaries)))


def _edges_of_the_grid(strongest: AttackSummary, summaries: Sequence[AttackSummary]) -> list[str]:
    """Beyond which of the numbers of examples and learning rates that were tried a stronger attack may lie."""
    alike = [part for part in summaries if (part.kind, part.mixture) == (strongest.kind, strongest.mixture)]
    edges = [STORIES] if strongest.stories == max(part.stories for part in alike) else []
    swept = [part for part in alike if (part.stories, part.schedule) == (strongest.stories, strongest.schedule)]
    own = strongest.learning_rate
    others = {part.learning_rate for part in swept} - {own}
    if strongest.lowest_step == 0:  # all were in vain, and all are equal: a lower rate may not be
        return [*edges, LEARNING_RATE]
    if others and min(others) < own < max(others):
        return edges
    # Where the rate beside it brought back as much, the loss is flat.
    beside = min(others, key=lambda rate: abs(rate - own), default=None)
    nearly = [part.selection for part in swept if part.learning_rate == beside and part.selection is not None]
    is_flat = strongest.selection is not None and min(nearly, default=math.inf) < strongest.selection + CONVERGED_MARGIN
    return edges if is_flat else [*edges, LEARNING_RATE]


def _is_long_enough(part: AttackSummary, summaries: Sequence[AttackSummary]) -> bool:
    """Whether another length of the same schedule says that a longer one would bring back no more: a longer one that did
    not, or a shorter one that brought back as much."""
    if part.steps is None or part.selection is None:
        return False
    others = [other for other in summaries if other.attack._replace(steps=part.steps) == part.attack]
    longer = [other.selection for other in others if (other.steps or 0) > part.steps and other.selection is not None]
    shorter = [other.selection for other in others if (other.steps or 0) < part.steps and other.selection is not None]
    if longer:
        return min(longer) > part.selection - CONVERGED_MARGIN
    return bool(shorter) and part.selection > min(shorter) - CONVERGED_MARGIN


def _ran_out_of_steps(trial: RelearnTrial, settings: Mapping[str, Any]) -> bool:
    """Whether a trial ended at the last step that it was given (not known: its last one) before patience had counted enough
    evaluations since its lowest forget loss, or without patience any. One that ended earlier had turned, or its next loss
    was not finite."""
    curve = trial.curve
    last = curve.points[-1].step
    if not 0 < last >= (trial.steps or settings.get("steps") or last):
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
    effort = None if before is None else _effort(trials, reached, settings)
    chosen = [point.selection_loss for point in lowest if point.selection_loss is not None]
    accuracies = [point.forget_accuracy for point in lowest if point.forget_accuracy is not None]
    spent = [
        [tokens for tokens in counts if tokens is not None]
        for counts in (
            [trial.tokens_at(point) for trial, point in zip(trials, lowest, strict=True)],
            [trial.tokens_at(trial.curve.points[-1]) for trial in trials],
        )
    ]
    to_lowest, in_all = (float(mean(tokens)) if len(tokens) == len(trials) else None for tokens in spent)
    return AttackSummary(
        **trials[0].attack._asdict(),
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
        edges=(STEPS,) if any(_ran_out_of_steps(trial, settings) for trial in trials) else (),
        recovery=recovery,
        effort=effort,
        selection=sum(chosen) / len(chosen) if len(chosen) == len(trials) else None,
        tokens_to_lowest=to_lowest,
        tokens=in_all,
        start_accuracy=start.forget_accuracy,
        accuracy_at_lowest=mean_interval(accuracies),
    )


def _recovery(reached: Sequence[RelearnPoint | None]) -> str:
    steps = median(math.inf if point is None else point.step for point in reached)
    return REACHED if math.isfinite(steps) else NOT_REACHED


def _effort(
    trials: Sequence[RelearnTrial], reached: Sequence[RelearnPoint | None], settings: Mapping[str, Any]
) -> Effort:
    """Medians over trials. Where the median trial recovered, those that did not count as above it; elsewhere as what they
    were given, which the true median exceeds."""
    is_reached = _recovery(reached) == REACHED
    steps, tokens = [], []
    for trial, point in zip(trials, reached, strict=True):
        is_above = point is None and is_reached
        there = point or trial.curve.points[-1]
        steps.append(math.inf if is_above else there.step)
        tokens.append(math.inf if is_above and trial.tokens is not None else trial.tokens_at(there))
    known = [number for number in tokens if number is not None]
    most = trials[0].stories * (2 if trials[0].mixture == HALF else 1)
    examples = min(most, settings.get("batch_stories") or most)
    return Effort(
        steps=float(median(steps)),
        stories=float(median(steps) * examples),
        tokens=float(median(known)) if len(known) == len(trials) else None,
    )
