"""Identity forward, per-token scaled backward: the one place where a routed gradient is changed.

Let `a` be the input of an MLP's down projection. Forward, `a` passes unchanged, bit for bit. Backward, its gradient at
token `t` is multiplied by `factor[t]` (section 3.1 of arXiv 2410.04332). What follows from the place where it sits:

* everything *before* it on this path (activation, up projection, layer norm, attention, earlier layers) receives the
  scaled gradient;
* the down projection itself, which comes after it, does not: its weight and bias keep their full gradient;
* the residual stream *around* the MLP does not pass here and keeps its full gradient.

The expression `m * x + (1 - m) * x.detach()`, which computes the same gradient on paper, is not the identity in
floating point, and it keeps several copies of `x` alive. The function below saves only the (batch, seq) factor.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _ScaleGradient(torch.autograd.Function):
    """Identity forward; backward multiplies the gradient of every token by its factor."""

    @staticmethod
    def forward(ctx, activation: Tensor, factor: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(factor)
        return activation.view_as(activation)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        (factor,) = ctx.saved_tensors
        # The factor is cast to the gradient's dtype, so that a bf16 gradient is never blown up to fp32.
        return gradient * factor.to(gradient.dtype).unsqueeze(-1), None


def scale_gradient(activation: Tensor, factor: Tensor | None) -> Tensor:
    """Returns `activation` unchanged; the gradient that flows back through the result is multiplied by `factor`.

    Args:
        activation (`Tensor`): shape (batch, seq, hidden), any floating dtype.
        factor (`Tensor`, *optional*): shape (batch, seq), floating, one signed number per token; any finite value.
            `None` means no routing: `activation` itself is returned.

    Raises:
        ValueError: if the shape of `factor` is not that of `activation` without its last dimension.
    """
    if factor is None:
        return activation
    check_factor_shape(activation, factor)
    return _ScaleGradient.apply(activation, factor)


def check_factor_shape(activation: Tensor, factor: Tensor) -> None:
    """Raises `ValueError` unless `factor` has one value per token of `activation`."""
    if factor.shape != activation.shape[:-1]:
        raise ValueError(
            f"`factor` needs one value per token, shape {tuple(activation.shape[:-1])}, got {tuple(factor.shape)}. "
            "Pass a `routing_weight` of the same (batch, seq) shape as `input_ids`."
        )
