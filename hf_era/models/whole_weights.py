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

    Under FSDP2 every process must call it. What is not sharded is not copied.

    Args:
        model (`nn.Module`): unwrapped; the result has its names.
        keep (`bool`, *optional*, defaults to `True`): `False`: take part in the gathering and return an empty dict.
    """
    weights: dict[str, Tensor] = {}
    gathered: dict[int, Tensor] = {}  # tied weights are gathered once, and stay one tensor
    for name, value in model.state_dict(keep_vars=True).items():
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
    """A model of `model_class` that holds `weights` themselves; device, mode and generation config are those of `like`."""
    with initialization.no_init_weights(), torch.device(like.device):  # no time for weights that are thrown away
        model = model_class(config)
    frozen = [value for value in weights.values() if isinstance(value, nn.Parameter) and not value.requires_grad]
    model.load_state_dict(weights, strict=True, assign=True)
    model.tie_weights()
    for parameter in frozen:  # loading by assignment unfreezes what it assigns, which may be shared
        parameter.requires_grad_(False)
    model.generation_config = copy.deepcopy(like.generation_config)
    return model.train(like.training)
