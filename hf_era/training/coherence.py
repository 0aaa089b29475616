"""Coherence fine-tuning: a few steps on retain stories after the cut, and the best weights kept.

The retain validation loss is measured before the first step and after every one; the weights of the lowest are kept. The
first candidate is "no change", so this phase never makes the retain loss worse on those stories.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from hf_era.files import read_json, whole_directory, write_json
from hf_era.training.checkpoints import last_complete_checkpoint
from hf_era.training.config import GradientRoutingConfig
from hf_era.training.token_weighted_trainer import TokenWeightedTrainer

METRIC = "eval_loss"


@dataclass
class CoherenceConfig:
    """Coherence fine-tuning. Defaults: the seed's.

    Args:
        enabled (`bool`, *optional*, defaults to `True`): `False` leaves the phase out.
        steps (`int`, *optional*, defaults to `500`): steps at most.
        stories (`int`, *optional*, defaults to `64`): retain training stories; all of them are the batch of every step.
        learning_rate (`float`, *optional*, defaults to `5e-5`): constant.
        patience (`int`, *optional*): stop after so many steps in a row without a new best. Not given: never.

    Raises:
        ValueError: for a number out of range.
    """

    enabled: bool = field(default=True, metadata={"help": "false leaves this phase out."})
    steps: int = field(default=500, metadata={"help": "Steps at most."})
    stories: int = field(default=64, metadata={"help": "Retain stories, the batch of every step."})
    learning_rate: float = field(default=5e-5, metadata={"help": "Learning rate, constant."})
    patience: int | None = field(default=None, metadata={"help": "Stop after so many steps without a new best."})

    def __post_init__(self) -> None:
        for name, minimum in (("steps", 1), ("stories", 1), ("patience", 1)):
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise ValueError(f"`coherence.{name}` should be at least {minimum}, got {value}.")
        if not self.learning_rate > 0:
            raise ValueError(f"`coherence.learning_rate` should be positive, got {self.learning_rate}.")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class KeepBestWeights(TrainerCallback):
    """Saves the model in `folder` whenever its evaluation loss is the lowest so far, and counts steps without one."""

    def __init__(self, folder: Path, patience: int | None = None) -> None:
        self.folder, self.patience = folder, patience
        self.history: list[dict[str, float]] = (read_json(folder / "history.json") or {}).get("evaluations", [])

    @property
    def best(self) -> dict[str, float] | None:
        return min(self.history, key=lambda entry: entry["loss"]) if self.history else None

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step, loss = state.global_step, kwargs["metrics"][METRIC]
        # A continued run evaluates its first step again.
        self.history = [entry for entry in self.history if entry["step"] < step]
        is_best = self.best is None or loss < self.best["loss"]
        self.history.append({"step": step, "loss": loss})
        if is_best and state.is_world_process_zero:
            with whole_directory(self.folder) as folder:
                kwargs["model"].save_pretrained(folder)
                write_json(folder / "history.json", {"evaluations": self.history})
        best = self.best
        if self.patience is not None and best is not None and step - best["step"] >= self.patience:
            control.should_training_stop = True


class StepBar(ProgressCallback):
    """The Trainer's bar over the steps, without a line and a second bar for every evaluation."""

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        pass

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        pass


def coherence_arguments(config: CoherenceConfig, base: GradientRoutingConfig, output_dir: str) -> GradientRoutingConfig:
    """The Trainer's arguments of this phase: the routing phase's machine settings, its own schedule."""
    per_device = min(base.per_device_train_batch_size, config.stories)
    accumulation = max(-(-config.stories // (per_device * max(base.world_size, 1))), 1)
    return GradientRoutingConfig(
        output_dir=output_dir,
        max_steps=config.steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant",
        warmup_steps=0,
        adam_beta1=base.adam_beta1,
        adam_beta2=base.adam_beta2,
        weight_decay=base.weight_decay,
        max_grad_norm=base.max_grad_norm,
        per_device_train_batch_size=per_device,
        per_device_eval_batch_size=base.per_device_eval_batch_size,
        gradient_accumulation_steps=accumulation,
        eval_strategy="steps",
        eval_steps=1,
        eval_on_start=True,
        save_strategy="steps",
        save_steps=base.save_steps,
        save_total_limit=1,
        logging_steps=max(config.steps // 10, 1),
        seed=base.seed,
        data_seed=base.data_seed,
        bf16=base.bf16,
        fp16=base.fp16,
        use_cpu=base.use_cpu,
        report_to=base.report_to,
        disable_tqdm=base.disable_tqdm,
        remove_unused_columns=True,
    )


def fine_tune_for_coherence(
    model: Any,
    args: GradientRoutingConfig,
    config: CoherenceConfig,
    train_dataset: Dataset,
    validation_retain: Dataset,
    tokenizer: Any,
) -> tuple[Path, dict[str, Any]]:
    """Fine-tunes a contracted model; returns the folder with the best weights and what happened.

    Args:
        model: a stock causal LM; changed in place.
        args (`GradientRoutingConfig`): from `coherence_arguments`.
        config (`CoherenceConfig`): for the patience.
        train_dataset (`Dataset`): the retain stories of the batch.
        validation_retain (`Dataset`): the retain stories that choose the best weights.
        tokenizer: its padding id pads.

    Returns: the folder, and a dict with `best_step` (0: no change), `best_loss`, `first_loss` and the `history`.
    """
    callback = KeepBestWeights(Path(str(args.output_dir)) / "best", config.patience)
    trainer = TokenWeightedTrainer(
        model,
        args,
        train_dataset=train_dataset,
        eval_dataset=validation_retain,
        processing_class=tokenizer,
        callbacks=[callback],
    )
    # An evaluation after every step: the bar of the steps says enough.
    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback) is not None and not args.disable_tqdm:
        trainer.add_callback(StepBar)
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(str(args.output_dir)))
    best = callback.best or {"step": 0, "loss": float("nan")}
    for checkpoint in Path(str(args.output_dir)).glob("checkpoint-*"):
        shutil.rmtree(checkpoint, ignore_errors=True)
    return callback.folder, {
        "best_step": int(best["step"]),
        "best_loss": best["loss"],
        "first_loss": callback.history[0]["loss"],
        "history": callback.history,
    }
