"""An order of examples that depends on the seed and the epoch alone, so that a resumed run sees the same one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler


class EpochSeededSampler(Sampler[int]):
    """Seeds transformers' `LengthGroupedSampler`, which otherwise draws from the global random state.

    Args:
        sampler (`LengthGroupedSampler`): the sampler to seed.
        seed (`int`): of the run; the epoch is added to it.
    """

    def __init__(self, sampler: LengthGroupedSampler, seed: int) -> None:
        self.sampler, self.seed, self.epoch = sampler, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        self.sampler.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(self.sampler)
