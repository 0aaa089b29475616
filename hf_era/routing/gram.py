"""The router `gram`: gradient-routed auxiliary modules (agencyenterprise/modular-pretraining, ICML 2026)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hf_era.routing.router import (
    PartRouting,
    Router,
    RoutingBatch,
    TokenRouting,
    check_core,
    check_probability,
    register_router,
)
from hf_era.utils.fields import setting


@register_router
@dataclass(frozen=True)
class GRAMRouter(Router):
    """Forget examples run with their own module and teach it, and now and then the core; retain examples run without any,
    or now and then with one.

    | example | modules that are on, and learn | core learns |
    |---|---|---|
    | forget | its own (not said which: all) | all with probability `p_as`, else w of each token |
    | retain, with probability `p_cr` | one, drawn at random | nothing but what w = 1 gives: all |
    | retain else | none | all |
    | without a label | all | all |

    Here it is decided for each example, so that batches may be mixed; there for each micro-batch, of one label.

    Args:
        p_as (`float`, *optional*, defaults to `0.3`): spread, in [0, 1]: how often a forget example teaches the core too.
            More of it costs less of what the whole model can, and leaks more. Advice there: 0.3 to 0.5; with half of the
            labels 0.5.
        p_cr (`float`, *optional*, defaults to `0.5`): robustness of the core, in [0, 1]: how often a retain example runs
            with a module. Advice there: 0.2 to 0.5; with half of the labels 0.2.
        core (`str`, *optional*, defaults to `"all"`): `mlp`, `mlp+attention` or `all`: see `CORES`.

    Raises:
        ValueError: for another core, or a probability out of range.
    """

    name: ClassVar[str] = "gram"
    is_random: ClassVar[bool] = True
    decides_by_example: ClassVar[bool] = True
    skips_zero_gradients: ClassVar[bool] = True
    p_as: float = setting(0.3, "Spread: probability that a forget example teaches the core too.", identity=True)
    p_cr: float = setting(0.5, "Robustness: probability that a retain example runs with a module.", identity=True)
    core: str = setting("all", "Which parameters are the core: mlp, mlp+attention or all.", identity=True)  # type: ignore[misc]

    def __post_init__(self) -> None:
        check_probability("p_as", self.p_as)
        check_probability("p_cr", self.p_cr)
        check_core(self.core)

    def route(self, batch: RoutingBatch) -> TokenRouting:
        weight = batch.routing_weight
        spreads = batch.is_forget & (batch.draw(0) < self.p_as)  # (batch, 1)
        is_retain = ~batch.is_forget & ~batch.is_unlabelled
        runs_with_one = is_retain & (batch.draw(1) < self.p_cr)
        chosen = (batch.draw(2) * len(batch.modules)).to(torch.int64)  # (batch, 1)
        modules = {}
        for number, name in enumerate(batch.modules):
            elsewhere = batch.belongs_elsewhere(name)
            own = batch.is_forget if elsewhere is None else batch.is_forget & ~elsewhere
            is_on = own | batch.is_unlabelled | (runs_with_one & (chosen == number))
            modules[name] = _on(is_on, weight)
        return TokenRouting(PartRouting(parameter_multiplier=torch.where(spreads, 1.0, weight)), modules)


def _on(is_on: Tensor, like: Tensor) -> PartRouting:
    """A module that is off learns nothing, from an L1 term neither."""
    on = is_on.to(like.dtype)  # (batch, 1)
    return PartRouting(parameter_multiplier=on.expand_as(like), dial=on.squeeze(1))
