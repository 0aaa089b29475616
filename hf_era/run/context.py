"""A run as its phases see it: what identifies it, what they read, where they write, and how they train and save.

What of it a method may touch: the Protocol `Run` in `hf_era.methods.method`.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset

from hf_era.evaluation.modules import examples_of_modules
from hf_era.evaluation.tasks import load_suite
from hf_era.methods import Cost, get_method
from hf_era.models import family_for
from hf_era.run.config import SECTIONS, RunConfig
from hf_era.run.inputs import RunInputs
from hf_era.run.tracking import tracked_name, tracked_project
from hf_era.training import CausalLMTrainer, CausalLMTrainingConfig, GradientRoutingConfig
from hf_era.training.coherence import BEST, HISTORY, TellProgress
from hf_era.training.config import SHOWN_OR_KEPT
from hf_era.training.report import mixed_precision, training_report
from hf_era.utils.environment import git_revision, provenance
from hf_era.utils.fields import identity_values
from hf_era.utils.files import fingerprint, whole_directory


def identity_settings(config: RunConfig, arguments: CausalLMTrainingConfig) -> dict[str, Any]:
    """The settings that the method's training depends on, as each field says (`hf_era.utils.fields`), and the launch."""
    values = identity_values(RunConfig, config.to_dict())
    sections = {name: kind for name, kind in SECTIONS.items() if name in values}
    found = {name: identity_values(kind, values[name], SHOWN_OR_KEPT) for name, kind in sections.items()}
    if config.method_settings is not None and "method_settings" in values:
        own = dataclasses.asdict(config.method_settings)
        found["method_settings"] = identity_values(type(config.method_settings), own)
    return {**values, **found, "launch": launch_settings(arguments)}


def launch_settings(arguments: CausalLMTrainingConfig) -> dict[str, Any]:
    """What a launch decides and the weights depend on."""
    return {"processes": arguments.world_size, "mixed_precision": mixed_precision(arguments)}


