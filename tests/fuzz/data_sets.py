"""Data sets that do not know their columns."""

from collections.abc import Iterator
from typing import Any

import torch


class Rows(torch.utils.data.Dataset):
    """Any row can be asked for."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


class Stream(torch.utils.data.IterableDataset):
    """Rows come in their order, as often as they are asked for; of an iterator only once."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)
