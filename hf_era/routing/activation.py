"""The four signed numbers that say what a forget and a retain token may teach to which part of the MLP."""

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class GradientMultipliers:
    """Gradient multipliers of the original dims and of the auxiliary module, on forget and on retain tokens.

    The defaults are those of the four TinyStories runs that the recipes re-implement: forget tokens teach the auxiliary
    module at full rate and *un-teach* the original dims at three quarters of it; retain tokens teach both.

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

    original_forget: float = field(default=-0.75, metadata={"help": "Original dims on forget tokens (signed)."})
    original_retain: float = field(default=1.0, metadata={"help": "Original dims on retain tokens (signed)."})
    auxiliary_forget: float = field(default=1.0, metadata={"help": "Auxiliary module on forget tokens (signed)."})
    auxiliary_retain: float = field(default=1.0, metadata={"help": "Auxiliary module on retain tokens (signed)."})

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
