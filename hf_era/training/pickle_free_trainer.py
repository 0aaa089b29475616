"""A `Trainer` whose checkpoints hold safetensors and JSON. The Trainer's own hold pickles, which run code when read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME

from hf_era.files import read_json, write_json, write_text
from hf_era.training.checkpoint_state import (
    OPTIMIZER_FILE,
    load_optimizer,
    load_process_state,
    load_weights,
    process_file,
    save_optimizer,
    save_process_state,
)

SCALER_FILE = "scaler.json"


class PickleFreeTrainer(Trainer):
    """`Trainer` that writes and reads its state without pickles, and with what is summed up for the next line of the log.

    Under DeepSpeed the engine has files of its own, and they stay as they are.
    """

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

    # ---- Weights and arguments ----

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

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled:
            load_weights(Path(str(self.state.best_model_checkpoint)), self.model)
        else:
            super()._load_best_model()

    # ---- State beside the weights ----

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
        path = None if checkpoint is None else Path(checkpoint) / process_file(self.args.process_index)
        if path is not None and path.is_file():  # another number of processes: the new ones draw what they draw
            load_process_state(path)


def _unwrapped(optimizer: Any) -> Any:
    """The optimizer itself, without accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)
