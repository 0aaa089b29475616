"""`RunConfig`: a whole life cycle in one YAML file."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub.utils import HFValidationError, validate_repo_id

from hf_era.data.config import LABELLED_BUILT_IN, DataConfig
from hf_era.evaluation.evaluator import EvaluationConfig
from hf_era.evaluation.generation import SamplingConfig
from hf_era.evaluation.relearn.config import RelearnConfig
from hf_era.methods import METHODS, Method, get_method
from hf_era.models.config import ExpansionConfig
from hf_era.routing import ActivationRouter, RoutingRuleConfig, make_router
from hf_era.run.directory import OWN_FOLDERS
from hf_era.run.parsing import build, coerce, merge, parse_overrides, read_yaml
from hf_era.run.recipes import config_names
from hf_era.training.coherence import CoherenceConfig
from hf_era.training.config import CausalLMTrainingConfig, GradientRoutingConfig, check_training_number
from hf_era.utils.checks import (
    check_count,
    check_name,
    check_path_text,
    check_positive,
    error_text,
    short_repr,
    unknown_key_message,
    unknown_value_message,
)
from hf_era.utils.fields import UNLESS_DEFAULT, ByPreset, identity_values, setting
from hf_era.utils.files import local_path, real_path

Arguments = TypeVar("Arguments", bound=CausalLMTrainingConfig)
STARTS = ("pretrained", "scratch")
LARGEST_VOCABULARY = 10_000_000
SMALL_ARCHITECTURE = {
    "hidden_size": 64, "num_layers": 4, "num_heads": 4, "attention_types": [[["global", "local"], 2]],
    "max_position_embeddings": 256, "window_size": 128,
}  # fmt: skip
"""Of a model that is trained here and whose architecture nobody gave: transformers' own default has 1.3 billion weights."""
# numpy takes no other seeds.
LARGEST_SEED = 2**32 - 1


@dataclass
class ModelConfig:
    """Which model the method starts from.

    Args:
        start (`str`, *optional*, defaults to `"pretrained"`): `pretrained`: a trained base model is expanded and trained
            on. `scratch`: the expanded model is trained from random weights.
        base (`str`, *optional*): local directory or hub id of a stock checkpoint. Not given with `pretrained`: a base of
            the given `architecture` is pretrained here, on the same examples. Must not be given with `scratch`.
        architecture (`dict`, *optional*): fields of the stock config (`model_type` defaults to `gpt_neo`), where no base
            gives one. Not given: a GPT-Neo of 4 layers and 64 hidden units. The vocabulary size comes from the tokenizer.
        tokenizer (`str`, *optional*): local directory or hub id. Not given: the base's; without a base, a byte-level BPE
            trained on the training examples.
        vocabulary_size (`int`, *optional*, defaults to `2048`): of a tokenizer that is trained here.
        base_control (`bool`, *optional*, defaults to `True`): with `scratch`: also train a stock model on the same data
            with the same steps and seed, without routing: what "before the method" means for such a run.
        controls_share_l1 (`bool`, *optional*, defaults to `True`): with `scratch`: base control and data filtering are
            trained with the L1 term of the routed run, over the target layers of its expansion, so that they differ from it
            in nothing but the routing and the auxiliary module. `False`: without any.
        base_dir (`str`, *optional*): where a base or base control that is trained here is kept; several runs can share
            it. `{seed}` and `{start}` are filled in: a base and a base control are not the same model. It must not be, or
            hold, the output directory. Not given: in the output directory.

    Raises:
        ValueError: for an unknown start, or settings that contradict each other.
    """

    start: str = setting("pretrained", "pretrained or scratch.", identity=True)
    base: str | None = setting(None, "Stock checkpoint: local directory or hub id.", identity=True)
    architecture: dict[str, Any] = setting(dict, "Config fields where no base is given.", identity=True)
    tokenizer: str | None = setting(None, "Local directory or hub id. Not given: base's, or trained.", identity=True)
    vocabulary_size: int = setting(2_048, "Of a tokenizer that is trained here.", identity=False)
    base_control: bool = setting(True, "Scratch: also train a base control to compare with.", identity=False)
    # Of the base control its own key says so, and of data filtering the method.
    controls_share_l1: bool = setting(True, "Scratch: the controls are trained with the run's L1 term.", identity=False)
    base_dir: str | None = setting(None, "Where a base that is trained here is kept.", identity=False)

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            raise ValueError(unknown_value_message("model.start", self.start, STARTS))
        for name in ("base", "tokenizer", "base_dir"):
            check_path_text(f"model.{name}", getattr(self, name))
        check_count("model.vocabulary_size", self.vocabulary_size, 1, LARGEST_VOCABULARY)
        if self.start == "scratch" and self.base is not None:
            raise ValueError(
                f"`model.base` is {short_repr(self.base)}, but `model.start: scratch` starts from random weights. Leave the "
                "base out and give `model.architecture`, or set `model.start: pretrained`."
            )
        if self.base is not None and self.architecture:
            raise ValueError("`model.architecture` and `model.base` are both given; the base has its own. Drop one.")

    @property
    def trains_base(self) -> bool:
        """Whether a stock model is trained here, as base or as base control."""
        return self.base is None and (self.start == "pretrained" or self.base_control)


