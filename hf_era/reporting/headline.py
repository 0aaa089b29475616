"""What came of a run, in sentences: plain text, to be escaped by whoever shows it. Losses are in nats a token.

*Brought back*: the forget loss at the start of an attack minus its mean lowest forget loss, as a share of the unlearning on
the same examples; said only where that reaches the run's `minimum_ablation_gap`. *Robust unlearning*: lowest forget loss
under attack minus that before the method.

`cautions` decides what is wrong with a result, for the terminal, the report, the comparison and the card alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_era.evaluation.intervals import Estimate
from hf_era.evaluation.model_evaluation import words_message
from hf_era.evaluation.relearn.result import (
    AT_THE_START,
    NOT_REACHED,
    REACHED,
    RECOVERY_MARGIN,
    UNKNOWN,
    AttackSummary,
    RelearnResult,
)
from hf_era.evaluation.results import AnyResult, ModelResult, RunResult
from hf_era.evaluation.summary import ResultSummary, summary_of
from hf_era.reporting.labels import EDGES, attack_title, effort_text
from hf_era.reporting.numbers import any_interval, format_difference, format_estimate, is_number
from hf_era.reporting.seeds import seeds_of
from hf_era.reporting.text import cut, name_of, source_kind

DEFAULT_MINIMUM_GAP = 0.05
"""Nats a token; for a result that does not say its `training["minimum_ablation_gap"]`."""


@dataclass(frozen=True)
class Caution:
    """What a reader has to know before anything else: what it is in a few words, and the figures behind it."""

    lead: str
    text: str

    def __str__(self) -> str:
        return f"{self.lead}. {self.text}"


def headline_sentences(result: AnyResult) -> list[str]:
    """The figures that a result is judged by, a sentence or two each; what was not measured is left out or said so."""
    figures, minimum = summary_of(result), minimum_gap(result)
    found = [_what_it_is(figures)]
    if figures.result.has_module:
        found += _ablation(figures)
    if not figures.is_untouched:
        found += _differences(figures, minimum)
    return [*found, *_attack_sentences(figures, minimum)]


def cautions(result: AnyResult, seeds: Sequence[AnyResult] = ()) -> list[Caution]:
    """What is wrong with a result; empty if nothing is. With other seeds of its recipe beside, also what is wrong with them
    alone: which seed is shown is chance."""
    found = _own_cautions(result)
    leads = [caution.lead for caution in found]
    others: dict[str, dict[str, str]] = {}  # lead -> seed -> text
    for other in seeds_of(result, seeds):
        for caution in _own_cautions(other):
            if caution.lead not in leads:
                others.setdefault(caution.lead, {})[name_of(other.seed)] = caution.text
    for lead, texts in others.items():
        who = f"{'Seeds' if len(texts) > 1 else 'Seed'} {' and '.join(', '.join(texts).rsplit(', ', 1))}"
        found.append(Caution(f"{who}: {lead}", " ".join(f"Seed {seed}: {text}" for seed, text in texts.items())))
    return found


def _own_cautions(result: AnyResult) -> list[Caution]:
    figures, minimum = summary_of(result), minimum_gap(result)
    values = [loss.value for losses in figures.losses.values() for loss in losses.values()]
    found = []
    if any(value is not None and not is_number(value) for value in values):
        found.append(Caution("A loss is not finite", "The model broke while it was trained or evaluated."))
    if isinstance(result, ModelResult):
        found += _words_cautions(result.data)
    if figures.result.has_module:
        found += _localisation_cautions(figures, minimum)
    if not figures.is_untouched:
        found += _removal_cautions(figures, minimum)
    return [*found, *_convergence_cautions(figures)]


def _words_cautions(data: Mapping[str, Any]) -> list[Caution]:
    """Of a model's result: nothing but its words and the two files say what its capability is."""
    if "forget_stories_with_a_forget_word" not in data:
        return []
    message = words_message(data.get("forget_words") or [], data)
    return [] if message is None else [Caution("The forget words do not fit the examples", cut(message, 900))]


