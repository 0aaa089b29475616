"""The result of a run: one JSON file that says what was done, with what, and what came of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hf_era.files import read_json, write_json

SCHEMA_VERSION = 1
STAGES = ("before", "before_ablation", "after_ablation", "after_coherence")


@dataclass
class RunResult:
    """Everything that a report needs. Losses are token-weighted, in nats a token.

    Attributes:
        name (`str`): of the recipe. seed (`int`): of the run. created (`str`): ISO 8601, UTC.
        config (`dict`): the whole config, as run.
        versions, machine (`dict`), git_revision (`str`, *optional*): what it ran on.
        data (`dict`): counts of stories and tokens. routing_table (`list[dict]`): the frequency rule's rows.
        before_kind (`str`, *optional*): what "before the method" is: `pretrained`, `base_control`, or not measured.
        losses (`dict`): stage -> `forget`, `retain`, `forget_words` -> a `LossEstimate` as a dict.
        selectivity (`dict[str, float]`): layer -> forget over retain activation of the auxiliary module.
        coherence, training (`dict`): what these phases report. seconds (`dict[str, float]`): per phase.
    """

    name: str
    seed: int
    created: str
    config: dict[str, Any]
    versions: dict[str, str]
    machine: dict[str, Any]
    git_revision: str | None
    data: dict[str, Any]
    routing_table: list[dict[str, Any]]
    before_kind: str | None
    losses: dict[str, dict[str, dict[str, Any]]]
    selectivity: dict[str, float | None]
    coherence: dict[str, Any]
    training: dict[str, Any]
    seconds: dict[str, float] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def loss(self, stage: str, kind: str) -> float | None:
        """The loss of `kind` (`forget`, `retain`, `forget_words`) at a stage; `None` if it was not measured."""
        return self.losses.get(stage, {}).get(kind, {}).get("loss")

    def difference(self, kind: str, later: str, earlier: str) -> float | None:
        """Loss at one stage minus loss at another, nats a token; `None` if one of them was not measured."""
        high, low = self.loss(later, kind), self.loss(earlier, kind)
        return None if high is None or low is None else high - low

    @property
    def final_stage(self) -> str:
        return "after_coherence" if "after_coherence" in self.losses else "after_ablation"

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
        values = asdict(self)
        return {
            "schema_version": values.pop("schema_version"),
            **values,
            "derived": {name: getattr(self, name) for name in derived},
        }

    def save(self, path: str | Path) -> Path:
        return write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> RunResult:
        """Reads a result file; raises `ValueError` if it is none, or of another schema version."""
        values = read_json(path)
        if not isinstance(values, dict) or "schema_version" not in values:
            raise ValueError(f"{path} is no result file of hf_era. Pass the `result.json` of a run.")
        if values["schema_version"] != SCHEMA_VERSION:
            raise ValueError(
                f"{path} has schema version {values['schema_version']}, this hf_era reads {SCHEMA_VERSION}. "
                "Evaluate the run again, or use the hf_era that wrote it."
            )
        known = {item.name for item in fields(cls)}
        try:
            return cls(**{name: value for name, value in values.items() if name in known})
        except TypeError as error:
            raise ValueError(f"{path} lacks fields of a result file: {error}. Evaluate the run again.") from error
