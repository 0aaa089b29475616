"""Filler rows: how they are made, where they stand, and that they count for nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader, SequentialSampler

from hf_era.data import PaddedSampler, PaddingRowCollator, RoutingCollator, StoriesWithPaddingRows

ROWS = {
    "input_ids": [[5, 6, 7], [8], [9, 10, 11, 12]],
    "routing_weight": [[0.0, 0.5, 0.5], [0.0], [0.0] * 4],
    "is_forget_word": [[True] * 3, [True], [True] * 4],
}
OWN_MASKS = {"attention_mask": [[1, 1, 0], [1], [0, 1, 1, 1]], "labels": [[-100, 6, 7], [8], [9, 10, 11, 12]]}


def filled_loader(rows: dict[str, Any], batch_size: int, plain: bool = False) -> DataLoader:
    stories: Any = Dataset.from_dict(rows)
    stories = StoriesWithPaddingRows([dict(row) for row in stories] if plain else stories)
    sampler = PaddedSampler(SequentialSampler(stories), batch_size, len(stories))
    return DataLoader(stories, batch_size, sampler=sampler, collate_fn=PaddingRowCollator(RoutingCollator(0)))


@pytest.mark.parametrize("plain", [False, True], ids=["datasets", "list"])
@pytest.mark.parametrize("rows", [ROWS, {**ROWS, **OWN_MASKS}], ids=["plain", "own masks"])
def test_padding_rows_are_masked_in_every_column(rows: dict[str, Any], plain: bool) -> None:
    first, second = filled_loader(rows, 2, plain)
    assert torch.equal(
        first["input_ids"], RoutingCollator(0)([dict(row) for row in Dataset.from_dict(rows)][:2])["input_ids"]
    )
    assert second["input_ids"].shape == (2, 4)
    assert second["input_ids"][0].tolist() == [9, 10, 11, 12]
    assert second["attention_mask"][1].tolist() == [0] * 4
    assert second["labels"][1].tolist() == [-100] * 4
    assert second["routing_weight"][1].tolist() == [1.0] * 4
    assert second["is_forget_word"][1].tolist() == [False] * 4
    assert second["routing_weight"][0].tolist() == [0.0] * 4


def test_the_sampler_fills_up_to_a_multiple_and_no_further() -> None:
    stories = range(6)
    assert list(PaddedSampler(SequentialSampler(stories), 4, 6)) == [0, 1, 2, 3, 4, 5, 6, 6]
    assert list(PaddedSampler(SequentialSampler(stories), 3, 6)) == list(range(6))
    assert len(PaddedSampler(SequentialSampler(stories), 4, 6)) == 8


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(ValueError, match=r"The data set is empty: there is no example to share out"):
        StoriesWithPaddingRows(Dataset.from_dict({"input_ids": []}))


def test_a_collator_without_labels_is_refused() -> None:
    collator = PaddingRowCollator(lambda rows: {"input_ids": torch.zeros(len(rows), 2)})
    stories = StoriesWithPaddingRows([{"input_ids": [1, 2]}])
    assert collator([stories[0]])["input_ids"].shape == (1, 2)  # no padding_row row: the collator's own business
    with pytest.raises(ValueError, match=r"`data_collator` \(function\) gave a batch with \['input_ids'\]"):
        collator([stories[0], stories[1]])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("left_padded", [False, True])
def test_padding_rows_add_nothing_and_a_whole_batch_of_them_has_zero_gradients(
    left_padded: bool,
    attention: str,
    make_expanded: Callable[..., Any],
    make_batch: Callable[..., Any],
    gradients_of: Callable[..., Any],
) -> None:
    model = make_expanded([0, 2])
    model.set_attn_implementation(attention)
    batch = make_batch()
    if left_padded:
        batch = {name: value.flip(1) for name, value in batch.items()}
    masked = {"attention_mask": 0, "labels": -100, "routing_weight": 1.0}
    padding_row = {name: torch.full_like(value, masked.get(name, 3)) for name, value in batch.items()}
    count = (batch["labels"][:, 1:] != -100).sum()

    def gradients(values: dict[str, Any]) -> tuple[float, Any]:
        model.zero_grad()
        outputs = model(**values, output_activation_l1=True, num_items_in_batch=count)
        total = outputs.loss + 0.01 * outputs.activation_l1
        total.backward()
        return float(total.detach()), gradients_of(model)

    loss, alone = gradients(batch)
    mixed_loss, mixed = gradients({name: torch.cat([batch[name], padding_row[name]]) for name in batch})
    assert mixed_loss == pytest.approx(loss, rel=1e-6)
    for name, value in alone.items():
        torch.testing.assert_close(mixed[name], value, rtol=1e-5, atol=1e-7)
    empty_loss, empty = gradients(padding_row)
    assert empty_loss == 0
    assert all(value is not None and torch.count_nonzero(value) == 0 for value in empty.values())