def _localisation_cautions(figures: ResultSummary, minimum: float) -> list[Caution]:
    gap = figures.differences["ablation_gap"].value
    if gap is None:
        return [Caution("It is not known whether anything was localised", "The ablation gap was not measured.")]
    if is_number(gap) and gap >= minimum:
        return []
    text = (
        f"Ablating the auxiliary module changed the forget loss by {format_difference(gap)} nats a token, less than the "
        f"threshold of {minimum:g}. Do not take this for a model whose capability was localised and cut out."
    )
    return [Caution("NOTHING WAS LOCALISED", text)]


def _removal_cautions(figures: ResultSummary, minimum: float) -> list[Caution]:
    names = ("unlearning", "retain_tax", "forget_words_unlearning", "robust_unlearning")
    unlearning, tax, words, robust = (figures.differences[name].value for name in names)
    if unlearning is None or not is_number(unlearning):
        return []
    found = []
    if unlearning < minimum:
        better = "this model predicts forget examples better than that one"
        text = (
            f"The forget loss at the end minus that of {before_text(figures.result)} is {format_difference(unlearning)} "
            f"nats a token: {better if unlearning < 0 else f'less than the threshold of {minimum:g}'}."
        )
        if words is not None and words >= minimum:
            text += (
                f" On the forget words alone the loss rose by {format_difference(words)} nats a token: the model avoids the "
                "words and predicts the rest of such examples as well as before."
            )
        return [Caution("The capability was not removed", text)]
    if tax is not None and tax >= unlearning:
        text = (
            f"It is {format_difference(tax)} against {format_difference(unlearning)} nats a token: general damage, not the "
            "removal of one capability."
        )
        found.append(Caution("The retain loss rose as much as the forget loss", text))
    if robust is not None and robust < minimum and not figures.is_control:
        edge = " or below" if "robust_unlearning" in figures.at_most else ""
        least = f"falls to {format_difference(robust)} nats a token{edge}."
        text = f"Under the strongest attack the forget loss minus that before the method {least}"
        found.append(Caution("The removal does not hold", text))
    return found


def _convergence_cautions(figures: ResultSummary) -> list[Caution]:
    attack = figures.strongest
    if attack is None or attack.converged:
        return []
    where = "; ".join(EDGES[edge] for edge in attack.edges)
    text = (
        f"The lowest forget loss of the strongest attack, {attack_title(attack)}, lies at the edge of what was tried "
        f"({where}): more of the same may bring back more, and robust unlearning is at most what stands here."
    )
    return [Caution("The relearn attack is not converged", text)]


def before_text(result: AnyResult) -> str:
    """What "before the method" is, in words."""
    if not isinstance(result, RunResult):
        return name_of((result.before or {}).get("model") or "the model before the method")
    if result.before_kind == "base_control":
        return "the base control (a stock model with the same data, steps and seed, without routing)"
    if result.before_kind != "pretrained":
        return "the model before the method"
    base = (result.config.get("model") or {}).get("base")
    if base is None:
        return "the base model that was pretrained here on the same examples"
    return f"the pretrained base model {name_of(source_kind(base)[1])}"


def minimum_gap(result: AnyResult) -> float:
    """The ablation gap from which on a capability counts as localised, nats a token."""
    value = result.training.get("minimum_ablation_gap") if isinstance(result, RunResult) else None
    return DEFAULT_MINIMUM_GAP if value is None or not is_number(value) else float(value)


def share_brought_back(figures: ResultSummary, minimum: float) -> float | None:
    """What the strongest attack brings back of what the method took, both on the examples and in the precision of the
    attack; `None` where that is not known or too little to divide by."""
    unlearning, attack = figures.differences["unlearning_at_attack"].value, figures.strongest
    if attack is None or unlearning is None or attack.lowest_forget.value is None or not unlearning >= minimum:
        return None
    share = (attack.start_forget - attack.lowest_forget.value) / unlearning
    return share if is_number(share) else None


def change(what: str, estimate: Estimate) -> str:
    """`raises the forget loss by 0.412 [0.380, 0.440]`: a difference in words; not for one that was not measured."""
    value = estimate.value
    if value is None or not is_number(value):
        return f"changes the {what} by an amount that is not finite"
    if abs(value) < 0.0005:
        return f"leaves the {what} as it is ({format_estimate(estimate, signed=True)})"
    return f"{'raises' if value > 0 else 'lowers'} the {what} by {format_estimate(_absolute(estimate))}"


# ---- Sentences ----


