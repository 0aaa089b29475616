"""The trainer with routers at the parameters: what it measures with, and the data that they cannot take."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from datasets import Dataset


@pytest.mark.parametrize("router", ["gram", "demix"])
def test_predictions_are_made_with_all_modules_on_whatever_the_routing_weights(
    router: str, make_trainer: Callable[..., Any], make_stories: Callable[..., Dataset]
) -> None:
    stories = make_stories(4)
    assert min(map(min, stories["routing_weight"])) < 1
    expected = make_trainer(evaluation=stories.remove_columns("routing_weight"), router=router).predict(
        stories.remove_columns("routing_weight")
    )
    found = make_trainer(evaluation=stories, router=router).predict(stories)
    assert np.array_equal(found.predictions, expected.predictions)


def test_scores_are_no_labels(make_trainer: Callable[..., Any], make_stories: Callable[..., Dataset]) -> None:
    """An example of score 0.1 has a weight of 0.9, and would be taken for a forget example."""
    stories = make_stories(4).add_column("score", [0.1, 0.9, 0.0, 0.2])
    with pytest.raises(ValueError, match=r"The router `gram` asks of each example .* `train_dataset` has scores"):
        make_trainer(stories=stories, router="gram")
    make_trainer(stories=stories, router="parameter")


def test_a_router_that_needs_labels_refuses_examples_without_one(
    make_trainer: Callable[..., Any], make_stories: Callable[..., Dataset]
) -> None:
    stories = make_stories(4)
    marked = [[row == 2] * length for row, length in enumerate(stories["length"])]
    with pytest.raises(ValueError, match=r"The router `demix` has nothing to do with examples without a label"):
        make_trainer(stories=stories.add_column("is_unassigned", marked), router="demix")
    none = stories.add_column("is_unassigned", [[False] * length for length in stories["length"]])
    make_trainer(stories=none, router="demix")
    make_trainer(stories=stories.add_column("is_unassigned", marked), router={"name": "demix", "unlabelled": "all"})
