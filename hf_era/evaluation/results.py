"""Results: one JSON file that says what was done, with what, and what came of it, of a run or of one model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from hf_era.evaluation.intervals import Estimate
from hf_era.evaluation.relearn.result import RelearnResult
from hf_era.utils.checks import unknown_value_message
from hf_era.utils.files import write_json

SCHEMA_VERSION = 5
EARLIER_VERSIONS = (2, 3, 4)
"""Read as well: `upgraded` fills in what has been added since."""
KINDS = {"run": "the `result.json` of `hf-era run`", "model": "a result of `hf-era eval` or `hf-era relearn`"}


def read_values(path: str | Path) -> dict[str, Any]:
    """The content of a result file of any kind. Raises `ValueError` if there is none, it is cut off, or it is of another
    schema version."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"The result file {path} does not exist. Pass {' or '.join(KINDS.values())}.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is cut off or no JSON ({error}). Write it again: evaluate the run again.") from error
    if not isinstance(values, dict) or "schema_version" not in values:
        raise ValueError(f"{path} is no result file of hf_era. Pass {' or '.join(KINDS.values())}.")
    if values["schema_version"] not in (*EARLIER_VERSIONS, SCHEMA_VERSION):
        raise ValueError(
            f"{path} has schema version {values['schema_version']}, this hf_era reads {EARLIER_VERSIONS[0]} to "
            f"{SCHEMA_VERSION}. Evaluate again (give the same command; what was trained is kept), or use the hf_era that "
            "wrote it."
        )
    try:
        return upgraded(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


# ---- Methods and stages ----

STAGE_TITLES = {
    "before": "Before the method",
    "before_ablation": "Before ablation",
    "after_ablation": "After ablation",
    "after_coherence": "After coherence",
    "after_training": "After training",
    "ablated": "This model, its modules ablated",
}
"""What reports call the stages that several methods share, in the order in which a run goes through them."""
ABLATION_STAGES = ("before_ablation", "after_ablation")
"""A run with both had an auxiliary module that was ablated."""
ABLATED = "ablated"
"""Stage of an expanded model that is evaluated with its modules off; with them on it is the final stage."""
CONTROL = "control"
"""Role of a method whose figures others are compared with."""
UNTOUCHED = "untouched"
"""Role of a method that trains nothing: there is no checkpoint of its own."""

EARLIER_METHODS = {
    "gradient_routing": ("gradient routing", "method", ABLATION_STAGES),
    "data_filtering": ("data filtering", CONTROL, ("after_training",)),
    "base": ("the model before the method", UNTOUCHED, ("before",)),
}
"""Those of version 2: title, role, and the stages that every run of it has. Newer files say that themselves."""


def upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a result file of an earlier schema version as the present one has them, without prose. Version 4 had
    attacks without schedules, mixtures and halves (`RelearnResult` reads them), version 3 nothing of several modules,
    version 2 nothing of methods and stages. Raises `ValueError` for a method that version 2 did not have."""
    version, values = values.get("schema_version"), {**values, "schema_version": SCHEMA_VERSION}
    if version != 2 or values.get("kind", "run") != "run":
        return values
    method, losses = values.get("method", "gradient_routing"), values.get("losses")
    if method not in list(EARLIER_METHODS):  # in a file it may be anything
        raise ValueError(unknown_value_message("method", method, EARLIER_METHODS))
    title, role, own_stages = EARLIER_METHODS[method]
    names = {*own_stages, *(losses if isinstance(losses, dict) else ())}
    return {
        **values,
        "method": method,
        "method_title": title,
        "method_role": role,
        "method_texts": {},
        "stages": [{"name": name, "title": text} for name, text in STAGE_TITLES.items() if name in names],
    }


# ---- Results ----


@dataclass(kw_only=True)
class Result:
    """What results of both kinds have. Losses are token-weighted, in nats a token.

    Attributes:
        name (`str`): of the recipe, or to be shown. created (`str`): ISO 8601, UTC.
        versions, machine (`dict`): what it was measured on.
        data (`dict`): counts of examples and tokens, forget words, and `fingerprint` of the examples: results are comparable
            if it is the same.
        differences (`dict`): `unlearning`, `retain_tax`, `forget_words_unlearning` and, of a run, `ablation_gap` and
            `retain_ablation_gap` -> an `Estimate` as a dict, resampled in pairs over examples; without what was not
        measured. mean_of_batch_means (`dict`): the reference's way of averaging: `batch_size`, and stage -> `forget`,
        `retain`. generations (`dict`): as `hf_era.evaluation.generation` makes it, its texts per stage; empty if not done.
        accuracies (`dict`): stage -> `forget_accuracy`, `retain_accuracy` as `Evaluator.accuracies` gives them; empty where
            no example has a prompt. `data["chance_accuracy"]`, where it is known, is that of guessing.
        tasks (`dict`): stage -> tasks of lm-eval as `hf_era.evaluation.tasks.Suite.measure` gives them; empty if not done. A
            stage of its own, `ablated`, is that of an expanded model whose modules are switched off.
        attack (`dict`, *optional*): a `RelearnResult` as a dict, of the final model.
        data_filtering (`dict`, *optional*): of data filtering on the same examples, as `comparison_values` makes it.
        modules (`dict`): where there are several, name -> what was measured of each by itself, see
            `hf_era.evaluation.module_results`. profiles (`list[dict]`): losses under each combination of modules, as
            `hf_era.evaluation.profiles` makes them; empty if not done.
        base_distance (`dict`): of the final model's weights from those of the model that it was made of: `l2` and
            `relative`, and with `evaluation.barrier_points` the `barrier` and `line` of losses between them
            (`hf_era.evaluation.distance`); empty if there was none, or they have not the same parameters.
        seconds (`dict[str, float]`): per phase.
    """

    name: str
    created: str
    versions: dict[str, str]
    machine: dict[str, Any]
    data: dict[str, Any]
    differences: dict[str, dict[str, float | None]] = field(default_factory=dict)
    mean_of_batch_means: dict[str, Any] = field(default_factory=dict)
    generations: dict[str, Any] = field(default_factory=dict)
    accuracies: dict[str, dict[str, Any]] = field(default_factory=dict)
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    attack: dict[str, Any] | None = None
    data_filtering: dict[str, Any] | None = None
    modules: dict[str, dict[str, Any]] = field(default_factory=dict)
    profiles: list[dict[str, Any]] = field(default_factory=list)
    base_distance: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    kind: str = ""
    schema_version: int = SCHEMA_VERSION

    @property
    def relearning(self) -> RelearnResult | None:
        """The relearn attacks on the final model; `None` if there were none."""
        return None if self.attack is None else RelearnResult.from_dict(self.attack)

    def estimate(self, name: str) -> Estimate:
        """A difference such as `unlearning`, with its interval where one was computed; without a value if not measured."""
        stored = self.differences.get(name)
        return Estimate(getattr(self, name, None)) if stored is None else Estimate(**stored)

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        # Most results have one module, no prompts, and nothing that they were made of.
        for name in ("modules", "profiles", "accuracies", "base_distance"):
            if not values[name]:
                del values[name]
        return {"schema_version": values.pop("schema_version"), "kind": values.pop("kind"), **values}

    def save(self, path: str | Path) -> Path:
        return write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads a result file; raises `ValueError` if it is none, is not whole, or of another schema version or kind."""
        values = read_values(path)
        found = values.get("kind", "run")
        if found != cls.kind:
            raise ValueError(f"{path} is {KINDS.get(found, f'a result of kind {found!r}')}. Pass {KINDS[cls.kind]}.")
        known = {item.name: item for item in fields(cls)}
        needed = {name for name, item in known.items() if item.default is MISSING and item.default_factory is MISSING}
        missing = sorted(needed - values.keys())
        if missing:
            raise ValueError(f"{path} lacks fields of a result file: {', '.join(missing)}. Evaluate again.")
        return cls(**{name: value for name, value in values.items() if name in known})


@dataclass(kw_only=True)
class RunResult(Result):
    """Of a run: everything that a report needs.

    Attributes:
        seed (`int`): of the run. config (`dict`): the whole config, as run. git_revision (`str`, *optional*): of hf_era.
        routing_table (`list[dict]`): the frequency rule's rows.
        before_kind (`str`, *optional*): what "before the method" is: `pretrained`, `base_control`, or not measured.
        losses (`dict`): stage -> `forget`, `retain`, `forget_words` -> a `LossEstimate` as a dict.
        selectivity (`dict`): layer -> forget over retain activation of the auxiliary module, an `Estimate` as a dict.
        coherence, training (`dict`): what these phases report.
        method (`str`): its name in configs. method_title (`str`): what reports call it, e.g. `gradient routing`.
        method_role (`str`): `method`; `control`: its figures are those that others are compared with; `untouched`:
            nothing was trained, so there is no checkpoint.
        method_texts (`dict[str, str]`): what the method says of itself, each where there is something to say: `summary` (a
            sentence beside the verdict), `introduction`, `training` and `labels` (of the model card, in Markdown: emphasis
            and links to papers; `{version}` stands for that of hf_era).
        stages (`list[dict[str, str]]`): `name` and `title` of the run's stages, in order. The last one is the final
            model; `before` is the model before the method, `before_ablation` and `after_ablation` those around the cut.
        leak_audit (`dict`): as `hf_era.evaluation.leak_audit` makes it; empty if not done.
        base_training (`dict`): of the base or base control that was trained for it: `steps`, `train_loss`, and the
            `l1_coefficient` of its L1 term (none: there was no such term); empty if none was trained.
    """

    seed: int
    config: dict[str, Any]
    git_revision: str | None
    routing_table: list[dict[str, Any]]
    before_kind: str | None
    losses: dict[str, dict[str, dict[str, Any]]]
    selectivity: dict[str, dict[str, float | None]]
    coherence: dict[str, Any]
    training: dict[str, Any]
    method: str
    method_title: str
    method_role: str
    method_texts: dict[str, str]
    stages: list[dict[str, str]]
    leak_audit: dict[str, Any] = field(default_factory=dict)
    base_training: dict[str, Any] = field(default_factory=dict)
    kind: str = "run"

    def loss(self, stage: str, kind: str) -> float | None:
        """The loss of `kind` (`forget`, `retain`, `forget_words`) at a stage; `None` if it was not measured."""
        return self.losses.get(stage, {}).get(kind, {}).get("loss")

    def difference(self, kind: str, later: str, earlier: str) -> float | None:
        """Loss at one stage minus loss at another, nats a token; `None` if one was not measured, or both are the same."""
        if later == earlier:
            return None
        high, low = self.loss(later, kind), self.loss(earlier, kind)
        return None if high is None or low is None else high - low

    @property
    def stage_titles(self) -> dict[str, str]:
        """Name of each stage -> its title, in order."""
        return {stage["name"]: stage["title"] for stage in self.stages}

    @property
    def final_stage(self) -> str:
        """The stage of the model that the run ends with; empty if it has no stages."""
        return self.stages[-1]["name"] if self.stages else ""

    @property
    def has_module(self) -> bool:
        """Whether there was an auxiliary module that was ablated."""
        return set(ABLATION_STAGES) <= self.stage_titles.keys()

    @property
    def has_checkpoint(self) -> bool:
        """Whether the run ends with a model of its own."""
        return self.method_role != UNTOUCHED

    @property
    def is_yardstick(self) -> bool:
        """Whether it is of a control that never saw what is to be forgotten. One that trains a pretrained model further did:
        it is judged as any method is, for a method has to be better than that."""
        return self.method_role == CONTROL and self.before_kind != "pretrained"

    @property
    def ablation_gap(self) -> float | None:
        """Forget loss after ablation minus before it."""
        return self.difference("forget", "after_ablation", "before_ablation")

    @property
    def retain_ablation_gap(self) -> float | None:
        return self.difference("retain", "after_ablation", "before_ablation")

    @property
    def unlearning(self) -> float | None:
        """Forget loss at the end minus that of the model before the method."""
        return self.difference("forget", self.final_stage, "before")

    @property
    def retain_tax(self) -> float | None:
        """Retain loss at the end minus that of the model before the method."""
        return self.difference("retain", self.final_stage, "before")

    @property
    def localised(self) -> bool | None:
        """Whether the ablation gap reached the threshold `training.minimum_ablation_gap`."""
        gap, minimum = self.ablation_gap, self.training.get("minimum_ablation_gap")
        return None if gap is None or minimum is None else gap >= minimum

    def to_dict(self) -> dict[str, Any]:
        derived = ("ablation_gap", "retain_ablation_gap", "unlearning", "retain_tax", "localised")
        return {**super().to_dict(), "derived": {name: getattr(self, name) for name in derived}}


@dataclass(kw_only=True)
class ModelResult(Result):
    """Of one causal LM. Its stages are `final` and, with a model before the method, `before`.

    Attributes:
        model (`str`): where it was loaded from.
        losses (`dict`): `forget`, `retain`, `forget_words` -> a `LossEstimate` as a dict.
        seed (`int`, *optional*, defaults to `0`): of the evaluation.
        before (`dict`, *optional*): `model`, and `losses` of the model before the method on the same examples.
    """

    method: ClassVar[str] = "model"
    method_title: ClassVar[str] = "a model that was evaluated"
    method_role: ClassVar[str] = "method"
    method_texts: ClassVar[dict[str, str]] = {}
    final_stage: ClassVar[str] = "final"
    has_module: ClassVar[bool] = False

    model: str
    losses: dict[str, dict[str, Any]]
    seed: int = 0
    before: dict[str, Any] | None = None
    kind: str = "model"

    @property
    def stage_titles(self) -> dict[str, str]:
        """Name of each stage -> its title, in order."""
        before = {} if self.before is None else {"before": STAGE_TITLES["before"]}
        return {**before, self.final_stage: "This model"}


AnyResult = RunResult | ModelResult


def load_result(path: str | Path) -> AnyResult:
    """A result file of either kind; raises `ValueError` as `RunResult.load`."""
    return ModelResult.load(path) if read_values(path).get("kind") == "model" else RunResult.load(path)


def load_control(path: str | Path) -> AnyResult:
    """The result that `data_filtering` names; raises `ValueError` too if it is of a run that saw what others forget."""
    result = load_result(path)
    if isinstance(result, RunResult) and not result.is_yardstick:
        raise ValueError(
            f"`data_filtering`: {path} is the result of {result.method_title}, which is no such control. Give the "
            "`result.json` of a run with `method: data_filtering` on the same examples."
        )
    return result


@contextmanager
def broken_result(*paths: Path) -> Iterator[None]:
    """Turns an error that a value of the wrong kind causes into a `ValueError` that names the files; others pass through.

    The shape of results is not checked field by field: one holds hundreds, and hf_era wrote them itself.
    """
    try:
        yield
    except (TypeError, AttributeError, KeyError, IndexError, OverflowError, RecursionError) as error:
        names = ", ".join(map(str, paths))
        raise ValueError(
            f"{names}: a value is not what hf_era writes ({type(error).__name__}: {error}). Was the file changed by hand? "
            "Evaluate again: give the same command as for the run."
        ) from error
