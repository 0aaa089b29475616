"""Batches: every column padded to the same length, and padding that teaches nothing."""

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from hf_era.data import RoutingCollator, padding_token_id

EXAMPLES: list[dict[str, Any]] = [
    {"input_ids": [5, 6, 7], "routing_weight": [0.0, 0.25, 1.0], "is_forget_word": [False, True, False], "text": "a"},
    {
        "input_ids": [5, 9, 9, 9, 4],
        "routing_weight": [1.0, 0.5, 0.0, 0.0, 1.0],
        "is_forget_word": [True] * 5,
        "text": "b",
    },
    {"input_ids": [3], "routing_weight": [1.0], "is_forget_word": [False], "text": "c"},
]


def test_all_columns_are_padded_to_the_longest() -> None:
    batch = RoutingCollator(pad_token_id=2)(EXAMPLES)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 2, 2], [5, 9, 9, 9, 4], [3, 2, 2, 2, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]
    assert batch["labels"].tolist() == [[5, 6, 7, -100, -100], [5, 9, 9, 9, 4], [3, -100, -100, -100, -100]]
    assert batch["routing_weight"].tolist() == [[0, 0.25, 1, 1, 1], [1, 0.5, 0, 0, 1], [1, 1, 1, 1, 1]]
    assert batch["is_forget_word"].tolist() == [
        [False, True, False, False, False], [True] * 5, [False] * 5,
    ]  # fmt: skip
    types = {"input_ids": torch.long, "attention_mask": torch.long, "labels": torch.long,
             "routing_weight": torch.float32, "is_forget_word": torch.bool}  # fmt: skip
    assert {name: values.dtype for name, values in batch.items()} == types


def test_a_column_that_the_examples_lack_is_not_made_up() -> None:
    bare = [{"input_ids": example["input_ids"]} for example in EXAMPLES]
    assert set(RoutingCollator(pad_token_id=2)(bare)) == {"input_ids", "attention_mask", "labels"}
    weighted = [{name: example[name] for name in ("input_ids", "routing_weight")} for example in EXAMPLES]
    assert set(RoutingCollator(2)(weighted)) == {"input_ids", "attention_mask", "labels", "routing_weight"}


def test_a_padding_id_that_is_also_a_token_is_still_learnt() -> None:
    end = 9  # EOS and padding alike, as in GPT-2
    batch = RoutingCollator(pad_token_id=end)([{"input_ids": [end, 5, end]}, {"input_ids": [end, 5, 6, 7, end]}])
    assert batch["input_ids"].tolist() == [[9, 5, 9, 9, 9], [9, 5, 6, 7, 9]]
    assert batch["labels"].tolist() == [[9, 5, 9, -100, -100], [9, 5, 6, 7, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]


@pytest.mark.parametrize(("multiple", "length"), [(None, 5), (1, 5), (4, 8), (5, 5), (8, 8), (64, 64)])
def test_the_length_can_be_rounded_up(multiple: int | None, length: int) -> None:
    batch = RoutingCollator(pad_token_id=0, pad_to_multiple_of=multiple)(EXAMPLES)
    assert {tuple(values.shape) for values in batch.values()} == {(3, length)}
    assert batch["attention_mask"].sum().item() == 9
    assert (batch["labels"] != -100).sum().item() == 9
    assert (batch["routing_weight"][batch["attention_mask"] == 0] == 1).all()


@pytest.mark.parametrize(("longest", "length"), [(4, 5), (6, 6), (20, 8)])
def test_rounding_up_stops_where_a_model_has_no_more_positions(longest: int, length: int) -> None:
    batch = RoutingCollator(pad_token_id=0, pad_to_multiple_of=8, max_length=longest)(EXAMPLES)
    assert batch["input_ids"].shape == (3, length)


def test_it_collates_for_a_data_loader() -> None:
    many = [{"input_ids": list(range(1, 2 + index)), "routing_weight": [0.5] * (1 + index)} for index in range(10)]
    batches = list(DataLoader(many, batch_size=4, collate_fn=RoutingCollator(pad_token_id=0)))
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(4, 4), (4, 8), (2, 10)]
    lengths = [row for batch in batches for row in batch["attention_mask"].sum(dim=1).tolist()]
    assert lengths == list(range(1, 11))
    assert sum((batch["routing_weight"] == 0.5).sum().item() for batch in batches) == sum(lengths)