@dataclass
class RunConfig:
    """One run: expand, route, ablate, contract, coherence fine-tuning, evaluation, relearn attack, card and report.

    Args:
        method (`str`, *optional*, defaults to `"gradient_routing"`): or a control: `data_filtering` trains a stock model
            on what is not labelled forget (from random weights), `base` only measures the model before the method.
        method_settings (`dict`, *optional*): fields of the method's own settings, where it has any.
        router (`str` or `dict`, *optional*, defaults to `"activation"`): who says what a token teaches to which part: a
            router's name, or a mapping with `name` and its settings.
        budget (`float`, *optional*): how long a method for a model that exists trains, as a share of what the pretraining of
            that model took, above 0: it takes the place of `training.max_steps`. What the pretraining took, a base that is
            trained here knows; of any other say one of the next two.
        pretraining_tokens (`float`, *optional*): tokens that the base was trained on, padding not counted.
        pretraining_steps (`int`, *optional*): steps that it was trained for, with batches as large as this run's.
        data_filtering (`str`, *optional*): `result.json` of a run with `method: data_filtering` on the same examples: its
            figures stand beside this run's.
        name (`str`): of the recipe (not given: the name of its YAML file); part of the output directory and the card.
        output_dir (`str`): where the run lives; `{name}`, `{seed}` and `{start}` are filled in.
        overwrite_output_dir (`bool`): throw another run in that directory away.
        seed (`int`): of data order, splits and weights.
        model, expansion, routing, data, coherence, evaluation, generation, relearn: the sections, see their classes.
        training (`dict`): fields of `GradientRoutingConfig`.
        pretraining (`dict`): fields of `GradientRoutingConfig` that differ for a base that is pretrained here.
    """

    name: str = setting("run", "Name of the recipe.", identity=False)
    output_dir: str = setting("runs/{name}-seed{seed}", "{name}, {seed} and {start} are filled in.", identity=False)
    overwrite_output_dir: bool = setting(False, "Throw another run in that directory away.", identity=False)
    method: str = setting("gradient_routing", f"One of {', '.join(METHODS)}.", identity=UNLESS_DEFAULT)
    method_settings: Any = setting(
        None, "Fields of the method's own settings, where it has any.", identity=UNLESS_DEFAULT
    )
    # They lead to `training.max_steps`, which the run is identified by.
    budget: float | None = setting(None, "Steps, as a share of what pretraining took.", identity=False)
    pretraining_tokens: float | None = setting(None, "That the base was trained on, for a budget.", identity=False)
    pretraining_steps: int | None = setting(None, "Of the base, with such batches, for a budget.", identity=False)
    data_filtering: str | None = setting(
        None, "result.json of the data-filtering control, to compare with.", identity=False
    )
    seed: int = setting(0, "Of data order, splits and weights.", identity=True)
    model: ModelConfig = setting(ModelConfig, "Section.", identity=True)
    expansion: ExpansionConfig = setting(ExpansionConfig, "Section.", identity=True)
    router: str | dict[str, Any] = setting(
        "activation", "Router: its name, or a mapping with name and settings.", identity=UNLESS_DEFAULT
    )
    routing: RoutingRuleConfig = setting(RoutingRuleConfig, "Section.", identity=True)
    data: DataConfig = setting(DataConfig, "Section.", identity=False)
    training: dict[str, Any] = setting(dict, "Fields of GradientRoutingConfig.", identity=True)
    pretraining: dict[str, Any] = setting(dict, "What differs for the base.", identity=True)
    coherence: CoherenceConfig = setting(CoherenceConfig, "Section.", identity=False)
    evaluation: EvaluationConfig = setting(EvaluationConfig, "Section.", identity=False)
    generation: SamplingConfig = setting(SamplingConfig, "Section.", identity=False)
    relearn: RelearnConfig = setting(RelearnConfig, "Section.", identity=False)

    def __post_init__(self) -> None:
        if self.method not in METHODS and self.method in config_names():
            raise ValueError(
                f"`method` is {self.method!r}, which is no method, but a packaged config that sets one up: `--config "
                f"{self.method}`."
            )
        method = get_method(self.method)
        self.method_settings = _method_settings(method, self.method_settings)
        method.check(self)
        self._check_unlabelled()
        check_name("name", self.name)
        check_count("seed", self.seed, 0, LARGEST_SEED)
        for name in ("output_dir", "data_filtering"):
            check_path_text(name, getattr(self, name))
        self._check_base_dir()
        make_router(self.router)  # checks it
        names = [module.name for module in self.expansion.module_configs]
        self.data.labels.check_modules(names, "`expansion.modules`")
        if self.routing.rule == "concept" and self.data.labels.kind != "words":
            raise ValueError(
                f"`routing.rule` is 'concept', which routes the tokens of forget words, but labels come from "
                f"{self.data.labels}. Set `routing.rule: full_seq`, or name `data.forget_words` instead."
            )
        self.training = checked_training(self.training, "training")
        self.pretraining = checked_training(self.pretraining, "pretraining")
        self._check_budget(method)

    def _check_budget(self, method: Method) -> None:
        for name in ("budget", "pretraining_tokens", "pretraining_steps"):
            if (value := getattr(self, name)) is not None:
                check_positive(name, value)
        if self.budget is None:
            return
        if self.model.start != "pretrained" or not method.trains_for_steps:
            why = f"`method: {self.method}` does not train for a number of steps"
            if self.model.start != "pretrained":
                why = f"with `model.start` {self.model.start!r} there is none: `training.max_steps` says how long"
            raise ValueError(
                f"`budget` is {self.budget:g}, which says how long a method trains a model that exists, but {why}. Leave it "
                "out, or where a file gives it: `--budget null`."
            )
        given = [name for name in ("pretraining_tokens", "pretraining_steps") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError("`pretraining_tokens` and `pretraining_steps` are both given. Drop one.")
        if given and self.model.trains_base:
            raise ValueError(
                f"`{given[0]}` is given, but the base is trained here (`model.base` is not given), as the section "
                "`pretraining` says. Leave it out."
            )
        if self.model.trains_base:  # whose length is not the method's
            lengths = {"max_steps": -1} | {key: self.training[key] for key in _LENGTHS if key in self.training}
            self.pretraining = lengths | self.pretraining
        elif not given:
            raise ValueError(
                f"`budget` is {self.budget:g} of what the pretraining of {short_repr(self.model.base)} took, but nobody "
                "says what that was. Give `pretraining_tokens` (or `pretraining_steps`), or a `training.max_steps` instead."
            )
        self.training = {key: value for key, value in self.training.items() if key not in _LENGTHS}

    def _check_base_dir(self) -> None:
        """A base has records and a lock of its own: in the run's own directory they would be taken for the run's."""
        given = self.model.base_dir
        if given is None or not self.model.trains_base:
            return
        output, base = real_path(self.output_path), real_path(self.base_path)
        if output.is_relative_to(base):
            how = "is the same directory" if output == base else "lies inside it"
            raise ValueError(
                f"`model.base_dir` is {short_repr(given)}, but `output_dir`, {self.output_path}, {how}. Give the base a "
                "directory of its own, or leave `model.base_dir` out."
            )
        if base.is_relative_to(output) and base.relative_to(output).parts[0] in OWN_FOLDERS:
            raise ValueError(
                f"`model.base_dir` is {short_repr(given)}, where the run in {self.output_path} puts its own "
                f"{base.relative_to(output).parts[0]}. Give the base a directory of its own, or leave `model.base_dir` out."
            )

    @property
    def start(self) -> str:
        return self.model.start

    @property
    def base_control(self) -> bool:
        return self.model.base_control

    @property
    def output_path(self) -> Path:
        return self._filled_in(self.output_dir)

    @property
    def base_path(self) -> Path:
        given = self.model.base_dir
        return self.output_path / "base" if given is None else self._filled_in(given)

    def _filled_in(self, path: str) -> Path:
        # As a shell does it: a folder that is called `~` is no place for a run.
        for name, value in (("name", self.name), ("seed", self.seed), ("start", self.start)):
            path = path.replace(f"{{{name}}}", str(value))
        return local_path(path)

    @property
    def stock_training(self) -> dict[str, Any]:
        """The section `training` of a base or base control that is trained here: a control has the run's own; a base that is
        pretrained here may have others."""
        overrides = self.pretraining if self.start == "pretrained" else {}
        return without_routing({**self.training, **overrides})

    def training_arguments(self, output_dir: str | Path, **overrides: Any) -> GradientRoutingConfig:
        """The Trainer's arguments for a phase; `overrides` come last."""
        return self._arguments(GradientRoutingConfig, output_dir, {"router": self.router, **self.training, **overrides})

    def stock_training_arguments(self, output_dir: str | Path, **overrides: Any) -> CausalLMTrainingConfig:
        """The arguments for a stock model: as `training_arguments`, without what only gradient routing has."""
        values = without_routing({**self.training, **overrides})
        return self._arguments(CausalLMTrainingConfig, output_dir, values)

    def _arguments(self, kind: type[Arguments], output_dir: str | Path, values: dict[str, Any]) -> Arguments:
        try:
            return kind(output_dir=str(output_dir), **{"seed": self.seed, **values})
        # Also transformers' own: unknown schedules and optimizers, packages that are missing.
        except Exception as error:
            text = error_text(error)
            raise ValueError(text if text.startswith("`training.") else f"section `training`: {text}") from error

    def _check_unlabelled(self) -> None:
        """Who leaves out what has no label would know all labels, where forget examples alone lost theirs."""
        field, data = getattr(self.method_settings, "left_out", None), self.data
        dropped = data.labelled_fraction < 1 or data.label_threshold is not None
        if field is not None and dropped and data.labelled_retain_fraction == 1:
            raise ValueError(
                f"`{field}` leaves out examples without a label, but with `data.labelled_retain_fraction` 1 all that lose "
                "theirs are forget examples: it would know them all. Give a lower fraction, as where only a part of the "
                "data was labelled, or leave that setting out."
            )

    def to_dict(self) -> dict[str, Any]:
        """As JSON. Of a method whose settings all go without saying, none: as versions wrote it in which it had none."""
        values, own = dataclasses.asdict(self), self.method_settings
        if own is not None and not identity_values(type(own), dataclasses.asdict(own)):
            values["method_settings"] = None
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunConfig:
        known = sorted(item.name for item in dataclasses.fields(cls))
        unknown = next((key for key in values if key not in known), None)
        if isinstance(values.get("runs"), list):
            raise ValueError("The config lists `runs`: it is a matrix of them, for `hf-era matrix`, and no run.")
        if unknown is not None:  # a field of a section, perhaps
            fields = [f"{name}.{item.name}" for name in SECTIONS if name for item in dataclasses.fields(SECTIONS[name])]
            inside = [field for field in fields if not field.startswith("pretraining.")]  # the same as `training`
            raise ValueError(unknown_key_message("the config", unknown, known, inside))
        return build(cls, values, "")


def load_run_config(paths: Sequence[str | Path], overrides: Iterable[str] = ()) -> RunConfig:
    """Reads YAML files, each over the one before, then command-line overrides.

    Args:
        paths: YAML files, or names of packaged configs; the first is the recipe, later ones change its scale or data.
        overrides: e.g. `["--learning_rate", "3e-4", "--data.train", "stories.jsonl"]`. A bare name is a field of the
            top level or, if it has none of that name, of `training`.

    Raises:
        ValueError: for a missing file, an unknown key (with a suggestion) or a value out of range.
    """
    values: dict[str, Any] = {"name": Path(paths[0]).stem} if paths else {}
    typed = parse_overrides(overrides, SECTIONS, default="training")
    if typed.get("budget") is not None and (lengths := _lengths_of(typed)):
        raise ValueError(f"`budget` and `training.{lengths[0]}` are both given, and each says how long. Drop one.")
    for layer in (*map(read_yaml, paths), typed):
        values = lay_over(values, layer)
    return RunConfig.from_dict(values)


def lay_over(values: dict[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a config with those of a later file over them, see `merge`; what the later one says in another way, as
    by other labels, another router or a preset of attacks, is replaced."""
    kept = _without_fields_of_preset(_without_settings_of_others(_without_budget(values, layer), layer), layer)
    return merge(_without_other_labels(kept, layer), layer)


def _without_budget(values: dict[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """The values of earlier files without their budget, where a later one gives the length itself."""
    if layer.get("budget") is not None or not _lengths_of(layer):
        return values
    return {name: value for name, value in values.items() if name != "budget"}


def _lengths_of(layer: Mapping[str, Any]) -> list[str]:
    """The fields of its section `training` that say how long that is."""
    training = layer.get("training")
    return [name for name in _LENGTHS if isinstance(training, Mapping) and training.get(name) is not None]


_LABELLING_FIELDS = (
    ("forget_words",), ("label_column", "forget_labels", "retain_labels"), ("score_column",), ("forget", "retain"),
)  # fmt: skip
"""Fields of the section `data` that label together, and in place of the others."""


def _without_settings_of_others(values: dict[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """The values of earlier files without the settings of the router or method that a later one puts another in place of."""
    kept = dict(values)
    new, old, training = layer.get("router"), values.get("router"), values.get("training")
    if new not in (None, ActivationRouter.name, {"name": ActivationRouter.name}) and isinstance(training, Mapping):
        kept["training"] = {name: value for name, value in training.items() if name != "multipliers"}
    if isinstance(old, Mapping) and isinstance(new, Mapping) and new.get("name", old.get("name")) != old.get("name"):
        del kept["router"]
    if "method" in values and layer.get("method", values["method"]) != values["method"]:
        kept.pop("method_settings", None)
    return kept


def _without_fields_of_preset(values: dict[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """The values of earlier files without the fields that a preset of a later one may set: `strong` over a recipe with an
    attack of 200 steps would be `strong` in name only."""
    old, new = values.get("relearn"), layer.get("relearn")
    if not isinstance(old, Mapping) or not isinstance(new, Mapping) or new.get("preset") is None:
        return values
    by_preset = {item.name for item in dataclasses.fields(RelearnConfig) if isinstance(item.default, ByPreset)}
    return {**values, "relearn": {name: value for name, value in old.items() if name not in by_preset}}


def _without_other_labels(values: dict[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """The values of earlier files without what a later one gives in another way: other labels replace labels, those of a
    built-in source too, and other training examples bring no validation examples along."""
    data, new = values.get("data"), layer.get("data")
    if not isinstance(data, Mapping) or not isinstance(new, Mapping):
        return values
    # Modules bring their labels, or words, along; a mapping would else be merged with the earlier one.
    replaced = {"modules", "forget_labels", "forget_words"} if new.get("modules") else set()
    ways = [way for way in _LABELLING_FIELDS if any(new.get(name) for name in way)]
    if ways:
        replaced.update(name for way in _LABELLING_FIELDS if way not in ways for name in way)
    if not ways and new.get("train") in LABELLED_BUILT_IN:  # which says itself what is to be forgotten
        replaced.update(name for way in _LABELLING_FIELDS for name in way)
    if {"train", "forget", "retain"}.intersection(new):
        replaced.update({"train", "forget", "retain", "validation", "stories_file", "attack_labels"}.difference(new))
    return {**values, "data": {name: value for name, value in data.items() if name not in replaced}}


SECTIONS: dict[str, type] = {
    "": RunConfig,
    "model": ModelConfig,
    "expansion": ExpansionConfig,
    "routing": RoutingRuleConfig,
    "data": DataConfig,
    "training": GradientRoutingConfig,
    "pretraining": GradientRoutingConfig,
    "coherence": CoherenceConfig,
    "evaluation": EvaluationConfig,
    "generation": SamplingConfig,
    "relearn": RelearnConfig,
}
"""Section of a config -> the class of its fields; the top level's name is empty."""


_LENGTHS = ("max_steps", "num_train_epochs")
_SECRETS = ("hub_token", "push_to_hub_token")

# These are decided by the pipeline.
_RESERVED_FIELDS = {
    "output_dir": "Use the top-level `output_dir`.",
    "router": "Use the top-level `router`.",
    "seed": "Use the top-level `seed`.",
    "data_seed": "Use the top-level `seed`.",
    "forget_dataset_name": "The run's own sets are called `forget` and `retain`.",
    "retain_dataset_name": "The run's own sets are called `forget` and `retain`.",
    "expansion": "Use the section `expansion`.",
    "routing": "Use the section `routing`.",
    **dict.fromkeys(
        ("label_column", "forget_labels", "retain_labels", "score_column", "forget_words", "modules", "text_column"),
        "Use the section `data`.",
    ),
    "max_length": "Use `data.max_tokens`.",
    "validation_examples": "Use `data.forget_validation_stories` and `data.retain_validation_stories`.",
    "eval_on_start": "The run evaluates before and after by itself.",
    "load_best_model_at_end": "The last weights are the routed ones; coherence fine-tuning keeps its best by itself.",
    "save_only_model": "A run that is stopped goes on from its optimizer's state, which this would leave out.",
    "resume_from_checkpoint": "Give the same command again: it goes on where it was.",
}
# Least and most. What is beyond is a slip of the hand: it would fill the memory, or start a million processes.
LIMITS = {
    "per_device_train_batch_size": (1, 1_000_000),
    "per_device_eval_batch_size": (1, 1_000_000),
    "gradient_accumulation_steps": (1, 1_000_000),
    "eval_accumulation_steps": (1, 1_000_000),
    "max_steps": (-1, 1_000_000_000),
    "dataloader_num_workers": (0, 1_024),
    "dataloader_prefetch_factor": (1, 10_000),
}


def _method_settings(method: Method, values: Any) -> Any:
    """The method's own settings as an object of its class; `None` for a method that has none."""
    if method.settings_class is None:
        if values:
            raise ValueError(
                f"`method_settings`: the method `{method.name}` has no settings of its own, got {short_repr(values)}. Leave "
                "them out."
            )
        return None
    if isinstance(values, method.settings_class):
        return values
    return build(method.settings_class, values or {}, "method_settings")


def without_routing(training: dict[str, Any]) -> dict[str, Any]:
    """Those of the training settings that a stock model's training has too."""
    known = {item.name for item in dataclasses.fields(CausalLMTrainingConfig)}
    return {name: value for name, value in training.items() if name in known}


def without_secrets(values: dict[str, Any]) -> dict[str, Any]:
    """A config's values without hub tokens: what is written down is there to be shared."""
    for section in ("training", "pretraining"):
        values[section] = {name: value for name, value in values[section].items() if name not in _SECRETS}
    return values


def checked_training(values: dict[str, Any], section: str) -> dict[str, Any]:
    """The fields that a section sets, with their types.

    Raises:
        ValueError: for an unknown field, one that the run sets itself, a value of another type or out of range.
    """
    known = {item.name: item for item in dataclasses.fields(GradientRoutingConfig) if item.init}
    hints = typing.get_type_hints(GradientRoutingConfig)
    checked = {}
    for key, value in values.items():
        if key not in known:
            raise ValueError(unknown_key_message(f"section `{section}`", key, sorted(known)))
        if key in _RESERVED_FIELDS:
            raise ValueError(f"`{section}.{key}` is set by the run itself. {_RESERVED_FIELDS[key]}")
        name = f"{section}.{key}"
        checked[key] = coerce(value, hints[key], name)
        _check_range(name, key, checked[key])
    return checked


def _check_range(name: str, key: str, value: Any) -> None:
    check_training_number(name, key, value)
    if key in LIMITS:
        check_count(name, value, *LIMITS[key])
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"`{name}` should be a finite number, got {short_repr(value)}.")
    elif key == "hub_model_id" and value is not None:
        # Here, not when the model is pushed: that is after all the training.
        try:
            validate_repo_id(value)
        except HFValidationError as error:
            raise ValueError(f"`{name}` should be a hub id such as `owner/name`, got {short_repr(value)}.") from error
    elif isinstance(value, str):
        check_path_text(name, value)
