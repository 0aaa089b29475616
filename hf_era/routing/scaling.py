"""Where the gradient is scaled: identity forward, multiplied backward. The only file that routes one.

Let `a` be the input of an MLP's down projection, whatever makes it (`gelu(up(x))`, or `silu(gate(x)) * up(x)`), or that of
attention's output projection, where heads are beside the layer's own (`hf_era.models.attention_heads`). There are two places
where the gradient of token `t` can be multiplied:

* **at the activation** (section 3.1 of arXiv 2410.04332). Forward, `a` passes unchanged, bit for bit. Backward, its gradient
  at token `t` is multiplied by `factor[t]`. What follows from the place where it sits: everything *before* it on this
  path (activation, up projection, layer norm, attention, earlier layers) receives the scaled gradient; the down projection
  itself, which comes after it, keeps the full gradient of its weight and bias; and the residual stream *around* the MLP does
  not pass here and keeps its full gradient.
  `scale_gradient` is the plain form, which any MLP can have. `routed_gelu` is the fused form: GELU, scaling and L1 term in
  one operation. GPT-Neo takes it by default; `FastPaths(fused_activation=False)` takes the plain one. Both compute the same,
  in the same order: scale first, then the activation's derivative.
* **at the parameters**: `dx = W^T d` flows on whole, and the weight learns from `dW = (factor * d)^T x`:
  `linear_with_scaled_weight_gradient`, and `scale_norm_weight_gradient` for the weights of a norm. An embedding has no
  `dx`, so that `scale_gradient` of its output does it, and the LM head in chunks does it by itself
  (`hf_era.models.fast.chunked_loss`). Which of a model's parameters are scaled: `hf_era.models.core_routing`.

The expression `m * x + (1 - m) * x.detach()`, which computes the first on paper, is not the identity in floating point, and
it keeps several copies of `x` alive. The functions below keep the (batch, seq) factor, and beside it only what the operation
they stand for keeps anyway (GELU its input, a linear layer input and weight).
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# ---- At the activation ----


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


def activation_l1(activation: Tensor, mask: Tensor | None = None) -> Tensor:
    """Sum of |activation| over real tokens, a scalar in fp32 (fp64 for fp64 activations).

    It is taken *before* the routing's scaling point, so its gradient is not scaled; and it leaves padding out, so that
    it does not depend on how a batch was cut into micro-batches.

    Args:
        activation (`Tensor`): (batch, seq, hidden).
        mask (`Tensor`, *optional*): (batch, seq), 1 on real tokens, 0 on padding.
    """
    per_token = torch.linalg.vector_norm(activation, ord=1, dim=-1, dtype=_sum_dtype(activation))  # (batch, seq)
    return per_token.sum() if mask is None else (per_token * mask).sum()


def _sum_dtype(activation: Tensor) -> torch.dtype:
    return torch.promote_types(activation.dtype, torch.float32)


# ---- At the activation, fused ----
#
# The activation of an MLP is its largest tensor. Scaling its gradient and adding the L1 term's in separate operations reads
# and writes it several times more; here all of it happens while the GELU's backward pass has the values at hand:
#
#     gradient of the input = GELU'(input) * (factor * gradient of the output + (gradient of the L1 norm) * sign(output))
#
# Only the GELU's input is saved, as by the plain GELU: the sign of a GELU is that of its input, and where the output
# underflows to 0, so does the derivative (to 1e-6, for the exact form).

# On a CPU the rows are worked on in blocks of about this many values, which stay in the cache from one operation to the
# next. Measured on 2 cores with 512 kB of L2 each; a GPU takes all rows at once.
VALUES_PER_BLOCK = 1 << 18


def _blocks(rows: Tensor) -> Iterator[slice]:
    """Slices that cut (tokens, hidden) into blocks."""
    count, width = rows.shape
    step = max(VALUES_PER_BLOCK // max(width, 1), 1) if rows.device.type == "cpu" else max(count, 1)
    return (slice(start, start + step) for start in range(0, count, step))


class _RoutedGelu(torch.autograd.Function):
    """(input, factor, mask) -> (activation, L1 norm over real tokens or None)."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def, override]
        ctx, inputs: Tensor, factor: Tensor | None, mask: Tensor | None, measure_l1: bool, approximate: str
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(inputs, factor, mask)
        ctx.approximate = approximate
        ctx.set_materialize_grads(False)
        width = inputs.shape[-1]
        rows = inputs.reshape(-1, width)
        activation = torch.empty_like(rows)
        norms = torch.zeros(len(rows), dtype=_sum_dtype(rows), device=rows.device) if measure_l1 else None
        for block in _blocks(rows):
            torch.ops.aten.gelu.out(rows[block], approximate=approximate, out=activation[block])
            if norms is not None:
                norms[block] = torch.linalg.vector_norm(activation[block], ord=1, dim=-1, dtype=norms.dtype)
        if norms is None:
            return activation.view(inputs.shape), None
        return activation.view(inputs.shape), (norms if mask is None else norms * mask.reshape(-1)).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor | None, l1_gradient: Tensor | None):  # type: ignore[no-untyped-def, override]
        inputs, factor, mask = ctx.saved_tensors
        if gradient is None and l1_gradient is None:
            return None, None, None, None, None
        rows = inputs.reshape(-1, inputs.shape[-1])
        gradients = None if gradient is None else gradient.reshape(rows.shape)
        factors = None if factor is None else factor.reshape(-1, 1).to(rows.dtype)
        l1_factors = None
        if l1_gradient is not None:
            ones = l1_gradient.new_ones(len(rows)) if mask is None else mask.reshape(-1).to(l1_gradient.dtype)
            l1_factors = (ones * l1_gradient).unsqueeze(-1).to(rows.dtype)
        result = torch.empty_like(rows)
        for block in _blocks(rows):
            combined = _combined(
                rows[block],
                None if gradients is None else gradients[block],
                None if factors is None else factors[block],
                None if l1_factors is None else l1_factors[block],
            )
            torch.ops.aten.gelu_backward.grad_input(
                combined, rows[block], approximate=ctx.approximate, grad_input=result[block]
            )
        return result.view(inputs.shape), None, None, None, None


