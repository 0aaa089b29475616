"""Faster forward passes of causal LMs: same weights, config and results as the stock class, less time and memory.

Beside a family's own fast layers there are two things here. The loss is computed in chunks from the hidden states, at
the positions that have a label. And a mask of padding on the right is dropped before attention: a causal model never
looks to the right, so no real token sees the padding, and kernels are fastest without a mask. (What stands at padded
positions of the outputs is then not what the stock class has there; it means nothing in either.)

A fast path is an object that a family has or has not (`Family.fast_path`). A model *uses* it: neither the expanded
class nor anything else of a family inherits from it.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from hf_era.models.adapters import has_adapters, saved_merged
from hf_era.models.fast.activation import RoutedActivation
from hf_era.models.fast.attention_mask import causal_attention, mask_for_attention, needs_no_mask
from hf_era.models.fast.chunked_loss import IGNORE_INDEX, linear_cross_entropy
from hf_era.models.generation_config import make_generation_config_savable
from hf_era.models.layers import AuxiliaryMLP, ExpandedMLPMixin, RoutedLinearMixin
from hf_era.models.mixing import MixedIn, stock_class_of
from hf_era.models.stock_forward import CACHE_NAME, give_forward
from hf_era.models.whole_weights import model_around

# Arguments of the stock loss that the chunked one does not take.
_OTHER_LOSS_ARGUMENTS = ("shift_labels", "ignore_index", "weight")


@dataclass(frozen=True)
class FastPaths:
    """The fast paths beside attention, whose switch is transformers' own (`attn_implementation`: `sdpa` or `eager`).

    A setting of the running model, not saved with it. What each buys is in `docs/speed.md`. With both off, all is computed
    as the stock class does: padding on the right is not dropped before attention either.

    Args:
        fused_activation (`bool`, *optional*, defaults to `True`):
            GELU as one operation, with the routing and the L1 term in its backward pass.
        chunked_loss (`bool`, *optional*, defaults to `True`):
            LM head and cross entropy a chunk of positions at a time, and only at positions that have a label; the
            whole logits never exist. While training with labels, `logits` of the output is `None`.
        right_padding (`bool`, *optional*, defaults to `False`):
            Batches with labels are padded on the right or not at all, and whoever says so answers for it: nobody looks, and
            attention takes no mask, compiled or not, which is what the fastest kernels ask for. Trainers say it of batches
            that `RoutingCollator` made. For one thread at a time, and with the chunked loss alone.
    """

    fused_activation: bool = field(
        default=True, metadata={"help": "GELU as one operation, routing and L1 term in its backward pass."}
    )
    chunked_loss: bool = field(
        default=True, metadata={"help": "LM head and cross entropy in chunks, at labelled positions only."}
    )
    right_padding: bool = field(
        default=False, metadata={"help": "Batches with labels are padded on the right: attention takes no mask."}
    )


ALL_FAST = FastPaths()
ALL_SLOW = FastPaths(fused_activation=False, chunked_loss=False)


class FastPath:
    """A family's faster way to compute its stock causal LM: the chunked loss, and a fused GELU where the MLP is not gated. A
    family with layers of its own to replace overrides `construct`.

    Logits are a product with the LM head, capped where the config has `final_logit_softcapping`. Not for families that do
    more to them.
    """

    def construct(self, model: Any, stock_constructor: Callable[[Any], None], config: Any) -> None:
        """Runs the stock constructor of a model, and puts fast layers in place of the stock ones."""
        stock_constructor(config)
        family = model.family
        if not family.gated:
            for block in family.get_blocks(model):
                name = getattr(config, family.activation)
                setattr(family.get_mlp(block), family.activation_module, RoutedActivation(name))

    def expand(self, model: Any) -> None:
        """Lets the fast layers of a model's target layers route, once it is expanded."""
        family = model.family
        for block in [] if family.gated else family.get_blocks(model):
            mlp = family.get_mlp(block)
            if isinstance(mlp, ExpandedMLPMixin):
                getattr(mlp, family.activation_module).call = mlp.call
                for name, module in mlp.auxiliary.items():
                    if type(module) is AuxiliaryMLP:
                        act = RoutedActivation(getattr(model.config, family.activation))
                        module.act = act.train(module.training)
                        module.act.call, module.act.module = mlp.call, name

    def forward(
        self, model: Any, stock_forward: Callable[..., Any], inputs: dict[str, Any], skip_logits: bool | None = None
    ) -> Any:
        """The stock forward pass, or the body and the chunked loss where no logits are wanted.

        Args:
            model: the causal LM. stock_forward: of its stock class, bound to it.
            inputs (`dict`): the stock arguments by name, and `loss_reduction`, `"mean"` or `"none"`.
            skip_logits (`bool`, *optional*): with `labels`: compute the loss without ever holding the logits, and return
                none. Not given: while training. `False`: always return logits.
        """
        labels, reduction = inputs.get("labels"), inputs.pop("loss_reduction", "mean")
        is_causal, is_chunked = False, _takes_chunked_loss(model, skip_logits, labels, inputs)
        if is_chunked and model.fast_paths.right_padding:
            is_causal = needs_no_mask(model, inputs)
        inputs["attention_mask"] = None if is_causal else mask_for_attention(model, inputs)
        if not is_chunked:
            return stock_losses(stock_forward, inputs, reduction)
        del inputs["labels"]
        count = inputs.pop("num_items_in_batch", None)
        inputs.pop("logits_to_keep", None)
        targets, positions = _labelled(labels)
        if count is None:
            count = (targets != IGNORE_INDEX).sum()
        with causal_attention(model) if is_causal else nullcontext():
            outputs = model.base_model(**inputs)
        losses = _chunked_losses(model, outputs.last_hidden_state, targets, positions, reduction, count)
        return CausalLMOutputWithPast(
            loss=losses,
            logits=None,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE_NAME: getattr(outputs, CACHE_NAME)},
        )


