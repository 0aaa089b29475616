"""Which of the fast paths a model takes. Each computes what the slow one does, to rounding; each can be switched off."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class FastPaths:
    """The fast paths beside attention, whose switch is transformers' own (`attn_implementation`: `sdpa` or `eager`).

    A setting of the running model, not saved with it. See the README for what each buys.

    Args:
        fused_activation (`bool`, *optional*, defaults to `True`):
            GELU as one operation, with the routing and the L1 term in its backward pass.
        chunked_loss (`bool`, *optional*, defaults to `True`):
            LM head and cross entropy a chunk of positions at a time, and only at positions that have a label; the
            whole logits never exist. While training with labels, `logits` of the output is `None`.
    """

    fused_activation: bool = field(
        default=True, metadata={"help": "GELU as one operation, routing and L1 term in its backward pass."}
    )
    chunked_loss: bool = field(
        default=True, metadata={"help": "LM head and cross entropy in chunks, at labelled positions only."}
    )


ALL_FAST = FastPaths()
ALL_SLOW = FastPaths(fused_activation=False, chunked_loss=False)
