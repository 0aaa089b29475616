"""The order in which stories are read where it does not matter to the result."""

from __future__ import annotations

from typing import Any

import numpy as np


def longest_first(stories: Any) -> Any:
    """Stories (a `Dataset` with `length`) from the longest to the shortest: batches of like length have little padding,
    and a batch that does not fit fails at once."""
    lengths = np.asarray(stories["length"])
    return stories.select(np.argsort(-lengths, kind="stable"))
