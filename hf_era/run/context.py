"""A run as its phases see it: what they read, where they write, and how they train and save."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset

from hf_era.run.config import RunConfig, without_routing
from hf_era.run.directory import RunPaths
from hf_era.run.identity import launch_settings, mixed_precision, training_identity
from hf_era.run.inputs import RunInputs
from hf_era.training import CausalLMTrainer, CausalLMTrainingConfig, GradientRoutingConfig
from hf_era.training.coherence import BEST
from hf_era.utils.environment import git_revision, machine_description, package_versions
from hf_era.utils.files import fingerprint, whole_directory


class Run:
    """What a method is given, as `hf_era.methods.Run` describes it.

    Args:
        config (`RunConfig`), inputs (`RunInputs`): of the run.
        arguments (`GradientRoutingConfig`): of the method's training; they know the device and the launch.
        state (`PartialState`): of this process among the launched ones; one of them writes.
        identity (`str`): fingerprint of everything that the method's training depends on.
    """

    def __init__(
        self,
        config: RunConfig,
        inputs: RunInputs,
        arguments: GradientRoutingConfig,
        state: PartialState,
        identity: str,
    ) -> None:
        self.config, self.inputs, self.arguments, self.state, self.identity = config, inputs, arguments, state, identity
        self.seed, self.start, self.base_control = config.seed, config.start, config.base_control
        self.expansion, self.router, self.routing = config.expansion, config.router, config.routing
        self.coherence, self.method_settings = config.coherence, config.method_settings
        self.base_config, self.tokenizer, self.data = inputs.base_config, inputs.tokenizer, inputs.data
        self.paths = RunPaths(config.output_path, config.base_path)
        self.base_key = self._base_key()

    @property
    def before_model(self) -> str | Path:
        """Where the model before the method is: the given base, or what was trained here."""
        return self.config.model.base or self.paths.model("base")

    @property
    def before_kind(self) -> str | None:
        """What "before the method" is."""
        if self.start == "pretrained":
            return "pretrained"
        return "base_control" if self.base_control else None

    def _base_key(self) -> str:
        """Fingerprint of the base or base control that is trained here, else of the given base."""
        if not self.config.model.trains_base:
            return self.inputs.base_fingerprint
        architecture = self.base_config.to_diff_dict()
        architecture.pop("transformers_version", None)
        # As earlier versions wrote it down, whose base was trained with the routing's config and without an L1 term.
        settings = {**without_routing(self._stock_training()), "l1_coefficient": 0.0}
        training = {**training_identity(settings), **launch_settings(self.arguments)}
        return fingerprint(self.inputs.data_fingerprint, architecture, self.seed, training)

    def _stock_training(self) -> dict[str, Any]:
        """A base control has the run's own training settings; a base that is pretrained here may have others."""
        overrides = self.config.pretraining if self.start == "pretrained" else {}
        return {**self.config.training, **overrides}

    # ---- Where ----

    def folder(self, name: str) -> Path:
        """The folder of a model of this name."""
        return self.paths.model(name)

    def checkpoints(self, phase: str, key: str) -> Path:
        """Where an unfinished phase keeps its checkpoints."""
        return self.paths.checkpoints(phase, key)

    # ---- Train and save ----

    def training_arguments(self, phase: str, key: str, **changes: Any) -> GradientRoutingConfig:
        """The section `training` with these changes, and the checkpoints of a phase."""
        return self.config.training_arguments(self.checkpoints(phase, key), **{**changes, "push_to_hub": False})

    def stock_arguments(self, phase: str, key: str) -> CausalLMTrainingConfig:
        """The same for a stock model, without what only routing has."""
        values = {**self._stock_training(), "push_to_hub": False, "save_total_limit": 1}
        return self.config.stock_training_arguments(self.checkpoints(phase, key), **values)

    def train(
        self,
        trainer_class: type[CausalLMTrainer],
        model: Any,
        arguments: CausalLMTrainingConfig,
        folder: Path,
        stories: Dataset | None = None,
    ) -> tuple[Any, Any]:
        """Trains on all stories or those given, from the last checkpoint if there is one; saves the model in a folder."""
        trainer = trainer_class(
            model,
            arguments,
            train_dataset=self.data.train if stories is None else stories,
            eval_dataset={"forget": self.data.validation_forget, "retain": self.data.validation_retain},
            processing_class=self.tokenizer,
        )
        output = trainer.train(resume_from_checkpoint=True)
        self._save(trainer.save_whole_model, folder, all_take_part=True)
        return trainer, output

    def save(self, save: Callable[[Path], Any], folder: Path) -> None:
        """Saves a model, with its own `save`, and the tokenizer, whole or not at all; the main process writes."""
        self._save(save, folder)

    def _save(self, save: Callable[[Path], Any], folder: Path, all_take_part: bool = False) -> None:
        """Where the weights are sharded all processes take part in gathering them; the main one alone writes."""
        if self.state.is_main_process:
            with whole_directory(folder) as temporary:
                save(temporary)
                self.tokenizer.save_pretrained(temporary)
        elif all_take_part:
            save(folder)
        self.state.wait_for_everyone()

    def remove_checkpoints(self, phase: str, key: str) -> None:
        """Removes the checkpoints of a phase, and nothing else (a logger may have written there). Every process calls it."""
        checkpoints = self.checkpoints(phase, key)
        self.state.wait_for_everyone()
        if self.state.is_main_process:
            # The history first: best weights without one are made again, a history without them would be believed.
            (checkpoints / f"{BEST}-history.json").unlink(missing_ok=True)
            for folder in (*checkpoints.glob("checkpoint-*"), checkpoints / BEST):
                shutil.rmtree(folder, ignore_errors=True)
            if checkpoints.is_dir() and not any(checkpoints.iterdir()):
                checkpoints.rmdir()
        gc.collect()

    # ---- Reports ----

    def training_report(self, trainer: Any, arguments: CausalLMTrainingConfig) -> dict[str, Any]:
        """What a result says of a training."""
        used = {name: getattr(arguments, name) for name in _REPORTED_ARGUMENTS if hasattr(arguments, name)}
        return {
            "steps": trainer.state.global_step,
            "arguments": {"l1_coefficient": 0.0, **used},  # a stock model's training has no such term
            "mixed_precision": mixed_precision(arguments),
            "log_history": [entry for entry in trainer.state.log_history if "train_runtime" not in entry],
            "provenance": self.provenance(),
        }

    def provenance(self) -> dict[str, Any]:
        """Time, versions, machine and revision."""
        return {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": package_versions(),
            "machine": machine_description(self.arguments.device),
            "git_revision": git_revision(),
        }


# Settings as the Trainer resolved them; no paths, no tokens.
_REPORTED_ARGUMENTS = (
    "router", "multipliers", "l1_coefficient", "learning_rate", "minimum_learning_rate_ratio", "warmup_steps",
    "weight_decay", "weight_decay_on_all_parameters", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm",
    "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "world_size",
    "auxiliary_learning_rate_factor", "auxiliary_weight_decay", "bf16", "fp16", "attn_implementation",
    "fused_activation", "chunked_loss",
)  # fmt: skip
