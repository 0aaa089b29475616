"""The whole weights of a model whose parameters may be shards, spread over processes (FSDP2)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import initialization


def is_sharded(model: nn.Module) -> bool:
    """Whether the model's parameters are spread over processes by FSDP2."""
    return isinstance(model, FSDPModule)


def whole_weights(model: nn.Module, keep: bool = True) -> dict[str, Tensor]:
    """The state dict of a model with whole tensors, detached; what was sharded is gathered to the CPU, one at a time.

    Under FSDP2 every process must call it. What is not sharded is not copied. Raises `ValueError` for weights that a
    `device_map` left on the disk.

    Args:
        model (`nn.Module`): unwrapped; the result has its names.
        keep (`bool`, *optional*, defaults to `True`): `False`: take part in the gathering and return an empty dict.
    """
    weights: dict[str, Tensor] = {}
    gathered: dict[int, Tensor] = {}  # tied weights are gathered once, and stay one tensor
    for name, value in model.state_dict(keep_vars=True).items():
        if value.is_meta:
            raise ValueError(
                f"The weight {name} is offloaded (`device_map`), so that the model cannot be contracted or saved whole. "
                "Load it without `device_map`, or where it fits."
            )
        if isinstance(value, DTensor):
            if id(value) not in gathered:
                whole: Tensor = value.full_tensor().detach()
                gathered[id(value)] = whole.cpu() if keep else whole.new_empty(0)
            value = gathered[id(value)]
        if keep:
            weights[name] = value.detach()
    return weights


def class_before_sharding(model: nn.Module) -> type:
    """The model's class; `fully_shard` puts a class of its own in front of it."""
    return next(part for part in type(model).__mro__ if not issubclass(part, FSDPModule))


def whole_model(model: Any, weights: dict[str, Tensor]) -> Any:
    """A model of the same class and config, unsharded, around the weights of `whole_weights`."""
    return model_around(class_before_sharding(model), copy.deepcopy(model.config), weights, model)


def model_around(model_class: Any, config: Any, weights: dict[str, Tensor], like: Any) -> Any:
    """A model of `model_class` that holds `weights` themselves, and in everything else is as `like`: see `take_over`."""
    with initialization.no_init_weights(), torch.device(like.device):  # no time for weights that are thrown away
        model = model_class(config)
    return take_over(model, weights, like)


def take_over(model: Any, weights: dict[str, Tensor], like: Any) -> Any:
    """Gives a model `weights` themselves, and of the model that they come from whatever else it has of its own.

    That is its constants, what is frozen (by name), its mode, its gradient checkpointing and its generation config. What
    `like` has not, auxiliary modules for instance, is trainable.

    Args:
        model: takes them over, and is returned.
        weights (`dict[str, Tensor]`): a whole state dict, each in the dtype and on the device that it is to have.
        like: the model that they come from.
    """
    # Before they are assigned: that unfreezes parameters, and they may be those of `like`.
    frozen = {name for name, value in like.named_parameters(remove_duplicate=False) if not value.requires_grad}
    model.load_state_dict(weights, strict=True, assign=True)
    model.tie_weights()
    copy_constants(like, model)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in frozen:
            parameter.requires_grad_(False)
    modules = dict(model.named_modules())
    for path, module in like.named_modules():
        if path in modules and getattr(module, "gradient_checkpointing", False):
            modules[path].gradient_checkpointing = True
            modules[path]._gradient_checkpointing_func = module._gradient_checkpointing_func
    model.generation_config = copy.deepcopy(like.generation_config)
    return model.train(like.training)


def copy_constants(source: nn.Module, target: nn.Module) -> None:
    """Gives a model the floating buffers of another that no state dict holds, such as rotary frequencies, as they are.

    A new model computes them anew in fp32, and casting a model casts them: in half precision either one would be another
    function than the model that it was made of.
    """
    modules = dict(target.named_modules())
    for path, module in source.named_modules():
        own = modules.get(path)
        for name in module._non_persistent_buffers_set:
            constant, old = module._buffers.get(name), None if own is None else own._buffers.get(name)
            if own is not None and constant is not None and old is not None and constant.is_floating_point():
                own._buffers[name] = constant.detach().to(old.device, copy=True)


def follow_attention(config: Any, like: Any, stock_class: Any) -> None:
    """Sets the attention of a model to be made to that of `like`, where it was a choice: a stock class whose only attention
    is `eager` left none."""
    if stock_class._supports_sdpa:
        config._attn_implementation_internal = like.config._attn_implementation_internal
