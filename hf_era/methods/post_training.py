"""What methods for a model that exists have in common: they train the model before the method further, in one phase.

Two of them are controls. `continue_all` trains on with all examples, `continue_retain` with those that are not labelled
forget: what any method for a trained model has to be compared with, for further training alone changes both losses. One
method a file for the rest; each is a subclass of `PostTraining`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor
from transformers import set_seed

from hf_era.data import RoutingCollator, padding_token_id
from hf_era.methods.gradient_routing import train_what_routing_trains
from hf_era.methods.method import (
    Cost,
    Method,
    Phase,
    RetainSettings,
    Run,
    Settings,
    Stage,
    register_method,
    stories_labelled,
)
from hf_era.models.loading import load_causal_lm
from hf_era.training import CausalLMTrainer
from hf_era.utils.checks import short_repr
from hf_era.utils.files import fingerprint

OWN_LOSS = {"label_smoothing_factor": "has a loss of its own, without label smoothing"}


def refuse_ignored(name: str, ignored: Mapping[str, str], settings: Settings) -> None:
    """Raises `ValueError` for settings of the section `training` that a method would pass over without a word."""
    for field, reason in ignored.items():
        if settings.training.get(field) not in (None, "all", 0):
            given = short_repr(settings.training[field])
            raise ValueError(f"`training.{field}` is {given}, but `method: {name}` {reason}. Leave it out.")


def batches_of(run: Run, examples: Dataset, size: int | None = None) -> Iterator[dict[str, Tensor]]:
    """Examples in order, (batch, seq) each, on the device: `size` a batch, or as many as a training step has."""
    collator = RoutingCollator(padding_token_id(run.tokenizer))
    for rows in examples.iter(size or run.arguments.per_device_train_batch_size):
        columns = {name: rows[name] for name in ("input_ids", "labels") if name in rows}
        batch = collator([dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)])
        yield {name: value.to(run.arguments.device) for name, value in batch.items()}


class PostTraining(Method):
    """Trains the model before the method further. A subclass gives its trainer, and what else differs.

    Attributes:
        trainer_class (`type`): a `CausalLMTrainer`, whose loss is the method.
        phase_title (`str`): what is said while it trains.
        ignored (`dict[str, str]`): fields of the section `training` that it does not look at, and why; they are refused.
    """

    training_phase = "train"
    trainer_class: ClassVar[type[CausalLMTrainer]] = CausalLMTrainer
    phase_title: ClassVar[str] = "Training the model further"
    ignored: ClassVar[dict[str, str]] = {}

    def check(self, settings: Settings) -> None:
        if settings.start != "pretrained":
            raise ValueError(
                f"`method: {self.name}` changes a model that exists, but `model.start` is {settings.start!r}. Set "
                "`model.start: pretrained`, and name the model with `model.base`, or leave that out to train one here."
            )
        if settings.training.get("trainable") == "modules" and settings.training.get("lora") is None:
            raise ValueError(
                f"`training.trainable` is 'modules', but `method: {self.name}` has no auxiliary module, so that nothing "
                "would be trained. Choose `trainable: routed`, or leave it out."
            )
        refuse_ignored(self.name, self.ignored, settings)

    def stories(self, run: Run) -> Dataset | None:
        """The examples that it trains on; `None`: all."""
        return None

    def phase_title_of(self, settings: Settings) -> str:
        """What is said while it trains, with these settings."""
        return self.phase_title

    def options(self, run: Run) -> dict[str, Any]:
        """Arguments of the trainer beside the usual ones."""
        return {}

    def changes(self, run: Run) -> dict[str, Any]:
        """Training arguments that differ from those of the section `training`."""
        return {}

    def start_weights(self, run: Run) -> Any:
        """The model that its training starts from: a stock one, in fp32."""
        return load_causal_lm(run.before_model).to(torch.float32)

    def phases(self, run: Run) -> list[Phase]:
        key = fingerprint(run.identity, run.base_key)
        clean_up = partial(run.remove_checkpoints, "train", key)
        title, outputs = self.phase_title_of(run), (run.folder("model"),)
        return [Phase("train", title, key, partial(self.train, run), outputs, clean_up, self.cost(run))]

    def cost(self, run: Run) -> Cost | None:
        stories = self.stories(run)
        return run.training_cost(run.arguments, len(run.data.train if stories is None else stories))

    def train(self, run: Run, key: str) -> dict[str, Any]:
        """The work of its phase."""
        arguments = run.training_arguments("train", key, **self.changes(run))
        set_seed(run.seed)
        model = self.start_weights(run)
        train_what_routing_trains(run, model, arguments)
        trainer, _ = run.train(
            self.trainer_class, model, arguments, run.folder("model"), self.stories(run), **self.options(run)
        )
        return run.training_report(trainer, arguments)

    def stages(self, run: Run) -> list[Stage]:
        return [Stage("after_training", run.folder("model"))]


class ContinueAll(PostTraining):
    """Further training on all examples."""

    name = "continue_all"
    title = "further training on all examples"
    role = "control"
    texts = {
        "summary": "This is a control: the model before the method, trained further on all examples.",
        "training": (
            "The model was trained further on all examples, forget examples too: what further training alone does to the "
            "losses, without any method."
        ),
        "labels": "Those without a label were trained on as all others.",
    }


class ContinueRetain(PostTraining):
    """Further training on what is not labelled forget; examples without a label are taken for retain, as everywhere, or
    left out."""

    name = "continue_retain"
    title = "further training on retain examples"
    role = "control"
    texts = {
        "summary": "This is a control: the model before the method, trained further without the examples labelled forget.",
        "training": (
            "The model was trained further without the examples labelled forget: what a method for trained models has to be "
            "better than."
        ),
        "labels": "Those without a label were trained as retain examples, unless the method's settings say otherwise.",
    }
    settings_class = RetainSettings

    def plan(self, settings: Settings) -> list[tuple[str, str]]:
        return [("method", f"further training on {settings.method_settings.text}")]

    def check_data(self, settings: Settings, retain_stories: int, unlabelled_stories: int) -> None:
        settings.method_settings.check(self.name, retain_stories, unlabelled_stories)

    def labels_learnt(self, settings: Settings) -> tuple[int, ...]:
        own: RetainSettings = settings.method_settings
        return own.labels

    def stories(self, run: Run) -> Dataset:
        return stories_labelled(run.data, *self.labels_learnt(run))


register_method(ContinueAll())
register_method(ContinueRetain())
