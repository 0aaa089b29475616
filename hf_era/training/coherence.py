"""Coherence fine-tuning: a few steps on retain examples after the cut, and the best weights kept.

The loss on held-out retain examples is measured before the first step and after every one; the weights of the lowest are
kept. The first candidate is "no change", so this phase never makes the retain loss worse on those examples. They should be
others than those that are reported: the lowest of many measurements flatters. A run holds some back for it
(`data.coherence_validation_stories`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from hf_era.training.causal_lm_trainer import CausalLMTrainer
from hf_era.training.config import CausalLMTrainingConfig
from hf_era.utils.checks import check_count, check_positive
from hf_era.utils.fields import setting
from hf_era.utils.files import damage_of, read_json, recover_leftovers, whole_directory, write_json, write_manifest

METRIC = "eval_loss"
BEST = "best"
HISTORY = f"{BEST}-history.json"


@dataclass
class CoherenceConfig:
    """Coherence fine-tuning. Defaults: the seed's.

    Args:
        enabled (`bool`, *optional*, defaults to `True`): `False` leaves the phase out.
        steps (`int`, *optional*, defaults to `500`): steps at most.
        stories (`int`, *optional*, defaults to `64`): retain training examples; all of them are the batch of every step. The
            first ones, or, where unlabelled ones are among them, drawn at random with the run's seed.
        learning_rate (`float`, *optional*, defaults to `5e-5`): constant.
        patience (`int`, *optional*): stop after so many steps in a row without a new best. Not given: never.
        unlabelled (`bool`, *optional*, defaults to `True`): where some examples have no label, they are taken for retain, as
            in the routing: nobody can tell them apart. `False`: only examples that are labelled retain. (Where labels were
            dropped by `data.labelled_fraction`, that is more than somebody with such labels knows: only forget examples lose
            theirs.)

    Raises:
        ValueError: for a number out of range.
    """

    enabled: bool = setting(True, "false leaves this phase out.", identity=True)
    steps: int = setting(500, "Steps at most.", identity=True)
    stories: int = setting(64, "Retain examples, the batch of every step.", identity=True)
    learning_rate: float = setting(5e-5, "Learning rate, constant.", identity=True)
    patience: int | None = setting(None, "Stop after so many steps without a new best.", identity=True)

    # The phase's key says whether there were any: without them it changes nothing.
    unlabelled: bool = setting(True, "Take examples without a label for retain.", identity=False)

    def __post_init__(self) -> None:
        for name in ("steps", "stories", "patience"):
            check_count(f"coherence.{name}", getattr(self, name))
        check_positive("coherence.learning_rate", self.learning_rate)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class KeepBestWeights(TrainerCallback):
    """Saves a trainer's model in `best` whenever its evaluation loss is the lowest so far, and counts steps without one.

    All losses stand in a file beside that folder, so that a continued run knows those before its checkpoint. Weights that
    were saved after that checkpoint may have replaced better ones, but the same steps come again and save them again.
    """

    def __init__(self, trainer: CausalLMTrainer, patience: int | None = None) -> None:
        self.trainer, self.patience = trainer, patience
        output = Path(str(trainer.args.output_dir))
        self.folder, self._history_file = output / BEST, output / HISTORY
        recover_leftovers(output)
        self.history: list[dict[str, float]] = (read_json(self._history_file) or {}).get("evaluations", [])

    @property
    def best(self) -> dict[str, float] | None:
        return min(self.history, key=lambda entry: entry["loss"]) if self.history else None

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step, loss = state.global_step, kwargs["metrics"][METRIC]
        # A continued run evaluates its first step again.
        self.history = [entry for entry in self.history if entry["step"] < step]
        is_best = self.best is None or loss < self.best["loss"]
        self.history.append({"step": step, "loss": loss})
        if is_best:  # before the history says so: killed in between, they are saved once more
            self._save(state.is_world_process_zero)
        if state.is_world_process_zero:
            write_json(self._history_file, {"evaluations": self.history})
        if self.gave_up():
            control.should_training_stop = True

    def gave_up(self) -> bool:
        best = self.best
        return (
            self.patience is not None and best is not None and self.history[-1]["step"] - best["step"] >= self.patience
        )

    def _save(self, writes: bool) -> None:
        if not writes:  # all processes take part where the weights are sharded
            self.trainer.save_whole_model(self.folder)
            return
        with whole_directory(self.folder) as folder:
            self.trainer.save_whole_model(folder)
            write_manifest(folder)


class StepBar(ProgressCallback):
    """The Trainer's bar over the steps, without a line and a second bar for every evaluation."""

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        pass

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        pass


