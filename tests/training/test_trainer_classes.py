"""How the trainers are built: few levels, each set up by its constructor, each attribute of one class."""

import ast
import inspect
import textwrap

import pytest
from transformers import Trainer

from hf_era import GradientRoutingTrainer
from hf_era.training import CausalLMTrainer
from hf_era.training.checkpointing_trainer import CheckpointingTrainer

LEVELS = 3


def levels(kind: type) -> list[type]:
    """The classes that a trainer has over `Trainer`, mixins included, the lowest first."""
    return [part for part in kind.__mro__ if part not in Trainer.__mro__]


def assigned(kind: type) -> dict[str, set[str]]:
    """The attributes that the methods of a class assign to `self`, under the names of the methods."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    return {
        method.name: {
            node.attr
            for node in ast.walk(method)
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
            if isinstance(node.value, ast.Name) and node.value.id == "self"
        }
        for method in ast.walk(tree)
        if isinstance(method, ast.FunctionDef)
    }


def not_owned(kinds: list[type]) -> list[str]:
    """One line for each attribute that a class assigns without having made it in its own constructor, or that two classes
    assign. Those of `Trainer` itself are left out."""
    trainers_own = set().union(*assigned(Trainer).values())
    found, owners = [], {}
    for kind in kinds:
        methods = assigned(kind)
        made = methods.get("__init__", set()) - trainers_own
        for name in sorted(set().union(*methods.values()) - trainers_own):
            if name not in made:
                found.append(f"{kind.__name__} assigns {name}, which its constructor does not make")
            if name in owners:
                found.append(f"{kind.__name__} and {owners[name].__name__} assign {name}")
            owners[name] = kind
    return found


def test_three_levels_at_most() -> None:
    found = levels(GradientRoutingTrainer)
    assert found == [GradientRoutingTrainer, CausalLMTrainer, CheckpointingTrainer]
    assert len(found) <= LEVELS


def test_a_mixin_is_a_level_too() -> None:
    class Mixin:
        pass

    class Planted(Mixin, GradientRoutingTrainer):
        pass

    assert len(levels(Planted)) == LEVELS + 2


def test_each_class_sets_up_and_changes_its_own_attributes() -> None:
    kinds = levels(GradientRoutingTrainer)
    assert all(assigned(kind)["__init__"] for kind in kinds)
    assert not_owned(kinds) == []


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ("_made_late", ["Planted assigns _made_late, which its constructor does not make"]),
        (
            "_first_step_since_continued",
            [
                "Planted assigns _first_step_since_continued, which its constructor does not make",
                "Planted and CheckpointingTrainer assign _first_step_since_continued",
            ],
        ),
        ("state", []),
    ],
)
def test_an_attribute_of_nobody_or_of_two_is_found(
    attribute: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = f"class Planted:\n    def train(self):\n        self.{attribute} = True\n"
    real = inspect.getsource
    monkeypatch.setattr(inspect, "getsource", lambda kind: source if kind.__name__ == "Planted" else real(kind))
    assert not_owned([CheckpointingTrainer, type("Planted", (), {})]) == expected
