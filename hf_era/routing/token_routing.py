"""What one forward pass tells its target layers: the two factors per token, and which tokens the L1 term counts."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_era.routing.multipliers import GradientMultipliers


@dataclass(frozen=True)
class TokenRouting:
    """The routing of one forward pass. It travels as an argument of each block, never as state that outlives the call.

    A plain object instead of loose tensors, because wrappers (FSDP's mixed precision, for one) cast the tensors among
    a block's arguments to the parameter dtype, and 0.2 in bf16 is 0.2002.

    Attributes:
        original_factor (`Tensor`, *optional*): (batch, seq), fp32: multiplier of the original dims. `None`: 1.
        auxiliary_factor (`Tensor`, *optional*): (batch, seq), fp32: multiplier of the auxiliary module. `None`: 1.
        measure_activation_l1 (`bool`): whether target layers return the L1 norm of their activations.
        activation_mask (`Tensor`, *optional*): (batch, seq), fp32, 1 on real tokens and 0 on padding. `None`: all 1.
    """

    original_factor: Tensor | None = None
    auxiliary_factor: Tensor | None = None
    measure_activation_l1: bool = False
    activation_mask: Tensor | None = None


def build_token_routing(
    routing_weight: Tensor | None,
    multipliers: GradientMultipliers,
    attention_mask: Tensor | None = None,
    measure_activation_l1: bool = False,
) -> TokenRouting | None:
    """Turns the routing weights of a batch into a `TokenRouting`; `None` where the target layers have nothing to do.

    Args:
        routing_weight (`Tensor`, *optional*): (batch, seq), range [0, 1]: 1 retain, 0 forget. Position i holds the
            weight of token i + 1, which it predicts. `None` means no routing.
        multipliers (`GradientMultipliers`): what the two ends of that range mean.
        attention_mask (`Tensor`, *optional*): (batch, seq), 1 on real tokens, 0 on padding.
        measure_activation_l1 (`bool`, *optional*, defaults to `False`): also measure the L1 norm of the activations.
    """
    if routing_weight is None and not measure_activation_l1:
        return None
    original = auxiliary = None
    if routing_weight is not None:
        weight = routing_weight.to(torch.float32)
        original, auxiliary = multipliers.original_factor(weight), multipliers.auxiliary_factor(weight)
    mask = None
    if measure_activation_l1 and attention_mask is not None and attention_mask.dim() == 2:
        mask = attention_mask.to(torch.float32)
    return TokenRouting(original, auxiliary, measure_activation_l1, mask)


def activation_l1(activation: Tensor, mask: Tensor | None = None) -> Tensor:
    """Sum of |activation| over real tokens, a scalar in fp32.

    It is taken *before* the routing's scaling point, so its gradient is not scaled; and it leaves padding out, so that
    it does not depend on how a batch was cut into micro-batches.

    Args:
        activation (`Tensor`): (batch, seq, hidden).
        mask (`Tensor`, *optional*): (batch, seq), 1 on real tokens, 0 on padding.
    """
    per_token = torch.linalg.vector_norm(activation, ord=1, dim=-1, dtype=torch.float32)  # (batch, seq)
    return per_token.sum() if mask is None else (per_token * mask).sum()
