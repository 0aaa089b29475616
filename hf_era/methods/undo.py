"""UNDO: unlearn, noise, distil on outputs (Lee et al. 2025, arXiv 2506.06278).

The model before the method is made to forget, which only hides what it knows: it is the teacher. Its weights are then
damaged with noise, and this student learns what the teacher says until it is as good on retain examples. What the teacher
hides the student is never told.

With `teacher: none`, `distil_on: retain` it is noise and training on retain examples: by the base's own soft labels
(`kl_weight: 1`), by the labels alone (`kl_weight: 0`), or by both.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor
from transformers import set_seed

from hf_era.data import FORGET, RETAIN, UNLABELLED
from hf_era.data.collator import IGNORE_INDEX
from hf_era.methods.method import Cost, Phase, Run, Settings, Stage, register_method, stories_labelled
from hf_era.methods.noise import TRAINS_ALL, NoiseSettings, damage
from hf_era.methods.post_training import OWN_LOSS, PostTraining
from hf_era.methods.unlearning import IS_FORGET, LabelledCollator
from hf_era.models.loading import load_causal_lm
from hf_era.training import CausalLMTrainer
from hf_era.training.distillation import DistillationTrainer, StopNearTeacher
from hf_era.utils.checks import check_count, check_positive, check_share, unknown_value_message
from hf_era.utils.fields import setting
from hf_era.utils.files import fingerprint

TEACHERS = ("none", "max_entropy")
DISTIL_ON = {
    "all": (FORGET, RETAIN, UNLABELLED),
    "retain": (RETAIN, UNLABELLED),
    "labelled_retain": (RETAIN,),
}
"""What the student may learn on -> labels of these examples."""
IN_WORDS = {
    "all": ("all examples", "Those without a label were trained on as all others."),
    "retain": ("the examples not labelled forget", "Those without a label were trained as retain examples."),
    "labelled_retain": ("the examples labelled retain", "Those without a label were left out."),
}
"""The same, and what that means for examples without a label."""


@dataclass
class UndoSettings(NoiseSettings):
    """Settings of UNDO: those of the noise, and these. The section `training` is that of the distillation.

    Args:
        teacher (`str`, *optional*, defaults to `"max_entropy"`): how the model before the method is made to forget:
            `max_entropy` trains it towards the uniform distribution on forget examples and on the labels of all others;
            `none`: it is the teacher as it is.
        teacher_steps (`int`, *optional*, defaults to `200`): of that training. The paper has 100 to 500.
        teacher_learning_rate (`float`, *optional*): its peak. Not given: that of the section `training`.
        teacher_forget_weight (`float`, *optional*, defaults to `1.0`): of its loss on forget tokens over that on others.
        distil_on (`str`, *optional*, defaults to `"all"`): the student learns on all examples; `retain`: on those that
            are not labelled forget; `labelled_retain`: on those that are labelled retain, and the teacher on those with a
            label.
        kl_weight (`float`, *optional*, defaults to `1.0`): in [0, 1]: of KL(teacher || student); the rest is the cross
            entropy of the labels. 1 is the paper's.
        retain_tolerance (`float`, *optional*, defaults to `0.05`): the distillation ends when the student's loss on held-out
            retain examples is above the teacher's by at most this share of it; `null`: after `training.max_steps`.
        check_every (`int`, *optional*, defaults to `25`): steps between two looks at that.
        check_stories (`int`, *optional*, defaults to `64`): retain training examples that it is measured on; the student
            does not learn from them.

    Raises:
        ValueError: for a value out of range, or labels of forget examples that the student would learn.
    """

    teacher: str = setting("max_entropy", f"One of {', '.join(TEACHERS)}.", identity=True)
    teacher_steps: int = setting(200, "Steps of making the teacher forget.", identity=True)
    teacher_learning_rate: float | None = setting(
        None, "Learning rate of that. Not given: that of the section training.", identity=True
    )
    teacher_forget_weight: float = setting(1.0, "Weight of its loss on forget tokens over others.", identity=True)
    distil_on: str = setting(
        "all", "The student learns on all examples, those not labelled forget, or those labelled retain.", identity=True
    )
    kl_weight: float = setting(1.0, "Of the KL to the teacher; the rest is the labels' loss. In [0, 1].", identity=True)
    retain_tolerance: float | None = setting(
        0.05, "Ends when the retain loss is within this share of the teacher's; null: never.", identity=True
    )
    check_every: int = setting(25, "Steps between two looks at that.", identity=True)
    check_stories: int = setting(64, "Held-out retain examples that it is measured on.", identity=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("teacher", TEACHERS), ("distil_on", DISTIL_ON)):
            if getattr(self, name) not in known:
                raise ValueError(unknown_value_message(f"method_settings.{name}", getattr(self, name), known))
        for name in ("teacher_steps", "check_every", "check_stories"):
            check_count(f"method_settings.{name}", getattr(self, name))
        for name in ("teacher_learning_rate", "teacher_forget_weight"):
            if getattr(self, name) is not None:
                check_positive(f"method_settings.{name}", getattr(self, name))
        check_share("method_settings.kl_weight", self.kl_weight)
        tolerance = self.retain_tolerance
        if tolerance is not None and not 0 <= tolerance < float("inf"):
            raise ValueError(f"`method_settings.retain_tolerance` should be a finite number >= 0, got {tolerance}.")
        if self.kl_weight < 1 and self.distil_on == "all":
            raise ValueError(
                f"`method_settings.kl_weight` is {self.kl_weight}, so the student learns the labels themselves, and with "
                "`method_settings.distil_on: all` those of forget examples too. Set `distil_on: retain`, or `kl_weight: 1`."
            )

    @property
    def left_out(self) -> str | None:
        """The name of the setting that leaves out examples without a label; `None`: they are not."""
        return "method_settings.distil_on" if self.distil_on == "labelled_retain" else None

    @property
    def has_teacher(self) -> bool:
        """Whether a model is made to forget first. Without one this is noise and further training."""
        return self.teacher != "none"

    @property
    def lesson(self) -> str:
        """What the student learns, of what, in a few words."""
        teacher = "the teacher" if self.has_teacher else "the model before the method"
        parts = [f"the outputs of {teacher}"] * (self.kl_weight > 0) + ["the labels"] * (self.kl_weight < 1)
        return f"{' and '.join(parts)}, on {IN_WORDS[self.distil_on][0]}"


# ---- The teacher ----


class MaxEntropyTrainer(CausalLMTrainer):
    """Cross entropy to the uniform distribution on forget tokens, and to the labels on all others; both summed, and divided
    by the predicted tokens of the whole accumulated batch.

    Which is which, `is_forget` says (`LabelledCollator`).
    """

    collator_class = LabelledCollator
    extra_columns = ("label",)

    def __init__(self, *args: Any, forget_weight: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.forget_weight = forget_weight

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss above."""
        targets, is_forget = inputs["labels"][:, 1:], inputs[IS_FORGET][:, None]
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        losses = max_entropy_losses(outputs.logits[:, :-1], targets, is_forget, self.forget_weight)
        count = (targets != IGNORE_INDEX).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        shares = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        loss = losses.sum() / count * shares
        return (loss, outputs) if return_outputs else loss


