"""Repetition and the mean of batch means on hand-made cases, the arithmetic written out."""

import math

import pytest
import torch

from hf_era.evaluation.losses import mean_of_batch_means
from hf_era.evaluation.text_metrics import mean_repetition, trigram_repetition


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0.0),
        ("a b", 0.0),  # no trigram
        ("a b c", 0.0),  # one of one
        ("a b c d", 0.0),  # abc, bcd
        ("a a a a", 1 - 1 / 2),  # aaa, aaa
        ("a b c a b c", 1 - 3 / 4),  # abc, bca, cab, abc
        ("a  b\nc\ta b c", 1 - 3 / 4),  # any white space
        ("the tree. The tree. the tree.", 0.0),  # as written: the tree. The / tree. The tree. / The tree. the / ...
    ],
)
def test_trigrams(text: str, expected: float) -> None:
    assert trigram_repetition(text) == pytest.approx(expected, abs=1e-12)


def test_the_mean_counts_each_text_the_same() -> None:
    assert mean_repetition(["a a a a", "a b c a b c", "a b"]) == pytest.approx((1 / 2 + 1 / 4 + 0) / 3)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="`texts` is empty, so there is no mean"):
        mean_repetition([])
    with pytest.raises(ValueError, match="`texts` should be a list of strings, got the string 'a a a'"):
        mean_repetition("a a a")


def test_mean_of_batch_means_depends_on_order_and_batch_size() -> None:
    nll, tokens = torch.tensor([6.0, 2.0, 9.0]), torch.tensor([3.0, 1.0, 3.0])
    # Batches (6 + 2) / (3 + 1) = 2 and 9 / 3 = 3; the token-weighted loss would be 17 / 7.
    assert mean_of_batch_means(nll, tokens, 2) == pytest.approx((2 + 3) / 2)
    assert mean_of_batch_means(nll, tokens, 3) == pytest.approx(17 / 7)
    assert mean_of_batch_means(nll, tokens, 80) == pytest.approx(17 / 7)
    assert mean_of_batch_means(nll, tokens, 1) == pytest.approx((2 + 2 + 3) / 3)
    # (6 + 9) / (3 + 3) = 2.5 and 2 / 1 = 2
    assert mean_of_batch_means(nll[[0, 2, 1]], tokens[[0, 2, 1]], 2) == pytest.approx((2.5 + 2) / 2)


def test_a_batch_without_tokens_is_left_out() -> None:
    nll, tokens = torch.tensor([0.0, 0.0, 4.0]), torch.tensor([0, 0, 2])
    assert mean_of_batch_means(nll, tokens, 2) == 2.0
    assert mean_of_batch_means(nll[:2], tokens[:2], 2) is None
    assert mean_of_batch_means(nll[:0], tokens[:0], 2) is None
    assert math.isnan(mean_of_batch_means(torch.tensor([math.nan]), torch.tensor([1]), 2) or 0.0)


def test_a_batch_size_below_one_is_named() -> None:
    with pytest.raises(ValueError, match="`batch_size` should be at least 1, got 0"):
        mean_of_batch_means(torch.ones(1), torch.ones(1), 0)
