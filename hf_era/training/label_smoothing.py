"""Label smoothing of a causal LM."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from hf_era.data.collator import IGNORE_INDEX


class CausalLabelSmoother:
    """The smoothed loss of the next token, in the place of transformers' `LabelSmoother`.

    That one is told by the Trainer whether labels are to be shifted, and the Trainer looks the *name* of the model's class
    up: a class that transformers does not list would be taught to repeat its input.

    The loss of a label is (1 - e) * nll + e * (mean over the vocabulary of -log p), in nats, as transformers' and torch's.
    The whole logits are there, so it takes the memory that the chunked loss saves.

    Args:
        epsilon (`float`): e, in [0, 1].
    """

    def __init__(self, epsilon: float) -> None:
        self.epsilon = epsilon

    def __call__(
        self, model_output: Any, labels: Tensor, shift_labels: bool = True, num_items_in_batch: Any = None
    ) -> Tensor:
        """The sum over the labels that are not -100, divided by `num_items_in_batch`, or by their number: a scalar, fp32
        (fp64 for fp64 logits).

        Args:
            model_output: has `logits`, (batch, seq, vocabulary), or is a tuple that begins with them.
            labels (`Tensor`): (batch, seq), int64; not shifted.
            shift_labels (`bool`): is not looked at: labels are always shifted.
            num_items_in_batch (`int` or scalar `Tensor`, *optional*): labels of the whole accumulated batch.
        """
        logits = model_output["logits"] if isinstance(model_output, dict) else model_output[0]
        targets = labels[:, 1:].flatten()
        count = (targets != IGNORE_INDEX).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        wide = logits[:, :-1].flatten(0, 1)
        wide = wide if wide.dtype.itemsize > 4 else wide.float()
        total = F.cross_entropy(wide, targets, ignore_index=IGNORE_INDEX, reduction="sum", label_smoothing=self.epsilon)
        return total / count