class TellProgress(TrainerCallback):
    """Says after every step which share of a training's steps is done, in [0, 1]."""

    def __init__(self, tell: Callable[[float], None]) -> None:
        self.tell = tell

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.tell(state.global_step / max(state.max_steps, 1))


def damage_of_best(folder: Path) -> str | None:
    """What is wrong with the best weights so far, in the output directory of an unfinished phase; `None` if nothing is, or
    if there are none yet. Without them the phase has to begin anew: the steps that made them do not come again."""
    best = folder / BEST
    return damage_of(best) if best.exists() or (folder / HISTORY).exists() else None


def coherence_settings(config: CoherenceConfig, per_device_batch_size: int, processes: int) -> dict[str, Any]:
    """What differs from the routing phase's Trainer arguments: a schedule of its own, all examples in every step.

    Args:
        config (`CoherenceConfig`): the phase.
        per_device_batch_size (`int`): of the routing phase; a larger batch is accumulated from micro-batches of it.
        processes (`int`): that share the batch.
    """
    per_device = min(per_device_batch_size, config.stories)
    return {
        "max_steps": config.steps,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "constant",
        "lr_scheduler_kwargs": None,
        "warmup_steps": 0,
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": max(-(-config.stories // (per_device * max(processes, 1))), 1),
        "train_sampling_strategy": "random",
        "eval_strategy": "steps",
        "eval_steps": 1,
        "eval_on_start": True,
        "metric_for_best_model": None,  # of the routing phase, which has other evaluation sets; here it is the retain loss
        "save_strategy": "steps",
        "save_total_limit": 1,
        "logging_steps": max(config.steps // 10, 1),
    }


def fine_tune_for_coherence(
    model: Any,
    args: CausalLMTrainingConfig,
    config: CoherenceConfig,
    train_dataset: Dataset,
    validation_retain: Dataset,
    tokenizer: Any,
    on_progress: Callable[[float], None] | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Fine-tunes a contracted model; returns the folder with the best weights and what happened.

    Args:
        model: a stock causal LM; changed in place.
        args (`CausalLMTrainingConfig`): the routing phase's with `coherence_settings` over them.
        config (`CoherenceConfig`): for the patience.
        train_dataset (`Dataset`): the retain examples of the batch.
        validation_retain (`Dataset`): the retain examples that choose the best weights; neither those of the batch nor
            those that the model is then measured on.
        tokenizer: its padding id pads.
        on_progress (*optional*): is told after every step which share of them is done.

    Returns: the folder, and a dict with `best_step` (0: no change), `best_loss`, `first_loss` and the `history`.
    """
    trainer = CausalLMTrainer(
        model, args, train_dataset=train_dataset, eval_dataset=validation_retain, processing_class=tokenizer
    )
    callback = KeepBestWeights(trainer, config.patience)
    trainer.add_callback(callback)
    if on_progress is not None:
        trainer.add_callback(TellProgress(on_progress))
    # An evaluation after every step: the bar of the steps says enough.
    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback) is not None and not args.disable_tqdm:
        trainer.add_callback(StepBar)
    if not callback.gave_up():  # a run that was killed right after its last step makes no other
        trainer.train(resume_from_checkpoint=True)
    best = callback.best or {"step": 0, "loss": float("nan")}
    return callback.folder, {
        "best_step": int(best["step"]),
        "best_loss": best["loss"],
        "first_loss": callback.history[0]["loss"],
        "history": callback.history,
    }
