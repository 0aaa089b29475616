"""Selectivity: how much more the auxiliary module is active on forget than on retain examples, per layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hf_era.evaluation.intervals import BOOTSTRAP_SAMPLES, Estimate, ratio_of_means_estimate

MeterParts = dict[int, list[list[Tensor]]]
"""layer -> module -> one (2, batch) tensor per forward pass, fp32: sum and count of each example."""
StoryRows = dict[int, tuple[Tensor, Tensor]]
"""layer -> sum of |activation| over one example's real tokens and hidden units, and their number: (examples,), fp64."""


class AuxiliaryActivationMeter:
    """Measures the |activation| of the auxiliary modules over real tokens while the model runs, example by example.

    Use as a context; call `set_mask` with the attention mask (batch, seq) before each forward pass. What is measured
    stays on the model's device until it is asked for, so that the host never waits for a GPU in the middle of a model.

    Attributes:
        sums (`dict[int, float]`): layer -> sum of |activation| over real tokens and hidden units.
        counts (`dict[int, float]`): layer -> number of those activations.
    """

    def __init__(self, model: Any) -> None:
        self._modules = {layer: list(named.values()) for layer, named in model.auxiliary_modules().items()}
        self._names = {layer: list(named) for layer, named in model.auxiliary_modules().items()}
        self._handles: list[Any] = []
        self._mask: Tensor | None = None
        self.reset()

    def reset(self) -> None:
        """Forgets what was measured."""
        self._parts: MeterParts = {layer: [[] for _ in modules] for layer, modules in self._modules.items()}

    def take(self) -> MeterParts:
        """What was measured since the last `reset` or `take`, on the CPU, and forgets it: to be sent to other processes."""
        taken = {layer: [[part.cpu() for part in parts] for parts in tables] for layer, tables in self._parts.items()}
        self.reset()
        return taken

    def add(self, taken: MeterParts) -> None:
        """Takes what `take` gave, here or in another process, as if it had been measured next."""
        for layer, tables in taken.items():
            for own, parts in zip(self._parts[layer], tables, strict=True):
                own.extend(parts)

    def __enter__(self) -> AuxiliaryActivationMeter:
        for layer, modules in self._modules.items():
            for number, module in enumerate(modules):
                hook = self._hook_for(layer, number)
                self._handles.append(module.down_projection.register_forward_pre_hook(hook))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def set_mask(self, attention_mask: Tensor) -> None:
        self._mask = attention_mask

    def _hook_for(self, layer: int, number: int) -> Any:
        def measure(_module: Any, inputs: tuple[Tensor, ...]) -> None:
            activation = inputs[0].detach()  # (batch, seq, width)
            mask = torch.ones_like(activation[..., 0]) if self._mask is None else self._mask
            per_token = torch.linalg.vector_norm(activation, ord=1, dim=-1, dtype=torch.float32)  # (batch, seq)
            mask = mask.to(per_token.dtype)
            part = torch.stack([(per_token * mask).sum(1), mask.sum(1) * activation.shape[-1]])
            self._parts[layer][number].append(part)

        return measure

    def story_rows(self, module: str | None = None) -> StoryRows:
        """layer -> what was measured of each example, in the order of the batches, on the CPU; empty where no module ran.
        All modules of a layer count together, or `module` alone in the layers that have it. Raises `RuntimeError` if a layer
        has several modules and they ran on different numbers of examples."""
        found: StoryRows = {}
        for layer, measured in self._parts.items():
            named = zip(self._names[layer], measured, strict=True)
            asked = [parts for name, parts in named if module in (None, name)]
            if not asked:
                continue
            tables = [torch.cat(parts, dim=1).cpu().double() for parts in asked if parts]
            if len({table.shape for table in tables}) > 1:
                raise RuntimeError(
                    f"The auxiliary modules of layer {layer} ran on different numbers of examples: one was ablated for a "
                    "while. Switch modules on or off before measuring, or `reset()` the meter."
                )
            sums, counts = torch.stack(tables).sum(0) if tables else torch.zeros(2, 0, dtype=torch.float64)
            found[layer] = sums, counts
        return found

    @property
    def sums(self) -> dict[int, float]:
        return {layer: float(sums.sum()) for layer, (sums, _) in self.story_rows().items()}

    @property
    def counts(self) -> dict[int, float]:
        return {layer: float(counts.sum()) for layer, (_, counts) in self.story_rows().items()}

    def means(self, total: Callable[[Tensor], Tensor] = lambda values: values) -> dict[int, float]:
        """layer -> mean |activation|, of the layers where anything was measured. `total` adds up a tensor (layers, 2), fp64,
        over processes; not given: there is one process."""
        rows = self.story_rows()
        if not rows:
            return {}
        sums = total(torch.stack([torch.stack([part.sum() for part in pair]) for pair in rows.values()])).tolist()
        return {layer: above / below for layer, (above, below) in zip(rows, sums, strict=True) if below}


def selectivity(forget_means: dict[int, float], retain_means: dict[int, float]) -> dict[int, float | None]:
    """layer -> mean |activation| on forget examples over that on retain examples; None where the latter is 0 or unknown."""
    return {
        layer: forget_means[layer] / retain_means[layer] if retain_means.get(layer) else None for layer in forget_means
    }


def selectivity_estimates(
    forget: StoryRows, retain: StoryRows, samples: int = BOOTSTRAP_SAMPLES, seed: int = 0
) -> dict[int, Estimate]:
    """layer -> selectivity with its 95 % bootstrap interval; forget and retain examples are resampled independently.

    Both means are weighted by tokens. There is no value where the mean on retain examples is 0, or where no module ran.

    Args:
        forget, retain: what `AuxiliaryActivationMeter.story_rows` gave after each set.
        samples (`int`, *optional*, defaults to `1000`): resamples; 0: no intervals. seed (`int`): of the resampling.

    Raises:
        ValueError: if the two do not have the same layers.
    """
    if set(forget) != set(retain):
        raise ValueError(
            f"`forget` has the layers {sorted(forget)}, `retain` the layers {sorted(retain)}. Measure both on one model."
        )
    return {layer: ratio_of_means_estimate(forget[layer], retain[layer], samples, seed) for layer in forget}
