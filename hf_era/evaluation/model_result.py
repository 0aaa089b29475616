"""The result of evaluating or attacking one model, ours or not: what `hf-era eval` and `hf-era relearn` write."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hf_era.evaluation.intervals import Estimate
from hf_era.evaluation.relearn_result import RelearnResult
from hf_era.evaluation.result import RunResult
from hf_era.evaluation.result_files import SCHEMA_VERSION, read_result, read_values
from hf_era.files import write_json


@dataclass
class ModelResult:
    """Losses, generations and relearn attacks of one causal LM. Losses are token-weighted, in nats a token.

    Attributes:
        name (`str`): to be shown. model (`str`): where it was loaded from. created (`str`): ISO 8601, UTC.
        versions, machine (`dict`): what it was measured on. data (`dict`): counts of stories and tokens, forget words,
            and `fingerprint` of the stories: results are comparable if it is the same.
        losses (`dict`): `forget`, `retain`, `forget_words` -> a `LossEstimate` as a dict.
        before (`dict`, *optional*): `model`, and `losses` of the model before the method on the same stories.
        differences (`dict`): `unlearning`, `retain_tax`, `forget_words_unlearning` -> an `Estimate` as a dict.
        mean_of_batch_means, generations, attack, data_filtering: as in `RunResult`; stage names do not apply, texts and
            means stand under `final` and, with a model before the method, `before`.
    """

    name: str
    model: str
    created: str
    versions: dict[str, str]
    machine: dict[str, Any]
    data: dict[str, Any]
    losses: dict[str, dict[str, Any]]
    seed: int = 0
    before: dict[str, Any] | None = None
    differences: dict[str, dict[str, float | None]] = field(default_factory=dict)
    mean_of_batch_means: dict[str, Any] = field(default_factory=dict)
    generations: dict[str, Any] = field(default_factory=dict)
    attack: dict[str, Any] | None = None
    data_filtering: dict[str, Any] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    kind: str = "model"
    schema_version: int = SCHEMA_VERSION

    def estimate(self, name: str) -> Estimate:
        """A difference to the model before the method, with its interval; without a value where there is none."""
        return Estimate(**self.differences[name]) if name in self.differences else Estimate(None)

    @property
    def relearning(self) -> RelearnResult | None:
        """The relearn attacks; `None` if there were none."""
        return None if self.attack is None else RelearnResult.from_dict(self.attack)

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        return {"schema_version": values.pop("schema_version"), "kind": values.pop("kind"), **values}

    def save(self, path: str | Path) -> Path:
        return write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> ModelResult:
        """Reads a result file; raises `ValueError` if it is none, is not whole, or of another schema version."""
        return read_result(cls, path, "model")


def load_result(path: str | Path) -> RunResult | ModelResult:
    """A result file of either kind; raises `ValueError` as `RunResult.load`."""
    return ModelResult.load(path) if read_values(path).get("kind") == "model" else RunResult.load(path)
