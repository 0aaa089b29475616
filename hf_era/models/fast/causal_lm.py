"""Which of the fast paths a model takes. Each computes what the slow one does, to rounding; each can be switched off."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from hf_era.models.fast.activation import RoutedActivation
from hf_era.models.fast.chunked_loss import IGNORE_INDEX, linear_cross_entropy
from hf_era.models.whole_weights import model_around


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


CACHE_NAME = "cache" if any(item.name == "cache" for item in fields(CausalLMOutputWithPast)) else "past_key_values"


def cache_argument(past_key_values: Any | None, cache: Any | None) -> dict[str, Any]:
    """The one of the two that was given, under the name that the installed transformers takes.

    Raises:
        ValueError: if both were given.
    """
    if past_key_values is not None and cache is not None:
        raise ValueError("`cache` and `past_key_values` are two names of the same. Pass one of them.")
    return {CACHE_NAME: past_key_values if cache is None else cache}


# Arguments of the stock loss that the chunked one does not take.
_OTHER_LOSS_ARGUMENTS = ("shift_labels", "ignore_index", "weight")


class FastCausalLMMixin:
    """Mixed into a family's causal LM, before the stock class.

    Attributes:
        fast_paths (`FastPaths`): set with `set_fast_paths`. Attention has transformers' own switch,
            `attn_implementation`, when loading, or `set_attn_implementation("eager")`.
    """

    _supports_sdpa = True
    # The loss is divided by `num_items_in_batch` when it is given, and the Trainer should give it.
    accepts_loss_kwargs = True

    fast_paths: FastPaths = FastPaths()

    def set_fast_paths(self, fast_paths: FastPaths) -> None:
        """Switches the fast paths on or off, in place."""
        self.fast_paths = fast_paths
        for module in self.modules():  # type: ignore[attr-defined]
            if isinstance(module, RoutedActivation):
                module.fused = fast_paths.fused_activation

    # ---- Forward ----

    def fast_forward(
        self, stock_forward: Callable[..., Any], *, skip_logits: bool | None, labels: Tensor | None, **inputs: Any
    ) -> Any:
        """The stock forward pass, or the body and the chunked loss where no logits are wanted."""
        inputs["attention_mask"] = self._mask_for_attention(inputs)
        loss_reduction = inputs.pop("loss_reduction", "mean")
        if not self._takes_chunked_loss(skip_logits, labels, inputs):
            outputs = stock_forward(labels=labels if loss_reduction == "mean" else None, **inputs)
            if loss_reduction == "none":
                outputs.loss = _losses_of_logits(outputs.logits, labels)
            return outputs
        count = inputs.pop("num_items_in_batch", None)
        inputs.pop("logits_to_keep", None)
        targets, positions = _labelled(labels)
        if count is None:
            count = (targets != IGNORE_INDEX).sum()
        outputs = self.base_model(**inputs)  # type: ignore[attr-defined]
        losses = self._chunked_losses(outputs.last_hidden_state, targets, positions, loss_reduction, count)
        return CausalLMOutputWithPast(
            loss=losses,
            logits=None,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE_NAME: getattr(outputs, CACHE_NAME)},
        )

    def label_losses(self, labels: Tensor, **inputs: Any) -> Tensor:
        """Negative log-likelihood of each label under the position before it: (batch, seq - 1), nats, fp32; 0 where the
        label is -100. With the chunked loss, logits are made at labelled positions only, and never all at once.

        Args:
            labels (`Tensor`): (batch, seq), int64.
            inputs: `input_ids` (batch, seq), `attention_mask` and what else the forward pass takes.
        """
        # Through the model's call, so that whatever wraps it (hooks, shards, autocast) takes part.
        return self(labels=labels, skip_logits=True, loss_reduction="none", **inputs).loss  # type: ignore[operator]

    def _chunked_losses(
        self, hidden: Tensor, targets: Tensor, positions: Tensor | None, reduction: str, count: int | Tensor
    ) -> Tensor:
        """The loss of each target, or their sum over `count`, from the hidden states (batch, seq, hidden)."""
        chosen, chosen_targets = hidden[:, :-1].flatten(0, 1), targets.flatten()
        if positions is not None:
            chosen, chosen_targets = chosen.index_select(0, positions), chosen_targets.index_select(0, positions)
        if reduction == "mean":
            # A tensor, so that no label at all gives NaN, as in the stock class, and not an exception.
            scale = 1 / torch.as_tensor(count, dtype=torch.promote_types(hidden.dtype, torch.float32))
            return linear_cross_entropy(chosen, self._head_weight(), chosen_targets, scale=scale)
        losses = linear_cross_entropy(chosen, self._head_weight(), chosen_targets, "none")
        if positions is not None:
            losses = losses.new_zeros(targets.numel()).index_copy(0, positions, losses)
        return losses.view(targets.shape)

    def _head_weight(self) -> Tensor:
        return self.get_output_embeddings().weight  # type: ignore[attr-defined]

    def _takes_chunked_loss(self, skip_logits: bool | None, labels: Tensor | None, inputs: dict[str, Any]) -> bool:
        if labels is None or not self.fast_paths.chunked_loss:
            return False
        if not (self.training if skip_logits is None else skip_logits):  # type: ignore[attr-defined]
            return False
        config: Any = self.config  # type: ignore[attr-defined]
        as_tuple = inputs.get("return_dict") is False or not config.return_dict
        head = self.get_output_embeddings()  # type: ignore[attr-defined]
        # An adapter on the head, or a loss of the user's own, is honoured.
        is_plain = type(head) is nn.Linear and head.bias is None and "_loss_function" not in self.__dict__
        return is_plain and not as_tuple and all(inputs.get(name) is None for name in _OTHER_LOSS_ARGUMENTS)

    def _mask_for_attention(self, inputs: dict[str, Any]) -> Any:
        mask = inputs.get("attention_mask")
        config: Any = self.config  # type: ignore[attr-defined]
        if (
            mask is None
            or mask.dim() != 2
            or inputs.get(CACHE_NAME) is not None
            # Without a mask, transformers takes positions that start anew for documents packed into one row.
            or inputs.get("position_ids") is not None
            or config._attn_implementation != "sdpa"
            or torch.compiler.is_compiling()
        ):
            return mask
        only_right_padding = not (mask[:, 1:] > mask[:, :-1]).any()
        return None if only_right_padding else mask


def _labelled(labels: Any) -> tuple[Tensor, Tensor | None]:
    """The targets (batch, seq - 1) and the flat positions of those that count; without positions: look at all of them.

    Made before the body runs: on a GPU the host waits here for what was started before, not in the middle of a step.
    """
    targets = labels[:, 1:]
    if torch.compiler.is_compiling():  # a compiled graph's shapes cannot depend on how many labels there are
        return targets, None
    return targets, (targets.flatten() != IGNORE_INDEX).nonzero().squeeze(-1)


def _losses_of_logits(logits: Tensor, labels: Any) -> Tensor:
    return F.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), labels[:, 1:], ignore_index=IGNORE_INDEX, reduction="none"
    )


class StockCheckpointMixin:
    """Mixed into the fast class of a family, beside `FastCausalLMMixin`: made from a stock model and saved as one."""

    stock_class: ClassVar[type]

    @classmethod
    def from_stock(cls, model: Any) -> Any:
        """A fast model that shares the parameters of a stock model; its attention is the fast class's own default."""
        config = copy.deepcopy(model.config)
        config._attn_implementation_internal = None
        return model_around(cls, config, model.state_dict(keep_vars=True), model)

    def to_stock(self, weights: dict[str, Tensor] | None = None) -> Any:
        """A stock model that shares the parameters of this one, or has the `weights` given, a whole state dict."""
        config = copy.deepcopy(self.config)  # type: ignore[attr-defined]
        if config._attn_implementation == "sdpa":
            config._attn_implementation_internal = None  # the stock class takes what it has
        if weights is None:
            weights = self.state_dict(keep_vars=True)  # type: ignore[attr-defined]
        return model_around(self.stock_class, config, weights, self)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As transformers', under the name of the stock class: what is saved is an ordinary checkpoint."""
        # A state dict is given where this model's own is not whole (FSDP).
        self.to_stock(kwargs.pop("state_dict", None)).save_pretrained(save_directory, *args, **kwargs)
