"""The router `activation`: Expand-Route-Ablate's own (Cloud et al. 2024, arXiv 2410.04332, section 3.1)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from torch import Tensor

from hf_era.routing.router import PartRouting, Router, RoutingBatch, TokenRouting, register_router
from hf_era.utils.checks import unknown_key_message
from hf_era.utils.fields import setting


@dataclass(frozen=True)
class GradientMultipliers:
    """Gradient multipliers of the original dims and of the auxiliary module, on forget and on retain tokens.

    The defaults are those of the four TinyStories runs that the recipes re-implement: forget tokens teach the auxiliary
    module at full rate and *un-teach* the original dims at three quarters of it; retain tokens teach both.

    What they do and what they do not:

    * Adam and AdamW divide each gradient by its own running size. Where all of a parameter's gradient has one multiplier,
      as that of the up projection has in training on forget tokens alone, 1.0 and 0.1 give the same update: the sign acts,
      and zero. The size acts where gradients mix: with those of retain tokens, as the share that forget tokens have in the
      update; and in what lies before the MLP (layer norms, attention, embeddings), with those that go around it unscaled.
    * 0 stops what lies before the input of the down projection, on this path. The down projection itself comes after it and
      goes on learning: with `original_forget` 0 the `c_proj` of the original MLP, with `auxiliary_forget` 0 that of the
      auxiliary module (`hf_era.routing.scaling`). So does everything on the residual stream around the MLP.

    Args:
        original_forget (`float`, *optional*, defaults to `-0.75`):
            Multiplier of the original dims on forget tokens (routing weight 0). Any finite number.
        original_retain (`float`, *optional*, defaults to `1.0`):
            Multiplier of the original dims on retain tokens (routing weight 1).
        auxiliary_forget (`float`, *optional*, defaults to `1.0`):
            Multiplier of the auxiliary module on forget tokens.
        auxiliary_retain (`float`, *optional*, defaults to `1.0`):
            Multiplier of the auxiliary module on retain tokens.

    Raises:
        ValueError: if a multiplier is not a finite number.
    """

    original_forget: float = setting(
        -0.75, "Original dims on forget tokens (signed; 0 still lets their down projection learn).", identity=True
    )
    original_retain: float = setting(1.0, "Original dims on retain tokens (signed).", identity=True)
    auxiliary_forget: float = setting(
        1.0, "Auxiliary module on forget tokens (signed; 0 still lets its down projection learn).", identity=True
    )
    auxiliary_retain: float = setting(1.0, "Auxiliary module on retain tokens (signed).", identity=True)

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"`{item.name}` should be a finite number such as -0.75, got {value!r}.")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def original_factor(self, routing_weight: Tensor) -> Tensor:
        """`w * original_retain + (1 - w) * original_forget`; shape and dtype of `routing_weight`, (batch, seq)."""
        return routing_weight * self.original_retain + (1 - routing_weight) * self.original_forget

    def auxiliary_factor(self, routing_weight: Tensor) -> Tensor:
        """`w * auxiliary_retain + (1 - w) * auxiliary_forget`; shape and dtype of `routing_weight`, (batch, seq)."""
        return routing_weight * self.auxiliary_retain + (1 - routing_weight) * self.auxiliary_forget


def parse_multipliers(
    values: Mapping[str, Any] | str | GradientMultipliers | None, field_name: str = "training.multipliers"
) -> GradientMultipliers:
    """Reads multipliers from a dict or JSON; raises `ValueError` for an unknown name or a value that is no number."""
    if isinstance(values, GradientMultipliers):
        return values
    parsed: Any = values
    if isinstance(values, str):
        try:
            parsed = json.loads(values)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"`{field_name}` should be a dict or JSON such as '{{\"original_forget\": 0}}', got {values!r}."
            ) from error
    known = [item.name for item in fields(GradientMultipliers)]
    for name in parsed or {}:
        if name not in known:
            raise ValueError(unknown_key_message(f"`{field_name}`", name, known))
    return GradientMultipliers(**(parsed or {}))


@register_router
@dataclass(frozen=True)
class ActivationRouter(Router):
    """Scales the gradient at the input of the down projection, of the original dims and of the auxiliary modules apart.

    Forward, all modules take part, and nothing depends on the routing weights. Where it is said which module an example
    belongs to (`RoutingBatch.module_index`), it teaches the others nothing: their gradient from its tokens is zero, in front
    of the down projection and in its weights too. Examples that belong to none teach all of them. An optimizer with momentum
    or weight decay, as AdamW, still moves a module whose gradient is zero.

    Args:
        multipliers (`GradientMultipliers` or `dict`, *optional*): what a forget and a retain token may teach to which part.
    """

    name: ClassVar[str] = "activation"
    multipliers: GradientMultipliers = setting(
        GradientMultipliers, "Gradient multipliers (original_forget, ...).", identity=True
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "multipliers", parse_multipliers(self.multipliers, "router.multipliers"))

    def route(self, batch: RoutingBatch) -> TokenRouting:
        auxiliary = self.multipliers.auxiliary_factor(batch.routing_weight)
        return TokenRouting(
            PartRouting(activation_multiplier=self.multipliers.original_factor(batch.routing_weight)),
            {name: _of_module(auxiliary, batch.belongs_elsewhere(name)) for name in batch.modules},
        )


def _of_module(multiplier: Tensor, belongs_elsewhere: Tensor | None) -> PartRouting:
    if belongs_elsewhere is None:
        return PartRouting(activation_multiplier=multiplier)
    # At the activation alone, its down projection, which comes after it, would go on learning.
    is_taught = (~belongs_elsewhere).to(multiplier.dtype)  # (batch, 1)
    return PartRouting(
        activation_multiplier=multiplier * is_taught, parameter_multiplier=is_taught.expand_as(multiplier)
    )