def _what_it_is(figures: ResultSummary) -> str:
    known = [(kind, figures.final[kind]) for kind in ("forget", "retain") if kind in figures.final]
    parts = [f"{kind} loss {format_estimate(estimate)}" for kind, estimate in known if estimate.value is not None]
    losses = f"{' and '.join(parts)} nats a token" if parts else ""
    if any_interval([estimate for _, estimate in known]):
        losses += " (in brackets: 95 % intervals of this run, over examples)"
    summary = str(figures.result.method_texts.get("summary") or "")
    if summary:
        return f"{summary} {losses[:1].upper()}{losses[1:]}.".removesuffix(" .")
    return f"At the end: {losses}." if losses else "The losses were not measured."


def _ablation(figures: ResultSummary) -> list[str]:
    gap, retain_gap = (figures.differences[name] for name in ("ablation_gap", "retain_ablation_gap"))
    if gap.value is None:
        return ["What ablation removes was not measured."]
    sentence = f"Ablation {change('forget loss', gap)} nats a token"
    if retain_gap.value is None:
        return [f"{sentence}."]
    verb, rest = change("retain loss", retain_gap).split(" ", 1)
    return [f"{sentence} and {rest if change('', gap).startswith(verb) else f'{verb} {rest}'}."]


def _differences(figures: ResultSummary, minimum: float) -> list[str]:
    parts = []
    for name, what in (
        ("unlearning", "forget loss"),
        ("retain_tax", "retain loss"),
        ("forget_words_unlearning", "loss on the forget words alone"),
    ):
        estimate = figures.differences[name]
        if estimate.value is not None:
            parts.append(f"the {what} is {_compared(estimate)}{_beside(figures, name)}")
    if not parts:
        return ["How it compares with the model before the method was not measured."]
    before = figures.before_name
    if before in ("pretrained base", "base control"):
        before = f"the {before}"
    joined = f"{', '.join(parts[:-1])}, and {parts[-1]}" if len(parts) > 2 else " and ".join(parts)
    found = [f"Against {before or 'the model before the method'}, {joined}."]
    tax = figures.differences["retain_tax"].value
    if tax is not None and tax < -minimum:
        found.append(
            "The model also went on learning: its retain loss is lower than before. The comparison mixes what was removed "
            f"with what the further steps taught{'; the ablation gap does not' if figures.result.has_module else ''}."
        )
    return found


def _beside(figures: ResultSummary, name: str, what: str = "data filtering") -> str:
    """The same of data filtering in brackets, where it is known."""
    control = figures.control
    value = None if control is None else control.differences[name].value
    most = "at most " if control is not None and name in control.at_most else ""
    return f" ({what}: {most}{format_difference(value)})" if is_number(value) else ""


def _compared(estimate: Estimate) -> str:
    value = estimate.value
    if value is None or not is_number(value):
        return "not finite"
    if abs(value) < 0.0005:
        return f"the same ({format_estimate(estimate, signed=True)})"
    return f"{format_estimate(_absolute(estimate))} {'higher' if value > 0 else 'lower'}"


def _attack_sentences(figures: ResultSummary, minimum: float) -> list[str]:
    relearning, attack = figures.relearning, figures.strongest
    if relearning is None or not relearning.trials:
        unknown = "No relearn attack was made: how fast the capability comes back is not known."
        return [] if figures.is_untouched else [unknown]
    if attack is None:
        return ["The relearn attacks did not come to an end with a finite loss: nothing can be said of them."]
    found = [_strongest(figures, relearning, attack, minimum)]
    if attack.robust_unlearning.value is not None:
        beside = _beside(figures, "robust_unlearning", "data filtering under its own strongest attack")
        most = "at most " if attack.edges else ""
        found.append(
            "Robust unlearning, the lowest forget loss under that attack minus the forget loss before the method: "
            f"{most}{format_estimate(attack.robust_unlearning, signed=True)} nats a token{beside}.{_zero(figures)}"
        )
    return [*found, *_recovery(relearning, attack)]


