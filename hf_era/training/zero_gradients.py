"""Parameters whose gradient is zero throughout: left alone by the optimizer, where the router says so.

AdamW moves a parameter by the momentum of earlier steps and by weight decay, also in a step that taught it nothing. GRAM
steps one AdamW per group that has a gradient, so that the others neither decay nor move; here a parameter without any is
taken out of the step, which is the same for every optimizer of torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback


class SkipZeroGradients(TrainerCallback):
    """Right before an optimizer's step, sets the gradients to `None` that are zero in all their entries.

    After gradients were averaged over processes and clipped. Of a sharded parameter all shards are looked at.
    """

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        given = [parameter for parameter in model.parameters() if parameter.grad is not None]
        for parameter, largest in zip(given, largest_of_each([parameter.grad for parameter in given]), strict=True):
            if largest == 0:
                parameter.grad = None


@torch.no_grad()
def largest_of_each(gradients: list[Tensor]) -> list[float]:
    """The largest absolute value in each gradient, over all processes where they are sharded."""
    if not gradients:
        return []
    shards = [part.to_local() if isinstance(part, DTensor) else part for part in gradients]
    norms = [
        torch.linalg.vector_norm(shard, ord=torch.inf, dtype=torch.float32) if shard.numel() else shard.new_zeros(())
        for shard in shards
    ]
    found = torch.stack([norm.to(torch.float32) for norm in norms])
    if any(isinstance(part, DTensor) for part in gradients):
        torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
    return found.tolist()
