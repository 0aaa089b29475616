"""The phases of the life cycle. Each makes its outputs whole or not at all and returns a report for the result file."""

from __future__ import annotations

import gc
import shutil
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import AutoModelForCausalLM, set_seed

from hf_era.data import RETAIN
from hf_era.models import expand_base
from hf_era.models.loading import causal_lm_from_config, expanded_from_config, load_causal_lm
from hf_era.run.config import RunConfig, without_routing
from hf_era.run.directory import RunFolders, fingerprint
from hf_era.run.inputs import RunInputs, effective_training, launch_settings, mixed_precision
from hf_era.training import (
    CausalLMTrainer,
    CausalLMTrainingConfig,
    GradientRoutingConfig,
    GradientRoutingTrainer,
)
from hf_era.training.checkpoints import DamagedCheckpointWarning
from hf_era.training.coherence import BEST, coherence_settings, damage_of_best, fine_tune_for_coherence
from hf_era.utils.environment import git_revision, machine_description, package_versions
from hf_era.utils.files import whole_directory


class Phases:
    """The work of each phase. Each takes the fingerprint of its inputs: checkpoints are kept under it, so that a phase
       never goes on from a checkpoint that was made with other settings.
    Folders are as `hf_era.run.pipeline` describes them.

       Args:
           config (`RunConfig`), inputs (`RunInputs`): of the run.
           arguments (`GradientRoutingConfig`): of the routing phase; they know the device and the launch.
           state (`PartialState`): of this process among the launched ones; one of them writes.
    """

    def __init__(
        self, config: RunConfig, inputs: RunInputs, arguments: GradientRoutingConfig, state: PartialState
    ) -> None:
        self.config, self.inputs, self.state = config, inputs, state
        self.arguments, self.device = arguments, arguments.device
        self.folders = RunFolders(config)

    @property
    def before_model(self) -> str | Path:
        """Where the model before the method is: the given base, or what was trained here."""
        return self.config.model.base or self.folders.base

    @property
    def before_kind(self) -> str | None:
        """What "before the method" is."""
        if self.config.model.start == "pretrained":
            return "pretrained"
        return "base_control" if self.config.model.base_control else None

    def base_fingerprint(self) -> str:
        """Fingerprint of the base or base control that is trained here, else of the given base."""
        if not self.config.model.trains_base:
            return self.inputs.base_fingerprint
        architecture = self.inputs.base_config.to_diff_dict()
        architecture.pop("transformers_version", None)
        # As earlier versions wrote it down, whose base was trained with the routing's config and without an L1 term.
        settings = {**without_routing(self._base_training()), "l1_coefficient": 0.0}
        training = {**effective_training(settings), **launch_settings(self.arguments)}
        return fingerprint(self.inputs.data_fingerprint, architecture, self.config.seed, training)

    # ---- Base ----

    def train_base(self, key: str) -> dict[str, Any]:
        """Trains a stock model on all training stories, without routing."""
        arguments = self.config.stock_training_arguments(
            self.folders.checkpoints("base", key),
            **{**self._base_training(), "push_to_hub": False, "save_total_limit": 1},
        )
        set_seed(self.config.seed)
        model = causal_lm_from_config(self.inputs.base_config, self.config.seed)
        trainer, output = self._train(CausalLMTrainer, model, arguments, self.folders.base)
        return {"steps": trainer.state.global_step, "train_loss": output.training_loss}

    def _base_training(self) -> dict[str, Any]:
        """The base control has the run's own training settings; a base may have others."""
        overrides = self.config.pretraining if self.config.model.start == "pretrained" else {}
        return {**self.config.training, **overrides}

    # ---- Route ----

    def route(self, key: str) -> dict[str, Any]:
        """Expands the model and trains it with gradient routing."""
        arguments = self.config.training_arguments(self.folders.checkpoints("route", key), push_to_hub=False)
        set_seed(self.config.seed)
        trainer, _ = self._train(GradientRoutingTrainer, self.start_model(), arguments, self.folders.expanded)
        return self._training_report(trainer, arguments)

    def start_model(self) -> Any:
        """The expanded model that routing starts from; the same weights each time."""
        if self.config.model.start == "scratch":
            return expanded_from_config(self.inputs.base_config, self.config.expansion, self.config.seed)
        set_seed(self.config.seed)
        # A half-precision checkpoint is trained in fp32: autocast makes bf16 of it where that is asked for.
        return expand_base(self.before_model, self.config.expansion, dtype=torch.float32)

    # ---- Data filtering ----

    def train_on_retain_alone(self, key: str) -> dict[str, Any]:
        """Trains a stock model from random weights on the retain stories alone, otherwise as the base control."""
        arguments = self.config.stock_training_arguments(
            self.folders.checkpoints("filter", key),
            **{**self._base_training(), "push_to_hub": False, "save_total_limit": 1},
        )
        set_seed(self.config.seed)
        model = causal_lm_from_config(self.inputs.base_config, self.config.seed)
        train = self.inputs.data.train
        # Forget stories that lost their label are left out too: this is the yardstick of perfect labels.
        retain = train.select([index for index, label in enumerate(train["label"]) if label == RETAIN])
        trainer, _ = self._train(CausalLMTrainer, model, arguments, self.folders.final, retain)
        report = self._training_report(trainer, arguments)
        report["arguments"]["l1_coefficient"] = 0.0  # the run's others of the routing are as they stand, without effect
        return report

    def untouched(self, key: str) -> dict[str, Any]:
        """Nothing is trained; says what the figures are measured with."""
        return {"steps": 0, "log_history": [], "provenance": self._provenance()}

    def _training_report(self, trainer: Any, arguments: CausalLMTrainingConfig) -> dict[str, Any]:
        history = [entry for entry in trainer.state.log_history if "train_runtime" not in entry]
        return {
            "steps": trainer.state.global_step,
            "arguments": {
                name: getattr(arguments if hasattr(arguments, name) else self.arguments, name)
                for name in _REPORTED_ARGUMENTS
            },
            "mixed_precision": mixed_precision(arguments),
            "log_history": history,
            "provenance": self._provenance(),
        }

    def _provenance(self) -> dict[str, Any]:
        return {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": package_versions(),
            "machine": machine_description(self.device),
            "git_revision": git_revision(),
        }

    # ---- Contract ----

    def contract(self, key: str) -> dict[str, Any]:
        """Cuts the auxiliary module out."""
        expanded: Any = AutoModelForCausalLM.from_pretrained(
            self.folders.expanded, use_safetensors=True, trust_remote_code=False
        )
        self._save(expanded.contract().save_pretrained, self.folders.contracted)
        return {"parameters_removed": expanded.num_parameters() - _parameters_without_auxiliary(expanded)}

    # ---- Coherence ----

    def coherence(self, key: str) -> dict[str, Any]:
        """Fine-tunes on retain stories and keeps the best weights; puts the final model in place."""
        settings = self.config.coherence
        model = load_causal_lm(self.folders.contracted)
        if not settings.enabled:
            self._save(model.save_pretrained, self.folders.final)
            return {"enabled": False}
        changes = coherence_settings(settings, self.arguments.per_device_train_batch_size, self.arguments.world_size)
        arguments = self.config.training_arguments(
            self.folders.checkpoints("coherence", key), **{**changes, "push_to_hub": False}
        )
        self._check_best(key)
        best, report = fine_tune_for_coherence(
            model,
            arguments,
            settings,
            self._coherence_stories(),
            self.inputs.data.validation_retain,
            self.inputs.tokenizer,
        )
        self.state.wait_for_everyone()
        self._save(load_causal_lm(best).save_pretrained, self.folders.final)
        return {"enabled": True, **report}

    def _check_best(self, key: str) -> None:
        damage = damage_of_best(self.folders.checkpoints("coherence", key))
        if damage is not None:
            if self.state.is_main_process:
                text = f"The best weights of the coherence fine-tuning so far are damaged: {damage}. It begins anew."
                warnings.warn(text, DamagedCheckpointWarning, stacklevel=2)
            self.remove_checkpoints("coherence", key)
        self.state.wait_for_everyone()

    def _coherence_stories(self) -> Any:
        train = self.inputs.data.train
        retain = [index for index, label in enumerate(train["label"]) if label == RETAIN]
        return train.select(retain[: self.config.coherence.stories])

    # ---- Helpers ----

    def _train(
        self,
        trainer_class: type[CausalLMTrainer],
        model: Any,
        arguments: CausalLMTrainingConfig,
        folder: Path,
        stories: Dataset | None = None,
    ) -> tuple[CausalLMTrainer, Any]:
        """Trains on all stories or those given, from the last checkpoint if there is one; saves the model in `folder`."""
        data = self.inputs.data
        trainer = trainer_class(
            model,
            arguments,
            train_dataset=data.train if stories is None else stories,
            eval_dataset={"forget": data.validation_forget, "retain": data.validation_retain},
            processing_class=self.inputs.tokenizer,
        )
        output = trainer.train(resume_from_checkpoint=True)
        self._save(trainer.save_whole_model, folder, all_take_part=True)
        return trainer, output

    def _save(self, save: Callable[[Path], Any], folder: Path, all_take_part: bool = False) -> None:
        """Saves a model, with its own `save`, and the tokenizer, whole or not at all.

        Where the weights are sharded all processes take part in gathering them; the main one alone writes.
        """
        if self.state.is_main_process:
            with whole_directory(folder) as temporary:
                save(temporary)
                self.inputs.tokenizer.save_pretrained(temporary)
        elif all_take_part:
            save(folder)
        self.state.wait_for_everyone()

    def remove_checkpoints(self, phase: str, key: str) -> None:
        """Removes the checkpoints of a phase, and nothing else (a logger may have written there). Every process calls it."""
        checkpoints = self.folders.checkpoints(phase, key)
        self.state.wait_for_everyone()
        if self.state.is_main_process:
            # The history first: best weights without one are made again, a history without them would be believed.
            (checkpoints / f"{BEST}-history.json").unlink(missing_ok=True)
            for folder in (*checkpoints.glob("checkpoint-*"), checkpoints / BEST):
                shutil.rmtree(folder, ignore_errors=True)
            if checkpoints.is_dir() and not any(checkpoints.iterdir()):
                checkpoints.rmdir()
        gc.collect()


# Settings as the Trainer resolved them; no paths, no tokens.
_REPORTED_ARGUMENTS = (
    "multipliers", "l1_coefficient", "learning_rate", "minimum_learning_rate_ratio", "warmup_steps", "weight_decay",
    "weight_decay_on_all_parameters", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "max_steps",
    "per_device_train_batch_size", "gradient_accumulation_steps", "world_size", "auxiliary_learning_rate_factor",
    "auxiliary_weight_decay", "bf16", "fp16", "attn_implementation", "fused_activation", "chunked_loss",
)  # fmt: skip


def _parameters_without_auxiliary(model: Any) -> int:
    return sum(value.numel() for name, value in model.named_parameters() if not model.is_auxiliary_parameter(name))
