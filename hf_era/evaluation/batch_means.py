"""The reference's way of averaging losses, so that figures can be compared with its own."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_of_batch_means(nll: Tensor, tokens: Tensor, batch_size: int) -> float | None:
    """The mean over batches of each batch's token-weighted loss, nats a token; `None` if no batch has a token.

    Short stories' tokens weigh more in it than others', and it depends on the batch size and the order: the reference
    reports it; ours is the token-weighted loss.

    Args:
        nll, tokens (`Tensor`): (stories,): summed negative log-likelihood and predicted tokens of each, in order.
        batch_size (`int`): stories a batch; the last may be smaller. A batch without tokens is left out.

    Raises:
        ValueError: if `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` should be at least 1, got {batch_size}. Pass a number of stories.")
    parts = zip(nll.double().split(batch_size), tokens.double().split(batch_size), strict=True)
    means = [loss.sum() / count.sum() for loss, count in parts if count.sum() > 0]
    return float(torch.stack(means).mean()) if means else None