def _combined(inputs: Tensor, gradient: Tensor | None, factor: Tensor | None, l1_factor: Tensor | None) -> Tensor:
    """The gradient of the activation: factor * gradient + l1_factor * sign."""
    if l1_factor is None:
        assert gradient is not None
        return gradient if factor is None else gradient * factor
    l1_part = torch.sign(inputs).mul_(l1_factor)
    if gradient is None:
        return l1_part
    return l1_part.add_(gradient) if factor is None else l1_part.addcmul_(gradient, factor)


def routed_gelu(
    inputs: Tensor,
    factor: Tensor | None = None,
    *,
    approximate: str = "tanh",
    measure_l1: bool = False,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`gelu(inputs)` whose gradient is scaled per token, and the L1 norm of it, whose gradient is not.

    Args:
        inputs (`Tensor`): (batch, seq, hidden), floating: what the up projection gives.
        factor (`Tensor`, *optional*): (batch, seq): the gradient multiplier of each token. `None`: 1.
        approximate (`str`, *optional*, defaults to `"tanh"`): `"tanh"` (GPT's `gelu_new`) or `"none"` (exact).
        measure_l1 (`bool`, *optional*, defaults to `False`): also return the norm.
        mask (`Tensor`, *optional*): (batch, seq), fp32: 1 on tokens that the norm counts, else 0. `None`: all 1.

    Returns: the activation, shape and dtype of `inputs`, and the norm, a scalar in fp32 (fp64 for fp64 inputs), or
    `None`.

    Raises:
        ValueError: if the shape of `factor` is not that of `inputs` without its last dimension.
    """
    if factor is not None:
        check_factor_shape(inputs, factor)
    if factor is None and not measure_l1 and (inputs.device.type != "cpu" or inputs.numel() <= VALUES_PER_BLOCK):
        return F.gelu(inputs, approximate=approximate), None
    # Larger ones take the same blocks with and without routing: where a block ends not at a multiple of the vector width,
    # its last values are computed in another way, and routing must not change a forward value by a single bit.
    return _RoutedGelu.apply(inputs, factor, mask, measure_l1, approximate)


# ---- At the parameters ----


class _LinearWithScaledWeightGradient(torch.autograd.Function):
    """(inputs, weight, bias, factor) -> inputs @ weight.T + bias; only weight and bias learn less, or the other way."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def, override]
        ctx, inputs: Tensor, weight: Tensor, bias: Tensor | None, factor: Tensor, transposed: bool
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight, factor)
        ctx.has_bias, ctx.transposed = bias is not None, transposed
        if not transposed:
            return F.linear(inputs, weight, bias)
        rows = inputs.reshape(-1, inputs.shape[-1])  # as transformers' Conv1D, bit for bit
        output = rows @ weight if bias is None else torch.addmm(bias, rows, weight)
        return output.view(*inputs.shape[:-1], weight.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def, override]
        inputs, weight, factor = ctx.saved_tensors
        wants_inputs, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        inputs_gradient = None
        if wants_inputs:
            inputs_gradient = gradient @ (weight.T if ctx.transposed else weight)
        weight_gradient = bias_gradient = None
        rows, given = gradient.flatten(0, -2), inputs.flatten(0, -2)  # (tokens, out), (tokens, in)
        factors = factor.to(gradient.dtype).flatten()
        if wants_bias and ctx.has_bias:
            bias_gradient = factors @ rows
        if wants_weight:
            # The narrower of the two is scaled: less to read and write.
            if rows.shape[-1] <= given.shape[-1]:
                rows = rows * factors[:, None]
            else:
                given = given * factors[:, None]
            weight_gradient = given.T @ rows if ctx.transposed else rows.T @ given
        return inputs_gradient, weight_gradient, bias_gradient, None, None


def linear_with_scaled_weight_gradient(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, factor: Tensor, transposed: bool = False
) -> Tensor:
    """`inputs @ weight.T + bias`, whose gradient flows on whole, while weight and bias get that of each token multiplied.

    Backward: `dx = d W`, `dW = sum_t m_t d_t x_t^T`, `db = sum_t m_t d_t`. Under autocast the product is made in its dtype.

    Args:
        inputs (`Tensor`): (batch, seq, in), floating.
        weight (`Tensor`): (out, in). bias (`Tensor`, *optional*): (out,).
        factor (`Tensor`): (batch, seq), floating, one signed number per token; any finite value.
        transposed (`bool`, *optional*, defaults to `False`): whether the weight is (in, out), as that of a `Conv1D`.

    Raises:
        ValueError: if the shape of `factor` is not that of `inputs` without its last dimension.
    """
    check_factor_shape(inputs, factor)
    device = inputs.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        inputs, weight, bias = inputs.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    with torch.autocast(device, enabled=False):
        return _LinearWithScaledWeightGradient.apply(inputs, weight, bias, factor, transposed)


class _NormWithScaledWeightGradient(torch.autograd.Function):
    """Identity on a norm's output that was made with weight and bias detached; these get their gradient here."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def, override]
        ctx,
        output: Tensor,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        factor: Tensor,
        normalise: Callable[[Tensor], Tensor],
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight, factor)
        ctx.has_bias, ctx.normalise = bias is not None, normalise
        return output.view_as(output)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def, override]
        inputs, weight, factor = ctx.saved_tensors
        weight_gradient = bias_gradient = None
        width, dtype = weight.shape[-1], torch.promote_types(gradient.dtype, torch.float32)
        rows, factors = gradient.reshape(-1, width).to(dtype), factor.reshape(-1).to(dtype)
        if ctx.needs_input_grad[2]:
            normalised = ctx.normalise(inputs).reshape(-1, width).to(dtype)
            weight_gradient = (factors @ (rows * normalised)).to(weight.dtype)
        if ctx.has_bias and ctx.needs_input_grad[3]:
            bias_gradient = (factors @ rows).to(weight.dtype)
        return gradient, None, weight_gradient, bias_gradient, None, None


def scale_norm_weight_gradient(
    output: Tensor,
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    factor: Tensor,
    normalise: Callable[[Tensor], Tensor],
) -> Tensor:
    """Returns `output` unchanged: what a norm made of `inputs` with its weight and bias detached. The gradient flows on
    whole, while weight and bias get that of each token multiplied.

    For norms of the form `y = n(x) * g(w) + b` with `g` of slope 1 (`w`, or Gemma's `1 + w`): `dw = sum_t m_t d_t n(x_t)`.

    Args:
        output, inputs (`Tensor`): (..., width), floating.
        weight (`Tensor`): (width,). bias (`Tensor`, *optional*): (width,).
        factor (`Tensor`): of the shape of `inputs` without its last dimension: one signed number per token.
        normalise: `n`.

    Raises:
        ValueError: if the shape of `factor` is not that of `inputs` without its last dimension.
    """
    check_factor_shape(inputs, factor)
    return _NormWithScaledWeightGradient.apply(output, inputs.detach(), weight, bias, factor, normalise)
