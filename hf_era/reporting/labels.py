"""What reports call things: one table for Markdown, HTML, model cards and plots.

Stages and methods are not here: a result says what its own are called.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hf_era.evaluation.relearn.result import (
    AT_THE_START,
    CONSTANT,
    FORGET,
    HALF,
    LEARNING_RATE,
    REACHED,
    RETAIN,
    STEPS,
    STORIES,
    UNKNOWN,
    Attack,
    AttackSummary,
    RelearnTrial,
)
from hf_era.evaluation.results import STAGE_TITLES
from hf_era.evaluation.summary import ResultSummary
from hf_era.reporting.numbers import counted, format_estimate, format_number
from hf_era.reporting.text import source_kind


@dataclass(frozen=True)
class Label:
    """A name for the head of a column, and one that says what the figure is."""

    short: str
    long: str


KINDS = {
    "forget": "Forget examples",
    "retain": "Retain examples",
    "forget_words": "Forget words",
    "unlabelled": "Unlabelled examples",
}
DIFFERENCES = {
    "ablation_gap": Label("Ablation gap", "Ablation gap: forget loss after ablation minus before it"),
    "retain_ablation_gap": Label("Retain ablation gap", "Retain ablation gap: the same on retain examples"),
    "unlearning": Label("Unlearning", "Unlearning: forget loss at the end minus before the method"),
    "retain_tax": Label("Retain tax", "Retain tax: retain loss at the end minus before the method"),
    "forget_words_unlearning": Label("Unlearning, forget words", "Unlearning on the forget words alone"),
}
ATTACK_DIFFERENCES = {
    "unlearning_at_attack": Label(
        "Unlearning at its start", "Unlearning on the examples of the attack, and in its precision, at its start"
    ),
    "robust_unlearning": Label(
        "Robust unlearning",
        "Robust unlearning, on the same examples: lowest forget loss under the strongest attack minus before the method",
    ),
    "before_under_attack": Label(
        "The model before, attacked alike",
        "The same attack on the model before the method: its lowest forget loss minus before the attack",
    ),
}
METRICS = {
    "acc": "accuracy",
    "acc_norm": "accuracy, by likelihood a character",
    "exact_match": "exact match",
    "rougeL_recall": "ROUGE-L recall",
    "probability": "probability of the answer",
    "truth_ratio": "truth ratio",
}
"""Of tasks of lm-eval; any other is shown by the harness's name."""
NEED_A_MODULE = ("ablation_gap", "retain_ablation_gap")
LOSSES = {
    "forget_loss_before": "Forget before",
    "forget_loss_final": "Forget at the end",
    "retain_loss_before": "Retain before",
    "retain_loss_final": "Retain at the end",
    "forget_words_loss_final": "Forget words at the end",
}
ATTACK_LOSSES = {
    "attack_forget_loss_before": "Forget before",
    "attack_forget_loss_start": "Forget at its start",
    "attacked_forget_loss": "Forget under attack",
    "attack_retain_loss_before": "Retain before",
    "attack_retain_loss_start": "Retain at its start",
    "attacked_retain_loss": "Retain there",
}
"""Losses of `figure_values`: on the evaluation's examples, and on those of the attack."""
EDGES = {STEPS: "not turned at its last step", LEARNING_RATE: "no learning rate beyond it was tried"}
"""Why an attack is not converged."""
AT_MOST = "≤: the minimum lies at the edge of what was tried, so more of the same may bring back more"
ATTACK_KINDS = {"full": Label("full", "full fine-tuning"), "lora": Label("LoRA", "LoRA fine-tuning")}
SCHEDULES = {"constant": "constant", "cosine": "warm-up and cosine"}
PARTS = {"original": "original dims", "auxiliary": "auxiliary module"}
MOMENTS = {"start": "at the start of training", "trained": "of the trained model"}
STARTS = {"scratch": "from random weights", "pretrained": "from a pretrained model"}
MACHINE = {"system": "system", "cpu_cores": "CPU cores", "device": "device"}
"""All that is shown of a machine: anything else may name it."""
RULE_TEXTS = {
    "full_seq (uniform)": "every token of a labelled forget example is routed (weight 0)",
    "full_seq (frequency)": "a token of a labelled forget example is routed the more, the commoner it is in forget "
    "examples than in retain examples: w = 1 - sigmoid(scale (f/r - r/f) + bias)",
    "concept": "only the tokens of the forget words in labelled forget examples are routed (weight 0)",
    "none": "no token is routed: this run is a control",
}
LOST_LABELS = {
    "random": "Which ones lost it was drawn at random.",
    "short": "The shortest ones lost it.",
    "score": "Those lost it that a classifier of words took least for forget examples.",
}
SOURCES = {
    "source": "Training data",
    "stories_source": "Texts that it is made of",
    "validation_source": "Validation data",
    "forget_source": "Forget examples",
    "retain_source": "Retain examples",
    "unlabelled_source": "Examples without a label",
    "attack_source": "Examples of the attack",
}
COUNTS = {
    "train_stories": "Training examples",
    "train_forget_labelled": "... labelled as forget",
    "train_forget_without_routed_token": "...... of which no token is routed",
    "train_retain_labelled_forget": "...... which are retain examples, by mistake",
    "train_forget_unlabelled": "... forget, but without a label",
    "train_retain": "... retain",
    "train_unlabelled": "... without a label",
    "train_forget_word_tokens": "Training tokens of forget words",
    "train_tokens_routed_as_forget": "Training tokens with a routing weight below 0.5",
    "validation_forget_stories": "Forget examples to evaluate on",
    "validation_retain_stories": "Retain examples to evaluate on",
    "coherence_validation_stories": "Retain examples that coherence fine-tuning chooses its weights on",
    "attack_forget_stories": "Forget examples held back for a relearn attack",
    "forget_stories": "Forget examples to evaluate on",
    "forget_stories_with_a_forget_word": "... that hold a forget word",
    "retain_stories": "Retain examples to evaluate on",
    "retain_stories_with_a_forget_word": "... that hold a forget word",
    "attack_stories": "Forget examples held back for a relearn attack",
    "duplicates_dropped": "Repeated examples that were dropped",
    "blanks_dropped": "Empty examples that were dropped",
}
"""What is counted of the data of a run, or of a model's evaluation."""
OF_MODULES = {
    "train": "forget examples to train on",
    "validation_forget": "to evaluate on",
    "attack_forget": "held back for a relearn attack",
}
"""The same of each module's own forget examples, where there are several modules."""
SETTINGS = {
    "optim": "optimizer",
    "learning_rate": "peak learning rate",
    "lr_scheduler_type": "schedule",
    "warmup_steps": "warm-up steps",
    "minimum_learning_rate_ratio": "final over peak learning rate",
    "adam_beta1": "AdamW beta 1",
    "adam_beta2": "AdamW beta 2",
    "weight_decay": "weight decay",
    "max_grad_norm": "gradient clipping",
    "l1_coefficient": "L1 coefficient",
    "auxiliary_learning_rate_factor": "learning-rate factor of the auxiliary module",
    "auxiliary_weight_decay": "weight decay of the auxiliary module",
    "per_device_train_batch_size": "examples per device and batch",
    "gradient_accumulation_steps": "accumulated batches",
    "bf16": "bf16",
    "fp16": "fp16",
}
"""Training settings that reports name."""