CHUNKED_LOSS = FastPath()


def stock_losses(stock_forward: Callable[..., Any], inputs: dict[str, Any], reduction: str) -> Any:
    """The stock forward pass; with the reduction `"none"` its loss is that of each label, (batch, seq - 1)."""
    if reduction == "mean":
        return stock_forward(**inputs)
    labels = inputs["labels"]
    outputs = stock_forward(**{**inputs, "labels": None})
    outputs.loss = _losses_of_logits(outputs.logits, labels)
    return outputs


def set_fast_paths(model: Any, fast_paths: FastPaths) -> None:
    """Switches the fast paths of a model on or off, in place."""
    model.fast_paths = fast_paths
    for module in model.modules():
        if isinstance(module, RoutedActivation):
            module.fused = fast_paths.fused_activation


def label_losses(model: Any, labels: Tensor, **inputs: Any) -> Tensor:
    """Negative log-likelihood of each label under the position before it: (batch, seq - 1), nats, fp32; 0 where the label
    is -100. With the chunked loss, logits are made at labelled positions only, and never all at once.

    Args:
        model: a causal LM of ours.
        labels (`Tensor`): (batch, seq), int64.
        inputs: `input_ids` (batch, seq), `attention_mask` and what else the forward pass takes.
    """
    # Through the model's call, so that whatever wraps it (hooks, shards, autocast) takes part.
    return model(labels=labels, skip_logits=True, loss_reduction="none", **inputs).loss


