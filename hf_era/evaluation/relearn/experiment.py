"""The relearn attack as an experiment: several N, trials, learning rates and LoRA, all measured on the same examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from rich.progress import Progress

from hf_era.evaluation.relearn.attack import (
    AttackedExamples,
    RelearnAttack,
    attackable_copy,
    has_turned,
    seeded,
    with_lora,
)
from hf_era.evaluation.relearn.config import (
    RECALIBRATION_EXAMPLES,
    PlannedAttack,
    RelearnConfig,
    check_attack,
    plan_attacks,
)
from hf_era.evaluation.relearn.head_bias import recalibrate_head
from hf_era.evaluation.relearn.measured import MeasuredStories
from hf_era.evaluation.relearn.result import (
    CONSTANT,
    FORGET,
    LEARNING_RATE,
    LORA,
    AttackSummary,
    RelearnPoint,
    RelearnResult,
    RelearnTrial,
)
from hf_era.utils.files import read_json, write_json
from hf_era.utils.processes import in_all, share_of, share_out


class RelearnExperiment:
    """Makes the attacks that a config asks for, on any causal LM.

    Trial t with N examples gets examples [t N, (t + 1) N) of one seeded permutation of the pool: trials of the same attack
    share none, and attacks that differ in learning rate or kind only are made with the same ones. The same model, examples
    and config give the same curves, bit for bit on a CPU with the same number of threads.

    Args:
        pool (`Dataset`): forget examples that neither training nor any evaluation saw; `input_ids`, `length`. Those with
            fewer than two tokens teach nothing and do not count.
        forget, retain (`Dataset`): what is measured, or a fixed choice of it (`evaluation_stories`); the same columns. The
            seed cuts the forget examples into two halves: attacks and their steps are chosen on one, reported on the other.
        pad_token_id (`int`): any valid id. config (`RelearnConfig`): the attacks; its `enabled` is for the caller to heed.
        device (*optional*, defaults to `"cpu"`), progress (`bool`, *optional*, defaults to `True`): where; show a bar.
        state (`PartialState`, *optional*): of this process among the launched ones, which share the trials out and all
            get all of them. Each must then make the same calls in the same order. Not given: this process does it all.
        retain_pool (`Dataset`, *optional*): retain examples of the attacker, for the mixtures `half` and `retain` and the
            recalibration: such that nothing is reported on, examples that were trained on among them.
        note (`str`, *optional*): what is to be said of the retain examples, if they are used.

    Raises:
        ValueError: if there are too few examples for what was asked, or nothing to learn from or to measure.
    """

    def __init__(
        self,
        pool: Dataset,
        forget: Dataset,
        retain: Dataset,
        pad_token_id: int,
        config: RelearnConfig,
        device: Any = "cpu",
        progress: bool = True,
        state: PartialState | None = None,
        retain_pool: Dataset | None = None,
        note: str | None = None,
    ) -> None:
        self.config, self._progress, self._pad_token_id, self._state = config, progress, pad_token_id, state
        pool, forget = _with_two_tokens(pool), _with_two_tokens(forget)
        self._retain_pool = pool.select([]) if retain_pool is None else _with_two_tokens(retain_pool)
        check_attack(replace(config, enabled=True), len(pool), len(forget), len(self._retain_pool))
        self._plan = plan_attacks(config, len(pool))
        if note is not None and config.needs_retain:
            self._plan.notes.append(note)
        self._pool = pool.select(_shuffled(len(pool), config.seed))
        selection, reported = _halves(forget, config.evaluation_stories, config.seed)
        retain = _fixed_choice(retain, config.evaluation_stories, config.seed)
        kept = pad_token_id, config.batch_size, device, bool(config.bf16), selection
        self._measured = MeasuredStories(reported, retain, *kept)
        used = [part for part in (pool, forget, retain, self._retain_pool) if len(part)]
        self._longest = max(max(part["length"]) for part in used)
        self._highest_id = max(max(ids, default=0) for part in used for ids in part["input_ids"])

    def plan(self) -> list[PlannedAttack]:
        """The attacks that `run` makes, in that order."""
        return list(self._plan.attacks)

    def describe(self) -> str:
        """One line: what `run` is going to do."""
        plan, counts = self._plan.attacks, self._measured.counts
        trials = sum(attack.trials for attack in plan)
        sizes = ", ".join(str(stories) for stories in dict.fromkeys(attack.stories for attack in plan))
        rates = [
            ", ".join(f"{rate:g}" for rate in dict.fromkeys(part.learning_rate for part in plan if part.kind == kind))
            for kind in dict.fromkeys(attack.kind for attack in plan)
        ]
        every = "step" if self.config.evaluate_every == 1 else f"{self.config.evaluate_every} steps after the first ten"
        return (
            f"{trials} relearn attacks of up to {self.config.steps} steps on {sizes} forget examples, learning rates "
            f"{' and, with LoRA, '.join(rates)}{self._how()}; measured every {every} on {counts['forget_stories']} forget "
            f"and {counts['retain_stories']} retain examples, chosen on {counts['selection_stories']} other forget examples"
        )

    def _how(self) -> str:
        """What schedules, mixtures and mini-batches there are, where they are not the plain ones."""
        config = self.config
        found = f", schedules {', '.join(config.schedules)}" if config.schedules != [CONSTANT] else ""
        found += f", on {', '.join(config.mixtures)}" if config.mixtures != [FORGET] else ""
        return found + (f", {config.batch_stories} examples a step" if config.batch_stories else "")

    def losses(self, model: Any) -> dict[str, float]:
        """`forget`, `retain` -> a model's loss on the examples that attacks are measured on, nats a token, token-weighted,
        in the precision of an attack, after recalibration where that is asked for. The model is left as it is. Raises
        `ValueError` as `check`."""
        self.check(model)
        found = self._measured.losses(attackable_copy(self._recalibrated(model), self._measured.device), self._state)
        return {name: found[name] for name in ("forget", "retain")}

    def _recalibrated(self, model: Any) -> Any:
        """The model, or where it is asked for a copy with the bias of its LM head recalibrated."""
        config, measured = self.config, self._measured
        if not config.recalibrate_head:
            return model
        copied = attackable_copy(model, measured.device)
        parts = [part.select(range(min(RECALIBRATION_EXAMPLES, len(part)))) for part in (self._pool, self._retain_pool)]
        examples = AttackedExamples(parts, self._pad_token_id, measured)
        recalibrate_head(copied, examples, config.batch_size, config.seed)
        return copied

    def check(self, model: Any) -> None:
        """Raises `ValueError` if these examples do not fit a model: too long, or of another tokenizer; or if it has no
        weights that can be trained. Any model of the same config will do, so it can be called before training."""
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and self._longest > limit:
            raise ValueError(
                f"`data.max_tokens`: the longest example of the attack has {self._longest} tokens, but the model takes "
                f"{limit} at most (`max_position_embeddings`). Cut the examples with `--data.max_tokens {limit}`."
            )
        vocabulary = getattr(model.get_input_embeddings(), "num_embeddings", None)
        if vocabulary is not None and self._highest_id >= vocabulary:
            raise ValueError(
                f"The attack's examples hold token {self._highest_id}, but the model knows {vocabulary} tokens. "
                "Tokenise them with the model's own tokenizer."
            )
        if getattr(model, "is_quantized", False):
            raise ValueError("A quantised model has no weights to attack. Load it without quantisation.")

    def run(
        self,
        model: Any,
        before: Mapping[str, float] | None = None,
        done: Iterable[RelearnTrial] = (),
        on_trial: Callable[[RelearnTrial], None] | None = None,
    ) -> RelearnResult:
        """Attacks copies of a model, any causal LM; the model itself is left as it is.

        Args:
            before (*optional*): `forget`, `retain` -> loss of the model before the method, from `losses`. Not given:
                robust unlearning and recovery are not known.
            done (*optional*): trials of an earlier run *of the same experiment on the same model* that was stopped; they
                are not repeated. Those that are not in the plan are ignored. The same ones in every process.
            on_trial (*optional*): called with each new trial when it is through, in the process that made it.

        Raises:
            ValueError: before the first step, as `check`; if a loss is not finite before the attack; or if LoRA is asked
                for and does not fit the model.
        """
        before = _checked_before(before)
        self.check(model)
        raw = None
        if self.config.recalibrate_head:
            raw = self._measured.losses(attackable_copy(model, self._measured.device), self._state)
            raw, model = {name: raw[name] for name in ("forget", "retain")}, self._recalibrated(model)
        start = self._checked_start(model)
        known = {trial.key: trial for trial in done}

        def result_of(attacks: list[PlannedAttack]) -> RelearnResult:
            planned = [(attack, index) for attack in attacks for index in range(attack.trials)]
            missing = [(attack, index) for attack, index in planned if self._key(attack, index) not in known]
            known.update({trial.key: trial for trial in self._make(model, missing, start, on_trial)})
            trials = [known[self._key(attack, index)] for attack, index in planned]
            notes = [*self._plan.notes, *filter(None, map(self._note_of, trials))]
            measured = dict(self._measured.counts)
            return RelearnResult(trials, before, self.config.to_dict(), measured, len(self._pool), notes, raw=raw)

        attacks = list(self._plan.attacks)
        result = result_of(attacks)
        for _ in range(self.config.widen_sweep):
            further = _beyond_the_edge(result)
            if further is None:
                break
            attacks.append(further)
            result = result_of(attacks)
        return result

    def attack_before(self, model: Any, result: RelearnResult) -> RelearnResult:
        """The result, with its strongest attack made on the model before the method too (`before_trials`): what attacks do
        to a model from which nothing was removed. As it is where `attack_before` is off or no attack came to an end."""
        strongest = result.strongest()
        if not self.config.attack_before or strongest is None:
            return result
        planned = _planned(strongest)
        numbers = [(planned, index) for index in range(planned.trials)]
        model = self._recalibrated(model)
        return replace(result, before_trials=self._make(model, numbers, self._checked_start(model)))

    def _make(
        self,
        model: Any,
        missing: list[tuple[PlannedAttack, int]],
        start: RelearnPoint,
        on_trial: Callable[[RelearnTrial], None] | None = None,
    ) -> list[RelearnTrial]:
        """The trials with these numbers, each made by one process."""
        through = 0  # steps of trials that are through, as if none ended early
        with Progress(transient=True, disable=not self._progress) as bar:
            total = sum(self._settings(attack, index).steps for attack, index in share_of(missing, self._state))
            task = bar.add_task("Relearn attack", total=total)

            def make(number: tuple[PlannedAttack, int]) -> RelearnTrial:
                nonlocal through
                attack, index = number
                bar.update(task, description=f"Relearn {_name(attack)}, trial {index + 1} of {attack.trials}")
                stories = self._pool.select(range(index * attack.stories, (index + 1) * attack.stories))
                settings = self._settings(attack, index)
                how = attack.kind, attack.schedule, attack.mixture, self._retain(attack, settings.seed)
                attacker = RelearnAttack(stories, self._measured, self._pad_token_id, settings, *how)

                def on_step(point: RelearnPoint) -> None:
                    bar.update(task, completed=through + point.step)

                curve = attacker.run(model, start, on_step)
                trial = RelearnTrial(
                    **attack.attack._asdict(), trial=index, seed=settings.seed, curve=curve, tokens=attacker.tokens
                )
                if on_trial is not None:
                    on_trial(trial)
                through += settings.steps
                bar.update(task, completed=through)
                return trial

            return share_out(missing, make, self._state)

    def _settings(self, attack: PlannedAttack | RelearnTrial, index: int) -> RelearnConfig:
        """Those of one trial of an attack."""
        steps, seed = attack.steps or self.config.steps, self.config.seed + index
        return replace(self.config, learning_rate=attack.learning_rate, steps=steps, seed=seed)

    def _retain(self, attack: PlannedAttack, seed: int) -> Dataset | None:
        """The retain examples of a trial: as many as forget examples, drawn by its seed."""
        if attack.mixture == FORGET:
            return None
        return self._retain_pool.select(_shuffled(len(self._retain_pool), seed)[: attack.stories])

    def _key(self, attack: PlannedAttack, index: int) -> tuple[Any, ...]:
        return attack.attack, index, self.config.seed + index

    def _checked_start(self, model: Any) -> RelearnPoint:
        """Step 0, which all trials have in common. Here everything fails that can fail before the first step."""
        copied = attackable_copy(model, self._measured.device)
        start = self._measured.start(copied, self._state)
        if any(attack.kind == LORA for attack in self._plan.attacks):
            with seeded(self.config.seed, self._measured.device):
                with_lora(copied, self.config.lora_rank, self.config.lora_alpha)
        return start

    def _note_of(self, trial: RelearnTrial) -> str | None:
        """What to say of a trial that ended before its steps and not by patience: its loss was no longer finite."""
        points, settings = trial.curve.points, self._settings(trial, trial.trial)
        if points[-1].step >= settings.steps or has_turned(points, settings, trial.schedule):
            return None
        return (
            f"The {_name(trial)}, trial {trial.trial + 1}: the loss was no longer finite after step {points[-1].step}; "
            "the curve up to there counts."
        )


_WIDENING = 3.0
"""From a single learning rate to the first one beyond it."""


def _beyond_the_edge(result: RelearnResult) -> PlannedAttack | None:
    """The strongest attack at the learning rate beyond the last one, by the ratio of the two last ones; where it has been
    tried at a lower and at a higher one, but its schedule was too short, at twice the length; else `None`. If no step of it
    brought anything back, lower rates may."""
    strongest = result.strongest()
    if strongest is None or strongest.converged:
        return None
    if LEARNING_RATE not in strongest.edges:
        return None if strongest.steps is None else replace(_planned(strongest), steps=2 * strongest.steps)
    alike = strongest.attack._replace(learning_rate=0.0)
    rates = {
        trial.learning_rate
        for trial in result.trials
        if trial.attack._replace(learning_rate=0.0, steps=strongest.steps) == alike
    }
    was_in_vain = strongest.lowest_step == 0
    edge = min(rates) if was_in_vain else strongest.learning_rate
    towards_it = 1 / _WIDENING if was_in_vain else _WIDENING
    nearest = min(rates - {edge}, key=lambda rate: abs(math.log(rate / edge)), default=edge / towards_it)
    return replace(_planned(strongest), learning_rate=float(f"{edge * edge / nearest:.6g}"))


def _planned(summary: AttackSummary) -> PlannedAttack:
    return PlannedAttack(**summary.attack._asdict(), trials=summary.trials)


def _name(attack: PlannedAttack | RelearnTrial) -> str:
    kind = "LoRA attack" if attack.kind == LORA else "attack"
    more = "" if attack.schedule == CONSTANT else f", {attack.schedule} over {attack.steps} steps"
    more += "" if attack.mixture == FORGET else f", {attack.mixture}"
    return f"{kind} with N = {attack.stories} at {attack.learning_rate:g}{more}"


def _shuffled(size: int, seed: int) -> list[int]:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()


def _fixed_choice(stories: Dataset, number: int | None, seed: int) -> Dataset:
    """At most so many examples, chosen by the seed; the same ones for every model."""
    if number is None or number >= len(stories):
        return stories
    return stories.select(_shuffled(len(stories), seed)[:number])


def _with_two_tokens(stories: Dataset) -> Dataset:
    """Without examples that have nothing to predict."""
    lengths = stories["length"][:]
    if min(lengths, default=2) > 1:
        return stories
    return stories.select([index for index, length in enumerate(lengths) if length > 1])


def _halves(stories: Dataset, number: int | None, seed: int) -> tuple[Dataset, Dataset]:
    """Two halves, chosen by the seed, of at most so many examples each; the same ones for every model."""
    order = _shuffled(len(stories), seed)
    return stories.select(order[1::2][:number]), stories.select(order[::2][:number])


def _checked_before(before: Mapping[str, float] | None) -> dict[str, float] | None:
    if before is None:
        return None
    values = {name: before.get(name, math.nan) for name in ("forget", "retain")}
    if not all(math.isfinite(value) for value in values.values()):
        raise ValueError(
            f"`before` should hold a finite `forget` and `retain` loss, got {dict(before)}. Pass `losses`."
        )
    return values


_NAME = "attack-unfinished"


class KeptTrials:
    """The trials of an unfinished attack, in files of a folder: one a process, so that none waits for another.

    The folder need not be shared between machines: each process reads what it finds, and all get the trials of all. `key` is
    a fingerprint of the attack's inputs; trials that were kept under another one are not found. Experiments that are kept at
    the same time have different numbers: `number`.

    Attributes:
        found (`list[RelearnTrial]`): those kept before, the same in every process, none twice.
    """

    def __init__(self, folder: Path, key: str, state: PartialState, number: int = 0) -> None:
        self._folder, self._key, self._state = folder, key, state
        process = "" if state.is_main_process else f"-{state.process_index}"
        self._own = folder / f"{_NAME}{f'-experiment{number}' if number else ''}{process}.json"
        # Gathering is waiting, too: all have read before one of them writes.
        everyones = in_all(lambda: list(self._read()), state)
        self.found = list({trial.key: trial for trials in everyones for trial in trials}.values())
        self._trials = list(self.found)  # an own file is written over: what stood there must not be lost

    def add(self, trial: RelearnTrial) -> None:
        """Keeps a trial, in the process that made it."""
        self._trials.append(trial)
        write_json(self._own, {"inputs": self._key, "trials": [part.to_dict() for part in self._trials]})

    def _read(self) -> Iterator[RelearnTrial]:
        for path in sorted(self._folder.glob(f"{_NAME}*.json")):
            kept = read_json(path)
            if isinstance(kept, dict) and kept.get("inputs") == self._key:
                yield from map(RelearnTrial.from_dict, kept["trials"])


def remove_kept_trials(folder: Path) -> None:
    """Removes all files of `KeptTrials` in a folder, once the attack is through in all processes."""
    for path in folder.glob(f"{_NAME}*.json"):
        path.unlink(missing_ok=True)
