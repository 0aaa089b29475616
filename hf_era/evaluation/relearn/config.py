"""The relearn attack's settings, and the attacks that they ask for with a given number of examples.

The forget examples that an attacker may have (the *pool*) are few, and trials of one attack share none of them. What does
not fit is refused before anything is trained, or made smaller where the user said so.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from typing import Any, NamedTuple

from hf_era.evaluation.relearn.result import CONSTANT, COSINE, FORGET, FULL, HALF, LORA, RETAIN, Attack
from hf_era.utils.checks import check_count, check_positive, short_repr, unknown_value_message
from hf_era.utils.fields import UNLESS_DEFAULT, ByPreset, setting

QUICK, STANDARD, STRONG = "quick", "standard", "strong"
PRESETS: dict[str, dict[str, Any]] = {
    QUICK: {
        "stories": [16],
        "trials": 1,
        "steps": 60,
        "evaluate_every": 10,
        "learning_rate": 3e-4,
        "sweep_learning_rates": [3e-5],
        "lora": False,
        "schedules": [COSINE],
        "cosine_steps": [60],
        "evaluation_stories": 32,
        "attack_before": False,
    },
    STANDARD: {},
    STRONG: {
        "stories": [256],
        "trials": 1,
        "steps": 600,
        "evaluate_every": 20,
        "batch_stories": 32,
        "learning_rate": 3e-4,
        "sweep_learning_rates": [2e-5, 1e-4, 3e-4, 1e-3, 3e-3],
        "lora_learning_rates": [3e-4, 1e-3, 5e-3],
        "schedules": [COSINE, CONSTANT],
        "mixtures": [FORGET, HALF, RETAIN],
        "widen_sweep": 3,
        "evaluation_stories": 128,
    },
}
"""Preset -> the fields that it sets; a field that is given wins, and what no preset sets has its default. The rates span two
orders: at billions of parameters 2e-5 with warm-up and cosine is the strongest, at a tenth of a million 1e-3 to 3e-3."""
RECALIBRATION_STEPS, RECALIBRATION_EXAMPLES = 200, 100
"""Of the pass over the LM head's bias: steps, and forget and retain examples at most, each (SGTM: 100 retain examples)."""


@dataclass
class RelearnAttackConfig:
    """What the trials of all attacks have in common. Defaults: the reference's, but for the
    steps (40 there: too few for most attacks to turn). Each field's `help` says what it is.

    The optimizer is AdamW with betas (0.9, 0.95). The first ten steps are all evaluated, and so is the last; a trial goes
    on until nothing improves, as `patience` counts it, or to `steps`, and the result says which. With `bf16` the
    passes run in autocast and the weights stay in fp32; outside of a run, not given means fp32.

    Raises:
        ValueError: for a number out of range.
    """

    steps: int = setting(
        ByPreset(200), "Steps of a trial at most; it ends before, when nothing improves any more.", identity=True
    )
    learning_rate: float = setting(ByPreset(5e-5), "(Peak) learning rate for every N.", identity=True)
    patience: int | None = setting(
        ByPreset(3),
        "Stop when none of so many evaluations in a row is below the one before them; of warm-up + cosine from its middle "
        "on. null: never.",
        identity=True,
    )
    evaluate_every: int = setting(ByPreset(1), "Steps between evaluations, after the first ten.", identity=True)
    batch_stories: int | None = setting(
        ByPreset(None),
        "Examples of a step, drawn from the attacker's in seeded epochs. Not given: all of them in every step.",
        identity=True,
    )
    batch_size: int = setting(ByPreset(16), "Examples in memory at a time; changes the speed only.", identity=True)
    lora_rank: int = setting(8, "Rank of the adapters of a LoRA attack.", identity=True)
    lora_alpha: float = setting(16.0, "Scale of the adapters of a LoRA attack.", identity=True)
    bf16: bool | None = setting(None, "Attack in bf16 autocast. Not given: as the run was trained.", identity=True)
    seed: int = setting(0, "Of the choice of examples, the halves, the adapters and dropout.", identity=True)

    def __post_init__(self) -> None:
        preset = PRESETS.get(getattr(self, "preset", STANDARD), {})
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, ByPreset):
                setattr(self, item.name, copy.copy(preset.get(item.name, value.value)))
        for name in ("steps", "patience", "evaluate_every", "batch_stories", "batch_size", "lora_rank"):
            check_count(f"relearn.{name}", getattr(self, name), 1, 1_000_000)
        check_count("relearn.seed", self.seed, 0, 2**32 - 1)
        for name in ("learning_rate", "lora_alpha"):
            check_positive(f"relearn.{name}", getattr(self, name))


