"""Methods: what a run does, phase by phase, from its config to the model that is evaluated.

A method says what its settings are, checks them, lists its phases and the stages at which models are measured, and what
reports call it. Gradient routing is one of them; the controls are others. Everything else (evaluation, generations, relearn
attack, card and report) is done for all methods alike.

To add a method: `hf_era/methods/NAME.py` with a subclass of `Method` and one `register_method`, and its import in
`hf_era/methods/__init__.py`. A loss of its own (RMU, ...) is the `compute_loss` of a `CausalLMTrainer` in the same file,
which a phase hands to `Run.train`: those of a model that exists have that phase from `PostTraining`, and what is said of an
example and means over each kind from `Unlearning` (`gradient_difference.py` is the shortest).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedConfig

from hf_era.data import FORGET, RETAIN, UNLABELLED, PreparedData
from hf_era.evaluation.results import STAGE_TITLES
from hf_era.models import ExpansionConfig
from hf_era.routing import RoutingRuleConfig
from hf_era.training import CausalLMTrainer, CausalLMTrainingConfig, GradientRoutingConfig
from hf_era.training.coherence import CoherenceConfig
from hf_era.utils.checks import unknown_value_message
from hf_era.utils.fields import UNLESS_DEFAULT, setting

TRAINING_PASSES = 2.5
"""What a training step takes per example, in forward passes: forward and backward pass, and the optimizer."""


@dataclass(frozen=True)
class Cost:
    """What a phase computes, for estimates of its time.

    Attributes:
        trained (`float`): examples that are trained on, each as often as it is read. measured (`float`): examples that are
            read without learning from them.
        at_most (`bool`): whether it may end earlier, by patience.
    """

    trained: float = 0.0
    measured: float = 0.0
    at_most: bool = False

    @property
    def passes(self) -> float:
        """Forward passes over an example that it takes about as long as."""
        return TRAINING_PASSES * self.trained + self.measured


@dataclass(frozen=True)
class Phase:
    """One step of a run. It is skipped when it was done already with the same key and its outputs are as it left them.

    Attributes:
        name (`str`): of its record and its checkpoints, for instance `route`.
        title (`str`): what is said while it runs: "Training with gradient routing".
        key (`str`): a fingerprint of everything that it depends on.
        work: takes the key, makes the outputs and returns a report, JSON-like. Every process of a launch calls it.
        outputs (`tuple[Path, ...]`): folders that it makes, each whole or not at all.
        clean_up: removes what it kept in case it is stopped. Every process calls it once the phase is written down as done.
        cost (`Cost`, *optional*): what it computes (`Run.training_cost` says it of a training). Not given: not known, so
            that nobody is told how long the run still takes.
    """

    name: str
    title: str
    key: str
    work: Callable[[str], dict[str, Any]]
    outputs: tuple[Path, ...] = ()
    clean_up: Callable[[], None] = lambda: None
    cost: Cost | None = None


@dataclass(frozen=True)
class Stage:
    """A model of the run that is measured.

    Attributes:
        name (`str`): in the result, for instance `after_ablation`.
        model (`str` or `Path`): where it is.
        title (`str`, *optional*): in reports. Not given: that of `STAGE_TITLES`.
        is_expanded (`bool`): whether it has auxiliary modules: their selectivity is measured, and the leak audit made.
    """

    name: str
    model: str | Path
    title: str = ""
    is_expanded: bool = False

    def describe(self) -> dict[str, str]:
        """As a result records it."""
        return {"name": self.name, "title": self.title or STAGE_TITLES.get(self.name, self.name.replace("_", " "))}


class Settings(Protocol):
    """The settings of a run that a method may look at before anything is loaded."""

    @property
    def start(self) -> str:
        """`pretrained` or `scratch`."""

    @property
    def base_control(self) -> bool:
        """With `scratch`: whether a stock model is trained beside it, to compare with."""

    expansion: ExpansionConfig
    router: str | dict[str, Any]
    routing: RoutingRuleConfig
    coherence: CoherenceConfig
    training: dict[str, Any]
    """The section `training`, as it was given: fields of `GradientRoutingConfig`."""
    method_settings: Any
    """An object of the method's own `settings_class`; `None` if it has none."""


