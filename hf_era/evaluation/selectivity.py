"""Selectivity: how much more the auxiliary module is active on forget than on retain stories, per layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class AuxiliaryActivationMeter:
    """Measures the mean |activation| of the auxiliary modules over real tokens while the model runs.

    Use as a context; call `set_mask` with the attention mask (batch, seq) before each forward pass.

    Attributes:
        sums (`dict[int, float]`): layer -> sum of |activation| over real tokens and hidden units.
        counts (`dict[int, float]`): layer -> number of those activations.
    """

    def __init__(self, model: Any) -> None:
        self._modules = {layer: list(named.values()) for layer, named in model.auxiliary_modules().items()}
        self._handles: list[Any] = []
        self._mask: Tensor | None = None
        self.reset()

    def reset(self) -> None:
        """Forgets what was measured."""
        self.sums = dict.fromkeys(self._modules, 0.0)
        self.counts = dict.fromkeys(self._modules, 0.0)

    def __enter__(self) -> AuxiliaryActivationMeter:
        for layer, modules in self._modules.items():
            for module in modules:
                hook = self._hook_for(layer)
                self._handles.append(module.down_projection.register_forward_pre_hook(hook))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def set_mask(self, attention_mask: Tensor) -> None:
        self._mask = attention_mask

    def _hook_for(self, layer: int) -> Any:
        def measure(_module: Any, inputs: tuple[Tensor, ...]) -> None:
            activation = inputs[0].detach()  # (batch, seq, width)
            mask = torch.ones_like(activation[..., 0]) if self._mask is None else self._mask
            per_token = activation.float().abs().sum(-1) * mask
            self.sums[layer] += float(per_token.sum())
            self.counts[layer] += float(mask.sum()) * activation.shape[-1]

        return measure

    def means(self) -> dict[int, float]:
        """layer -> mean |activation|; 0 where nothing was measured."""
        return {layer: self.sums[layer] / self.counts[layer] if self.counts[layer] else 0.0 for layer in self.sums}


def selectivity(forget_means: dict[int, float], retain_means: dict[int, float]) -> dict[int, float | None]:
    """layer -> mean |activation| on forget stories over that on retain stories; None where the latter is 0."""
    return {
        layer: forget_means[layer] / retain_means[layer] if retain_means.get(layer) else None for layer in forget_means
    }
