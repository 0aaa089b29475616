"""Distillation: a student learns what a frozen teacher says of the next token, from its labels, or from both.

Of each predicted token the loss is (1 - w) * cross entropy of its label + w * KL(teacher || student), forward KL over the
vocabulary, summed over tokens and divided by their number in the whole accumulated batch. Both terms are one cross entropy
with soft targets, so that one pass over the logits gives the loss and its gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import TrainerCallback

from hf_era.data.collator import IGNORE_INDEX
from hf_era.evaluation.intervals import ratio_estimate
from hf_era.evaluation.losses import NOT_OF_THE_MODEL, story_losses
from hf_era.models.fast.chunked_loss import BYTES_PER_CHUNK, BYTES_PER_GPU_CHUNK
from hf_era.training.causal_lm_trainer import CausalLMTrainer

EXCLUDED_LOGIT = -1e30  # finite: a probability of exactly 0, and 0 times its logarithm is 0 and not NaN


def distillation_loss(
    logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor | None,
    kl_weight: float,
    scale: float | Tensor = 1.0,
    excluded: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`scale` * ((1 - kl_weight) * cross entropy + kl_weight * KL(teacher || student)), summed over predicted tokens.

    Losses and gradients are computed in fp32 (fp64 for fp64 logits), a chunk of positions at a time: beside the two logits
    only the gradient is as large as they are.

    Args:
        logits (`Tensor`): (batch, seq, vocabulary), the student's.
        labels (`Tensor`): (batch, seq), int64; not shifted. -100 counts for nothing.
        teacher_logits (`Tensor`, *optional*): as `logits`, without a gradient. `None`: `kl_weight` is 0.
        kl_weight (`float`): in [0, 1].
        scale (`float` or scalar `Tensor`, *optional*, defaults to `1.0`): of the loss; without a gradient.
        excluded (pair of `Tensor`, *optional*): (batch, seq) and (vocabulary,), bool: tokens, and the entries of which the
            teacher says nothing on them; its distribution is that of the others, renormalised.

    Returns: three scalars: the loss; and without a gradient, the cross entropy and the KL divergence, each times `scale`.
    """
    targets = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORE_INDEX)], dim=1)
    return _SoftTargetCrossEntropy.apply(logits, targets, teacher_logits, kl_weight, scale, excluded)  # type: ignore


