"""`GradientMultipliers`: the four signed numbers and the two factors per token."""

from dataclasses import FrozenInstanceError, fields

import pytest
import torch

from hf_era.routing import GradientMultipliers


def test_defaults_are_those_of_the_seed() -> None:
    assert GradientMultipliers().to_dict() == {
        "original_forget": -0.75,
        "original_retain": 1.0,
        "auxiliary_forget": 1.0,
        "auxiliary_retain": 1.0,
    }


def test_factors_at_both_ends_and_between() -> None:
    multipliers = GradientMultipliers(
        original_forget=-2.0, original_retain=0.5, auxiliary_forget=4.0, auxiliary_retain=-1.0
    )
    weight = torch.tensor([[0.0, 1.0, 0.25]])
    assert multipliers.original_factor(weight).tolist() == [[-2.0, 0.5, 0.25 * 0.5 + 0.75 * -2.0]]
    assert multipliers.auxiliary_factor(weight).tolist() == [[4.0, -1.0, 0.25 * -1.0 + 0.75 * 4.0]]


def test_factors_keep_shape_and_dtype() -> None:
    weight = torch.rand(2, 3, dtype=torch.float64)
    assert GradientMultipliers().original_factor(weight).dtype == torch.float64
    assert GradientMultipliers().auxiliary_factor(weight).shape == (2, 3)


def test_seeds_numbers_are_exact_at_the_ends() -> None:
    """No rounding at w = 0 and w = 1: a retain token must keep exactly its gradient."""
    weight = torch.tensor([[0.0, 1.0]])
    assert GradientMultipliers().original_factor(weight).tolist() == [[-0.75, 1.0]]
    assert GradientMultipliers().auxiliary_factor(weight).tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), "1.0", None, True])
@pytest.mark.parametrize("name", [item.name for item in fields(GradientMultipliers)])
def test_a_multiplier_must_be_a_finite_number(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"`{name}` should be a finite number such as -0.75, got {value!r}\."):
        GradientMultipliers(**{name: value})  # type: ignore[arg-type]


def test_it_cannot_be_changed_by_accident() -> None:
    with pytest.raises(FrozenInstanceError):
        GradientMultipliers().original_forget = 1.0  # type: ignore[misc]


def test_every_field_has_a_help_text() -> None:
    assert all(item.metadata["help"] for item in fields(GradientMultipliers))
