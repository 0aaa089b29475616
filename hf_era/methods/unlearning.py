"""What methods have in common that unlearn from forget and retain examples together, each with a loss of its own.

A batch holds both kinds, as the data does. Which is which travels with the batch as `is_forget`, one value per example;
an example without a label counts as retain. The two parts of a loss are means over the tokens of their kind in the *whole*
accumulated batch of all processes, so that one process, accumulation and DDP train alike, and a coefficient means the same
whatever the share of forget examples is. A batch without one kind adds nothing for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_era.data import FORGET, RoutingCollator
from hf_era.data.collator import IGNORE_INDEX
from hf_era.evaluation.losses import token_losses
from hf_era.methods.method import Run
from hf_era.methods.post_training import OWN_LOSS, PostTraining
from hf_era.models.fast.causal_lm import label_losses
from hf_era.models.loading import load_causal_lm
from hf_era.training import CausalLMTrainer

IS_FORGET = "is_forget"


class LabelledCollator(RoutingCollator):
    """As `RoutingCollator`, and `is_forget`, bool, (batch,): which examples are labelled forget."""

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        batch = super().__call__(examples)
        batch[IS_FORGET] = torch.tensor([example.get("label") == FORGET for example in examples])
        return batch


class UnlearningTrainer(CausalLMTrainer):
    """A trainer whose subclasses say in `unlearning_loss` what is learnt from forget and from retain examples.

    Args:
        reference (*optional*): a causal LM that stays as it is, for losses that compare with it.
        args, kwargs: as `CausalLMTrainer`. The column `label` of an example says what it is about: 0 is forget.
    """

    collator_class = LabelledCollator
    extra_columns = ("label",)

    def __init__(self, model: Any, args: Any, *, reference: Any = None, **kwargs: Any) -> None:
        super().__init__(model, args, **kwargs)
        # Losses are made here and not by the model, whatever it would do with the number of labels.
        self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = True
        self.reference = None if reference is None else reference.to(self.args.device).eval().requires_grad_(False)
        self._forget_tokens: Tensor | float = 1.0
        self._retain_tokens: Tensor | float = 1.0

    def unlearning_loss(self, model: Any, inputs: dict[str, Any], is_forget: Tensor) -> Tensor:
        """The loss of a batch, a scalar, of `forget_mean` and `retain_mean`.

        Args:
            model: what is trained, as the Trainer wrapped it. inputs (`dict`): `input_ids`, `attention_mask` and `labels`,
                each (batch, seq), and what else the model takes. is_forget (`Tensor`): bool, (batch,).
        """
        raise NotImplementedError(f"{type(self).__name__} has no `unlearning_loss`.")

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list, Any]:
        """Also counts the predicted tokens of either kind in the whole accumulated batch."""
        batches, num_items_in_batch = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = torch.zeros(2, device=device)
        for batch in batches:
            predicted, is_forget = (batch["labels"][:, 1:] != IGNORE_INDEX).sum(1), batch[IS_FORGET]
            counts += torch.stack([predicted[is_forget].sum(), predicted[~is_forget].sum()]).to(counts)
        processes = 1
        if self.args.world_size > 1 and self.args.average_tokens_across_devices:
            counts, processes = self.accelerator.gather(counts).view(-1, 2).sum(0), self.accelerator.num_processes
        # Gradients are averaged over processes, so each one's share of a mean is that many times as large.
        self._forget_tokens, self._retain_tokens = counts.clamp(min=1) / processes
        return batches, num_items_in_batch

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        inputs = dict(inputs)
        is_forget = inputs.pop(IS_FORGET)
        if not model.training:  # predictions for a metric of the user's
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = self.unlearning_loss(model, inputs, is_forget)
        return (loss, {}) if return_outputs else loss

    def forget_mean(self, values: Tensor, name: str = "forget_loss") -> Tensor:
        """The share that values of forget tokens, or sums over some of them, have in their mean; it is logged as `name`."""
        return self._mean(values.sum() / self._forget_tokens, name)

    def retain_mean(self, values: Tensor, name: str = "retain_loss") -> Tensor:
        """The same of retain tokens."""
        return self._mean(values.sum() / self._retain_tokens, name)

    def _mean(self, value: Tensor, name: str) -> Tensor:
        self._add_loss_part(name, value)
        return value

    def losses_of(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Negative log-likelihood of each label, (batch, seq - 1), nats; 0 where there is none to predict."""
        others = {name: value for name, value in inputs.items() if name != "labels"}
        if hasattr(self.accelerator.unwrap_model(model), "label_losses"):
            return label_losses(model, inputs["labels"], **others)
        return token_losses(model(**others).logits, inputs["labels"])[0]


class Unlearning(PostTraining):
    """A method for a model that exists, which learns from forget and retain examples together.

    Attributes:
        compares (`bool`): whether its trainer is given the model before the method as `reference`.
    """

    needs_forget_examples = True
    phase_title = "Unlearning"
    ignored = OWN_LOSS
    compares: ClassVar[bool] = False

    def options(self, run: Run) -> dict[str, Any]:
        reference = {"reference": load_causal_lm(run.before_model).to(torch.float32)} if self.compares else {}
        return {"settings": run.method_settings, **reference}
