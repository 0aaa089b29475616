"""Training sets of every kind under every collator: each routing weight reaches the model, or what is lost is named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from hypothesis import strategies as st
from transformers import DataCollatorWithFlattening

from hf_era import GradientRoutingConfig, GradientRoutingTrainer
from hf_era.data import RoutingCollator

from .data_sets import Rows, Stream

WEIGHTS = [0.25, 0.5, 1.0]


def without_columns(rows: list[dict[str, Any]]) -> Any:
    """A stream of `datasets` that does not know its columns."""
    return Dataset.from_list(rows).to_iterable_dataset().map(lambda row: row)


def dropping(examples: list[dict[str, Any]]) -> dict[str, Any]:
    batch = own(examples)
    return {"input_ids": batch["input_ids"], "labels": batch["labels"]}


def own(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """A collator that uses what it knows of a row."""
    known = ("input_ids", "routing_weight")
    return RoutingCollator(0)([{name: row[name] for name in known if name in row} for row in examples])


KINDS: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "list": list,
    "map style": Rows,
    "stream": Stream,
    "data set": Dataset.from_list,
    "streamed data set": lambda rows: Dataset.from_list(rows).to_iterable_dataset(),
    "streamed without columns": without_columns,
    "dict of splits": lambda rows: DatasetDict(train=Dataset.from_list(rows)),
}
COLLATORS = {"ours": RoutingCollator(0), "own": own, "drops": dropping, "flattens": DataCollatorWithFlattening()}
# Columns beside the ids, and whether the model takes them.
EXTRAS = {"": False, "text": False, "label": False, "length": False, "position_ids": True, "token_type_ids": True}


def lost(kind: str, collator: str, column: str, extra: str) -> set[str]:
    """What should be refused: any of these, named in the message."""
    found = {"train_dataset"} if kind == "dict of splits" else set()
    if column != "routing_weight" or collator in ("drops", "flattens"):
        found.add("routing_weight")
    if collator == "ours" and EXTRAS[extra]:
        found.add(extra)
    return found


def test_training_sets(fuzz: Callable, accepted: Callable, make_expanded: Callable[..., Any], tmp_path: Path) -> None:
    model = make_expanded()
    args = GradientRoutingConfig(
        str(tmp_path / "out"), max_steps=1, use_cpu=True, disable_tqdm=True, report_to=[], save_strategy="no"
    )
    outcomes: dict[str, int] = {"trained": 0, "refused": 0}
    seen: list[torch.Tensor] = []
    model.register_forward_pre_hook(lambda *given: seen.append(given[2]["routing_weight"]), with_kwargs=True)

    def first_step(rows: Any, collator: Any) -> float:
        trainer = GradientRoutingTrainer(model, args, train_dataset=rows, data_collator=collator)
        trainer.current_gradient_accumulation_steps = 1
        return float(trainer.training_step(model, next(iter(trainer.get_train_dataloader()))))

    def check(kind: str, collator: str, column: str, extra: str) -> None:
        row = {"input_ids": [1, 2, 3], **({column: WEIGHTS} if column else {}), **({extra: [0, 1, 0]} if extra else {})}
        seen.clear()
        loss, message = accepted(first_step, KINDS[kind]([row] * 2), COLLATORS[collator])
        expected = lost(kind, collator, column, extra)
        outcomes["refused" if message else "trained"] += 1
        assert bool(message) == bool(expected), (message, expected)
        if message is not None:
            assert any(f"`{name}`" in message for name in expected), (message, expected)
        else:
            assert loss > 0
            assert seen[0].tolist() == [WEIGHTS] * 2

    weight = st.sampled_from(["routing_weight"] * 3 + ["routing_weights", ""])
    extra = st.sampled_from([*EXTRAS, "", ""])
    collator = st.sampled_from(["ours", "ours", *COLLATORS])
    fuzz("training_sets", check, kind=st.sampled_from([*KINDS]), collator=collator, column=weight, extra=extra)
    assert min(outcomes.values()) > 0, outcomes