def stage_title(figures: ResultSummary, stage: str) -> str:
    """`After ablation`, `Before the method (pretrained base)`; of an unknown stage its name."""
    title = figures.result.stage_titles.get(stage, STAGE_TITLES.get(stage, stage))
    before = figures.before_name
    # Of a local model never the directory.
    return f"{title} ({source_kind(before)[1]})" if stage == "before" and before else title


def method_title(figures: ResultSummary) -> str:
    """`gradient routing, concept`, `data filtering`: the method, with its mask rule."""
    return f"{figures.result.method_title}, {figures.rule}" if figures.rule else figures.result.method_title


def attack_title(attack: AttackSummary | RelearnTrial) -> str:
    """`full fine-tuning on 64 examples at learning rate 0.0002`, and what else there is to it: `on 64 examples and as many
    retain examples ..., warm-up and cosine over 300 steps`."""
    kind = ATTACK_KINDS[attack.kind].long if attack.kind in ATTACK_KINDS else attack.kind
    number = counted(attack.stories, "example", "examples")
    on = {HALF: f"{number} and as many retain examples", RETAIN: number.replace(" ", " retain ")}
    schedule = "" if attack.schedule == CONSTANT else f", {schedule_text(attack.schedule, attack.steps)}"
    return f"{kind} on {on.get(attack.mixture, number)} at learning rate {attack.learning_rate:g}{schedule}"


