"""A `Trainer` that can be stopped or killed at any time, and goes on from its last checkpoint bit for bit."""

from __future__ import annotations

import functools
import math
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy, TrainOutput, has_length

from hf_era.models.adapters import adapters_kept
from hf_era.training.checkpoint_state import load_process_state, load_weights, process_file, save_process_state
from hf_era.training.checkpoints import (
    check_checkpoint,
    check_has_optimizer,
    last_whole_checkpoint,
    remove_old_checkpoints,
)
from hf_era.training.optimizer_state import OPTIMIZER_FILE, check_can_be_saved, load_optimizer, save_optimizer
from hf_era.training.stepped_weights import SteppedWeights
from hf_era.utils.files import make_folder, put_in_place, read_json, write_json, write_manifest, write_text
from hf_era.utils.signals import StoppedError, signals_deferred, stop_requested
from hf_era.utils.storage_errors import StorageError, as_storage_error

_ANOTHER_STREAM = "Where that matters, give a data set with a length, or a stream that is longer than the run."
REPEATED_STREAM_MESSAGE = (
    "`train_dataset` is a stream without a length, and all of it was read: it begins anew. A run that goes on from a "
    f"checkpoint saved from here on will not read the examples that this one reads. {_ANOTHER_STREAM}"
)
STAGING = ".saving.tmp"
SCALER_FILE = "scaler.json"


