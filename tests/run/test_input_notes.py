"""What a run says of its inputs before the work begins, though it is no error."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import GPTNeoConfig

from hf_era import RunConfig
from hf_era.data import PreparedData, train_tokenizer
from hf_era.run.inputs import RunInputs, input_notes

NOTHING = Dataset.from_dict({})


def notes_of(
    config: RunConfig, unrouted: int = 0, positions: int = 64, unused: dict[str, list[str]] | None = None
) -> list[str]:
    """With a token per byte, 3,399 labelled forget examples, and so many of them without a routed token."""
    counts = {"train_forget_labelled": 3_399, "train_forget_without_routed_token": unrouted}
    data = PreparedData(*[NOTHING] * 6, summary={**counts, "unused_columns": unused or {}})
    base = GPTNeoConfig(num_layers=2, attention_types=[[["global", "local"], 1]], max_position_embeddings=positions)
    return input_notes(config, RunInputs(base, train_tokenizer(["abc"], 259), data, "", ""))


@pytest.mark.parametrize(
    ("rule", "unrouted", "message"),
    [
        ("concept", 89, r"^Of the 3,399 labelled forget examples 89 route no token: their forget words lie beyond the cut "
                        r"at `data\.max_tokens` 48\. .* Raise `data\.max_tokens`, or lower `data\.max_characters`"),
        ("concept", 0, None),
        ("full_seq", 89, None),
        ("none", 3_399, None),  # the control routes nothing, and means it
    ],
)  # fmt: skip
def test_forget_stories_that_route_nothing_are_said(
    rule: str, unrouted: int, message: str | None, make_run_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    notes = notes_of(make_run_config(tmp_path, routing={"rule": rule}), unrouted)
    assert len(notes) == (message is not None)
    assert all(re.search(str(message), note) for note in notes)


@pytest.mark.parametrize(
    ("generation", "positions", "message"),
    [
        # "The tree" is 8 tokens and a BOS; stories are cut at 48.
        ({"new_tokens": 39}, 64, None),
        ({"new_tokens": 40}, 64, r"^`generation\.new_tokens` is 40, so texts may reach 49 tokens, but examples are cut at "
                                 r"`data\.max_tokens` 48: .* Lower `generation\.new_tokens` to 39, or raise"),
        ({"new_tokens": 200}, 64, r"texts may reach 64 tokens"),
        ({"new_tokens": 200}, 48, None),  # the model has no more positions
        ({"new_tokens": 40, "enabled": False}, 64, None),
    ],
)  # fmt: skip
def test_texts_that_go_beyond_the_trained_positions_are_said(
    generation: dict[str, Any],
    positions: int,
    message: str | None,
    make_run_config: Callable[..., RunConfig],
    tmp_path: Path,
) -> None:
    notes = notes_of(make_run_config(tmp_path, generation=generation), positions=positions)
    assert len(notes) == (message is not None)
    assert all(re.search(str(message), note) for note in notes)


def test_columns_that_nobody_looks_at_are_said(make_run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    (note,) = notes_of(make_run_config(tmp_path), unused={"data.train": ["id", "topic"]})
    assert note == "`data.train`: read, but not used: the columns `id`, `topic`."
