"""Mask rules and the frequency table, against computations by hand in plain Python."""

import math
from collections import Counter
from dataclasses import fields

import pytest
import torch

from hf_era.routing import FrequencyTable, RoutingRuleConfig, align_to_prediction, count_tokens, token_weights

FORGET_STORIES = [[1, 2, 2, 3], [2, 2, 2, 5], [4]]
RETAIN_STORIES = [[1, 3, 3, 4], [1, 1, 5, 5, 5, 5], [2]]
VOCABULARY = 8


def weight_by_hand(token: int, scale: float = 1.0, bias: float = -4.0) -> float:
    """The rule in plain Python: synthetic counts 1 and 20, then 1 - sigmoid(scale (f/r - r/f) + bias)."""
    forget = Counter(token for story in FORGET_STORIES for token in story)
    retain = Counter(token for story in RETAIN_STORIES for token in story)
    forget_frequency = (forget[token] + 1) / (sum(forget.values()) + VOCABULARY)
    retain_frequency = (retain[token] + 20) / (sum(retain.values()) + 20 * VOCABULARY)
    argument = scale * (forget_frequency / retain_frequency - retain_frequency / forget_frequency) + bias
    return 1 - 1 / (1 + math.exp(-argument))


def make_table(**options: float) -> FrequencyTable:
    return FrequencyTable(count_tokens(FORGET_STORIES, VOCABULARY), count_tokens(RETAIN_STORIES, VOCABULARY), **options)


# ---- Alignment ----


def test_the_weight_of_a_position_is_that_of_the_token_it_predicts() -> None:
    weights = [0.1, 0.2, 0.3, 0.4]
    aligned = align_to_prediction(weights)
    assert aligned == [0.2, 0.3, 0.4, 1.0]
    tokens = [7, 8, 9, 10]
    # Position i is fed token i and predicts token i + 1, whose weight it has to carry.
    by_token = dict(zip(tokens, weights, strict=True))
    for position in range(len(tokens) - 1):
        assert aligned[position] == by_token[tokens[position + 1]]


@pytest.mark.parametrize(("weights", "aligned"), [([], []), ([0.5], [1.0])])
def test_alignment_of_very_short_stories(weights: list[float], aligned: list[float]) -> None:
    assert align_to_prediction(weights) == aligned


def test_alignment_leaves_its_argument_alone() -> None:
    weights = [0.1, 0.2]
    align_to_prediction(weights)
    assert weights == [0.1, 0.2]


# ---- Rules ----


def test_uniform_is_zero_on_every_token() -> None:
    config = RoutingRuleConfig(rule="full_seq", weighting="uniform")
    assert token_weights(config, [3, 4, 5], [True, False, False]) == [0.0, 0.0, 0.0]


def test_concept_is_zero_on_the_forget_words_only() -> None:
    config = RoutingRuleConfig(rule="concept")
    assert token_weights(config, [3, 4, 5, 6], [False, True, True, False]) == [1.0, 0.0, 0.0, 1.0]


def test_none_is_one_everywhere() -> None:
    assert token_weights(RoutingRuleConfig(rule="none"), [3, 4], [True, True]) == [1.0, 1.0]


def test_frequency_looks_each_token_up() -> None:
    table = make_table()
    story = [2, 0, 2, 5]
    weights = token_weights(RoutingRuleConfig(), story, [False] * 4, table.weights)
    assert weights == pytest.approx([weight_by_hand(token) for token in story], abs=1e-6)


def test_frequency_needs_the_tables_weights() -> None:
    with pytest.raises(ValueError, match='weighting="frequency" needs `vocabulary_weights`'):
        token_weights(RoutingRuleConfig(), [1], [False])


@pytest.mark.parametrize(
    ("rule", "weighting", "needs"),
    [
        ("full_seq", "frequency", True),
        ("full_seq", "uniform", False),
        ("concept", "frequency", False),
        ("none", "frequency", False),
    ],
)
def test_which_rule_needs_frequencies(rule: str, weighting: str, needs: bool) -> None:
    assert RoutingRuleConfig(rule=rule, weighting=weighting).needs_frequencies is needs


# ---- Frequencies ----


def test_count_tokens_counts() -> None:
    assert count_tokens(FORGET_STORIES, VOCABULARY).tolist() == [0, 1, 5, 1, 1, 1, 0, 0]
    assert count_tokens([], VOCABULARY).tolist() == [0] * VOCABULARY
    assert count_tokens([[]], VOCABULARY).tolist() == [0] * VOCABULARY


@pytest.mark.parametrize(("scale", "bias"), [(1.0, -4.0), (0.5, 0.0), (2.0, 1.0)])
def test_frequency_weights_by_hand(scale: float, bias: float) -> None:
    weights = make_table(scale=scale, bias=bias).weights
    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx([weight_by_hand(token, scale, bias) for token in range(VOCABULARY)], 1e-5)
    assert 0 <= weights.min() <= weights.max() <= 1


