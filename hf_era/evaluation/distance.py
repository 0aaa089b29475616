"""How far a model is from the one that a method started from: the distance of their weights, and the loss barrier between.

A model that was made to forget and lies close to where it started, with no barrier on the way, is said to come back easily;
one that moved far is said to resist (weight distortion, arXiv 2505.22310).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

LossesOf = Callable[[nn.Module], Mapping[str, float]]


def is_comparable(model: nn.Module, other: nn.Module) -> bool:
    """Whether two models have the same parameters, by name and shape."""
    shapes = [{name: value.shape for name, value in part.named_parameters()} for part in (model, other)]
    return shapes[0] == shapes[1]


@torch.no_grad()
def weight_distance(model: nn.Module, other: nn.Module) -> dict[str, float]:
    """`l2`: the Euclidean norm of the difference of all parameters, tied ones counted once; `relative`: that over the norm
    of `other`. Summed in float64."""
    others, squares, size = dict(other.named_parameters()), 0.0, 0.0
    for name, value in model.named_parameters():  # one at a time: all of them in float64 may be too much
        base = others[name].to(value.device).double()
        squares += float((value.double() - base).square().sum())
        size += float(base.square().sum())
    return {"l2": math.sqrt(squares), "relative": math.sqrt(squares / size) if size > 0 else math.inf}


@torch.no_grad()
def interpolated(model: nn.Module, other: nn.Module, share: float) -> nn.Module:
    """A copy whose weights are (1 - share) of `other` and share of `model`, in fp32 at least: in half precision most of the
    line would be rounded to one of its ends."""
    mixed, ends = copy.deepcopy(model), dict(other.named_parameters())
    mixed.to(torch.promote_types(next(model.parameters()).dtype, torch.float32))
    for name, value in mixed.named_parameters():
        value.copy_(torch.lerp(ends[name].to(value), value, share))
    return mixed


def loss_barrier(
    model: nn.Module,
    other: nn.Module,
    losses_of: LossesOf,
    points: int,
    ends: Sequence[Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """The losses on the straight line from `other` to `model`, and how far they rise above that between the two ends.

    Args:
        model, other: with the same parameters (`is_comparable`). losses_of: a model -> kind -> loss, nats a token.
        points (`int`): between the ends, at equal distances, at least 1.
        ends (*optional*): the losses of `other` and of `model`, where they are known.

    Returns: `barrier`: kind -> max over the line of loss - ((1 - t) loss of `other` + t loss of `model`), at least 0, for t
    is 0 too (Frankle et al. 2020, arXiv 1912.05671, of losses); `line`: the points, each with `share` (t) and the losses.
    """
    first, last = ends or (losses_of(other), losses_of(model))
    inner = [number / (points + 1) for number in range(1, points + 1)]
    between = [{"share": share, **losses_of(interpolated(model, other, share))} for share in inner]
    line = [{"share": 0.0, **first}, *between, {"share": 1.0, **last}]
    barrier = {
        kind: max(part[kind] - (1 - part["share"]) * first[kind] - part["share"] * last[kind] for part in line)
        for kind in first
    }
    return {"barrier": {kind: max(value, 0.0) for kind, value in barrier.items()}, "line": line}
