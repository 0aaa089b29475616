"""Distance of the weights and the loss barrier, on cases with a known answer."""

import math

import pytest
import torch
from torch import nn

from hf_era.evaluation.distance import interpolated, is_comparable, loss_barrier, weight_distance


def line_of(start: float, end: float) -> tuple[nn.Module, nn.Module]:
    """A model with one weight at `end`, and the one that it came from."""
    models = [nn.Linear(1, 1, bias=False) for _ in range(2)]
    for model, value in zip(models, (end, start), strict=True):
        nn.init.constant_(model.weight, value)
    return models[0], models[1]


def weight_of(model: nn.Module) -> float:
    return next(model.parameters()).item()


def test_distance_is_the_norm_of_the_difference_and_tied_weights_count_once() -> None:
    class Tied(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(4, 3), nn.Linear(3, 4, bias=False)
            self.head.weight = self.embedding.weight
            nn.init.constant_(self.embedding.weight, value)

    found = weight_distance(Tied(1.5), Tied(1.0))
    assert found == pytest.approx({"l2": 0.5 * math.sqrt(12), "relative": 0.5})
    assert weight_distance(Tied(1.0), Tied(1.0)) == {"l2": 0.0, "relative": 0.0}
    assert weight_distance(Tied(1.0), Tied(0.0))["relative"] == math.inf
    assert is_comparable(Tied(1.0), Tied(0.0))
    assert not is_comparable(Tied(1.0), nn.Linear(3, 4))


def test_a_point_of_the_line_leaves_both_ends_as_they_are() -> None:
    model, other = line_of(-1.0, 3.0)
    assert weight_of(interpolated(model, other, 0.25)) == 0.0
    assert (weight_of(model), weight_of(other)) == (3.0, -1.0)


def test_a_barrier_is_what_rises_above_the_straight_line_between_the_losses() -> None:
    model, other = line_of(-1.0, 1.0)
    found = loss_barrier(
        model, other, lambda part: {"hill": 1 + weight_of(part) - weight_of(part) ** 2, "bowl": weight_of(part) ** 2}, 3
    )
    # Half-way the hill has 1, where the straight line from -1 to 1 has 0; a bowl lies below it everywhere.
    assert found["barrier"] == pytest.approx({"hill": 1.0, "bowl": 0.0})
    assert [part["share"] for part in found["line"]] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert found["line"][0]["hill"] == pytest.approx(-1.0)
    assert torch.is_grad_enabled()


def test_a_base_in_half_precision_is_met_on_the_line_as_it_is() -> None:
    model, other = line_of(1.0, 1.0 + 1e-4)  # closer than bf16 can tell
    other.bfloat16()
    found = loss_barrier(model, other, lambda part: {"weight": weight_of(part)}, 1)
    assert [part["weight"] for part in found["line"]] == pytest.approx([1.0, 1.00005, 1.0001], abs=1e-6)
    assert next(interpolated(model, other, 0.5).parameters()).dtype == torch.float32


def test_known_ends_are_not_measured_again() -> None:
    seen: list[float] = []
    model, other = line_of(-1.0, 1.0)
    ends = [{"loss": 5.0}, {"loss": 7.0}]
    found = loss_barrier(model, other, lambda part: seen.append(weight_of(part)) or {"loss": 9.0}, 1, ends)
    assert seen == [0.0]
    assert found["barrier"] == {"loss": 3.0}