class _SoftTargetCrossEntropy(torch.autograd.Function):
    """The logits' gradient is p(student) - (1 - w) * one-hot - w * p(teacher); it is made in the forward pass."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def, override]
        ctx,
        logits: Tensor,
        targets: Tensor,
        teacher_logits: Tensor | None,
        kl_weight: float,
        scale: float | Tensor,
        excluded: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        sums = torch.promote_types(logits.dtype, torch.float32)
        gradient = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        cross_entropy, divergence = (torch.zeros((), dtype=sums, device=logits.device) for _ in range(2))
        students, gradients, targets = logits.flatten(0, 1), gradient.view(-1, logits.shape[-1]), targets.flatten()
        teachers = None if teacher_logits is None else teacher_logits.flatten(0, 1)
        tokens, entries = (None, None) if excluded is None else (excluded[0].flatten(), excluded[1])
        rows = _rows_per_chunk(logits)
        for start in range(0, len(students), rows):
            chunk = slice(start, start + rows)
            counted = (targets[chunk] != IGNORE_INDEX).unsqueeze(-1)
            target = torch.where(counted, targets[chunk].unsqueeze(-1), 0)
            log_student = torch.log_softmax(students[chunk], dim=-1, dtype=sums)
            cross_entropy -= (log_student.gather(-1, target) * counted).sum()
            difference = log_student.exp()
            if teachers is not None:
                said = teachers[chunk].to(sums)
                if tokens is not None and entries is not None:
                    said = said.masked_fill(tokens[chunk].unsqueeze(-1) & entries, EXCLUDED_LOGIT)
                log_teacher = torch.log_softmax(said, dim=-1)
                teacher = log_teacher.exp()
                divergence += ((log_teacher.sub_(log_student)).mul_(teacher) * counted).sum()
                difference.sub_(teacher, alpha=kl_weight)
            difference.scatter_add_(-1, target, difference.new_full(target.shape, kl_weight - 1))
            gradients[chunk] = (difference * (counted * scale)).to(gradient.dtype)
        ctx.save_for_backward(gradient)
        cross_entropy, divergence = cross_entropy * scale, divergence * scale
        ctx.mark_non_differentiable(cross_entropy, divergence)
        return (1 - kl_weight) * cross_entropy + kl_weight * divergence, cross_entropy, divergence

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, *_: Tensor):  # type: ignore[no-untyped-def, override]
        (saved,) = ctx.saved_tensors
        return saved * gradient.to(saved.dtype), None, None, None, None, None


def _rows_per_chunk(logits: Tensor) -> int:
    size = BYTES_PER_CHUNK if logits.device.type == "cpu" else BYTES_PER_GPU_CHUNK
    return max(size // (logits.shape[-1] * 4), 16)


class DistillationTrainer(CausalLMTrainer):
    """Trains with `distillation_loss`, and logs its two terms as `cross_entropy` and `kl_divergence`.

    Before a trainer of another kind in a list of base classes, it gives that trainer this loss.

    Args:
        teacher (*optional*): a causal LM with the student's vocabulary; frozen, and not saved. `None`: `kl_weight` is 0.
        kl_weight (`float`): in [0, 1]: 1 learns from the teacher alone, 0 from the labels alone.
        args, kwargs: everything that the other trainer takes.
    """

    def __init__(self, *args: Any, teacher: Any, kl_weight: float, **kwargs: Any) -> None:
        super().__init__(*args, compute_loss_func=self._loss_of_outputs, **kwargs)
        self.loss_is_scaled_for_ga = True
        self.kl_weight = kl_weight
        self.teacher = teacher if teacher is None else teacher.to(self.args.device).eval().requires_grad_(False)
        self._running: dict[str, Any] = {}

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss above, and an L1 term where there is one."""
        self._running = dict(inputs)
        try:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        finally:
            self._running = {}

    def excluded_entries(self, inputs: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
        """What the teacher says nothing of; see `distillation_loss`."""
        return None

    def _loss_of_outputs(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        inputs = self._running
        said, excluded = None, None
        if self.teacher is not None:
            own = {name: value for name, value in inputs.items() if name not in NOT_OF_THE_MODEL}
            with torch.no_grad():
                said = self.teacher(**own).logits
            excluded = self.excluded_entries(inputs)
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        count = (labels[:, 1:] != IGNORE_INDEX).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        loss, cross_entropy, divergence = distillation_loss(logits, labels, said, self.kl_weight, 1 / count, excluded)
        # Logs are means over processes, of which each has its share of a sum over all.
        shares = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        self._add_loss_part("cross_entropy", cross_entropy * shares)
        if said is not None:
            self._add_loss_part("kl_divergence", divergence * shares)
        return loss


class StopNearTeacher(TrainerCallback):
    """Ends a training as soon as the student's loss on some examples is at most (1 + tolerance) times the teacher's.

    No checkpoint is saved at the step that ends it: a run that is stopped before its model is saved makes the steps since
    its last checkpoint again, and ends at the same one.

    Args:
        trainer (`DistillationTrainer`): whose student is measured.
        examples (`Dataset`): that it is measured on.
        teacher: the model that it is compared with.
        tolerance (`float`): share of the teacher's loss, at least 0.
        every (`int`): steps between two measurements.

    Attributes:
        teacher_loss (`float`, *optional*), student_loss (`float`, *optional*): nats a token; the last measured.
        reached (`bool`): whether it ended the training.
    """

    def __init__(self, trainer: CausalLMTrainer, examples: Dataset, teacher: Any, tolerance: float, every: int) -> None:
        self.trainer, self.examples, self.tolerance, self.every = trainer, examples, tolerance, every
        self.teacher = teacher
        self.teacher_loss: float | None = None
        self.student_loss: float | None = None
        self.reached = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        gather = trainer.accelerator.gather_for_metrics if args.world_size > 1 else None
        losses = story_losses(
            self.teacher.to(args.device),
            trainer.get_eval_dataloader(self.examples),
            device=args.device,
            autocast=trainer.evaluation_context,
            gather=gather,
        )
        self.teacher_loss = ratio_estimate(losses.nll, losses.tokens, samples=0).value

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every or self.teacher_loss is None:
            return
        due = dict(vars(control))  # an evaluation and a line of the log that this one would be taken for
        measured = self.trainer.evaluate(self.examples, metric_key_prefix="held_out_retain")  # type: ignore[arg-type]
        vars(control).update(due)
        self.student_loss = measured["held_out_retain_loss"]
        if self.student_loss <= (1 + self.tolerance) * self.teacher_loss:
            self.reached = control.should_training_stop = True
            control.should_save = False

    def report(self) -> dict[str, Any]:
        """What a result says of it."""
        return {
            "teacher_retain_loss": self.teacher_loss,
            "student_retain_loss": self.student_loss,
            "reached": self.reached,
        }
