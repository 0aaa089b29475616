"""The relearn attack's settings, and the attacks that they ask for with a given number of examples.

The forget examples that an attacker may have (the *pool*) are few, and trials of one attack share none of them. What does
not fit is refused before anything is trained, or made smaller where the user said so.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from hf_era.utils.checks import check_count, check_positive, short_repr
from hf_era.utils.fields import UNLESS_DEFAULT, setting

FULL, LORA = "full", "lora"
"""Kinds of attack: all weights are trained, or low-rank adapters only."""


@dataclass
class RelearnAttackConfig:
    """What the trials of all attacks have in common. Defaults: the reference's, but for the
    steps (40 there: too few for most attacks to turn). Each field's `help` says what it is.

    The optimizer is AdamW with betas (0.9, 0.95). The first ten steps are all evaluated, and so is the last; a trial goes
    on until `patience` says that the forget loss has turned, or to `steps`, and the result says which. With `bf16` the
    passes run in autocast and the weights stay in fp32; outside of a run, not given means fp32.

    Raises:
        ValueError: for a number out of range.
    """

    steps: int = setting(200, "Steps of a trial at most; it ends before, when its loss has turned.", identity=True)
    learning_rate: float = setting(5e-5, "Learning rate, constant, for every N.", identity=True)
    patience: int | None = setting(
        3, "Stop after so many evaluations in a row with a higher forget loss; null: never.", identity=True
    )
    evaluate_every: int = setting(1, "Steps between evaluations, after the first ten.", identity=True)
    batch_size: int = setting(16, "Examples in memory at a time; changes the speed only.", identity=True)
    lora_rank: int = setting(8, "Rank of the adapters of a LoRA attack.", identity=True)
    lora_alpha: float = setting(16.0, "Scale of the adapters of a LoRA attack.", identity=True)
    bf16: bool | None = setting(None, "Attack in bf16 autocast. Not given: as the run was trained.", identity=True)
    seed: int = setting(0, "Of the choice of examples, the adapters and dropout.", identity=True)

    def __post_init__(self) -> None:
        for name in ("steps", "patience", "evaluate_every", "batch_size", "lora_rank"):
            check_count(f"relearn.{name}", getattr(self, name), 1, 1_000_000)
        check_count("relearn.seed", self.seed, 0, 2**32 - 1)
        for name in ("learning_rate", "lora_alpha"):
            check_positive(f"relearn.{name}", getattr(self, name))


@dataclass
class RelearnConfig(RelearnAttackConfig):
    """The relearn attacks on one model: several N, several trials each, a sweep of learning rates, and LoRA.

    Each field's `help` says what it is. All N examples are the batch of every step. N x `trials` examples are needed; with
    `allow_fewer`, what was cut is said in the result. An attack that the sweep would repeat is made once. The examples that
    attacks are measured on are always the same ones.

    Raises:
        ValueError: for a number out of range, no N at all, or LoRA without a learning rate.
    """

    enabled: bool = setting(True, "false leaves the attacks out.", identity=True)
    stories: list[int] = setting(
        lambda: [1, 4, 16, 64], "Forget examples of the attacker, one attack each.", identity=True
    )
    trials: int = setting(5, "Trials of each attack; they share no example.", identity=True)
    sweep_stories: int | None = setting(
        None, "Sweep and LoRA with so many examples too; always with the largest of relearn.stories.", identity=True
    )
    sweep_learning_rates: list[float] = setting(
        lambda: [1e-5, 5e-5, 2e-4, 1e-3], "Also attack with these learning rates. Empty: no sweep.", identity=True
    )
    sweep_trials: int | None = setting(
        None, "Trials of each attack of the sweep and of LoRA. Not given: as trials.", identity=True
    )
    lora: bool = setting(True, "Also attack through low-rank adapters (peft).", identity=True)
    lora_learning_rates: list[float] = setting(
        lambda: [2e-4, 1e-3, 5e-3], "Learning rates of the LoRA attacks.", identity=True
    )
    evaluation_stories: int | None = setting(
        64, "Measure on at most so many forget and so many retain examples; null: on all.", identity=True
    )
    attack_before: bool = setting(
        True,
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
        super().__post_init__()
        for name in ("trials", "sweep_stories", "sweep_trials", "evaluation_stories"):
            check_count(f"relearn.{name}", getattr(self, name))
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

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class PlannedAttack:
    """One kind of attack: `trials` trials with `stories` examples each. `kind` is `full` or `lora`."""

    kind: str
    stories: int
    learning_rate: float
    trials: int

    @property
    def attack(self) -> tuple[str, int, float]:
        """What tells it from other attacks."""
        return self.kind, self.stories, self.learning_rate


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
        attacks.append(PlannedAttack(attack.kind, stories, attack.learning_rate, trials))
    # What was cut down to the whole pool can be what is made already.
    return AttackPlan(list(dict.fromkeys(attacks)), list(dict.fromkeys(notes)))


def stories_needed(config: RelearnConfig) -> int:
    """How many forget examples the pool should hold, so that the attacks can be made in full."""
    return max(attack.stories * attack.trials for attack in _asked_attacks(config))


def check_attack(config: RelearnConfig, pool_size: int) -> None:
    """Raises `ValueError` if the attacks could not be made with `pool_size` examples; to be called before any training."""
    if config.enabled:
        plan_attacks(config, pool_size)


def _asked_attacks(config: RelearnConfig) -> list[PlannedAttack]:
    """What the config asks for, whatever there is; nothing twice."""
    # A rate that is best with few examples need not be so with many: the sweep is made at the headline's number.
    swept = list(dict.fromkeys([max(config.stories), config.sweep_stories or max(config.stories)]))
    sweep_trials = config.sweep_trials or config.trials
    asked = [PlannedAttack(FULL, stories, config.learning_rate, config.trials) for stories in config.stories]
    made = {(attack.stories, attack.learning_rate) for attack in asked}
    for stories in swept:
        asked += [
            PlannedAttack(FULL, stories, rate, sweep_trials)
            for rate in config.sweep_learning_rates
            if (stories, rate) not in made
        ]
        if config.lora:
            asked += [PlannedAttack(LORA, stories, rate, sweep_trials) for rate in config.lora_learning_rates]
    return list(dict.fromkeys(asked))


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
