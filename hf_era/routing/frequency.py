"""The frequency rule: how much a vocabulary entry belongs to the forget stories.

`w_v = 1 - sigmoid(scale * (f/r - r/f) + bias)`, with `f` and `r` the entry's relative frequencies in forget and retain
stories after adding synthetic counts (appendix B of arXiv 2410.04332; the seed's runs A and B used it).
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

SYNTHETIC_FORGET_COUNT = 1
# More synthetic counts on the retain side: a rare word that happens to stand in no retain story is not routed for it.
SYNTHETIC_RETAIN_COUNT = 20


@dataclass(frozen=True)
class FrequencyRow:
    """One line of the table: a token, its weight, and its frequency per 10,000 tokens of forget and retain stories."""

    token: str
    token_id: int
    weight: float
    forget_per_10k: float
    retain_per_10k: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def count_tokens(stories: Iterable[Iterable[int]], vocabulary_size: int) -> Tensor:
    """Counts of each vocabulary entry over the stories: shape (vocabulary_size,), int64. Pass stories without BOS.

    A story is any iterable of token ids; fastest is an int64 tensor that holds many stories end to end.
    """
    counts = torch.zeros(vocabulary_size, dtype=torch.int64)
    for story in stories:
        tokens = story if isinstance(story, Tensor) else torch.as_tensor(list(story), dtype=torch.int64)
        # Not `bincount`: it would make a vector as long as the vocabulary for every story.
        counts.index_add_(0, tokens, torch.ones_like(tokens))
    return counts


class FrequencyTable:
    """Token frequencies of forget and retain stories, and the routing weights that follow.

    Args:
        forget_counts (`Tensor`): (vocabulary,), int64: counts in forget stories.
        retain_counts (`Tensor`): (vocabulary,), int64: counts in retain stories.
        scale (`float`, *optional*, defaults to `1.0`): factor of `f/r - r/f`.
        bias (`float`, *optional*, defaults to `-4.0`): bias inside the sigmoid.

    Attributes:
        weights (`Tensor`): (vocabulary,), fp32, range [0, 1]: the routing weight of each entry in a forget story.
    """

    def __init__(self, forget_counts: Tensor, retain_counts: Tensor, scale: float = 1.0, bias: float = -4.0) -> None:
        if forget_counts.shape != retain_counts.shape:
            raise ValueError(
                f"Forget and retain counts need the same vocabulary, got {tuple(forget_counts.shape)} and "
                f"{tuple(retain_counts.shape)}."
            )
        self.forget_counts, self.retain_counts = forget_counts, retain_counts
        forget = forget_counts.double() + SYNTHETIC_FORGET_COUNT
        retain = retain_counts.double() + SYNTHETIC_RETAIN_COUNT
        ratio = (forget / forget.sum()) / (retain / retain.sum())
        self.weights = (1 - torch.sigmoid(scale * (ratio - 1 / ratio) + bias)).float()

    def rows(self, decode: Callable[[int], str], minimum_per_10k: float = 5.0) -> list[FrequencyRow]:
        """The table of tokens whose overall frequency is above `minimum_per_10k`, most strongly routed first.

        Frequencies are those really counted, without the synthetic counts.

        Args:
            decode (`Callable[[int], str]`): a token id's text.
            minimum_per_10k (`float`, *optional*, defaults to `5.0`): per 10,000 tokens of both kinds of story.
        """
        forget_total = max(int(self.forget_counts.sum()), 1)
        retain_total = max(int(self.retain_counts.sum()), 1)
        overall = (self.forget_counts + self.retain_counts).double() * 1e4 / (forget_total + retain_total)
        chosen = torch.nonzero(overall > minimum_per_10k).flatten().tolist()
        rows = [
            FrequencyRow(
                token=decode(token_id),
                token_id=token_id,
                weight=float(self.weights[token_id]),
                forget_per_10k=float(self.forget_counts[token_id]) * 1e4 / forget_total,
                retain_per_10k=float(self.retain_counts[token_id]) * 1e4 / retain_total,
            )
            for token_id in chosen
        ]
        return sorted(rows, key=lambda row: (row.weight, -row.forget_per_10k, row.token_id))