def test_default_settings_of_the_rule_are_those_of_the_table() -> None:
    config = RoutingRuleConfig()
    assert (config.frequency_scale, config.frequency_bias, config.frequency_stories) == (1.0, -4.0, 25_000)
    by_default, by_config = make_table(), make_table(scale=config.frequency_scale, bias=config.frequency_bias)
    assert torch.equal(by_default.weights, by_config.weights)


def test_a_forget_token_is_routed_and_a_retain_token_is_not() -> None:
    forget, retain = torch.zeros(100, dtype=torch.int64), torch.zeros(100, dtype=torch.int64)
    forget[:] = retain[:] = 1000
    forget[3], retain[4] = 50_000, 50_000
    weights = FrequencyTable(forget, retain).weights
    assert weights[3] < 1e-6
    assert weights[4] > 0.999
    assert weights[5] == pytest.approx(1 - 1 / (1 + math.exp(4)), abs=0.005)  # f = r: 0.98, hardly routed


def test_a_rare_word_without_a_retain_story_is_not_routed_for_it() -> None:
    """What the 20 synthetic retain counts are for."""
    forget, retain = torch.full((100,), 1000), torch.full((100,), 1000)
    forget[7], retain[7] = 2, 0
    assert FrequencyTable(forget, retain).weights[7] > 0.99


def test_table_rows_hold_real_frequencies_and_are_sorted_by_weight() -> None:
    rows = make_table().rows(decode=lambda token: f"<{token}>", minimum_per_10k=5.0)
    assert rows[0].token_id == 2
    assert [row.weight for row in rows] == sorted(row.weight for row in rows)
    assert {row.token_id for row in rows} == {1, 2, 3, 4, 5}  # 0, 6 and 7 do not occur
    by_id = {row.token_id: row for row in rows}
    assert by_id[2].token == "<2>"
    assert by_id[2].weight == pytest.approx(weight_by_hand(2), abs=1e-6)
    assert by_id[2].forget_per_10k == pytest.approx(5 / 9 * 1e4)
    assert by_id[2].retain_per_10k == pytest.approx(1 / 11 * 1e4)


def test_table_ties_are_in_a_fixed_order() -> None:
    counts = torch.tensor([5, 5, 5])
    assert [row.token_id for row in FrequencyTable(counts, counts).rows(str)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("minimum", "expected"),
    [(0.0, {1, 2, 3, 4, 5}), (1000.0, {1, 2, 3, 5}), (1999.0, {1, 2, 5}), (2000.0, {2, 5}), (3000.0, set())],
)
def test_table_holds_tokens_above_the_overall_frequency(minimum: float, expected: set[int]) -> None:
    # Of 20 tokens, per 10,000: token 1: 4 (2000), 2: 6 (3000), 3: 3 (1500), 4: 2 (1000), 5: 5 (2500).
    assert {row.token_id for row in make_table().rows(str, minimum_per_10k=minimum)} == expected


def test_table_without_any_story_does_not_divide_by_zero() -> None:
    empty = torch.zeros(3, dtype=torch.int64)
    table = FrequencyTable(empty, empty)
    assert torch.isfinite(table.weights).all()
    assert table.rows(str) == []


def test_row_as_a_dict() -> None:
    row = make_table().rows(str)[0].to_dict()
    assert list(row) == ["token", "token_id", "weight", "forget_per_10k", "retain_per_10k"]


def test_counts_of_different_vocabularies_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"need the same vocabulary, got \(3,\) and \(4,\)"):
        FrequencyTable(torch.ones(3, dtype=torch.int64), torch.ones(4, dtype=torch.int64))


# ---- Errors of the config ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"rule": "concpt"},
            r"Unknown value for `routing.rule`: 'concpt'. Did you mean `concept`\? Known: full_seq, concept, none.",
        ),
        (
            {"rule": "fullseq"},
            r"Unknown value for `routing.rule`: 'fullseq'. Did you mean `full_seq`\? Known: full_seq, concept, none.",
        ),
        ({"rule": "xyzzy"}, "Unknown value for `routing.rule`: 'xyzzy'. Known: full_seq, concept, none."),
        (
            {"weighting": "frequencies"},
            r"Unknown value for `routing.weighting`: 'frequencies'. Did you mean `frequency`\? "
            "Known: uniform, frequency.",
        ),
        ({"frequency_scale": 0}, "`routing.frequency_scale` should be positive, got 0."),
        ({"frequency_scale": -1.5}, "`routing.frequency_scale` should be positive, got -1.5."),
        ({"frequency_stories": 0}, "`routing.frequency_stories` should be at least 1, got 0."),
        ({"table_minimum_per_10k": -1}, "`routing.table_minimum_per_10k` should be >= 0, got -1."),
    ],
)
def test_errors_name_field_value_and_way_out(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        RoutingRuleConfig(**options)


def test_every_field_has_a_help_text() -> None:
    assert all(item.metadata["help"] for item in fields(RoutingRuleConfig))