class Run(Settings, Protocol):
    """What a method is given of the run, once everything is loaded and checked: all that it may touch.

    Attributes:
        seed (`int`): of weights and data order.
        base_config, tokenizer: of the stock model. data (`PreparedData`): tokenised examples.
        arguments (`GradientRoutingConfig`): of the method's training; they know the device and the launch.
        state (`PartialState`): of this process among the launched ones; one of them writes.
        identity (`str`): fingerprint of everything that the method's training depends on, data and settings.
        base_key (`str`): fingerprint of the model before the method.
        before_model (`str` or `Path`): where that model is.
        control_l1_coefficient (`float`): of the L1 term over the activations of the expansion's target layers that a control
            is trained with, so that it differs from a routed run in nothing else; 0: none.
    """

    seed: int
    base_config: PreTrainedConfig
    tokenizer: Any
    data: PreparedData
    arguments: GradientRoutingConfig
    state: PartialState
    identity: str
    base_key: str

    @property
    def before_model(self) -> str | Path: ...

    @property
    def control_l1_coefficient(self) -> float: ...

    def folder(self, name: str) -> Path:
        """Where a model is kept: `model` is the final one, which a push uploads; other names are the method's own."""

    def training_arguments(self, phase: str, key: str, **changes: Any) -> GradientRoutingConfig:
        """The section `training` with these changes, and the checkpoints of a phase."""

    def stock_arguments(self, phase: str, key: str) -> CausalLMTrainingConfig:
        """The same without what only routing has, and with what the section `pretraining` says: for a stock model that
        starts from random weights. What goes on from a pretrained model takes `training_arguments`."""

    def train(
        self,
        trainer_class: Callable[..., CausalLMTrainer],
        model: Any,
        arguments: CausalLMTrainingConfig,
        folder: Path,
        stories: Dataset | None = None,
        **options: Any,
    ) -> tuple[Any, Any]:
        """Trains on all examples or those given, from the last checkpoint if there is one; saves the model in a folder,
        whole or not at all. `options` go to the trainer (`data_collator`, a frozen reference model, ...), which looks after
        what is its own: the model alone is wrapped, sharded and saved. Returns the trainer, and what `train` returned."""

    def training_report(self, trainer: Any, arguments: CausalLMTrainingConfig) -> dict[str, Any]:
        """What a result says of a training: steps, settings, log, versions and machine."""

    def training_cost(self, arguments: CausalLMTrainingConfig, stories: int, passes_to_evaluate: int = 1) -> Cost:
        """What a training on so many examples computes, its evaluations (each with so many passes) included."""

    def progress(self, fraction: float) -> None:
        """To be told now and then how much of a phase is done, in [0, 1]; trainings with `train` tell it by themselves."""

    def provenance(self) -> dict[str, Any]:
        """Time, versions, machine and revision, for the report of a phase that trains nothing."""

    def save(self, save: Callable[[Path], Any], folder: Path) -> None:
        """Saves a model, with its own `save`, and the tokenizer, whole or not at all; the main process writes."""

    def remove_checkpoints(self, phase: str, key: str) -> None:
        """Removes the checkpoints of a phase, and nothing else. Every process calls it."""

    def checkpoints(self, phase: str, key: str) -> Path:
        """Where an unfinished phase keeps its checkpoints."""


