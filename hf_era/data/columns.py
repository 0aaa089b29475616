"""Columns of token lists as flat arrays: one numpy call for a whole batch of examples instead of a loop over each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features

STORIES_AT_ONCE = 10_000


def arrow_batches(stories: Dataset, columns: list[str], batch_size: int = STORIES_AT_ONCE) -> Iterator[pa.Table]:
    """The columns of a data set, so many examples at a time: memory does not grow with the data set."""
    yield from stories.select_columns(columns).with_format("arrow").iter(batch_size)


def present(examples: Dataset, *names: str) -> Dataset:
    """The examples with those of these columns that they have."""
    return examples.select_columns([name for name in names if name in examples.column_names])


def map_tables(
    stories: Dataset,
    function: Callable[[pa.Table], pa.Table],
    num_proc: int | None,
    description: str,
    features: Features | None = None,
) -> Dataset:
    """`Dataset.map` with a function from Arrow tables to Arrow tables: no example becomes a Python object on the way.

    What it computed before is not taken from the disk again: the file names that `map` gives do not change with the code
    of the functions below `function`. Prepared data is kept as a whole, see `hf_era.data.prepared_cache`.
    """
    mapped = stories.with_format("arrow").map(
        function, batched=True, num_proc=num_proc, features=features, desc=description, load_from_cache_file=False
    )
    return mapped.with_format(None)


def flat_column(table: pa.Table, name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A column of lists: all values end to end, shape (tokens,), and the length of each list, shape (examples,).

    Both may be read-only views of the table.
    """
    column = table[name]
    return pc.list_flatten(column).to_numpy(), pc.list_value_length(column).to_numpy()


def list_column(values: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any]) -> pa.ListArray:
    """The inverse of `flat_column`: lists of the given lengths, as an Arrow array."""
    starts_and_end = np.concatenate([[0], np.cumsum(lengths)])
    return pa.ListArray.from_arrays(pa.array(starts_and_end, pa.int32()), pa.array(values))


def order_of_longest_first(stories: Any) -> np.ndarray:
    """Indices (examples,), int64, of a `Dataset` with `length` from its longest to its shortest example; ties as given."""
    return np.argsort(-np.asarray(stories["length"]), kind="stable")


def longest_first(stories: Any) -> Any:
    """Examples (a `Dataset` with `length`) from the longest to the shortest: batches of like length have little padding,
    and a batch that does not fit fails at once."""
    return stories.select(order_of_longest_first(stories))
