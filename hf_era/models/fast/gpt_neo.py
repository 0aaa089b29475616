"""GPT-Neo's fast path: attention through `scaled_dot_product_attention`, a fused GELU and a chunked loss.

transformers has no such attention for this family. Global layers are causal; local layers see the last `window_size`
positions only, which needs a mask of its own only where the sequence is longer than that. GPT-Neo does not divide by the
square root of the head size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPTNeoForCausalLM
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention

from hf_era.models.fast.attention_mask import SDPA_NAMES
from hf_era.models.fast.causal_lm import FastCausalLMMixin, FastPath


class FastGPTNeoSelfAttention(GPTNeoSelfAttention):
    """`GPTNeoSelfAttention` that follows `config._attn_implementation` at every call: `sdpa` or `eager`.

    Masks are as transformers makes them for `sdpa`: (batch, 1, query, key), bool, True where a position may be seen, or
    none where causality says it all; or additive ones, as a user may pass them.
    """

    returns_weights = False

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Any:  # type: ignore[override]
        # The attention weights exist in the eager form only.
        self.returns_weights = bool(kwargs.get("output_attentions"))
        try:
            return super().forward(hidden_states, **kwargs)
        finally:
            self.returns_weights = False

    def _attn(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """All (batch, heads, positions, head size); returns the output, of the query's shape, and the weights if any."""
        if self.returns_weights or self.config._attn_implementation not in SDPA_NAMES:
            return super()._attn(query, key, value, _additive(attention_mask, query))
        mask, is_causal = self._mask(query.shape[-2], key.shape[-2], attention_mask)
        output = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=self.attn_dropout.p if self.training else 0.0,
            is_causal=is_causal,
            scale=1.0,
        )
        return output, None

    def _mask(self, queries: int, keys: int, mask: Tensor | None) -> tuple[Tensor | None, bool]:
        """The mask, with the window in it where one is needed, and whether to leave causality to the kernel instead."""
        in_window = self.attention_type != "local" or keys <= self.config.window_size
        if mask is None and in_window:
            return None, queries > 1
        # Causal, and within the window. A mask that a user made need not be causal, and the stock class does not rely on it.
        seen = self.bias[:, :, keys - queries : keys, :keys]
        if mask is None:
            return seen, False
        if mask.dtype == torch.bool:
            return mask & seen, False
        return mask.masked_fill(~seen, torch.finfo(mask.dtype).min), False


def _additive(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """A bool mask in the form that the eager attention adds to the scores."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    zeros = torch.zeros(mask.shape, dtype=torch.float32, device=like.device)
    return zeros.masked_fill(~mask, torch.finfo(torch.float32).min)


class GPTNeoFastPath(FastPath):
    """Fast attention in every layer too."""

    def construct(self, model: Any, stock_constructor: Callable[[Any], None], config: Any) -> None:
        requested = config._attn_implementation
        if requested in (None, "sdpa"):
            config._attn_implementation_internal = "eager"  # the stock constructor knows no sdpa
        try:
            super().construct(model, stock_constructor, config)
        finally:
            config._attn_implementation_internal = requested
        for block in model.transformer.h:
            attention: Any = block.attn.attention
            if type(attention) is GPTNeoSelfAttention:
                # Same parameters and buffers; only what is done with them differs.
                attention.__class__ = FastGPTNeoSelfAttention
                attention.returns_weights = False  # type: ignore[assignment]
        config._attn_implementation_internal = model._check_and_adjust_attn_implementation(
            requested, is_init_check=True
        )


GPT_NEO_FAST_PATH = GPTNeoFastPath()


class FastGPTNeoForCausalLM(FastCausalLMMixin, GPTNeoForCausalLM):
    """A `GPTNeoForCausalLM` that runs faster: same weights, names, config and results (to rounding).

    `from_pretrained` loads an ordinary GPT-Neo checkpoint, `from_stock` takes a model in memory, and `save_pretrained` saves
    an ordinary checkpoint. `attn_implementation` is `"sdpa"` unless `"eager"` or `"flash_attention_2"` (transformers' own,
    which knows no local window) is asked for.
    """

    _supports_sdpa = True

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True