def _zero(figures: ResultSummary) -> str:
    """Where the model before the method stands under the same attack, which is what a model that lost nothing looks like."""
    robust, zero = (figures.differences[name].value for name in ("robust_unlearning", "before_under_attack"))
    if robust is None or zero is None or not (is_number(robust) and is_number(zero)):
        return ""
    most, so_far = ("at most ", "so far ") if "before_under_attack" in figures.at_most else ("", "")
    return (
        f" The same attack changes the forget loss of the model before the method by {most}{format_difference(zero)}: "
        f"{so_far}{format_difference(robust - zero)} lies between the two."
    )


def _strongest(figures: ResultSummary, relearning: RelearnResult, attack: AttackSummary, minimum: float) -> str:
    number = len(relearning.summaries())
    subject = f"The {f'strongest of {number} attacks' if number > 1 else 'attack'}, {attack_title(attack)},"
    lowest = attack.lowest_forget.value or 0.0
    if attack.lowest_step == 0 or attack.start_forget - lowest < 0.0005:
        return f"{subject} made the forget loss no lower than it was at the start ({attack.start_forget:.3f})."
    steps = _steps(attack.lowest_step)
    levels = f"from {attack.start_forget:.3f} to {format_estimate(attack.lowest_forget)}"
    share = share_brought_back(figures, minimum)
    if share is None:
        return f"{subject} lowers the forget loss {levels} within {steps} ({_mean_of(attack)})."
    percent = round(100 * share)
    how_much = f"{percent} % of what the method took" if percent else "next to nothing of what the method took (0 %)"
    if percent >= 100:
        how_much = f"all of what the method took {'and more ' if percent > 100 else ''}({percent} %)"
    return f"{subject} brings back {how_much} within {steps}: forget loss {levels} ({_mean_of(attack)})."


def _recovery(relearning: RelearnResult, strongest: AttackSummary) -> list[str]:
    level = f"the level before the method + {RECOVERY_MARGIN:g}"
    if strongest.recovery == UNKNOWN:
        return []
    if strongest.recovery == AT_THE_START:
        return [f"The forget loss was below {level} already before the attacks: there was nothing to bring back."]
    found = [f"Under the strongest attack the forget loss was {_recovered(relearning, strongest, level)}."]
    fastest = _fastest(relearning)
    if fastest is not None and fastest.attack != strongest.attack:
        found.append(f"Fastest back was {attack_title(fastest)}: {_recovered(relearning, fastest, level)}.")
    return found


def _fastest(relearning: RelearnResult) -> AttackSummary | None:
    """The attack that recovered on the fewest tokens, or examples where tokens were not recorded: a step of one attack reads
    more than a step of another."""
    reached = [part for part in relearning.summaries() if part.recovery == REACHED and part.effort is not None]
    tokens = all(part.effort.tokens is not None for part in reached if part.effort)
    return min(reached, key=lambda part: _read(part, tokens), default=None)


def _read(attack: AttackSummary, tokens: bool) -> float:
    effort = attack.effort
    read = None if effort is None else effort.tokens if tokens else effort.stories
    return float("inf") if read is None else read


def _recovered(relearning: RelearnResult, attack: AttackSummary, level: str) -> str:
    if attack.recovery == REACHED:
        trials = "the only trial" if attack.trials == 1 else f"{attack.recovered} of {attack.trials} trials"
        return f"back at {level} after {effort_text(attack)} in {trials}"
    if attack.recovery == NOT_REACHED and attack.recovered:
        above = effort_text(attack).removeprefix("> ")
        return f"back at {level} in {attack.recovered} of {attack.trials} trials only: the median is above {above}"
    last = max(trial.curve.points[-1].step for trial in relearning.trials if trial.attack == attack.attack)
    none = "in the only trial" if attack.trials == 1 else f"in any of {attack.trials} trials"
    return f"not back at {level} within {_steps(last)} {none}"


# ---- Parts ----


def _steps(number: float) -> str:
    if number == 1:
        return "1 step"
    return f"{number:.0f} steps" if number == round(number) else f"about {number:.2g} steps"


def _mean_of(attack: AttackSummary) -> str:
    return "1 trial" if attack.trials == 1 else f"mean of {attack.trials} trials"


def _absolute(estimate: Estimate) -> Estimate:
    """The same for a fall: its size, and the interval the other way round."""
    if estimate.value is None or estimate.value >= 0:
        return estimate
    low, high = (None if bound is None else -bound for bound in (estimate.high, estimate.low))
    return Estimate(-estimate.value, low, high)