def test_the_examples_are_not_changed() -> None:
    before = [dict(example) for example in EXAMPLES]
    RoutingCollator(pad_token_id=2)(EXAMPLES)
    assert before == EXAMPLES


def test_padding_id_of_a_tokenizer(small_tokenizer: PreTrainedTokenizerFast) -> None:
    backend = small_tokenizer.backend_tokenizer
    assert padding_token_id(small_tokenizer) == 2
    assert padding_token_id(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|eos|>")) == 1
    assert padding_token_id(PreTrainedTokenizerFast(tokenizer_object=backend)) == 0


def test_labels_and_masks_of_the_examples_are_kept() -> None:
    examples = [
        {"input_ids": [5, 6, 0], "labels": [-100, 6, -100], "attention_mask": [1, 1, 0]},
        {"input_ids": [7], "labels": [7], "attention_mask": [1]},
    ]
    batch = RoutingCollator(0)(examples)
    assert batch["labels"].tolist() == [[-100, 6, -100], [7, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 0, 0]]
    masked = RoutingCollator(0)([{"input_ids": [5, 0], "attention_mask": [1, 0]}])
    assert masked["labels"].tolist() == [[5, -100]]


def test_wrong_lengths_and_half_given_columns_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`routing_weight` has 1 values for 3 tokens in `input_ids`"):
        RoutingCollator(0)([{"input_ids": [1, 2, 3], "routing_weight": [0.5]}])
    with pytest.raises(ValueError, match=r"Some examples of the batch have `routing_weight` and some do not"):
        RoutingCollator(0)([{"input_ids": [1], "routing_weight": [0.5]}, {"input_ids": [1]}])


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], r"The batch is empty"),
        ([{"input_ids": []}], r"Row 0 of the batch has no token in `input_ids`"),
        ([{"labels": [1]}], r"Row 0 of the batch has no `input_ids`, only \['labels'\]"),
        ([{"input_ids": 3}], r"`input_ids` of row 0 should be a list, got 3"),
        ([{"input_ids": [1]}, {"input_ids": [2, -1]}], r"`input_ids` should be from 0 to 2147483647, got -1 in row 1"),
        ([{"input_ids": [1, 2**40]}], r"`input_ids` should be .*, got 1099511627776 in row 0"),
        ([{"input_ids": [1, 2**70]}], r"`input_ids` of row 0 should be a list of integers, got an array of object"),
        ([{"input_ids": ["a"]}], r"`input_ids` of row 0 should be a list of integers, got an array of <U1"),
        ([{"input_ids": [1.0]}], r"`input_ids` of row 0 should be a list of integers, got an array of float64"),
        ([{"input_ids": [[1], [2]]}], r"list of integers, got an array of int64 with the shape \(2, 1\)"),
        ([{"input_ids": [[1], [2, 3]]}], r"`input_ids` of row 0 should hold integers, got \[\[1\], \[2, 3\]\]"),
        ([{"input_ids": [1], "labels": [-5]}], r"`labels` should be from 0 to 2147483647, or -100, got -5 in row 0"),
        ([{"input_ids": [1], "attention_mask": [2]}], r"`attention_mask` should be 0 or 1, got 2 in row 0"),
        ([{"input_ids": [1], "routing_weight": [float("nan")]}], r"in \[0, 1\]: 1 is retain, .* got nan in row 0"),
        ([{"input_ids": [1], "routing_weight": [float("inf")]}], r"in \[0, 1\].* got inf in row 0"),
        ([{"input_ids": [1], "routing_weight": [None]}], r"`routing_weight` of row 0 .* an array of object"),
        (
            [{"input_ids": [1, 2], "routing_weight": [0, 1]}, {"input_ids": [1], "routing_weight": [-0.1]}],
            r"`routing_weight` should be in \[0, 1\].* got -0\.1 in row 1 of the batch",
        ),
    ],
)
def test_values_that_no_batch_can_have_are_refused(examples: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RoutingCollator(0)(examples)


def test_ids_beyond_a_known_vocabulary_are_refused() -> None:
    collator = RoutingCollator(0, vocabulary_size=10)
    assert collator([{"input_ids": [9], "labels": [-100]}])["labels"].tolist() == [[-100]]
    with pytest.raises(ValueError, match=r"`input_ids` should be from 0 to 9, got 10 in row 0"):
        collator([{"input_ids": [10]}])
    with pytest.raises(ValueError, match=r"`labels` should be from 0 to 9, or -100, got 10 in row 0"):
        collator([{"input_ids": [9], "labels": [10]}])
