"""The router `parameter`: per token, which parameters learn. The plain form of what `sgtm` and `gram` do with dials."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from hf_era.routing.activation import GradientMultipliers, parse_multipliers
from hf_era.routing.router import (
    PartRouting,
    Router,
    RoutingBatch,
    TokenRouting,
    check_core,
    register_router,
)
from hf_era.utils.checks import short_repr
from hf_era.utils.fields import setting


@register_router
@dataclass(frozen=True)
class ParameterRouter(Router):
    """Scales what the parameters learn from a token, and lets the gradient that flows on be whole.

    With the defaults a forget token teaches its auxiliary module alone, by 1 - w of its routing weight, and the core by w;
    retain tokens and those without a label teach both. All modules take part in every forward pass. The multiplier of a
    position is for the gradients that arise there: a retain token's loss that looks back at a forget token teaches the core
    nothing of that token's keys and values.

    Args:
        multipliers (`GradientMultipliers` or `dict`, *optional*): of the core (`original_forget`, ...) and the modules. The
            default of `original_forget` is 0 here: the core learns nothing of forget tokens, and un-learns nothing.
        core (`str`, *optional*, defaults to `"all"`): `mlp`, `mlp+attention` or `all`: see `CORES`.

    Raises:
        ValueError: for another core, or a multiplier that is no finite number.
    """

    name: ClassVar[str] = "parameter"
    multipliers: GradientMultipliers = setting(
        lambda: GradientMultipliers(original_forget=0.0),
        "Multipliers of what core and modules learn (original_forget 0, ...).",
        identity=True,
    )
    core: str = setting("all", "Which parameters are the core: mlp, mlp+attention or all.", identity=True)  # type: ignore[misc]

    def __post_init__(self) -> None:
        given: Any = self.multipliers
        if not isinstance(given, GradientMultipliers):
            if not isinstance(given, Mapping | None):
                raise ValueError(f"`router.multipliers` should be a mapping, got {short_repr(given)}.")
            given = parse_multipliers({"original_forget": 0.0, **(given or {})}, "router.multipliers")
        object.__setattr__(self, "multipliers", given)
        check_core(self.core)

    def route(self, batch: RoutingBatch) -> TokenRouting:
        core = self.multipliers.original_factor(batch.routing_weight)
        auxiliary = self.multipliers.auxiliary_factor(batch.routing_weight)
        return TokenRouting(
            PartRouting(parameter_multiplier=core),
            {
                name: PartRouting(parameter_multiplier=own_alone(auxiliary, batch.belongs_elsewhere(name)))
                for name in batch.modules
            },
        )


def own_alone(multiplier: Tensor, belongs_elsewhere: Tensor | None) -> Tensor:
    """A module's multiplier, (batch, seq), zero on the examples of other modules."""
    return multiplier if belongs_elsewhere is None else multiplier * (~belongs_elsewhere).to(multiplier.dtype)
