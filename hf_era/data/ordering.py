"""The order in which stories are read where it does not matter to the result."""

from __future__ import annotations

from typing import Any

import numpy as np


def order_of_longest_first(stories: Any) -> np.ndarray:
    """Indices (stories,), int64, of stories (a `Dataset` with `length`) from the longest to the shortest; ties as given."""
    return np.argsort(-np.asarray(stories["length"]), kind="stable")


def longest_first(stories: Any) -> Any:
    """Stories (a `Dataset` with `length`) from the longest to the shortest: batches of like length have little padding,
    and a batch that does not fit fails at once."""
    return stories.select(order_of_longest_first(stories))