class Run:
    """What a method is given; `hf_era.methods.Run` describes the attributes and functions that a method may use.

    Attributes:
        config (`RunConfig`), inputs (`RunInputs`): of the run.
        settings (`dict`): the settings behind its identity. The examples are identified by their contents.
        tasks (`Suite`, *optional*): the tasks of lm-eval that models are measured on, loaded in the main process alone.
        progress: is told which share of a phase is done, in [0, 1].
    """

    progress: Callable[[float], None]

    def __init__(
        self, config: RunConfig, inputs: RunInputs, arguments: GradientRoutingConfig, state: PartialState
    ) -> None:
        self.config, self.inputs, self.arguments, self.state = config, inputs, arguments, state
        self.progress = lambda fraction: None
        self.seed, self.start, self.base_control = config.seed, config.start, config.base_control
        self.expansion, self.router, self.routing = config.expansion, config.router, config.routing
        self.coherence, self.training, self.method_settings = config.coherence, config.training, config.method_settings
        self.base_config, self.tokenizer, self.data = inputs.base_config, inputs.tokenizer, inputs.data
        self.tasks = load_suite(config.evaluation, inputs.tokenizer, state)
        self.settings = {**identity_settings(config, arguments), **get_method(config.method).identity(self)}
        self.identity = fingerprint(self.settings, inputs.data_fingerprint, inputs.base_fingerprint)
        self.base_key = self._base_key() if config.model.trains_base else inputs.base_fingerprint

    @property
    def before_model(self) -> str | Path:
        return self.config.model.base or self.folder("base")

    @property
    def before_kind(self) -> str | None:
        """What "before the method" is."""
        if self.start == "pretrained":
            return "pretrained"
        return "base_control" if self.base_control else None

    def _base_key(self) -> str:
        architecture = self.base_config.to_diff_dict()
        architecture.pop("transformers_version", None)
        # As earlier versions wrote it down, whose base was trained with the routing's config and without an L1 term.
        settings = {**self.config.stock_training, "l1_coefficient": 0.0}
        if settings.get("max_steps") == -1:  # which goes without saying; with a budget it is said
            del settings["max_steps"]
        training = identity_values(GradientRoutingConfig, settings, SHOWN_OR_KEPT)
        training |= launch_settings(self.arguments) | self.control_settings
        return fingerprint(self.inputs.data_fingerprint, architecture, self.seed, training)

    @property
    def control_l1_coefficient(self) -> float:
        """Of the L1 term that the run's controls are trained with. A base that routing starts from is none."""
        shares = self.start == "scratch" and self.config.model.controls_share_l1
        return self.arguments.l1_coefficient if shares else 0.0

    @property
    def control_settings(self) -> dict[str, Any]:
        """What the training of a control has of the run's own; empty where that is nothing, as in earlier versions."""
        if self.control_l1_coefficient == 0:
            return {}
        family = family_for(self.base_config, self.expansion)
        layers = self.expansion.resolve_layers(family.layers_of(self.base_config))
        return {"l1_coefficient": self.control_l1_coefficient, "l1_layers": layers}

    # ---- Where ----

    def folder(self, name: str) -> Path:
        return self.config.base_path / "model" if name == "base" else self.config.output_path / name

    def checkpoints(self, phase: str, key: str) -> Path:
        # With the key: a phase never goes on from a checkpoint that was made with other settings.
        where = self.config.base_path if phase == "base" else self.config.output_path
        return where / "checkpoints" / f"{phase}-{key}"

    # ---- Train and save ----

    def training_arguments(self, phase: str, key: str, **changes: Any) -> GradientRoutingConfig:
        values = {**changes, **self._tracked(phase), "push_to_hub": False}
        return self.config.training_arguments(self.checkpoints(phase, key), **values)

    def stock_arguments(self, phase: str, key: str) -> CausalLMTrainingConfig:
        values = {**self.config.stock_training, **self._tracked(phase), "push_to_hub": False, "save_total_limit": 1}
        return self.config.stock_training_arguments(self.checkpoints(phase, key), **values)

    def _tracked(self, phase: str) -> dict[str, Any]:
        training = self.config.training
        values = {"run_name": tracked_name(self.config, phase), "project": tracked_project(training)}
        # Otherwise each phase would freeze the project so far into a Space of its own. Not every transformers has it.
        given = training.get("trackio_static_space_id", False)
        return {**values, "trackio_static_space_id": given} if "trackio_static_space_id" in _ARGUMENTS else values

    def train(
        self,
        trainer_class: Callable[..., CausalLMTrainer],
        model: Any,
        arguments: CausalLMTrainingConfig,
        folder: Path,
        stories: Dataset | None = None,
        **options: Any,
    ) -> tuple[Any, Any]:
        trainer = trainer_class(
            model,
            arguments,
            train_dataset=self.data.train if stories is None else stories,
            eval_dataset=self._evaluation_sets(getattr(model, "module_names", [])),
            processing_class=self.tokenizer,
            **options,
        )
        trainer.add_callback(TellProgress(self.progress))
        output = trainer.train(resume_from_checkpoint=True)
        self.save(trainer.save_whole_model, folder, all_take_part=True)
        return trainer, output

    def _evaluation_sets(self, modules: Sequence[str]) -> dict[str, Dataset]:
        """Forget and retain examples; of several modules also each one's own forget examples, if there are any."""
        forget = self.data.validation_forget
        own = examples_of_modules(forget, modules) if modules else {}
        of_modules = {
            name: forget.select(rows.nonzero().flatten().tolist()) for name, rows in own.items() if rows.any()
        }
        return {**of_modules, "forget": forget, "retain": self.data.validation_retain}

    def save(self, save: Callable[[Path], Any], folder: Path, all_take_part: bool = False) -> None:
        # Where the weights are sharded all processes take part in gathering them; the main one alone writes.
        if self.state.is_main_process:
            with whole_directory(folder) as temporary:
                save(temporary)
                self.tokenizer.save_pretrained(temporary)
        elif all_take_part:
            save(folder)
        self.state.wait_for_everyone()

    def remove_checkpoints(self, phase: str, key: str) -> None:
        checkpoints = self.checkpoints(phase, key)
        self.state.wait_for_everyone()
        if self.state.is_main_process:
            # The history first: best weights without one are made again, a history without them would be believed.
            (checkpoints / HISTORY).unlink(missing_ok=True)
            for folder in (*checkpoints.glob("checkpoint-*"), checkpoints / BEST):
                shutil.rmtree(folder, ignore_errors=True)
            if checkpoints.is_dir() and not any(checkpoints.iterdir()):  # a logger may have written there
                checkpoints.rmdir()
        gc.collect()

    # ---- Reports ----

    def training_cost(self, arguments: CausalLMTrainingConfig, stories: int, passes_to_evaluate: int = 1) -> Cost:
        steps, batch = steps_of(arguments, stories)
        evaluations = 0.0
        if str(getattr(arguments.eval_strategy, "value", arguments.eval_strategy)) == "steps":
            every = arguments.eval_steps or arguments.logging_steps
            evaluations = steps // (every if every >= 1 else max(every * steps, 1))
        elif arguments.eval_strategy != "no":
            evaluations = steps * batch / max(stories, 1)
        read = len(self.data.validation_forget) + len(self.data.validation_retain)
        return Cost(steps * batch, evaluations * passes_to_evaluate * read)

    def training_report(self, trainer: Any, arguments: CausalLMTrainingConfig) -> dict[str, Any]:
        return {**training_report(trainer, arguments), "provenance": self.provenance()}

    def provenance(self) -> dict[str, Any]:
        return {**provenance(self.arguments.device), "git_revision": git_revision()}


_ARGUMENTS = frozenset(item.name for item in dataclasses.fields(CausalLMTrainingConfig))


def steps_of(arguments: CausalLMTrainingConfig, stories: int) -> tuple[int, int]:
    """Steps of a training on so many examples, and examples of a step, over all processes."""
    batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * max(arguments.world_size, 1)
    if arguments.max_steps > 0:
        return arguments.max_steps, batch
    return math.ceil(arguments.num_train_epochs * math.ceil(stories / batch)), batch
