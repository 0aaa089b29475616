"""A `Trainer` that can be stopped or killed anywhere and continued exactly.

Checkpoints are written under a temporary name, flushed, listed with their hashes in a manifest, and renamed: a folder
`checkpoint-N` is whole or not there. They hold safetensors and JSON only. A continued run has the random states, the order
of the data and the half-summed figures of the next log line that the run had which was stopped.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from hf_era.files import put_in_place, remove_directory, write_text
from hf_era.manifest import write_manifest
from hf_era.stopping import StoppedError, deferred, stop_requested
from hf_era.storage_errors import StorageError, explained
from hf_era.training.checkpoint_state import (
    OPTIMIZER_FILE,
    load_optimizer,
    load_process_state,
    load_weights,
    process_file,
    save_optimizer,
    save_process_state,
)
from hf_era.training.checkpoints import check_checkpoint, checkpoints_in, last_whole_checkpoint

STAGING = ".saving.tmp"


class ContinuableTrainer(Trainer):
    """`Trainer` with checkpoints that are whole or not there, and a stop at a signal.

    Within `hf_era.stopping.stoppable()` SIGTERM and SIGUSR1 make `train` finish its step, save a checkpoint and raise
    `StoppedError`. Several processes agree on the step: it is enough that one of them got the signal.

    Args:
        kwargs: everything that `Trainer` takes.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._staging: Path | None = None
        self._continued_from: Path | None = None
        self._first_step_since_continued = False
        self._stop_signs: Tensor | None = None
        self._stop_agreed = self._stopping = False
        self.add_callback(_StopAndContinue(self))

    # ---- Stop and continue ----

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): a checkpoint of ours, or `True` for the newest whole one in
                the output directory.

        Raises:
            ValueError: if the checkpoint is damaged or none of ours.
            StoppedError: if a signal asked to stop; a checkpoint was saved.
            StorageError: if a checkpoint could not be written; those from before are kept.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_whole_checkpoint(str(self.args.output_dir))
        elif resume_from_checkpoint:
            check_checkpoint(resume_from_checkpoint)
        self._continued_from = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        self._first_step_since_continued = self._continued_from is not None
        self._stopping, self._stop_signs, self._stop_agreed = False, None, False
        if self._continued_from is not None:
            state = TrainerState.load_from_json(str(self._continued_from / TRAINER_STATE_NAME))
            last_step = self.args.max_steps if self.args.max_steps > 0 else state.max_steps
            if 0 < last_step <= state.global_step:  # all that was left to do is what comes after training
                self._load_from_checkpoint(str(self._continued_from))
                self.state = state
                return TrainOutput(state.global_step, float("nan"), {})
        with deferred():
            output = super().train(resume_from_checkpoint or None, *args, **kwargs)
        if self._stopping:
            step, last = self.state.global_step, self.state.max_steps
            raise StoppedError(f"Stopped at step {step} of {last}, with a checkpoint in {self.args.output_dir}.")
        return output

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        if self.args.world_size > 1:
            # Once a step, on the device: whoever got the signal tells the others.
            sign = torch.tensor([stop_requested() is not None], dtype=torch.int32, device=self.args.device)
            self._stop_signs = self.accelerator.gather(sign)
        return super().get_batch_samples(*args, **kwargs)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        if self._stop_signs is not None:
            # Looked at here, not at the step's end, where the host would wait for the device to do the whole step.
            self._stop_agreed, self._stop_signs = bool(self._stop_signs.any()), None
        return super().training_step(model, inputs, num_items_in_batch)

    def is_asked_to_stop(self) -> bool:
        """Whether to stop after this step: the same answer in every process."""
        return stop_requested() is not None if self.args.world_size == 1 else self._stop_agreed

    def logging_sums(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """What is summed up for the next line of the log: scalar tensors, and plain numbers."""
        numbers = {"total_loss": self._total_loss_scalar, "last_logged": self._globalstep_last_logged}
        return {"loss": self._tr_loss}, numbers

    def continue_logging_sums(self, sums: dict[str, Tensor], numbers: dict[str, float]) -> None:
        """Puts back what `logging_sums` gave when the checkpoint was saved."""
        self._tr_loss = sums["loss"].to(self.args.device)
        self._total_loss_scalar = numbers["total_loss"]
        self._globalstep_last_logged = int(numbers["last_logged"])
        self._initial_global_step = 0  # the mean over all steps, not over those since

    def _continue_sums(self) -> None:
        path = None if self._continued_from is None else self._continued_from / process_file(self.args.process_index)
        if path is not None and path.is_file():
            # The Trainer puts the random states back itself, when it has skipped the batches.
            self.continue_logging_sums(*load_process_state(path, random_states=False))

    # ---- Save ----

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(super()._get_output_dir(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self._clear(folder / STAGING)
        self._staging = folder / STAGING
        try:
            with explained(folder / name):
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    self._finish_checkpoint(self._staging / name, folder / name)
        except StorageError as error:
            kept = last_whole_checkpoint(folder, tell=lambda text: None)
            state = f"The last whole checkpoint is {kept}." if kept else "There is no checkpoint of this phase yet."
            raise StorageError(f"{error} {state}", error.path, error.errno or 0) from error
        finally:
            self._staging = None
            if self.args.should_save:
                shutil.rmtree(folder / STAGING, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self._remove_old_checkpoints(folder)
        if self.args.push_to_hub:
            super()._push_from_checkpoint(str(folder / name))

    def _clear(self, staging: Path) -> None:
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)  # of a save that was killed
        self.accelerator.wait_for_everyone()

    def _finish_checkpoint(self, written: Path, final: Path) -> None:
        best = self.state.best_model_checkpoint
        if best is not None and Path(best).parent == written.parent:
            self.state.best_model_checkpoint = str(final.with_name(Path(best).name))
            self.state.save_to_json(str(written / TRAINER_STATE_NAME))
        write_manifest(written)
        put_in_place(written, final)

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Not from under the temporary name: `_save_checkpoint` does it when the checkpoint is in place."""

    def _remove_old_checkpoints(self, folder: Path) -> None:
        limit = self.args.save_total_limit
        if limit is None or limit <= 0:
            return
        found, best = checkpoints_in(folder), self.state.best_model_checkpoint
        removable = [path for path in found[:-1] if best is None or path != Path(best)]
        for path in removable[: max(len(found) - limit, 0)]:
            remove_directory(path)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:  # the Trainer's copy of its arguments is a pickle
            folder = Path(str(output_dir if output_dir is not None else self.args.output_dir))
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
            write_text(folder / "training_args.json", self.args.to_json_string() + "\n")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:  # the Trainer would look for a pickle of the engine's own
            load_weights(Path(resume_from_checkpoint), self.model if model is None else model)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    # ---- State beside the weights, without pickles ----

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_deepspeed_enabled:  # the engine has files of its own
            super()._save_optimizer_and_scheduler(output_dir)
            return
        path, optimizer = Path(output_dir) / OPTIMIZER_FILE, _unwrapped(self.optimizer)
        save_optimizer(path, self.model, optimizer, self.lr_scheduler, self.args.should_save)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        load_optimizer(Path(checkpoint) / OPTIMIZER_FILE, self.model, _unwrapped(self.optimizer), self.lr_scheduler)

    def _save_rng_state(self, output_dir: str) -> None:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        save_process_state(Path(output_dir) / process_file(self.args.process_index), *self.logging_sums())

    def _load_rng_state(self, checkpoint: str | None) -> None:
        path = None if checkpoint is None else Path(checkpoint) / process_file(self.args.process_index)
        if path is not None and path.is_file():  # another number of processes: the new ones draw what they draw
            load_process_state(path)


def _set_epoch(loader: Any, epoch: int) -> None:
    """Tells the sampler at the bottom of a data loader which epoch begins, whatever wraps it."""
    sampler: Any = loader.batch_sampler
    while hasattr(sampler, "batch_sampler"):
        sampler = sampler.batch_sampler
    sampler = getattr(sampler, "sampler", None)
    if sampler is not None and hasattr(sampler, "set_epoch"):
        sampler.set_epoch(epoch)


def _unwrapped(optimizer: Any) -> Any:
    """The optimizer itself, without accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


class _StopAndContinue(TrainerCallback):
    """Where the training loop lets the trainer put its sums back, and stop."""

    def __init__(self, trainer: ContinuableTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._continue_sums()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Where several processes share the batches and some are skipped, the loader does not reach the sampler itself.
        _set_epoch(kwargs["train_dataloader"], int(state.epoch or 0))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.is_asked_to_stop():
            self.trainer._stopping = True
            control.should_save = control.should_training_stop = True