class CheckpointingTrainer(Trainer):
    """`Trainer` with checkpoints that are whole or not there, a stop at a signal, and runs that are continued exactly.

    Checkpoints hold safetensors and JSON (the Trainer's own hold pickles, which run code when read), and with them what is
    summed up for the next line of the log. Under DeepSpeed the engine has files of its own, and they stay as they are.

    Within `hf_era.utils.signals.stoppable()` SIGTERM and SIGUSR1 make `train` finish its step, save a checkpoint and raise
    `StoppedError`. Several processes agree on the step: it is enough that one of them got the signal.
    A stream without a length is continued exactly within its first pass alone; a warning says so.
    Arguments are those of `Trainer`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._staging: Path | None = None
        self._continued_from: Path | None = None
        self._first_step_since_continued = False
        self._stop_signs: Tensor | None = None
        self._stop_agreed = self._stopping = False
        self._stepped_weights = SteppedWeights()
        self._initial_global_step = 0  # which the Trainer of transformers 5.17 does not have
        self.add_callback(_StopAndContinue(self))

    # ---- Stop and continue ----

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): a checkpoint of ours, or `True` for the newest whole one in
                the output directory.

        Raises:
            ValueError: if the checkpoint is damaged or none of ours, or if the optimizer keeps something that no checkpoint
                can hold: before the first step, or right after it if that makes it.
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
            output = self._finished_before(self._continued_from)
            if output is not None:
                return output
            if not self.is_deepspeed_enabled:  # its engine has files of its own
                check_has_optimizer(self._continued_from)
        with signals_deferred():
            output = super().train(resume_from_checkpoint or None, *args, **kwargs)
        if self._stopping:
            step, last = self.state.global_step, self.state.max_steps
            raise StoppedError(f"Stopped at step {step} of {last}, with a checkpoint in {self.args.output_dir}.")
        return output

    def _finished_before(self, checkpoint: Path) -> TrainOutput | None:
        """What `train` returns where a checkpoint was the last: all that was left to do is what comes after training."""
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        # Without `max_steps` the last step is only known where the epochs are the same as before.
        same_epochs = state.num_train_epochs == math.ceil(self.args.num_train_epochs)
        last_step = self.args.max_steps if self.args.max_steps > 0 else state.max_steps if same_epochs else 0
        if not 0 < last_step <= state.global_step:
            return None
        self._load_from_checkpoint(str(checkpoint))
        state.is_local_process_zero = self.is_local_process_zero()  # the file is the main process's
        state.is_world_process_zero = self.is_world_process_zero()
        self.state = state
        if self.args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._load_best_model()
        return TrainOutput(state.global_step, self._mean_loss_of(checkpoint), {})

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        if self.args.world_size > 1:
            # Once a step, on the device: whoever got the signal tells the others.
            sign = torch.tensor([stop_requested() is not None], dtype=torch.int32, device=self.args.device)
            self._stop_signs = self.accelerator.gather(sign)
        return super().get_batch_samples(*args, **kwargs)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        self._stepped_weights.bring_back(self.model, self.optimizer)
        if self._first_step_since_continued and isinstance(model, DistributedDataParallel):
            self._lay_out_buckets(model, inputs, num_items_in_batch)
        self._first_step_since_continued = False
        if self._stop_signs is not None:
            # Looked at here, not at the step's end, where the host would wait for the device to do the whole step.
            self._stop_agreed, self._stop_signs = bool(self._stop_signs.any()), None
        return super().training_step(model, inputs, num_items_in_batch)

    def stops_here(self) -> bool:
        """Whether training stops after this step because a signal asked to: the same answer in every process."""
        self._stopping = stop_requested() is not None if self.args.world_size == 1 else self._stop_agreed
        return self._stopping

    def _mean_loss_of(self, checkpoint: Path) -> float:
        path = self._own_file(checkpoint)
        if path is None:
            return float("nan")
        sums, numbers = load_process_state(path, random_states=False)
        loss = sums["loss"].to(self.args.device)
        loss = self.accelerator.gather(loss).mean() if self.args.world_size > 1 else loss
        return (numbers["total_loss"] + float(loss)) / max(self.state.global_step, 1)

    def _determine_best_metric(self, *args: Any, **kwargs: Any) -> bool:
        # `save_strategy="best"` saves at an evaluation only if this says so: a stop has to be saved, too.
        return super()._determine_best_metric(*args, **kwargs) or self._stopping

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As `Trainer.evaluate`."""
        if self.is_in_train:
            self._stepped_weights.put_aside(self.model, self.optimizer)
        return super().evaluate(*args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        self._stepped_weights.put_aside(self.model, self.optimizer)
        self._stepped_weights.forget()
        if not self._stopping:
            return super()._finalize_training(*args, **kwargs)
        # The run goes on: the Trainer must not load the best weights, nor remove what was just saved for them.
        best, self.state.best_model_checkpoint = self.state.best_model_checkpoint, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.state.best_model_checkpoint = best

    def _continue_sums(self) -> None:
        path = self._own_file(self._continued_from)
        if path is not None:
            # The Trainer puts the random states back itself, when it has skipped the batches.
            self.continue_logging_sums(*load_process_state(path, random_states=False))

    def _lay_out_buckets(self, model: DistributedDataParallel, inputs: dict[str, Any], num_items: Any) -> None:
        """DDP puts its gradients into other buckets after the first backward pass, and where a gradient lies in a bucket
        says in which order three or more processes add it up. The run that was stopped had that behind it; a continued one
        does it here, with a pass that is thrown away, and so adds up in the same order from its first step on."""
        sums, synchronises = self.logging_sums(), model.require_backward_grad_sync
        device = self.args.device
        devices = [] if device.type == "cpu" else [device]
        model.require_backward_grad_sync = True  # else nothing is looked at while batches are accumulated
        with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, self._prepare_inputs(inputs), num_items_in_batch=num_items)
            self.accelerator.backward(loss)
        model.require_backward_grad_sync = synchronises
        model.zero_grad()
        self.continue_logging_sums(*sums)

    # ---- What is summed up for the log ----

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

    # ---- What a checkpoint holds ----

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        model: Any = self.model
        if self._staging is not None and isinstance(model, PreTrainedModel):
            # Put back by the names that the model has. A saved model may have others (GPT-NeoX), which would not be found.
            model.save_pretrained = functools.partial(model.save_pretrained, save_original_format=False)  # type: ignore
        try:
            super()._save(output_dir, state_dict)
        finally:
            model.__dict__.pop("save_pretrained", None)
        if self.args.should_save:  # the Trainer's copy of its arguments is a pickle
            folder = Path(str(output_dir if output_dir is not None else self.args.output_dir))
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
            write_text(folder / "training_args.json", self.args.to_json_string() + "\n")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:  # the Trainer would look for a pickle of the engine's own
            load_weights(Path(resume_from_checkpoint), self.model if model is None else model)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # Tied weights are saved once, under one of their names: what was loaded under that is not missing.
        model: Any = self.model
        missing, weights = set(load_result.missing_keys), model.state_dict(keep_vars=True)
        loaded = {id(value) for name, value in weights.items() if name not in missing}
        left = [name for name in load_result.missing_keys if name not in weights or id(weights[name]) not in loaded]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=left))

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled:
            load_weights(Path(str(self.state.best_model_checkpoint)), self.model)
        else:
            super()._load_best_model()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_deepspeed_enabled:  # the engine has files of its own
            super()._save_optimizer_and_scheduler(output_dir)
            return
        path = Path(output_dir) / OPTIMIZER_FILE
        stepped_weights = self._stepped_weights.put_aside(self.model, self.optimizer)
        save_optimizer(
            path, self.model, self.optimizer, self.lr_scheduler, self.args.should_save, stepped_weights=stepped_weights
        )

    def check_optimizer_can_be_saved(self) -> None:
        """Raises `ValueError` now, if what the optimizer keeps would make the next checkpoint fail."""
        saves = self.args.save_strategy != SaveStrategy.NO and not self.args.save_only_model
        if saves and not self.is_deepspeed_enabled:
            check_can_be_saved(self.model, self.optimizer, self.lr_scheduler)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        load_optimizer(Path(checkpoint) / OPTIMIZER_FILE, self.model, self.optimizer, self.lr_scheduler)

    def _save_scaler(self, output_dir: str) -> None:
        scaler = self.accelerator.scaler
        if scaler is not None and self.args.should_save:  # numbers alone
            write_json(Path(output_dir) / SCALER_FILE, scaler.state_dict())

    def _load_scaler(self, checkpoint: str | None) -> None:
        state = None if checkpoint is None else read_json(Path(checkpoint) / SCALER_FILE)
        if state is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state)

    def _save_rng_state(self, output_dir: str) -> None:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        save_process_state(Path(output_dir) / process_file(self.args.process_index), *self.logging_sums())

    def _load_rng_state(self, checkpoint: str | None) -> None:
        path = self._own_file(checkpoint)
        if path is not None:
            load_process_state(path)

    def _own_file(self, checkpoint: str | Path | None) -> Path | None:
        """This process's file in a checkpoint; `None` for one that the saved run did not have: it draws what it draws."""
        path = None if checkpoint is None else Path(checkpoint) / process_file(self.args.process_index)
        return path if path is not None and path.is_file() else None

    # ---- Save ----

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(super()._get_output_dir(trial))
        final, staging = folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}", folder / STAGING
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)  # of a save that was killed
        self.accelerator.wait_for_everyone()
        self._staging = staging
        try:
            with as_storage_error(final), adapters_kept():
                self._stepped_weights.put_aside(self.model, self.optimizer)
                if self.args.should_save:
                    make_folder(folder)
                super()._save_checkpoint(model, trial)
                best = self.state.best_model_checkpoint  # in every process: each loads it at the end
                if best is not None and Path(best).parent == staging:
                    self.state.best_model_checkpoint = str(folder / Path(best).name)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    self._finish_checkpoint(staging / final.name, final)
        except StorageError as error:
            kept = last_whole_checkpoint(folder, tell=lambda text: None)
            state = f"The last whole checkpoint is {kept}." if kept else "There is no checkpoint of this phase yet."
            raise StorageError(f"{error} {state}", error.path, error.errno or 0) from error
        finally:
            self._staging = None
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            best, limit = self.state.best_model_checkpoint, self.args.save_total_limit
            remove_old_checkpoints(final, None if best is None else Path(best), limit)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))

    def _finish_checkpoint(self, written: Path, final: Path) -> None:
        if self.state.best_model_checkpoint == str(final):  # the Trainer has written down where it was staged
            self.state.save_to_json(str(written / TRAINER_STATE_NAME))
        write_manifest(written)
        put_in_place(written, final)

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._staging is None:  # not from under the temporary name: `_save_checkpoint` calls it again afterwards
            super()._push_from_checkpoint(checkpoint_folder)


