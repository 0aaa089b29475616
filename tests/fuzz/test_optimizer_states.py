"""Optimizers that keep anything at all: it comes back as it was, or is refused before it would be saved."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.optim.lr_scheduler import ConstantLR

from hf_era.training.optimizer_state import check_can_be_saved, load_optimizer, save_optimizer

from .strategies import numbers, texts

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int8, torch.uint8, torch.bool)
SHARED = torch.linspace(-1, 1, 16)
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "whole": lambda value: value,
    "view": lambda value: value[..., ::2] if value.dim() else value,
    "transposed": lambda value: value.T if value.dim() == 2 else value,
    "expanded": lambda value: value.expand(3, *value.shape),
    "shared": lambda value: SHARED,
    "part of the shared": lambda value: SHARED[2:7],
    "parameter": torch.nn.Parameter,
    "sparse": lambda value: value.to_sparse(),
}

tensors = st.builds(
    lambda shape, dtype, layout: LAYOUTS[layout]((torch.arange(24).reshape(4, 6)[shape] - 7).to(dtype)),
    st.sampled_from([(), 0, (0, 0), slice(0, 0)]),
    st.sampled_from(DTYPES),
    st.sampled_from([name for name in LAYOUTS if name not in ("parameter", "sparse")]),
)
odd_tensors = st.sampled_from([LAYOUTS[name](torch.ones(2, 3)) for name in ("parameter", "sparse")])
leaves = st.one_of(st.none(), numbers, texts, tensors, st.sampled_from(DTYPES))
odd = st.one_of(st.binary(max_size=3), odd_tensors, st.builds(object), st.just(1j), st.just({1}))


def nested(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    keys = st.one_of(texts, st.integers(), st.none(), st.sampled_from(["$tensor", "$pairs", "$tuple", "params", "."]))
    return st.recursive(
        parts,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=4), st.tuples(inner, inner)
        ),
        max_leaves=8,
    )


def described(value: Any) -> Any:
    """Everything that is to be the same, in a form that compares: NaN equals NaN and 1 is not 1.0."""
    if isinstance(value, Tensor):
        return value.dtype, repr(value.detach().tolist()), tuple(value.shape)
    if isinstance(value, dict):
        return "dict", sorted(((repr(key), described(part)) for key, part in value.items()), key=repr)
    if isinstance(value, (list, tuple)):
        return type(value), [described(part) for part in value]
    return type(value), repr(value)


def make(state: Any = None, setting: Any = None) -> tuple[Any, Any, Any]:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if state is not None:
        optimizer.state[model.weight] = {"kept": state, "again": state}
        optimizer.param_groups[0]["setting"] = setting
    return model, optimizer, ConstantLR(optimizer)


@pytest.mark.filterwarnings("ignore:Sparse")
def test_what_an_optimizer_keeps(fuzz: Callable, accepted: Callable, tmp_path: Path) -> None:
    seen = {"saved": 0, "refused": 0}

    def check(state: Any, setting: Any) -> None:
        made = make({"value": state}, setting)
        _, message = accepted(check_can_be_saved, *made)
        seen["refused" if message else "saved"] += 1
        if message:
            assert "`optim`" in message
            return
        save_optimizer(tmp_path / "file", *made, writes=True)
        model, optimizer, scheduler = make()
        load_optimizer(tmp_path / "file", model, optimizer, scheduler)
        found, expected = optimizer.state[model.weight], {"value": state}
        assert described(found["kept"]) == described(found["again"]) == described(expected)
        assert described(optimizer.param_groups[0]["setting"]) == described(setting)

    fuzz("optimizers", check, state=nested(st.one_of(leaves, leaves, leaves, odd)), setting=nested(leaves))
    assert min(seen.values()) > 0, seen