def _chunked_losses(
    model: Any, hidden: Tensor, targets: Tensor, positions: Tensor | None, reduction: str, count: int | Tensor
) -> Tensor:
    """The loss of each target, or their sum over `count`, from the hidden states (batch, seq, hidden)."""
    output, cap = model.get_output_embeddings(), getattr(model.config, "final_logit_softcapping", None)
    head, factor = output.weight, None
    chosen, chosen_targets = hidden[:, :-1].flatten(0, 1), targets.flatten()
    if isinstance(output, RoutedLinearMixin) and output.core_multiplier is not None:
        factor = output.core_multiplier[:, :-1].flatten()
    if positions is not None:
        chosen, chosen_targets = chosen.index_select(0, positions), chosen_targets.index_select(0, positions)
        factor = None if factor is None else factor.index_select(0, positions)
    if reduction == "mean":
        # A tensor, so that no label at all gives NaN, as in the stock class, and not an exception; on the device, where a
        # number would be copied for every chunk.
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        total = count if isinstance(count, Tensor) else hidden.new_full((), count, dtype=dtype)
        scale = 1 / total.to(hidden.device, dtype)
        return linear_cross_entropy(chosen, head, chosen_targets, scale=scale, softcap=cap, weight_factor=factor)
    losses = linear_cross_entropy(chosen, head, chosen_targets, "none", softcap=cap)
    if positions is not None:
        losses = losses.new_zeros(targets.numel()).index_copy(0, positions, losses)
    return losses.view(targets.shape)


def _takes_chunked_loss(model: Any, skip_logits: bool | None, labels: Tensor | None, inputs: dict[str, Any]) -> bool:
    if labels is None or not model.fast_paths.chunked_loss:
        return False
    if not (model.training if skip_logits is None else skip_logits):
        return False
    as_tuple = inputs.get("return_dict") is False or not model.config.return_dict
    head = model.get_output_embeddings()
    # An adapter on the head, a loss of the user's own, and a head that is on the disk until it is called, are honoured.
    is_plain = stock_class_of(head) is nn.Linear and head.bias is None and "_loss_function" not in model.__dict__
    is_plain = is_plain and not head.weight.is_meta
    return is_plain and not as_tuple and all(inputs.get(name) is None for name in _OTHER_LOSS_ARGUMENTS)


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


class FastCausalLMMixin(MixedIn):
    """Mixed into a family's stock causal LM: the same model on its fast path, made from a stock model and saved as one.

    Attributes:
        family (`Family`): whose fast path it takes.
        fast_paths (`FastPaths`): which parts of it are on; set with `set_fast_paths`. Attention has transformers' own
            switch, `attn_implementation`, when loading, or `set_attn_implementation("eager")`.
    """

    prefix = "Fast"
    # The loss is divided by `num_items_in_batch` when it is given, and the Trainer should give it.
    accepts_loss_kwargs = True

    stock_class: ClassVar[type]
    family: ClassVar[Any]
    fast_paths: FastPaths = FastPaths()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if FastCausalLMMixin in cls.__bases__:
            cls.stock_class = cls.__bases__[cls.__bases__.index(FastCausalLMMixin) + 1]
            give_forward(cls, cls.stock_class, _fast_forward)

    def __init__(self, config: Any) -> None:
        stock_constructor: Any = super().__init__
        self.family.fast_path.construct(self, stock_constructor, config)

    def set_fast_paths(self, fast_paths: FastPaths) -> None:
        """Switches the fast paths on or off, in place."""
        set_fast_paths(self, fast_paths)

    def label_losses(self, labels: Tensor, **inputs: Any) -> Tensor:
        """As the function `label_losses`."""
        return label_losses(self, labels, **inputs)

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
        """As transformers', under the name of the stock class: what is saved is an ordinary checkpoint. Adapters (peft) are
        merged, except in the checkpoints of a training."""
        if saved_merged(self, save_directory, *args, **kwargs):
            return
        if has_adapters(self):  # the checkpoint of a training: the stock class has no such weights
            super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
            return
        # A state dict is given where this model's own is not whole (FSDP).
        model = self.to_stock(kwargs.pop("state_dict", None))
        make_generation_config_savable(model)
        model.save_pretrained(save_directory, *args, **kwargs)


def _fast_forward(self: Any, inputs: dict[str, Any], *, skip_logits: bool | None = None) -> Any:
    """The stock class's forward pass, and one argument of its own.

    Args:
        skip_logits (`bool`, *optional*): with `labels`: compute the loss without ever holding the logits, and return
        none.
            Not given: while training. `False`: always return logits.
        cache, past_key_values (*optional*): two names of the same, whatever the version of transformers.
    """
    return self.family.fast_path.forward(self, super(FastCausalLMMixin, self).forward, inputs, skip_logits)
