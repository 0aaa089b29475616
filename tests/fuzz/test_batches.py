"""Batches and routing weights of every kind: collated so that nothing is lost and padding is masked, or refused."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from hf_era.data import RoutingCollator
from hf_era.routing import ActivationRouter, GradientMultipliers, build_token_routing

from .strategies import junk, numbers

ids = st.one_of(
    st.integers(0, 60), st.integers(0, 60), st.sampled_from([-1, -100, 2**31, 2**63, 10**30, 1.5, None, True])
)
weights = st.one_of(
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from([math.nan, math.inf, -1e-9, 1.0000001, 2, -0.0]),
    st.sampled_from([-1, 1.5, "1", None]),
)


@st.composite
def examples(draw: Any) -> Any:
    """Mostly a batch; now and then with a wrong value, length, column or shape."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.lists(st.dictionaries(st.sampled_from(["input_ids", "labels"]), junk, max_size=2), max_size=2))
    optional = ["labels", "attention_mask", "routing_weight", "is_forget_word"]
    # One thing is wrong at a time: several would hide each other.
    wild = draw(st.sampled_from(["nothing", "nothing", "length", "empty", "input_ids", *optional]))
    columns = draw(st.sets(st.sampled_from(optional))) | ({wild} & set(optional))
    names = ["input_ids", *sorted(columns)]
    strategies = {
        "input_ids": ids if wild == "input_ids" else st.integers(0, 60),
        "labels": st.one_of(ids, st.just(-100)) if wild == "labels" else st.sampled_from([-100, 3]),
        "attention_mask": st.integers(0, 1 + (wild == "attention_mask")),
        "routing_weight": weights if wild == "routing_weight" else st.floats(0, 1),
        "is_forget_word": st.integers(0, 2) if wild == "is_forget_word" else st.booleans(),
    }
    batch = []
    for _ in range(draw(st.integers(1, 4))):
        length = draw(st.integers(0 if wild == "empty" else 1, 6))
        row = {}
        for name in names:
            size = length + (draw(st.sampled_from([0, 0, 0, 1])) if wild == "length" else 0)
            values = draw(st.lists(strategies[name], min_size=size, max_size=size))
            row[name] = draw(st.sampled_from([values, tuple(values)]))
        batch.append(row)
    return batch


def test_batches(fuzz: Callable, accepted: Callable) -> None:
    outcomes = {"collated": 0, "refused": 0}

    def check(batch: Any, multiple: int | None, vocabulary: int | None) -> None:
        collated, message = accepted(RoutingCollator(7, multiple, vocabulary), batch)
        outcomes["refused" if message else "collated"] += 1
        if collated is not None:
            check_batch(batch, collated, multiple, vocabulary)

    fuzz(
        "batches",
        check,
        batch=examples(),
        multiple=st.sampled_from([None, 1, 8]),
        vocabulary=st.sampled_from([None, 61]),
    )
    assert min(outcomes.values()) > 0, outcomes


def check_batch(batch: Any, collated: dict[str, torch.Tensor], multiple: int | None, vocabulary: int | None) -> None:
    longest = max(len(row["input_ids"]) for row in batch)
    width = longest if multiple is None else math.ceil(longest / multiple) * multiple
    assert {tuple(column.shape) for column in collated.values()} == {(len(batch), width)}
    assert set(collated) - {"input_ids", "attention_mask", "labels"} == set(batch[0]) & {
        "routing_weight",
        "is_forget_word",
    }
    assert int(collated["input_ids"].min()) >= 0
    assert vocabulary is None or int(collated["input_ids"].max()) < vocabulary
    for number, row in enumerate(batch):
        length = len(row["input_ids"])
        assert collated["input_ids"][number, :length].tolist() == [int(value) for value in row["input_ids"]]
        assert (collated["attention_mask"][number, length:] == 0).all()
        assert (collated["labels"][number, length:] == -100).all()
        if "attention_mask" not in row:
            assert (collated["attention_mask"][number, :length] == 1).all()
        expected = row.get("labels")
        if expected is not None:
            assert collated["labels"][number, :length].tolist() == [int(value) for value in expected]
        if "routing_weight" in row:
            found = collated["routing_weight"][number]
            assert found[:length].tolist() == np.asarray(row["routing_weight"], np.float32).tolist()
            assert (found[length:] == 1).all()
            assert ((found >= 0) & (found <= 1)).all()


def test_routing_weights(fuzz: Callable, accepted: Callable) -> None:
    """The factors of every weight lie between the two multipliers, or the weights are refused."""
    shapes = st.sampled_from([(2, 3), (2, 3), (2, 3), (3, 2), (6,), (2, 3, 1), (0, 3), ()])
    dtypes = st.sampled_from(
        [torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool]
    )
    values = st.one_of(st.floats(0, 1), st.floats(0, 1), numbers.filter(lambda value: abs(value) < 2**63))
    router = ActivationRouter(GradientMultipliers(original_forget=-0.75, auxiliary_retain=0.25))

    def check(shape: tuple[int, ...], dtype: torch.dtype, drawn: list[float]) -> None:
        size = math.prod(shape)
        weight = torch.tensor((drawn * 6)[:size], dtype=torch.float64).reshape(shape).to(dtype)
        routing, message = accepted(build_token_routing, weight, router, ["forget"], shape=(2, 3))
        fits = dtype.is_floating_point and shape == (2, 3) and bool(((weight >= 0) & (weight <= 1)).all())
        assert (message is None) == fits, message
        if routing is not None:
            for part, least in ((None, -0.75), ("forget", 0.25)):
                factor = routing.of(part).activation_multiplier
                assert ((factor >= least) & (factor <= 1)).all()

    fuzz("weights", check, shape=shapes, dtype=dtypes, drawn=st.lists(values, min_size=1, max_size=6))
