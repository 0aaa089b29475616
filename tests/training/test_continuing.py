"""Checkpoints of the trainer: whole or not there, without pickles, and training that stops at a signal."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_era.training import checkpointing_trainer
from hf_era.training.checkpoint_state import load_process_state, save_process_state
from hf_era.training.checkpoints import DamagedCheckpointWarning, checkpoints_in, last_whole_checkpoint
from hf_era.training.optimizer_state import load_optimizer, save_optimizer
from hf_era.utils.files import MANIFEST, damage_of
from hf_era.utils.signals import StoppedError, stop_requested, stoppable

SAVING = {"save_strategy": "steps", "save_steps": 2}


def weights(model: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_checkpoint_holds_safetensors_and_json_only(make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(max_steps=2, **SAVING)
    trainer.train()
    folder = Path(trainer.args.output_dir)
    assert [path.name for path in folder.iterdir()] == ["checkpoint-2"]  # no temporary folder is left
    names = {path.name for path in (folder / "checkpoint-2").iterdir()}
    assert {
        "model.safetensors",
        "optimizer.safetensors",
        "process_0.safetensors",
        "trainer_state.json",
        MANIFEST,
    } <= names
    assert {path.suffix for path in (folder / "checkpoint-2").iterdir()} == {".safetensors", ".json", ".md"}
    for path in (folder / "checkpoint-2").iterdir():
        assert path.read_bytes()[:2] not in (b"PK", b"\x80\x02", b"\x80\x04")  # how pickles begin


def test_optimizer_and_random_states_come_back_bit_for_bit(make_trainer: Callable[..., Any], tmp_path: Path) -> None:
    trainer = make_trainer(max_steps=3, auxiliary_learning_rate_factor=2.0)
    trainer.train()
    path = tmp_path / "optimizer.safetensors"
    optimizer = trainer.optimizer.optimizer
    save_optimizer(path, trainer.model, optimizer, trainer.lr_scheduler, writes=True)
    before = {name: {key: value.clone() for key, value in state.items()} for name, state in enumerate_state(optimizer)}
    rates = [group["lr"] for group in optimizer.param_groups]
    for _, state in enumerate_state(optimizer):
        for value in state.values():
            value.fill_(7.0)
    load_optimizer(path, trainer.model, optimizer, trainer.lr_scheduler)
    after = dict(enumerate_state(optimizer))
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name][key]) for name, state in before.items() for key, value in state.items())
    assert [group["lr"] for group in optimizer.param_groups] == rates
    assert all(tuple(group["betas"]) == (0.9, 0.95) for group in optimizer.param_groups)

    import random

    import numpy as np

    save_process_state(tmp_path / "process", {"loss": torch.tensor(0.1)}, {"total_loss": 1.0})
    drawn = [torch.rand(3).tolist(), random.random(), float(np.random.rand()), random.gauss(0, 1)]
    sums, numbers = load_process_state(tmp_path / "process")
    assert [torch.rand(3).tolist(), random.random(), float(np.random.rand()), random.gauss(0, 1)] == drawn
    assert torch.equal(sums["loss"], torch.tensor(0.1))
    assert numbers == {"total_loss": 1.0}


def enumerate_state(optimizer: Any) -> list[tuple[int, dict[str, Tensor]]]:
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    return [(index, optimizer.state[value]) for index, value in enumerate(parameters)]


def test_a_damaged_checkpoint_is_named_and_passed_over(make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(max_steps=6, **SAVING)
    trainer.train()
    folder = Path(trainer.args.output_dir)
    assert [path.name for path in checkpoints_in(folder)] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert last_whole_checkpoint(folder) == str(folder / "checkpoint-6")
    flipped = folder / "checkpoint-6" / "model.safetensors"
    content = bytearray(flipped.read_bytes())
    content[-5] ^= 1
    flipped.write_bytes(content)
    with pytest.warns(DamagedCheckpointWarning, match=r"checkpoint-6 is damaged: model.safetensors is not as it was"):
        assert last_whole_checkpoint(folder) == str(folder / "checkpoint-4")
    (folder / "checkpoint-4" / "optimizer.safetensors").unlink()
    told: list[str] = []
    assert last_whole_checkpoint(folder, told.append) == str(folder / "checkpoint-2")
    assert "checkpoint-4 is damaged: optimizer.safetensors is missing" in told[1]
    (folder / "checkpoint-2" / MANIFEST).unlink()  # as one whose writing was cut off
    assert last_whole_checkpoint(folder, told.append) is None
    with pytest.raises(
        ValueError, match=r"checkpoint-6 is damaged: model.safetensors .*`True` for the last that is whole"
    ):
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-6"))


def test_a_pickle_where_a_checkpoint_is_expected_is_refused(make_trainer: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "trainer_state.json").write_text('{"global_step": 3}')
    with pytest.raises(
        ValueError, match=r"has no manifest.json.*It holds pytorch_model.bin: pickles, which are never read"
    ):
        make_trainer().train(resume_from_checkpoint=str(folder))
    with pytest.raises(ValueError, match="does not exist"):
        make_trainer().train(resume_from_checkpoint=str(tmp_path / "none"))


def test_only_so_many_checkpoints_are_kept_and_the_best(make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(max_steps=8, save_total_limit=2, **SAVING)
    trainer.train()
    assert [path.name for path in checkpoints_in(trainer.args.output_dir)] == ["checkpoint-6", "checkpoint-8"]


def test_the_best_checkpoint_has_its_final_name(
    make_trainer: Callable[..., Any], make_stories: Callable[..., Any]
) -> None:
    evaluation = make_stories(4).remove_columns("routing_weight")
    trainer = make_trainer(
        max_steps=6,
        save_total_limit=1,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        evaluation=evaluation,
        **SAVING,
    )
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best in checkpoints_in(trainer.args.output_dir)
    assert damage_of(best) is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_stops_and_training_goes_on_exactly(
    make_trainer: Callable[..., Any], signal_at: Callable[..., Any], tmp_path: Path, number: int
) -> None:
    settings = {"max_steps": 7, "logging_steps": 3, "save_strategy": "no", "l1_coefficient": 1e-2}
    whole = make_trainer(**settings, output_dir=str(tmp_path / "whole"))
    whole.train()
    stopped = make_trainer(**settings, output_dir=str(tmp_path / "stopped"), callbacks=[signal_at(3, number)])
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    with pytest.raises(StoppedError, match=r"Stopped at step 4 of 7, with a checkpoint in .*stopped"), stoppable():
        stopped.train()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == handlers
    assert stop_requested() is None
    assert [path.name for path in checkpoints_in(tmp_path / "stopped")] == ["checkpoint-4"]
    resumed = make_trainer(**settings, output_dir=str(tmp_path / "stopped"))
    output = resumed.train(resume_from_checkpoint=True)
    assert equal(weights(resumed.model), weights(whole.model))
    keys = ("step", "loss", "language_model_loss", "l1_loss", "grad_norm", "learning_rate")
    lines = [
        [{key: line.get(key) for key in keys} for line in trainer.state.log_history] for trainer in (whole, resumed)
    ]
    assert lines[0] == lines[1]
    assert output.training_loss == pytest.approx(whole.state.log_history[-1]["train_loss"], rel=1e-6)


def test_a_stream_in_its_second_pass_is_not_continued_exactly_and_says_so(
    make_trainer: Callable[..., Any], make_stories: Callable[..., Any]
) -> None:
    def make() -> Any:
        stories = make_stories(4).to_iterable_dataset().shuffle(seed=3, buffer_size=4)
        settings = {"save_strategy": "steps", "save_steps": 3, "per_device_train_batch_size": 2}
        return make_trainer(stories=stories, max_steps=4, **settings)

    whole, continued = make(), make()
    with pytest.warns(UserWarning, match=r"a stream without a length.*begins anew.*will not read the examples") as told:
        whole.train()
    assert len(told) == 1
    with pytest.warns(
        UserWarning, match=r"checkpoint-3 was saved when .*goes on at the beginning of the second"
    ) as told:
        continued.train(resume_from_checkpoint=str(Path(whole.args.output_dir) / "checkpoint-3"))
    assert len(told) == 1
    assert not equal(weights(continued.model), weights(whole.model))  # or the warning has no reason any more


def test_a_signal_outside_of_training_stops_at_once() -> None:
    with pytest.raises(StoppedError, match="Stopped by SIGUSR1"), stoppable():
        signal.raise_signal(signal.SIGUSR1)


def test_a_save_that_fails_keeps_the_checkpoint_before(
    make_trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(max_steps=4, **SAVING)
    original = checkpointing_trainer.save_optimizer

    def full_disk(path: Path, *args: Any, **kwargs: Any) -> None:
        if trainer.state.global_step == 4:
            raise OSError(28, "No space left on device")
        original(path, *args, **kwargs)

    monkeypatch.setattr(checkpointing_trainer, "save_optimizer", full_disk)
    with pytest.raises(
        OSError, match=r"checkpoint-4 cannot be written: no space .*whole checkpoint is .*checkpoint-2\."
    ):
        trainer.train()
    folder = Path(trainer.args.output_dir)
    assert [path.name for path in folder.iterdir()] == ["checkpoint-2"]
    assert damage_of(folder / "checkpoint-2") is None
