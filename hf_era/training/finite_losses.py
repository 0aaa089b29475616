"""A stop at the first loss that is not finite, without making a GPU wait for the answer."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor


class NonFiniteLossError(RuntimeError):
    """The loss or a weight became NaN or infinite. The last checkpoint on disk is from before."""


class LossToCheck:
    """The loss of a step, and whether it is finite: on a GPU that is copied to the host while the device goes on.

    Args:
        loss (`Tensor`): scalar. step (`int`): of the training, from 1.
    """

    def __init__(self, loss: Tensor, step: int) -> None:
        self.loss, self.step = loss.detach(), step
        self._is_finite = torch.isfinite(self.loss).to("cpu", non_blocking=True)
        self._copied = torch.cuda.Event() if loss.is_cuda else None
        if self._copied is not None:
            self._copied.record()

    def is_finite(self) -> bool:
        if self._copied is not None:
            self._copied.synchronize()
        return bool(self._is_finite)


class LossesToCheck:
    """The losses of a training that were not looked at yet, in the order of their steps."""

    def __init__(self) -> None:
        self._losses: deque[LossToCheck] = deque()

    def add(self, loss: Tensor, step: int) -> None:
        self._losses.append(LossToCheck(loss, step))

    def clear(self) -> None:
        self._losses.clear()

    def first_broken(self, all_but: int = 0) -> LossToCheck | None:
        """The first loss that is not finite, of all but the newest `all_but`; those that were looked at are forgotten."""
        while len(self._losses) > all_but:
            loss = self._losses.popleft()
            if not loss.is_finite():
                return loss
        return None