def max_entropy_losses(logits: Tensor, targets: Tensor, is_forget: Tensor, forget_weight: float) -> Tensor:
    """(batch, seq), nats: the cross entropy of each target, or on forget examples `forget_weight` times that of the uniform
    distribution, whose least value is log(vocabulary). 0 where the target is -100.

    Args:
        logits (`Tensor`): (batch, seq, vocabulary). targets (`Tensor`): (batch, seq), int64.
        is_forget (`Tensor`): (batch, 1) or (batch, seq), bool.
    """
    counted = targets != IGNORE_INDEX
    log_probabilities = torch.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    of_label = -log_probabilities.gather(-1, torch.where(counted, targets, 0).unsqueeze(-1)).squeeze(-1)
    of_uniform = -log_probabilities.mean(-1)
    return torch.where(is_forget, forget_weight * of_uniform, of_label) * counted


# ---- The method ----


class Undo(PostTraining):
    """Teacher, noise, distillation."""

    name = "undo"
    title = "UNDO"
    phase_title = "Noising the weights, and distilling"
    texts = {
        "summary": "This model was made by UNDO: made to forget, then noised, and trained on its outputs before the noise.",
        "introduction": (
            "A causal language model that hf_era {version} made to forget with *UNDO* "
            "([arXiv 2506.06278](https://arxiv.org/abs/2506.06278)): a teacher that forgot, and a student with noised "
            "weights that learnt the teacher's outputs. It has a stock Transformers architecture and loads without hf_era."
        ),
        "training": (
            "The model before the method was made to forget, its weights were mixed with noise, and then trained on the "
            "outputs of the one without noise."
        ),
    }
    settings_class = UndoSettings
    ignored: ClassVar[dict[str, str]] = {
        **OWN_LOSS,
        **dict.fromkeys(("trainable", "lora"), TRAINS_ALL),
    }
    needs_forget_examples = True

    def title_of(self, settings: Settings) -> str:
        own: UndoSettings = settings.method_settings
        if own.has_teacher:
            return self.title
        return "noise and distillation" if own.kl_weight > 0 else "noise and further training"

    def phase_title_of(self, settings: Settings) -> str:
        own: UndoSettings = settings.method_settings
        return self.phase_title if own.kl_weight > 0 else "Noising the weights, and training on"

    def texts_of(self, settings: Settings) -> dict[str, str]:
        own: UndoSettings = settings.method_settings
        texts = {**self.texts, "labels": IN_WORDS[own.distil_on][1]}
        if own.has_teacher:
            return texts
        title = self.title_of(settings)
        return {
            **texts,
            "summary": f"This model was made by {title}: {own.noise_prose}, and the model learnt {own.lesson}.",
            "introduction": (
                f"A causal language model that hf_era {{version}} made to forget by *{title}*. It has a stock Transformers "
                "architecture and loads without hf_era."
            ),
            "training": f"Of the model before the method {own.noise_prose}. Then the model learnt {own.lesson}.",
        }

    def labels_learnt(self, settings: Settings) -> tuple[int, ...]:
        own: UndoSettings = settings.method_settings
        return DISTIL_ON[own.distil_on]

    def plan(self, settings: Settings) -> list[tuple[str, str]]:
        own: UndoSettings = settings.method_settings
        student = f"{own.noise_text}, which learns {own.lesson}"
        if not own.has_teacher:
            return [("method", f"{self.title_of(settings)}: {student}")]
        teacher = f"the model before the method, after {own.teacher_steps} steps of {own.teacher}"
        return [("teacher", teacher), ("student", f"{student}; weight of the KL {own.kl_weight:g}")]

    def check_data(self, settings: Settings, retain_stories: int, unlabelled_stories: int) -> None:
        own: UndoSettings = settings.method_settings
        own.check_retain(retain_stories)
        learnt = {"all": 1, "retain": retain_stories + unlabelled_stories, "labelled_retain": retain_stories}
        if not learnt[own.distil_on]:
            raise ValueError(
                f"`method_settings.distil_on` is {own.distil_on!r}, but there is no such training example. Label some, or "
                "set `method_settings.distil_on: all`."
            )
        if own.retain_tolerance is not None and retain_stories <= own.check_stories:
            raise ValueError(
                f"`method_settings.check_stories` holds {own.check_stories} retain examples out, but the training data has "
                f"{retain_stories}. Lower it, give more examples, or set `method_settings.retain_tolerance: null`."
            )

    def phases(self, run: Run) -> list[Phase]:
        phases = super().phases(run)
        if not run.method_settings.has_teacher:
            return phases
        key = fingerprint(run.identity, run.base_key, "teacher")
        clean_up = partial(run.remove_checkpoints, "teacher", key)
        title, outputs = "Making the teacher forget", (run.folder("teacher"),)
        batch = self._batch(run)
        cost = Cost(run.method_settings.teacher_steps * batch)
        return [Phase("teacher", title, key, partial(self._teach, run), outputs, clean_up, cost), *phases]

    def stages(self, run: Run) -> list[Stage]:
        stages = super().stages(run)
        if not run.method_settings.has_teacher:
            return stages
        return [Stage("teacher", run.folder("teacher"), title="The teacher, which forgot"), *stages]

    def _batch(self, run: Run) -> int:
        """Examples of a step, over all processes."""
        arguments = run.arguments
        per_device = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
        return per_device * max(arguments.world_size, 1)

    def _teach(self, run: Run, key: str) -> dict[str, Any]:
        settings: UndoSettings = run.method_settings
        changes: dict[str, Any] = {"max_steps": settings.teacher_steps}
        if settings.teacher_learning_rate is not None:
            changes["learning_rate"] = settings.teacher_learning_rate
        arguments = run.training_arguments("teacher", key, **changes)
        set_seed(run.seed)
        options = {"forget_weight": settings.teacher_forget_weight}
        knows_labels = settings.distil_on == "labelled_retain"  # then what has none teaches nobody
        stories = stories_labelled(run.data, FORGET, RETAIN) if knows_labels else None
        trainer, _ = run.train(
            MaxEntropyTrainer, super().start_weights(run), arguments, run.folder("teacher"), stories, **options
        )
        return run.training_report(trainer, arguments)

    def teacher_model(self, run: Run) -> str | Path:
        """Where the teacher is."""
        return run.folder("teacher") if run.method_settings.has_teacher else run.before_model

    def start_weights(self, run: Run) -> Any:
        model = load_causal_lm(self.teacher_model(run)).to(torch.float32)
        damage(model, run)
        return model

    def stories(self, run: Run) -> Dataset:
        return run.data.train.select(self._split(run)[0])

    def cost(self, run: Run) -> Cost:
        settings: UndoSettings = run.method_settings
        training = run.training_cost(run.arguments, len(self._split(run)[0]))
        of_teacher = training.trained if settings.kl_weight > 0 else 0.0
        return Cost(training.trained, training.measured + of_teacher, at_most=settings.retain_tolerance is not None)

    def _split(self, run: Run) -> tuple[list[int], list[int]]:
        """Places of the training examples that the student learns from, and of those that say when it is done."""
        settings, labels = run.method_settings, run.data.train["label"][:]
        held_out: list[int] = []
        if settings.retain_tolerance is not None:
            retain = [index for index, label in enumerate(labels) if label == RETAIN]
            held_out = sorted(random.Random(run.seed).sample(retain, settings.check_stories))
        left_out, learnt = set(held_out), self.labels_learnt(run)
        return [index for index, label in enumerate(labels) if index not in left_out and label in learnt], held_out

    def train(self, run: Run, key: str) -> dict[str, Any]:
        """Noises the teacher's weights and trains them on its outputs."""
        settings: UndoSettings = run.method_settings
        arguments = run.training_arguments("train", key)
        set_seed(run.seed)
        teacher = load_causal_lm(self.teacher_model(run)).to(torch.float32)
        stop: list[StopNearTeacher] = []

        def make(*args: Any, **kwargs: Any) -> CausalLMTrainer:
            trainer = DistillationTrainer(*args, **kwargs)
            if settings.retain_tolerance is not None:
                held_out = run.data.train.select(self._split(run)[1])
                stop.append(
                    StopNearTeacher(trainer, held_out, teacher, settings.retain_tolerance, settings.check_every)
                )
                trainer.add_callback(stop[0])
            return trainer

        options = {"teacher": teacher if settings.kl_weight > 0 else None, "kl_weight": settings.kl_weight}
        trainer, _ = run.train(
            make, self.start_weights(run), arguments, run.folder("model"), self.stories(run), **options
        )
        report = run.training_report(trainer, arguments)
        return {**report, "distillation": stop[0].report()} if stop else report


register_method(Undo())
