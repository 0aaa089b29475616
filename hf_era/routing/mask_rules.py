"""Mask rules: they make the routing weights of forget-labelled examples. Retain examples always have weight 1.

Every rule gives a weight per *token*; `align_to_prediction` then moves it to the position that predicts the token.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from hf_era.utils.checks import check_count, unknown_value_message
from hf_era.utils.fields import setting

RULES = ("full_seq", "concept", "none")
WEIGHTINGS = ("uniform", "frequency")
RETAIN_WEIGHT = 1.0
FORGET_WEIGHT = 0.0


@dataclass(frozen=True)
class RoutingRuleConfig:
    """Which rule makes the routing weights.

    Args:
        rule (`str`, *optional*, defaults to `"full_seq"`):
            `full_seq`: all tokens of a forget example, as `weighting` says. `concept`: the tokens of the forget words
            only. `none`: no token at all, the control.
        weighting (`str`, *optional*, defaults to `"frequency"`):
            For `full_seq`. `uniform`: 0 on every token. `frequency`: by how much commoner a token is in forget
            examples than in retain examples.
        frequency_scale (`float`, *optional*, defaults to `1.0`):
            Factor of `f/r - r/f` in the frequency rule. Positive.
        frequency_bias (`float`, *optional*, defaults to `-4.0`):
            Bias of the frequency rule; the lower, the fewer tokens are routed.
        frequency_stories (`int`, *optional*, defaults to `25000`):
            At most so many forget and so many retain examples are counted.
        table_minimum_per_10k (`float`, *optional*, defaults to `5.0`):
            The reported token table holds the tokens whose overall frequency per 10,000 tokens is above this.

    Raises:
        ValueError: for an unknown rule or weighting, or a number out of range.
    """

    rule: str = setting("full_seq", "full_seq, concept or none.", identity=True)
    weighting: str = setting("frequency", "For full_seq: uniform or frequency.", identity=True)
    frequency_scale: float = setting(1.0, "Factor of f/r - r/f in the frequency rule.", identity=True)
    frequency_bias: float = setting(-4.0, "Bias of the frequency rule.", identity=True)
    frequency_stories: int = setting(25_000, "Examples counted, forget and retain each.", identity=True)
    table_minimum_per_10k: float = setting(
        5.0, "Tokens above this overall frequency per 10,000 are reported.", identity=True
    )

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(unknown_value_message("routing.rule", self.rule, RULES))
        if self.weighting not in WEIGHTINGS:
            raise ValueError(unknown_value_message("routing.weighting", self.weighting, WEIGHTINGS))
        if not (math.isfinite(self.frequency_scale) and self.frequency_scale > 0):
            raise ValueError(f"`routing.frequency_scale` should be positive, got {self.frequency_scale}.")
        if not math.isfinite(self.frequency_bias):
            raise ValueError(f"`routing.frequency_bias` should be a finite number, got {self.frequency_bias}.")
        check_count("routing.frequency_stories", self.frequency_stories)
        if not 0 <= self.table_minimum_per_10k < math.inf:
            raise ValueError(f"`routing.table_minimum_per_10k` should be >= 0, got {self.table_minimum_per_10k}.")

    @property
    def needs_frequencies(self) -> bool:
        return self.rule == "full_seq" and self.weighting == "frequency"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def weigh_tokens(
    config: RoutingRuleConfig, token_ids: Tensor, is_forget_word: Tensor, vocabulary_weights: Tensor | None = None
) -> Tensor:
    """The weight of each token of *forget* examples: fp32, of the shape of `token_ids`; 1 as retain, 0 as forget.

    Args:
        config (`RoutingRuleConfig`): the rule.
        token_ids (`Tensor`): int64, any shape.
        is_forget_word (`Tensor`): bool, the same shape: whether a token belongs to a forget word (for `concept`).
        vocabulary_weights (`Tensor`, *optional*): (vocabulary,), the frequency rule's weight per vocabulary entry.

    Raises:
        ValueError: if the frequency rule is asked for without its weights.
    """
    if config.rule == "none":
        return torch.full(token_ids.shape, RETAIN_WEIGHT)
    if config.rule == "concept":
        return torch.where(is_forget_word, FORGET_WEIGHT, RETAIN_WEIGHT)
    if config.rule != "full_seq":
        raise NotImplementedError(f"The rule {config.rule!r} has no branch in `weigh_tokens`.")
    if config.weighting == "uniform":
        return torch.full(token_ids.shape, FORGET_WEIGHT)
    if vocabulary_weights is None:
        raise ValueError('weighting="frequency" needs `vocabulary_weights`; see `FrequencyTable.weights`.')
    return vocabulary_weights[token_ids]


def token_weights(
    config: RoutingRuleConfig,
    token_ids: Sequence[int],
    is_forget_word: Sequence[bool],
    vocabulary_weights: Tensor | None = None,
) -> list[float]:
    """`weigh_tokens` for the tokens of one example as a list, in [0, 1]."""
    ids = torch.as_tensor(list(token_ids), dtype=torch.long)
    words = torch.as_tensor(list(is_forget_word), dtype=torch.bool)
    return weigh_tokens(config, ids, words, vocabulary_weights).tolist()


def align_to_prediction(weights: Sequence[float]) -> list[float]:
    """Moves each token's weight to the position before it, which predicts it: `[w0, w1, w2] -> [w1, w2, 1]`.

    The last position predicts nothing; its weight is 1 and no gradient of the language model reaches it.
    """
    return [*list(weights)[1:], RETAIN_WEIGHT] if len(weights) else []


def align_stories_to_prediction(weights: Tensor, lengths: Tensor) -> Tensor:
    """`align_to_prediction` for many examples at once.

    Args:
        weights (`Tensor`): (tokens,), the weights of all examples end to end.
        lengths (`Tensor`): (examples,), int64, tokens of each example; their sum is the length of `weights`.

    Returns:
        `Tensor`: (tokens,), a new tensor.
    """
    aligned = weights.roll(-1)
    ends = lengths.cumsum(0)[lengths > 0]  # an empty example has no last token: it would overwrite its neighbour's
    aligned[ends - 1] = RETAIN_WEIGHT
    return aligned


SYNTHETIC_FORGET_COUNT = 1
# More synthetic counts on the retain side: a rare word that happens to stand in no retain example is not routed for it.
SYNTHETIC_RETAIN_COUNT = 20


@dataclass(frozen=True)
class FrequencyRow:
    """One line of the table: a token, its weight, and its frequency per 10,000 tokens of forget and retain examples."""

    token: str
    token_id: int
    weight: float
    forget_per_10k: float
    retain_per_10k: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def count_tokens(stories: Iterable[Iterable[int]], vocabulary_size: int) -> Tensor:
    """Counts of each vocabulary entry over the examples: shape (vocabulary_size,), int64. Pass examples without BOS.

    An example is any iterable of token ids; fastest is an int64 tensor that holds many examples end to end.
    """
    counts = torch.zeros(vocabulary_size, dtype=torch.int64)
    for story in stories:
        tokens = story if isinstance(story, Tensor) else torch.as_tensor(list(story), dtype=torch.int64)
        # Not `bincount`: it would make a vector as long as the vocabulary for every example.
        counts.index_add_(0, tokens, torch.ones_like(tokens))
    return counts


class FrequencyTable:
    """Token frequencies of forget and retain examples, and the routing weights that follow.

    Args:
        forget_counts (`Tensor`): (vocabulary,), int64: counts in forget examples.
        retain_counts (`Tensor`): (vocabulary,), int64: counts in retain examples.
        scale (`float`, *optional*, defaults to `1.0`): factor of `f/r - r/f`.
        bias (`float`, *optional*, defaults to `-4.0`): bias inside the sigmoid.

    Attributes:
        weights (`Tensor`): (vocabulary,), fp32, range [0, 1]: the routing weight of each entry in a forget example.
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
            minimum_per_10k (`float`, *optional*, defaults to `5.0`): per 10,000 tokens of both kinds of example.
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
