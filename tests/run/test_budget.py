"""A budget: steps as a share of what the pretraining took."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState
from datasets import Dataset
from rich.console import Console

from hf_era import RunConfig
from hf_era.data import FORGET, RETAIN
from hf_era.evaluation.summary import recipe_of
from hf_era.run.budget import mean_tokens, within_budget
from hf_era.run.config import load_run_config
from hf_era.run.pipeline import prepare_run

from ..reporting.samples import bare_run

THEIRS: dict[str, Any] = {"base": "theirs", "architecture": None}
Make = Callable[..., RunConfig]
EXAMPLES = Dataset.from_dict({"input_ids": [[1] * 10, [1] * 30] * 16, "label": [FORGET, RETAIN] * 8 + [RETAIN] * 16})


def arguments_of(config: RunConfig) -> Any:
    return config.training_arguments(config.output_path / "checkpoints")


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ({"pretraining_tokens": 8_000.0}, 25),  # 4 examples of 20 tokens a step: 100 steps
        ({"pretraining_steps": 1_000}, 250),
        ({"pretraining_steps": 1}, 1),  # never none
    ],
)
def test_a_base_from_elsewhere(given: dict[str, Any], steps: int, tmp_path: Path, make_run_config: Make) -> None:
    model, training = THEIRS, {"per_device_train_batch_size": 4, "max_steps": 7}
    config = make_run_config(tmp_path, model=model, method="continue_retain", training=training, budget=0.25, **given)
    within, note = within_budget(config, arguments_of(config), EXAMPLES)
    assert within.training["max_steps"] == steps
    assert "max_steps" not in config.training  # the budget takes its place
    assert f": {steps} steps, {steps * 4 / 24:.1f} times the 24 examples that are trained on." in note
    assert RunConfig.from_dict(within.to_dict()) == config


def test_a_base_that_is_trained_here_keeps_its_length(tmp_path: Path, make_run_config: Make) -> None:
    console, state = Console(quiet=True), PartialState()
    settings = {
        "method": "continue_retain",
        "training": {"max_steps": 8},
        "model": {"base_dir": str(tmp_path / "base")},
    }
    alone = prepare_run(make_run_config(tmp_path / "a", **settings), console, state).run
    run = prepare_run(make_run_config(tmp_path / "b", **settings, budget=0.5), console, state).run
    assert run.arguments.max_steps == run.training_arguments("train", "key").max_steps == 4
    assert run.stock_arguments("base", "key").max_steps == 8
    assert run.base_key == alone.base_key  # the same base
    same = make_run_config(
        tmp_path / "c", **{**settings, "training": {"max_steps": 4}, "pretraining": {"max_steps": 8}}
    )
    assert prepare_run(same, console, state).run.identity == run.identity  # a budget is a way to say the steps


def test_a_base_with_other_batches(tmp_path: Path, make_run_config: Make) -> None:
    training, pretraining = {"per_device_train_batch_size": 4}, {"max_steps": 100, "per_device_train_batch_size": 16}
    config = make_run_config(
        tmp_path, method="continue_retain", training=training, pretraining=pretraining, budget=0.25
    )
    within, note = within_budget(config, arguments_of(config), EXAMPLES)
    assert within.training["max_steps"] == 100  # of 4 examples: a quarter of 100 of 16
    assert "100 steps of 16 examples" in note
    assert "more than the pretraining took" not in note
    config.budget = 25.0  # meant as a percentage
    note = within_budget(config, arguments_of(config), EXAMPLES)[1]
    assert note.endswith(" That is more than the pretraining took: a quarter of it is 0.25.")


@pytest.mark.parametrize("pretraining", [{}, {"num_train_epochs": 1.0}])
def test_a_base_of_epochs_is_the_same_with_a_budget(
    pretraining: dict[str, Any], tmp_path: Path, make_run_config: Make
) -> None:
    training = {"max_steps": -1, "num_train_epochs": 2.0}
    settings = {"method": "continue_retain", "training": training, "pretraining": pretraining}
    configs = [
        make_run_config(tmp_path / name, **settings, **more) for name, more in (("a", {}), ("b", {"budget": 0.5}))
    ]
    runs = [prepare_run(config, Console(quiet=True), PartialState()).run for config in configs]
    assert len({run.base_key for run in runs}) == 1


def test_a_base_that_is_trained_for_epochs(tmp_path: Path, make_run_config: Make) -> None:
    training = {"max_steps": -1, "num_train_epochs": 2.0, "per_device_train_batch_size": 4}
    config = make_run_config(tmp_path, method="continue_retain", training=training, budget=0.25)
    within, _ = within_budget(config, arguments_of(config), EXAMPLES)
    assert within.training["max_steps"] == 4  # 32 examples, twice, in fours: 16 steps
    assert within.pretraining["num_train_epochs"] == 2.0


def test_on_the_command_line() -> None:
    words = ["--budget", "0.25", "--pretraining_tokens", "2e9", "--model.base", "theirs"]
    config = load_run_config(["posttrain_fullseq"], words)
    assert (config.budget, config.pretraining_tokens) == (0.25, 2e9)
    assert "max_steps" not in config.training


def test_of_a_length_and_a_budget_the_later_one_counts(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.yaml"
    theirs.write_text("model: {base: theirs}\nbudget: 0.25\npretraining_tokens: 5e8\n")
    assert load_run_config(["posttrain_fullseq", theirs]).budget == 0.25
    for words, length in ((["--max_steps", "20"], "max_steps"), (["--num_train_epochs", "2"], "num_train_epochs")):
        config = load_run_config(["posttrain_fullseq", theirs], words)
        assert (config.budget, config.training[length]) == (None, int(words[1]))
    assert load_run_config(["posttrain_fullseq", theirs], ["--learning_rate", "1e-3"]).budget == 0.25
    with pytest.raises(ValueError, match=r"`budget` and `training\.max_steps` are both given, and each says how long"):
        load_run_config(["posttrain_fullseq", theirs], ["--budget", "0.5", "--max_steps", "20"])


def test_tokens_without_padding() -> None:
    assert mean_tokens(EXAMPLES) == 20.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 0.0}, "`budget` should be positive and finite, got 0.0"),
        ({"budget": 0.5, "model": THEIRS}, "nobody says what that was. Give `pretraining_tokens`"),
        (
            {"budget": 0.5, "model": THEIRS, "pretraining_tokens": 1e9, "pretraining_steps": 10},
            "`pretraining_tokens` and `pretraining_steps` are both given. Drop one",
        ),
        (
            {"budget": 0.5, "model": {"start": "scratch"}},
            "with `model.start` 'scratch' there is none: `training.max_steps` says how long",
        ),
        (
            {"budget": 0.5, "method": "repselect"},
            "`method: repselect` does not train for a number of steps. Leave it out, or where a file gives it: `--b",
        ),
        ({"budget": 0.5, "pretraining_steps": 10}, "`pretraining_steps` is given, but the base is trained here"),
        ({"pretraining_tokens": -1.0}, "`pretraining_tokens` should be positive"),
    ],
)
def test_a_budget_of_nothing_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path, make_run_config: Make
) -> None:
    with pytest.raises(ValueError, match=message):
        make_run_config(tmp_path, **changes)


def test_more_steps_than_there_can_be(tmp_path: Path, make_run_config: Make) -> None:
    config = make_run_config(tmp_path, method="continue_retain", model=THEIRS, budget=1e6, pretraining_steps=10**6)
    with pytest.raises(ValueError, match=r"`training\.max_steps` should be at most"):
        within_budget(config, arguments_of(config), EXAMPLES)


def test_seeds_with_other_numbers_of_steps_are_seeds_of_one_recipe(make_run_config: Make, tmp_path: Path) -> None:
    def recipe(steps: int, **more: Any) -> dict[str, str]:
        config = make_run_config(tmp_path, method="continue_retain", model=THEIRS, pretraining_tokens=1e6, **more)
        values = config.to_dict()
        values["training"] |= {"max_steps": steps}
        return recipe_of(bare_run(config=values))

    assert recipe(10, budget=0.5) == recipe(11, budget=0.5) != recipe(10, budget=0.25)
    assert recipe(10) != recipe(11)