@dataclass
class RelearnConfig(RelearnAttackConfig):
    """The relearn attacks on one model: an attack for each N, and with the largest N a sweep of learning rates x schedules x
    mixtures, with all weights and through LoRA.

    Each field's `help` says what it is. N x `trials` examples are needed; with `allow_fewer`, what was cut is said in the
    result. An attack that the sweep would repeat is made once. The attacks with each N have the first schedule and the
    first mixture. The forget examples that attacks are measured on are cut into two halves by the seed: the strongest attack
    and its step are chosen on one half and reported on the other.

    A preset (`quick`: one N, two rates, for a first look; `standard`; `strong`: mini-batches out of 256 examples, schedules
    and mixtures, to go on until nothing improves) sets fields; a field that is given wins over it.

    Raises:
        ValueError: for a number out of range, an unknown preset, schedule or mixture, no N at all, or LoRA without a
            learning rate.
    """

    preset: str = setting(
        STANDARD, "quick, standard or strong: sets the other fields; one that is given with it wins.", identity=False
    )
    enabled: bool = setting(True, "false leaves the attacks out.", identity=True)
    stories: list[int] = setting(
        ByPreset([1, 4, 16, 64]), "Forget examples of the attacker, one attack each.", identity=True
    )
    trials: int = setting(ByPreset(5), "Trials of each attack; they share no forget example.", identity=True)
    sweep_stories: int | None = setting(
        ByPreset(None),
        "Sweep and LoRA with so many examples too; always with the largest of relearn.stories.",
        identity=True,
    )
    sweep_learning_rates: list[float] = setting(
        ByPreset([1e-5, 5e-5, 2e-4, 1e-3]), "Also attack with these learning rates. Empty: no sweep.", identity=True
    )
    widen_sweep: int = setting(
        ByPreset(0),
        "While the strongest attack is at the lowest or highest learning rate, try the one beyond, and where its cosine was "
        "too short twice the length; so often at most.",
        identity=UNLESS_DEFAULT,
    )
    sweep_trials: int | None = setting(
        ByPreset(None), "Trials of each attack of the sweep and of LoRA. Not given: as trials.", identity=True
    )
    schedules: list[str] = setting(
        ByPreset([CONSTANT]),
        "Schedules of the learning rate, each swept: constant; cosine (10 % warm-up, then cosine to zero).",
        identity=True,
    )
    cosine_steps: list[int] = setting(
        ByPreset([]),
        "Lengths of the schedule cosine, an attack each, so that it shows whether a longer one brings back more. Empty: "
        "half of steps, and steps.",
        identity=True,
    )
    mixtures: list[str] = setting(
        ByPreset([FORGET]),
        "What attacks train on, each swept: forget; half (as many retain as forget examples in every step); retain (retain "
        "examples alone, N of them).",
        identity=True,
    )
    lora: bool = setting(ByPreset(True), "Also attack through low-rank adapters (peft).", identity=True)
    lora_learning_rates: list[float] = setting(
        ByPreset([2e-4, 1e-3, 5e-3]), "Learning rates of the LoRA attacks.", identity=True
    )
    recalibrate_head: bool = setting(
        ByPreset(False),
        "Before anything is measured, train the LM head's bias alone, redrawn: it takes suppressed words out of the loss.",
        identity=True,
    )
    evaluation_stories: int | None = setting(
        ByPreset(64),
        "Measure on at most so many forget examples in each half and so many retain examples; null: on all.",
        identity=True,
    )
    attack_before: bool = setting(
        ByPreset(True),
        "Make the strongest attack on the model before the method too.",
        identity=UNLESS_DEFAULT,
    )
    each_module: bool = setting(
        True,
        "In a run with several modules: attack with each module's forget examples too, each as often as with all.",
        identity=UNLESS_DEFAULT,
    )
    allow_fewer: bool = setting(
        False, "With too few examples: fewer trials or examples instead of an error.", identity=True
    )

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(unknown_value_message("relearn.preset", self.preset, PRESETS))
        super().__post_init__()
        for name in ("trials", "sweep_stories", "sweep_trials", "evaluation_stories"):
            check_count(f"relearn.{name}", getattr(self, name))
        check_count("relearn.widen_sweep", self.widen_sweep, 0, 20)
        if not self.stories:
            raise ValueError("`relearn.stories` is empty. Give at least one number, or set `relearn.enabled` to false.")
        for stories in self.stories:
            if stories < 1:
                raise ValueError(f"`relearn.stories` should hold numbers of at least 1, got {short_repr(stories)}.")
            check_count("relearn.stories", stories)
        for name in ("sweep_learning_rates", "lora_learning_rates"):
            for value in getattr(self, name):
                check_positive(f"relearn.{name}", value)
        if self.lora and not self.lora_learning_rates:
            raise ValueError("`relearn.lora_learning_rates` is empty. Give one, or set `relearn.lora` to false.")
        self._check_kinds()

    def _check_kinds(self) -> None:
        for name, known in (("schedules", (CONSTANT, COSINE)), ("mixtures", (FORGET, HALF, RETAIN))):
            for value in getattr(self, name):
                if value not in known:
                    raise ValueError(unknown_value_message(f"relearn.{name}", value, known))
            if not getattr(self, name):
                raise ValueError(f"`relearn.{name}` is empty. Name at least one of {', '.join(known)}.")
        for length in self.cosine_steps:
            check_count("relearn.cosine_steps", length, 1, 1_000_000)
        if HALF in self.mixtures and self.batch_stories == 1:
            raise ValueError(
                "`relearn.batch_stories` is 1, but a step of `half` has a forget and a retain example. Give at least 2."
            )

    @property
    def needs_retain(self) -> bool:
        """Whether attacks train on retain examples, or recalibrate on them."""
        return self.recalibrate_head or self.mixtures != [FORGET]

    def lengths(self, schedule: str) -> list[int | None]:
        """How many steps attacks with this schedule have: of `constant` as many as it takes, `None`."""
        if schedule == CONSTANT:
            return [None]
        return list(dict.fromkeys(self.cosine_steps or [max(self.steps // 2, 1), self.steps]))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class PlannedAttack:
    """An attack with `trials` trials. What it is: `hf_era.evaluation.relearn.result.Attack`."""

    kind: str
    stories: int
    learning_rate: float
    trials: int
    schedule: str = CONSTANT
    mixture: str = FORGET
    steps: int | None = None

    @property
    def attack(self) -> Attack:
        """What tells it from other attacks."""
        return Attack.of(self)

    def examples(self, batch_stories: int | None) -> int:
        """How many examples a step reads."""
        parts = 2 if self.mixture == HALF else 1
        return min(parts * self.stories, batch_stories or parts * self.stories)


class AttackPlan(NamedTuple):
    """The attacks that will be made, and in words what was asked for and cannot be done in full."""

    attacks: list[PlannedAttack]
    notes: list[str]


def plan_attacks(config: RelearnConfig, pool_size: int) -> AttackPlan:
    """The attacks that a config asks for, with `pool_size` forget examples to draw from. Raises `ValueError` if there are
    too few and `allow_fewer` was not said, or none at all."""
    asked = _asked_attacks(config)
    too_large = [attack for attack in asked if attack.stories * attack.trials > pool_size]
    if too_large and (not config.allow_fewer or pool_size == 0):
        raise ValueError(_too_few(config, max(too_large, key=lambda part: part.stories * part.trials), pool_size))
    attacks, notes = [], []
    for attack in asked:
        stories = min(attack.stories, pool_size)
        trials = min(attack.trials, pool_size // stories)
        if (stories, trials) != (attack.stories, attack.trials):
            notes.append(
                f"Attacks with {_count(attack.stories, 'forget example', 'forget examples')} and "
                f"{_count(attack.trials, 'trial', 'trials')} that share none were asked for; with {pool_size} in all it "
                f"became {_count(trials, 'trial', 'trials')} with {_count(stories, 'example', 'examples')}."
            )
        attacks.append(replace(attack, stories=stories, trials=trials))
    # What was cut down to the whole pool can be what is made already.
    return AttackPlan(list(dict.fromkeys(attacks)), list(dict.fromkeys(notes)))


def stories_needed(config: RelearnConfig) -> int:
    """How many forget examples the pool should hold, so that the attacks can be made in full."""
    return max(attack.stories * attack.trials for attack in _asked_attacks(config))


def retain_stories_needed(config: RelearnConfig) -> int:
    """How many retain examples the attacker should have, which nothing reports on: as many as forget examples."""
    if not config.needs_retain:
        return 0
    return max(stories_needed(config), RECALIBRATION_EXAMPLES if config.recalibrate_head else 1)


def check_attack(
    config: RelearnConfig, pool_size: int, measured_forget: int | None = None, retain_pool_size: int | None = None
) -> None:
    """Raises `ValueError` if the attacks could not be made; to be called before any training.

    Args:
        pool_size (`int`): forget examples of the attacker. measured_forget, retain_pool_size (`int`, *optional*): forget
            examples to measure on, and retain examples of the attacker; not looked at where they are not given.
    """
    if not config.enabled:
        return
    plan_attacks(config, pool_size)
    if measured_forget is not None and measured_forget < 2:
        raise ValueError(too_few_for_halves(measured_forget))
    if config.needs_retain and retain_pool_size == 0:
        raise ValueError(
            f"`relearn.mixtures` {config.mixtures} and `relearn.recalibrate_head` {str(config.recalibrate_head).lower()} "
            "need retain examples that nothing is reported on, but there is none. Give some, or attack with `forget` alone."
        )


def too_few_for_halves(number: int) -> str:
    """Why so few forget examples cannot be measured on."""
    return (
        f"There {'is' if number == 1 else 'are'} {_count(number, 'forget example', 'forget examples')} with two tokens or "
        "more to measure the attack on, but it takes two halves: one to choose the strongest attack on, one to report it "
        "on. Give more to measure on, a hundred rather than two: in a run `data.forget_validation_stories`, in "
        "`hf-era relearn` those of `--forget` that the attacker does not take. Or leave the attack out: `--relearn.enabled "
        "false`, or `hf-era eval`."
    )


def _asked_attacks(config: RelearnConfig) -> list[PlannedAttack]:
    """What the config asks for, whatever there is; nothing twice."""
    # A rate that is best with few examples need not be so with many: the sweep is made at the headline's number.
    swept = list(dict.fromkeys([max(config.stories), config.sweep_stories or max(config.stories)]))
    rates = {FULL: config.sweep_learning_rates}
    if config.lora:
        rates[LORA] = config.lora_learning_rates
    combinations = list(product(config.schedules, config.mixtures))
    asked = [(FULL, stories, config.learning_rate, config.trials, *combinations[0]) for stories in config.stories]
    for stories, (schedule, mixture), (kind, own) in product(swept, combinations, rates.items()):
        # Without a sweep, the other schedules and mixtures are tried at the one learning rate.
        own = own or ([config.learning_rate] if (schedule, mixture) != combinations[0] else [])
        asked += [(kind, stories, rate, config.sweep_trials or config.trials, schedule, mixture) for rate in own]
    attacks: dict[Attack, PlannedAttack] = {}
    for values in asked:
        for length in config.lengths(values[4]):
            planned = PlannedAttack(*values, steps=length)
            attacks.setdefault(planned.attack, planned)
    return list(attacks.values())


def _too_few(config: RelearnConfig, attack: PlannedAttack, pool_size: int) -> str:
    is_main = attack.kind == FULL and attack.learning_rate == config.learning_rate and attack.stories in config.stories
    trials = "trials" if is_main or config.sweep_trials is None else "sweep_trials"
    stories = "sweep_stories" if not is_main and attack.stories == config.sweep_stories else "stories"
    ways = "Set some aside with `data.attack_stories`, or leave the attack out with `--relearn.enabled false`"
    if pool_size:
        ways = f"Set more aside with `data.attack_stories`, lower `relearn.{trials}` or `relearn.{stories}`, "
        ways += "or take what there is with `--allow-fewer`"
    return (
        f"`relearn.{stories}` {attack.stories} with `relearn.{trials}` {attack.trials} needs "
        f"{_count(attack.stories * attack.trials, 'forget example', 'forget examples')}, for trials share none, but there "
        f"{'is' if pool_size == 1 else 'are'} {pool_size} that neither training nor any evaluation saw. {ways}."
    )


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
