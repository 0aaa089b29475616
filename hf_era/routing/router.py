"""What one forward pass tells its target layers: the two factors per token, and which tokens the L1 term counts."""

import torch
from torch import Tensor

from hf_era.routing.activation import GradientMultipliers


class TokenRouting:
    """The routing of one forward pass. It travels as an argument of each block, never as state that outlives the call.

    A plain object, neither loose tensors nor a dataclass: FSDP2's mixed precision casts every tensor that it finds among a
    block's arguments to the parameters' dtype, fields of dataclasses too, and 0.2 in bf16 is 0.2002.

    Attributes:
        original_factor (`Tensor`, *optional*): (batch, seq), fp32: multiplier of the original dims. `None`: 1.
        auxiliary_factor (`Tensor`, *optional*): (batch, seq), fp32: multiplier of the auxiliary module. `None`: 1.
        measure_activation_l1 (`bool`): whether target layers return the L1 norm of their activations.
        activation_mask (`Tensor`, *optional*): (batch, seq), fp32, 1 on real tokens and 0 on padding. `None`: all 1.
    """

    __slots__ = ("activation_mask", "auxiliary_factor", "measure_activation_l1", "original_factor")

    def __init__(
        self,
        original_factor: Tensor | None = None,
        auxiliary_factor: Tensor | None = None,
        measure_activation_l1: bool = False,
        activation_mask: Tensor | None = None,
    ) -> None:
        self.original_factor, self.auxiliary_factor = original_factor, auxiliary_factor
        self.measure_activation_l1, self.activation_mask = measure_activation_l1, activation_mask


def build_token_routing(
    routing_weight: Tensor | None,
    multipliers: GradientMultipliers,
    attention_mask: Tensor | None = None,
    measure_activation_l1: bool = False,
    shape: tuple[int, ...] | None = None,
) -> TokenRouting | None:
    """Turns the routing weights of a batch into a `TokenRouting`; `None` where the target layers have nothing to do.

    Args:
        routing_weight (`Tensor`, *optional*): (batch, seq), range [0, 1]: 1 retain, 0 forget. Position i holds the
            weight of token i + 1, which it predicts. `None` means no routing.
        multipliers (`GradientMultipliers`): what the two ends of that range mean.
        attention_mask (`Tensor`, *optional*): (batch, seq), 1 on real tokens, 0 on padding.
        measure_activation_l1 (`bool`, *optional*, defaults to `False`): also measure the L1 norm of the activations.
        shape (`tuple[int, ...]`, *optional*): (batch, seq) of the input ids, which the routing weights must have.

    Raises:
        ValueError: as `check_routing_weight`.
    """
    if routing_weight is None and not measure_activation_l1:
        return None
    original = auxiliary = None
    if routing_weight is not None:
        check_routing_weight(routing_weight, shape)
        weight = routing_weight.to(torch.float32)
        original, auxiliary = multipliers.original_factor(weight), multipliers.auxiliary_factor(weight)
    mask = None
    if measure_activation_l1 and attention_mask is not None and attention_mask.dim() == 2:
        mask = attention_mask.to(torch.float32)
    return TokenRouting(original, auxiliary, measure_activation_l1, mask)


def check_routing_weight(routing_weight: Tensor, shape: tuple[int, ...] | None = None) -> None:
    """Refuses routing weights that would route wrongly without a word: a weight of 5 or NaN is no error to the arithmetic.

    Shape and dtype are always checked. The values are where that costs nothing: on a CPU, and not in compiled code; on a GPU
    the host would have to wait for the device in every step. There the collator has looked at them already.

    Args:
        routing_weight (`Tensor`): (batch, seq), floating.
        shape (`tuple[int, ...]`, *optional*): of the input ids.

    Raises:
        ValueError: for another shape or dtype, or a value that is not in [0, 1].
    """
    if not isinstance(routing_weight, Tensor) or not routing_weight.is_floating_point():
        kind = routing_weight.dtype if isinstance(routing_weight, Tensor) else type(routing_weight).__name__
        raise ValueError(f"`routing_weight` should be a floating tensor, got {kind}. Convert it, e.g. with `.float()`.")
    if shape is not None and tuple(routing_weight.shape) != tuple(shape):
        raise ValueError(
            f"`routing_weight` needs one value per token, shape {tuple(shape)}, got {tuple(routing_weight.shape)}. Pass a "
            "`routing_weight` of the same (batch, seq) as the input ids."
        )
    if torch.compiler.is_compiling() or routing_weight.device.type != "cpu" or not routing_weight.numel():
        return
    lowest, highest = torch.aminmax(routing_weight.detach())
    if not (lowest >= 0 and highest <= 1):  # NaN is neither
        row = int(((routing_weight >= 0) & (routing_weight <= 1)).flatten(1).all(1).long().argmin())
        raise ValueError(
            f"`routing_weight` should be in [0, 1] (1 is retain, 0 is forget), got values from {lowest.item()} to "
            f"{highest.item()}, for instance in row {row} of the batch."
        )


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