class Method:
    """A method. One object, without state of its own.

    Attributes:
        name (`str`): as it stands in a config, `method: NAME`. title (`str`): in reports.
        role (`str`): `method`; `control`: others are compared with it; `untouched`: nothing is trained.
        texts (`dict[str, str]`): prose for reports: `summary`, a sentence; `introduction`, `training` and `labels`, Markdown
            of the model card. `{version}` stands for that of hf_era.
        settings_class (`type`, *optional*): a dataclass, for the section `method_settings`. Its property `left_out`, if it
            has one, is the name of the setting by which nothing without a label is trained on; `None`: it is.
        needs_forget_examples (`bool`): whether it learns from examples that are labelled forget: data without is refused.
        trains_for_steps (`bool`): whether it trains for `training.max_steps`, so that a `budget` can say how many.
        training_phase (`str`): the phase whose report the result keeps as its `training`: that of `Run.training_report`, or
            a dict with `provenance`, `steps` and `log_history`. The report of a phase `coherence`, if there is one, is kept
            as the result's `coherence`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    role: ClassVar[str] = "method"
    texts: ClassVar[dict[str, str]] = {}
    settings_class: ClassVar[type | None] = None
    needs_forget_examples: ClassVar[bool] = False
    trains_for_steps: ClassVar[bool] = True
    training_phase: ClassVar[str]

    def check(self, settings: Settings) -> None:
        """Raises `ValueError` for settings that do not go with the method."""

    def check_data(self, settings: Settings, retain_stories: int, unlabelled_stories: int) -> None:
        """Raises `ValueError` for data that does not suffice, before anything is tokenised or trained: so many training
        examples are labelled retain, and so many have no label."""

    def title_of(self, settings: Settings) -> str:
        """Its name in reports, with these settings."""
        return self.title

    def texts_of(self, settings: Settings) -> dict[str, str]:
        """Its `texts`, with these settings."""
        return dict(self.texts)

    def labels_learnt(self, settings: Settings) -> tuple[int, ...]:
        """Labels of the training examples that it trains on; those without one are `UNLABELLED`."""
        return FORGET, RETAIN, UNLABELLED

    def plan(self, settings: Settings) -> list[tuple[str, str]]:
        """What it is going to do, in a few words: pairs of a label and a text."""
        return [("method", self.title_of(settings))]

    def identity(self, run: Run) -> dict[str, Any]:
        """What its training depends on beside the settings and the data; a run with another one is another run. (Of `run`,
        `identity` itself is not there yet.)"""
        return {}

    def phases(self, run: Run) -> list[Phase]:
        """Its phases, in order. The last one's key is that of the final model."""
        raise NotImplementedError(f"{type(self).__name__} has no `phases`.")

    def stages(self, run: Run) -> list[Stage]:
        """Its models that are measured, in order; the last one is the final model. The model before the method is not its
        own."""
        raise NotImplementedError(f"{type(self).__name__} has no `stages`.")

    def start_model(self, run: Run) -> Any:
        """The expanded model that its training starts from, for the leak audit; needed if a stage is expanded."""
        raise NotImplementedError(f"{type(self).__name__} has no `start_model`.")


METHODS: dict[str, Method] = {}


def register_method(method: Method) -> None:
    """Makes a method known under its name; raises `ValueError` if another one has it."""
    known = METHODS.setdefault(method.name, method)
    if known is not method:
        raise ValueError(f"There is a method `{method.name}` already: {type(known).__name__}. Choose another name.")


def get_method(name: str) -> Method:
    """The method of this name; raises `ValueError` for an unknown one."""
    if name not in METHODS:
        raise ValueError(unknown_value_message("method", name, METHODS))
    return METHODS[name]


@dataclass
class RetainSettings:
    """Of a control that trains on retain examples: what it makes of those without a label.

    Args:
        unlabelled (`bool`, *optional*, defaults to `True`): they are trained on as retain examples are. `False`: they are
            left out, so that no forget example is trained on where some lost their label, and fewer examples are there.
    """

    unlabelled: bool = setting(
        True, "Train on examples without a label, as on retain examples.", identity=UNLESS_DEFAULT
    )

    @property
    def left_out(self) -> str | None:
        """The name of the setting that leaves out examples without a label; `None`: they are not."""
        return None if self.unlabelled else "method_settings.unlabelled"

    @property
    def text(self) -> str:
        """Which examples it trains on, in a few words."""
        return "all examples but those labelled forget" if self.unlabelled else "the examples labelled retain"

    @property
    def labels(self) -> tuple[int, ...]:
        """Labels of the examples that it trains on."""
        return (RETAIN, UNLABELLED) if self.unlabelled else (RETAIN,)

    def check(self, method: str, retain_stories: int, unlabelled_stories: int) -> None:
        """Raises `ValueError` where nothing is left to train on."""
        if retain_stories + (unlabelled_stories if self.unlabelled else 0):
            return
        if unlabelled_stories:
            raise ValueError(
                f"`method_settings.unlabelled` is false, so that `method: {method}` trains on examples labelled retain "
                f"alone, but there is none; {unlabelled_stories:,} have no label. Label some, or leave the setting out."
            )
        raise ValueError(
            f"`method: {method}` trains on what is not labelled forget, but every training example is. Give others."
        )


def stories_labelled(data: PreparedData, *labels: int, most: int | None = None, seed: int = 0) -> Dataset:
    """The training examples with one of these labels, in order. An example may have none (`UNLABELLED`).

    At most `most` of them: where unlabelled ones are among them drawn at random with `seed`, otherwise the first.
    """
    own: list[int] = data.train["label"][:]
    found = [index for index, label in enumerate(own) if label in labels]
    # The first of a file that is sorted would be of one kind. Examples of one label are so anyway: those of earlier runs.
    if most is not None and most < len(found) and UNLABELLED in map(own.__getitem__, found):
        found = sorted(random.Random(seed).sample(found, most))
    return data.train.select(found[:most])
