"""Optimizers with two sets of weights: those that they step on, and those that the model is evaluated and saved with.

A schedule-free optimizer (Defazio et al. 2024, arXiv 2405.15682) computes gradients at one point and returns another, the
mean of its steps; its `eval()` and `train()` turn one into the other in place. That rounds, and a run that is evaluated or
saved more often would be another run. So the weights that it steps on are kept while the model has the others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_era.training.optimizer_state import parameters_by_name, plain_optimizer


class SteppedWeights:
    """Keeps the weights that an optimizer steps on, from when the model is looked at until the next step.

    For an optimizer without `train` and `eval`, which has one set of weights, nothing is done.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] | None = None

    @torch.no_grad()
    def put_aside(self, model: Any, optimizer: Any) -> dict[str, Tensor] | None:
        """Gives the model the weights to evaluate and save it with, and returns the others by name, if there are any."""
        optimizer = plain_optimizer(optimizer)
        if self._kept is None and _has_modes(optimizer):
            self._kept = {name: value.detach().clone() for name, value in parameters_by_name(model).items()}
            optimizer.eval()
        return self._kept

    @torch.no_grad()
    def bring_back(self, model: Any, optimizer: Any) -> None:
        """Gives the model the weights to step on, if they were put aside."""
        if self._kept is not None:
            plain_optimizer(optimizer).train()
            for name, parameter in parameters_by_name(model).items():
                parameter.copy_(self._kept[name])
        self._kept = None

    def forget(self) -> None:
        """Leaves the model the weights that it has now."""
        self._kept = None


def _has_modes(optimizer: Any) -> bool:
    return all(callable(getattr(optimizer, name, None)) for name in ("train", "eval"))