def schedule_text(schedule: str, steps: int | None) -> str:
    """`warm-up and cosine over 300 steps`."""
    if schedule not in SCHEDULES:
        return schedule
    return SCHEDULES[schedule] + ("" if steps is None else f" over {counted(steps, 'step', 'steps')}")


def recovered_text(attack: AttackSummary) -> str:
    """`1 of 2`: trials that recovered the capability; `already at the start` where there was nothing to recover."""
    if attack.recovery == AT_THE_START:
        return "already at the start"
    return "unknown" if attack.recovered is None else f"{attack.recovered} of {attack.trials}"


def effort_text(attack: AttackSummary) -> str:
    """`15 steps (9,600 tokens read)`: what the median trial took to recover; `> 20 steps (...)` where it did not, `-` where
    there was nothing to recover or that is not known. Where tokens were not recorded, examples."""
    effort = attack.effort
    if effort is None or attack.recovery in (AT_THE_START, UNKNOWN):
        return "-"
    steps = "1 step" if effort.steps == 1 else f"{effort.steps:g} steps"
    read = f"{effort.stories:,.0f} examples" if effort.tokens is None else f"{effort.tokens:,.0f} tokens"
    return f"{'' if attack.recovery == REACHED else '> '}{steps} ({read} read)"


def lowest_text(attack: AttackSummary) -> str:
    """The lowest forget loss; `≤` before it where it lies at an edge."""
    return format_estimate(attack.lowest_forget, at_most=bool(attack.edges))


def robust_text(attack: AttackSummary) -> str:
    """Robust unlearning, alike."""
    return format_estimate(attack.robust_unlearning, signed=True, missing="-", at_most=bool(attack.edges))


def edges_text(edges: Sequence[str]) -> str:
    """`steps, examples`; `-` for none."""
    return ", ".join("examples" if edge == STORIES else edge for edge in edges) or "-"


def short_attack_title(attack: Attack) -> str:
    """`full, N = 64, 0.0002`: for the head of a column; and what is not constant and forget examples alone: `..., cosine
    300, half retain`."""
    kind = ATTACK_KINDS[attack.kind].short if attack.kind in ATTACK_KINDS else attack.kind
    more = [] if attack.schedule == CONSTANT else [f"{attack.schedule} {attack.steps}"]
    mixture = {FORGET: "", HALF: "half retain", RETAIN: "retain alone"}.get(attack.mixture, attack.mixture)
    more += [mixture] if mixture else []
    return ", ".join([kind, f"N = {attack.stories}", f"{attack.learning_rate:g}", *more])


def reached_text(attack: AttackSummary) -> str:
    """`12.5 (9,600 tokens)`: the step of the lowest forget loss, mean, and what was learnt from by then."""
    tokens = "" if attack.tokens_to_lowest is None else f" ({attack.tokens_to_lowest:,.0f} tokens)"
    return f"{format_number(attack.lowest_step, 1)}{tokens}"


def layer_order(layer: str) -> tuple[int, str]:
    """Sorts "2" before "10", then what is no number, and "all" at the end."""
    if layer.isdecimal():
        return int(layer), ""
    return (2 * 10**9 if layer == "all" else 10**9), layer