def continued_stream_message(checkpoint: Path) -> str:
    """The warning's text for a checkpoint saved when a stream had been read once and was read again."""
    return (
        f"{checkpoint} was saved when `train_dataset`, a stream without a length, had been read once and was read again; "
        "how far is not known. Training goes on at the beginning of the second pass, and not with the examples that the run "
        f"without a stop reads. {_ANOTHER_STREAM}"
    )


def _set_epoch(loader: Any, epoch: int) -> None:
    """Tells the sampler at the bottom of a data loader which epoch begins, whatever wraps it."""
    sampler: Any = loader.batch_sampler
    while hasattr(sampler, "batch_sampler"):
        sampler = sampler.batch_sampler
    # `batch_rebalance` has no sampler below its batches.
    parts: list[Any] = [sampler, getattr(sampler, "sampler", None)]
    for part in parts:
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)


class _StopAndContinue(TrainerCallback):
    """Where the training loop lets the trainer put its sums back, and stop."""

    def __init__(self, trainer: CheckpointingTrainer) -> None:
        self.trainer, self.saves_after_epoch, self.first_step_is_done = trainer, False, False
        self.stream_passes = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._continue_sums()
        self.trainer.check_optimizer_can_be_saved()
        self.first_step_is_done = False
        self.stream_passes = 0
        checkpoint, passes = self.trainer._continued_from, float(state.epoch or 0)
        if checkpoint is not None and passes > 1 and not has_length(kwargs["train_dataloader"]):
            self.stream_passes = 2
            warnings.warn(continued_stream_message(checkpoint), stacklevel=2)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.first_step_is_done:  # which makes the state
            self.trainer.check_optimizer_can_be_saved()
        self.first_step_is_done = True

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not has_length(kwargs["train_dataloader"]):
            self.stream_passes += 1
            if self.stream_passes == 2 and args.save_strategy != "no":
                warnings.warn(REPEATED_STREAM_MESSAGE, stacklevel=2)
        # Where several processes share the batches and some are skipped, the loader does not reach the sampler itself.
        _set_epoch(kwargs["train_dataloader"], int(state.epoch or 0))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.stops_here():
            control.should_save = control.should_training_stop = True
        self.saves_after_epoch = control.should_save and self._at_epochs_end(state)
        if self.saves_after_epoch:
            control.should_save = False  # the epoch's own log and evaluation come first: they draw random numbers

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.saves_after_epoch:
            self.saves_after_epoch, control.should_save = False, True
        elif self.trainer._stopping and not self._at_epochs_end(state):
            # Cut off, not ended: the run that is not stopped does none of this here.
            control.should_log = control.should_evaluate = control.should_save = False

    @staticmethod
    def _at_epochs_end(state: Any) -> bool:
        return float(state.epoch or 0).is_integer()
