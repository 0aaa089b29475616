"""Runs with other settings than the recipes' go on exactly too, and a stop never loses the checkpoint that it saved."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_era.training.checkpoints import DamagedCheckpointWarning, checkpoints_in, last_whole_checkpoint
from hf_era.utils.signals import StoppedError, stoppable

FIGURES = ("step", "loss", "l1_loss", "grad_norm", "eval_loss", "eval_loss_ablated")


def steps_of(folder: Path) -> list[str]:
    return [path.name.removeprefix("checkpoint-") for path in checkpoints_in(folder)]


def log_of(trainer: Any) -> list[dict[str, Any]]:
    lines = [line for line in trainer.state.log_history if "train_runtime" not in line]
    return [{name: line[name] for name in FIGURES if name in line} for line in lines]


@pytest.fixture
def make_one(
    make_trainer: Callable[..., Any],
    make_expanded: Callable[..., Any],
    make_stories: Callable[..., Any],
    tmp_path: Path,
) -> Callable[..., Any]:
    """A trainer with dropout and 12 stories, three steps an epoch, in a folder of its own."""

    def make(folder: str, **settings: Any) -> Any:
        values: dict[str, Any] = {"max_steps": 8, "output_dir": str(tmp_path / folder), **settings}
        torch.manual_seed(0)
        model = make_expanded([0, 1], resid_dropout=0.1)
        evaluation = make_stories(4, seed=9).remove_columns("routing_weight")
        return make_trainer(model=model, stories=make_stories(12), evaluation=evaluation, **values)

    return make


def assert_goes_on_exactly(whole: Any, again: Any) -> None:
    pairs = zip(whole.model.named_parameters(), again.model.parameters(), strict=True)
    assert [name for (name, value), other in pairs if not torch.equal(value, other)] == []
    assert log_of(whole) == log_of(again)


def stop(trainer: Any) -> StoppedError:
    with pytest.raises(StoppedError) as stopped, stoppable():
        trainer.train()
    return stopped.value


EPOCH, NO = "epoch", "no"


@pytest.mark.parametrize(
    "strategies",
    [
        {"save_strategy": EPOCH, "eval_strategy": EPOCH},
        pytest.param({"save_strategy": NO, "eval_strategy": EPOCH}, marks=pytest.mark.slow),
        pytest.param({"save_strategy": EPOCH, "logging_strategy": EPOCH}, marks=pytest.mark.slow),
        {"save_strategy": "steps", "save_steps": 3, "eval_strategy": EPOCH},
    ],
    ids=lambda strategies: "-".join(map(str, strategies.values())),
)
@pytest.mark.parametrize("step", [2, 3], ids=["at the end of an epoch", "within an epoch"])
def test_stopped_where_something_is_done_every_epoch(
    make_one: Callable[..., Any], signal_at: Callable[..., Any], strategies: dict[str, Any], step: int
) -> None:
    whole = make_one("whole", **strategies)
    whole.train()
    stop(make_one("stopped", **strategies, callbacks=[signal_at(step)]))
    again = make_one("stopped", **strategies)
    again.train(resume_from_checkpoint=True)
    assert_goes_on_exactly(whole, again)


def test_killed_after_a_checkpoint_at_the_end_of_an_epoch(make_one: Callable[..., Any], tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": EPOCH}
    whole = make_one("whole", **settings)
    whole.train()
    again = make_one("whole", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert_goes_on_exactly(whole, again)


@pytest.mark.parametrize(
    "settings",
    [
        {"optim": "sgd"},
        {"optim": "sgd", "optim_args": "momentum=0.9"},
        {"optim": "adafactor"},
        {"train_sampling_strategy": "batch_rebalance"},
        {"gradient_accumulation_steps": 2, "dataloader_num_workers": 1},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_going_on_with_other_settings(make_one: Callable[..., Any], tmp_path: Path, settings: dict[str, Any]) -> None:
    settings = {"save_strategy": "steps", "save_steps": 4, **settings}
    whole = make_one("whole", **settings)
    whole.train()
    again = make_one("whole", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert_goes_on_exactly(whole, again)


BEST = {
    "eval_strategy": "steps",
    "learning_rate": 5e-2,
    "metric_for_best_model": "eval_loss",
    "greater_is_better": True,  # so that the best comes early
}


def test_the_best_weights_are_loaded_after_the_last_checkpoint_too(make_one: Callable[..., Any]) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2, "eval_steps": 2, "load_best_model_at_end": True, **BEST}
    settings["greater_is_better"] = False
    whole, again = make_one("whole", **settings), make_one("whole", **settings)
    expected = whole.train()
    assert not whole.state.best_model_checkpoint.endswith("-8")
    output = again.train(resume_from_checkpoint=True)
    assert_goes_on_exactly(whole, again)
    assert output.training_loss == pytest.approx(expected.training_loss, rel=1e-6)


def test_a_stop_keeps_its_checkpoint_beside_the_best(
    make_one: Callable[..., Any], signal_at: Callable[..., Any], tmp_path: Path
) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2, "eval_steps": 2, "save_total_limit": 1, **BEST}
    trainer = make_one("stopped", max_steps=12, **settings, callbacks=[signal_at(8)])
    assert "step 9 of 12" in str(stop(trainer))
    assert "9" in steps_of(tmp_path / "stopped")
    assert trainer.state.best_model_checkpoint is not None


def test_a_stop_is_saved_where_only_the_best_is(
    make_one: Callable[..., Any], signal_at: Callable[..., Any], tmp_path: Path
) -> None:
    settings = {"save_strategy": "best", "eval_steps": 1, **BEST}
    stop(make_one("stopped", **settings, callbacks=[signal_at(4)]))
    assert "5" in steps_of(tmp_path / "stopped")


def test_a_damaged_later_checkpoint_does_not_take_the_place_of_a_new_one(
    make_one: Callable[..., Any], signal_at: Callable[..., Any], tmp_path: Path
) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    make_one("run", **settings).train()
    assert steps_of(tmp_path / "run") == ["8"]
    (tmp_path / "run" / "checkpoint-8" / "model.safetensors").write_bytes(b"damaged")
    again = make_one("run", **settings, callbacks=[signal_at(4)])
    with pytest.raises(StoppedError), pytest.warns(DamagedCheckpointWarning), stoppable():
        again.train(resume_from_checkpoint=True)
    assert steps_of(tmp_path / "run") == ["5"]
    assert last_whole_checkpoint(tmp_path / "run") is not None


def test_more_epochs_than_before_are_trained(make_one: Callable[..., Any]) -> None:
    make_one("run", max_steps=-1, num_train_epochs=1, save_strategy=EPOCH).train()
    again = make_one("run", max_steps=-1, num_train_epochs=2, save_strategy=EPOCH)
    assert again.train(resume_from_checkpoint=True).global_step == 6


def test_a_checkpoint_without_the_optimizer_is_refused(make_one: Callable[..., Any], tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 4, "save_only_model": True}
    make_one("run", **settings).train()
    with pytest.raises(ValueError, match=r"checkpoint-4 has no optimizer.safetensors: .*`save_only_model=True`"):
        make_one("run").train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))


def test_the_gradient_scaler_comes_back_without_a_pickle(make_one: Callable[..., Any], tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 4}
    trainer = make_one("run", **settings)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a schedule that a scaler's skipped step came before
        trainer.train()
    files = {path.suffix for path in (tmp_path / "run" / "checkpoint-4").iterdir()}
    assert files == {".safetensors", ".json", ".md"}
    again = make_one("run", **settings)
    again.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    again._load_scaler(str(tmp_path / "run" / "checkpoint-8"))
    assert again.accelerator.scaler.state_dict() == trainer.accelerator.scaler.state_dict()
