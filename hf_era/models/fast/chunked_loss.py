"""LM head and cross entropy together, a chunk of positions at a time: the whole (positions, vocabulary) logits never exist.

The gradients of a chunk are taken while its logits are there, in the forward pass; the backward pass only scales them. So
nothing is computed twice.

torch has the like from 2.13 on (`F.linear_cross_entropy` with options), and it is as fast in fp32. It is not used: it adds
up a half-precision loss in half precision, chunk by chunk, which loses percents of it; its backward pass runs once only
(no `retain_graph`); and torch before 2.13 needs a form of our own in any case.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hf_era.models.fast.precision import cpu_has_bf16_units

IGNORE_INDEX = -100
# Bytes of one chunk's logits. Larger chunks read and write the weight's gradient less often: the CPU's size was measured
# on 2 cores, a GPU's follows from its memory's speed.
BYTES_PER_CHUNK, BYTES_PER_GPU_CHUNK = 128 << 20, 1 << 30
# Rows of the head that a product has a multiple of: a GPU's tensor cores are slow at 50,257 columns and fast at 50,304.
HEAD_MULTIPLES = {"cuda": 64}


def rows_per_chunk(weight: Tensor, rows: int | None = None) -> int:
    """Positions in a chunk, for a head's weight of (vocabulary, hidden); of so many `rows`, chunks of like size."""
    size = BYTES_PER_CHUNK if weight.device.type == "cpu" else BYTES_PER_GPU_CHUNK
    itemsize = torch.promote_types(weight.dtype, torch.float32).itemsize
    most = max(size // (len(weight) * itemsize), 16)
    if not rows:
        return most
    even, multiple = -(-rows // -(-rows // most)), HEAD_MULTIPLES.get(weight.device.type, 1)
    return -(-even // multiple) * multiple


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    reduction: str = "sum",
    scale: float | Tensor = 1.0,
    softcap: float | None = None,
    weight_factor: Tensor | None = None,
) -> Tensor:
    """`scale * cross_entropy(hidden @ weight.T, targets, reduction=reduction)`, in chunks.

    Under autocast the products are made in its dtype; losses are always summed in fp32.

    Args:
        hidden (`Tensor`): (positions, hidden), floating.
        weight (`Tensor`): (vocabulary, hidden), the LM head's.
        targets (`Tensor`): (positions,), int64; -100 counts for nothing.
        reduction (`str`, *optional*, defaults to `"sum"`): `"sum"`, or `"none"` (for evaluation), in nats.
        scale (`float` or scalar `Tensor`, *optional*, defaults to `1.0`): of the loss; without a gradient. Better here
            than outside, where the weight's whole gradient would be multiplied once more.
        weight_factor (`Tensor`, *optional*): (positions,), fp32: what the weight learns of each position's gradient, which
            flows on to `hidden` whole. `None`: 1. With the reduction `"sum"` alone.
        softcap (`float`, *optional*): logits `z` are `softcap * tanh(z / softcap)` (Gemma 2). `None`: as they are.

    Returns: a scalar or (positions,), fp32 (fp64 for fp64 input).
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    with torch.autocast(device, enabled=False):
        if reduction == "sum":
            loss = _ChunkedCrossEntropy.apply(hidden, weight, targets, scale, softcap, weight_factor)
        else:
            loss = _losses_of_each(hidden, weight, targets, softcap) * scale
    return loss if loss.dtype == torch.float64 else loss.float()


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Summed cross entropy; both gradients are made in the forward pass, the weight's summed over chunks
    in fp32 at least."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def, override]
        ctx,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        scale: float | Tensor,
        softcap: float | None,
        weight_factor: Tensor | None,
    ) -> Tensor:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        sums, factors = torch.promote_types(weight.dtype, torch.float32), _padded(_factors(weight))
        hidden_gradient = torch.empty_like(hidden) if wants_hidden else None
        weight_gradient: Tensor | None = None
        total = torch.zeros((), dtype=sums, device=hidden.device)
        step = rows_per_chunk(weight, len(hidden))
        for start in range(0, len(hidden), step):
            chunk = slice(start, start + step)
            block, target = hidden[chunk].to(factors.dtype), targets[chunk]
            counted = (target != IGNORE_INDEX).unsqueeze(-1)
            safe = torch.where(counted, target.unsqueeze(-1), 0)
            logits, bounded = block @ factors.T, None
            if softcap is not None:
                bounded = logits.to(sums).div_(softcap).tanh_()
                logits = bounded * softcap
            log_probabilities = torch.log_softmax(_without_padding(logits, len(weight)), dim=-1, dtype=sums)
            del logits  # a chunk's largest tensors are not held longer than they are needed
            at_target = log_probabilities.gather(-1, safe)
            total -= (at_target * counted).sum()
            if not (wants_hidden or wants_weight):
                continue
            # The logits' gradient: softmax - one-hot. The target's entry is made in full precision: a probability near 1
            # that is rounded first would leave nothing of p - 1.
            gradient = _exp(log_probabilities, factors.dtype).scatter_(
                -1, safe, torch.expm1(at_target).to(factors.dtype)
            )
            if bounded is not None:
                gradient -= gradient * bounded.square_().to(gradient.dtype)  # the cap's derivative: 1 - tanh^2
            row_scale = counted * torch.as_tensor(scale, dtype=sums, device=hidden.device)
            if hidden_gradient is not None:
                hidden_gradient[chunk] = ((gradient @ factors) * row_scale).to(hidden.dtype)
            if wants_weight:
                # The scale goes to the small factor, except where that would round it to half precision.
                learnt = row_scale if factors.dtype == sums else counted.to(factors.dtype)
                if weight_factor is not None:
                    learnt = learnt * weight_factor[chunk, None].to(learnt.dtype)
                rows = block * learnt
                weight_gradient = _add_product(weight_gradient, gradient, rows, sums)
        if wants_weight:
            weight_gradient = _finished(weight_gradient, weight, factors.dtype, scale)
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        return total * scale

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def, override]
        # Mostly the gradient is 1. On a CPU that is seen at once, and a pass over the weight's whole gradient is saved. What
        # is saved here is never changed: autograd adds in place only where it alone holds the storage.
        can_look = gradient.device.type == "cpu" and not torch.compiler.is_compiling()
        is_one = can_look and float(gradient) == 1.0
        return (
            *(part if part is None or is_one else _times(part, gradient) for part in ctx.saved_tensors),
            None,
            None,
            None,
            None,
        )


def _times(part: Tensor, gradient: Tensor) -> Tensor:
    """In the gradient's fp32 and then rounded: the gradient itself is not rounded to half precision first."""
    return (part.to(torch.promote_types(part.dtype, gradient.dtype)) * gradient).to(part.dtype)


def _finished(total: Tensor | None, weight: Tensor, factor_dtype: torch.dtype, scale: float | Tensor) -> Tensor:
    """The weight's gradient in its own dtype, with the scale where the factors could not carry it."""
    if total is None:  # no position at all
        return torch.zeros_like(weight)
    total = total[: len(weight)]
    if factor_dtype != torch.promote_types(factor_dtype, torch.float32):
        # Eagerly on a CPU a scalar multiplies half precision unrounded; elsewhere it would be rounded first.
        if total.device.type != "cpu" or torch.compiler.is_compiling():
            total = total.to(torch.float32)
        total = total.mul_(scale)
    return total.to(weight.dtype)


def _exp(values: Tensor, dtype: torch.dtype) -> Tensor:
    """exp(values) in another dtype, in one pass and without a second tensor where one is enough."""
    if values.dtype == dtype:
        return values.exp_()
    return torch.exp(values, out=torch.empty(values.shape, dtype=dtype, device=values.device))


def _add_product(total: Tensor | None, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """total + left.T @ right, in a dtype that may be wider than that of the factors; of a first product in theirs."""
    if total is None:
        return left.T @ right
    return total.addmm_(left.T, right) if dtype == left.dtype else total.to(dtype).add_(left.T @ right)


def _factors(weight: Tensor) -> Tensor:
    """The weight in the dtype of the products: its own, but fp32 on a CPU that only emulates products in bf16."""
    if weight.device.type == "cpu" and not (weight.dtype == torch.bfloat16 and cpu_has_bf16_units()):
        return weight.to(torch.promote_types(weight.dtype, torch.float32))
    return weight


def _padded(factors: Tensor) -> Tensor:
    """With rows of zeros to a multiple that products of this device like. They are in no gradient and in no file."""
    missing = -len(factors) % HEAD_MULTIPLES.get(factors.device.type, 1)
    return F.pad(factors, (0, 0, 0, missing)) if missing else factors  # a pad of nothing would be a copy


def _without_padding(logits: Tensor, vocabulary: int) -> Tensor:
    """Logits, (positions, padded vocabulary), in place: entries that are none are impossible."""
    if logits.shape[-1] > vocabulary:
        logits[:, vocabulary:] = -torch.inf
    return logits


def _losses_of_each(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
    """For evaluation: with gradients, autograd would keep every chunk's logits."""
    sums, factors = torch.promote_types(weight.dtype, torch.float32), _padded(_factors(weight))
    step = rows_per_chunk(weight, len(hidden))
    parts = [
        F.cross_entropy(
            _without_padding(_capped((part.to(factors.dtype) @ factors.T).to(sums), softcap), len(weight)),
            target,
            ignore_index=IGNORE_INDEX,
            reduction="none",
        )
        for part, target in zip(hidden.split(step), targets.split(step), strict=True)
    ]
    return torch.cat(parts)


def _capped(logits: Tensor, softcap: float | None) -> Tensor:
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap
