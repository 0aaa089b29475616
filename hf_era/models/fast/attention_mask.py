"""Attention without a mask where causality says it all: no real token sees padding on its right, and kernels are fastest so.

In an eager forward pass the mask is looked at, which makes the host wait for the device, and transformers then looks for
documents packed into one row. A compiled graph can look at nothing, so transformers gives it a mask always, with which no
kernel for causal attention is taken. Where it is known beforehand that there is nothing to look for
(`FastPaths.right_padding`), attention runs under a name of ours that transformers makes no masks for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from hf_era.models.stock_forward import CACHE_NAME

CAUSAL_SDPA = "hf_era_causal_sdpa"
AttentionInterface.register(CAUSAL_SDPA, sdpa_attention_forward)
SDPA_NAMES = ("sdpa", CAUSAL_SDPA)


def mask_for_attention(model: Any, inputs: dict[str, Any]) -> Any:
    """The mask of a forward pass's inputs, or `None` where a look at it shows that it only hides padding on the right."""
    mask = inputs.get("attention_mask")
    if (
        not isinstance(mask, Tensor)  # a static cache comes with a mask for each kind of layer, by name
        or mask.dim() != 2
        or not _may_go_without(model, inputs)
        or not any((model.fast_paths.fused_activation, model.fast_paths.chunked_loss))  # all as the stock class does
        or torch.compiler.is_compiling()
    ):
        return mask
    if (mask[:, 1:] > mask[:, :-1]).any():
        return mask
    _silence(model)
    return None


def needs_no_mask(model: Any, inputs: dict[str, Any]) -> bool:
    """Whether attention may go by causality alone, if padding is on the right: a known family, and no window that is shorter
    than the sequence."""
    mask, config = inputs.get("attention_mask"), model.config
    if not (mask is None or (isinstance(mask, Tensor) and mask.dim() == 2)) or not _may_go_without(model, inputs):
        return False
    given = inputs.get("input_ids") if inputs.get("inputs_embeds") is None else inputs["inputs_embeds"]
    window = getattr(config, "sliding_window", None)
    fits = given is not None and (window is None or given.shape[1] <= window)
    return fits and model.family.is_registered and not getattr(config, "use_bidirectional_attention", False)


@contextmanager
def causal_attention(model: Any) -> Iterator[None]:
    """Within it, transformers makes no mask for the model's attention, and its sdpa kernel is causal."""
    _silence(model)
    config = model.config
    before = config._attn_implementation
    # Through the property: what is behind it torch 2.11 does not see while it traces.
    config._attn_implementation = CAUSAL_SDPA
    try:
        yield
    finally:
        config._attn_implementation = before


def _may_go_without(model: Any, inputs: dict[str, Any]) -> bool:
    return (
        inputs.get(CACHE_NAME) is None
        # Without a mask, transformers takes positions that start anew for documents packed into one row.
        and inputs.get("position_ids") is None
        and model.config._attn_implementation == "sdpa"
    )


def _silence(model: Any) -> None:
    """GPT-2 would tell the user to pass a mask, except in a graph that is being compiled."""
    if not torch.compiler.is_compiling():
        model.base_model.warn_if_padding_and_no_attention_mask = _no_warning


def _no_warning(*_inputs: Any) -> None:
    """In place of transformers' look for padding without a mask: there was one."""
