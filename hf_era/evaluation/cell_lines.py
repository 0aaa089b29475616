"""What a matrix keeps of each cell: one line of JSON with its figures and the curve of its strongest attack.

A result file of a run has thousands of lines. Of hundreds of runs a table needs little, and the runs themselves may be gone:
the lines are enough to make the tables and plots of a matrix anew, on any machine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_era.evaluation.relearn.result import AttackSummary, RelearnResult
from hf_era.evaluation.results import UNTOUCHED, RunResult
from hf_era.utils.files import read_text, write_text

MOST_POINTS = 30
"""Of the curve of an attack."""
_DIGITS = 5
Line = dict[str, Any]
Key = tuple[str, str, int]


def key_of(line: Line) -> Key:
    """Testbed (empty: there are none), row and seed: which cell it is."""
    return line["testbed"], line["row"], line["seed"]


def cell_line(result: RunResult, testbed: str = "", settings_key: str | None = None) -> Line:
    """The line of one result.

    Args:
        result (`RunResult`): of the cell. testbed (`str`, *optional*): its name.
        settings_key (`str`, *optional*): fingerprint of the settings that the cell was made of. Not given: of others.

    Returns: `testbed`, `row`, `seed`, `method`, `role`, `router`, `start`; `labelled_fraction`, `label_errors`; `steps`, own
    ones, `base_steps`, those of the base it went on from, `own_compute` and `compute`, examples read in its own steps and in
    both, `training_share`, the former as a share of the pretraining's, where that is known; `forget_loss`, `retain_loss` at
    the end, before any attack; `before` and `with_modules`: the same of the model before the method, and before ablation;
    `retain_tax`; `attack`: the strongest one, with `kinds`, the strongest of each kind and mixture where there are several;
    `base_distance`: of the weights from the pretrained ones, and the loss barrier
    between; `seconds`, of which `base_seconds` may be shared; `version`, `revision`, `date`, `data` and `settings_key`.
    Losses are in nats a token.
    """
    config, training = result.config, result.training
    untouched = result.method_role == UNTOUCHED
    base_steps = int(result.base_training.get("steps") or 0)
    if not untouched and (config.get("model") or {}).get("start") == "scratch":
        base_steps = 0  # that was the base control: nothing went on from it
    steps = 0 if untouched else int(training.get("steps") or 0)
    settings = config.get("training") or {}
    base_settings = {**settings, **(config.get("pretraining") or {})}
    return _rounded({
        "testbed": testbed,
        "row": result.name,
        "seed": result.seed,
        "method": result.method,
        "role": result.method_role,
        "router": _router(result),
        "start": (config.get("model") or {}).get("start"),
        **_labels(config.get("data") or {}),
        "steps": steps,
        "base_steps": base_steps,
        "own_compute": (own := steps * _examples_a_step(settings)),
        "compute": own + (before := base_steps * _examples_a_step(base_settings)),
        "training_share": own / before if before else config.get("budget"),
        **{f"{kind}_loss": result.loss(result.final_stage, kind) for kind in ("forget", "retain")},
        "before": _losses(result, "before"),
        "with_modules": _losses(result, "before_ablation"),
        "retain_tax": result.retain_tax,
        "attack": _attack(result.relearning),
        "base_distance": {name: value for name, value in result.base_distance.items() if name != "line"},
        "seconds": sum(result.seconds.values()),
        "base_seconds": result.seconds.get("base", 0.0),
        "version": result.versions.get("hf-era"),
        "revision": result.git_revision,
        "date": result.created,
        "data": str(result.data.get("fingerprint") or "")[:8],
        "settings_key": settings_key,
    })  # fmt: skip


def _router(result: RunResult) -> str | None:
    """Only what ends with a module has one; of a mask rule that routes nothing it is `none`."""
    if not result.has_module:
        return None
    if (result.config.get("routing") or {}).get("rule") == "none":
        return "none"
    router = result.config.get("router") or "activation"
    return str(router.get("name") if isinstance(router, Mapping) else router)


def _labels(data: Mapping[str, Any]) -> Line:
    errors = data.get("label_errors") or "random"
    threshold = data.get("label_threshold")
    return {
        "labelled_fraction": None if threshold is not None else data.get("labelled_fraction", 1.0),
        "label_errors": errors if threshold is None else f"{errors} {threshold:g}",
    }


def _examples_a_step(training: Mapping[str, Any]) -> int:
    sizes = ("per_device_train_batch_size", 8), ("gradient_accumulation_steps", 1)
    return math.prod(int(training.get(name) or default) for name, default in sizes)


def _losses(result: RunResult, stage: str) -> dict[str, float | None] | None:
    losses = {kind: result.loss(stage, kind) for kind in ("forget", "retain")}
    return losses if stage in result.losses else None


def _attack(relearning: RelearnResult | None) -> Line | None:
    """The strongest attack; `None` if there was none."""
    strongest = None if relearning is None else relearning.strongest()
    if relearning is None or strongest is None:
        return None
    trials = [trial for trial in relearning.trials if trial.attack == strongest.attack]
    curve = trials[0].curve
    points = thinned(curve.points, curve.points.index(curve.lowest))
    tokens = [trial.tokens * trial.curve.lowest.step for trial in trials if trial.tokens is not None]
    lowest, retain = strongest.lowest_forget, strongest.retain_at_lowest
    found: Line = {
        "name": _name(strongest),
        "trials": strongest.trials,
        "start_forget": strongest.start_forget,
        "start_retain": strongest.start_retain,
        "before_forget": (relearning.before or {}).get("forget"),
        "lowest_forget": lowest.value,
        "low": lowest.low,
        "high": lowest.high,
        "retain_at_lowest": retain.value,
        "lowest_step": strongest.lowest_step,
        "robust_unlearning": strongest.robust_unlearning.value,
        "edges": list(strongest.edges),
        # Counted while attacking, in later results.
        "tokens": getattr(strongest, "tokens_to_lowest", sum(tokens) / len(tokens) if tokens else None),
        "curve": {
            "step": [point.step for point in points],
            "forget": [point.forget_loss for point in points],
            "retain": [point.retain_loss for point in points],
        },
    }
    accuracy = getattr(strongest, "accuracy_at_lowest", None)
    if accuracy is not None and accuracy.value is not None:
        found |= {"start_accuracy": getattr(strongest, "start_accuracy", None), "accuracy": accuracy.value}
        found["curve"]["accuracy"] = [getattr(point, "forget_accuracy", None) for point in points]
        reached = [point.forget_accuracy for trial in trials for point in trial.curve.points]
        found["highest_accuracy"] = max(value for value in reached if value is not None)
    if len({(trial.kind, trial.mixture) for trial in relearning.trials}) > 1:
        kinds = relearning.strongest_of_each_kind()
        found["kinds"] = {f"{part.kind}, {part.mixture}": _kind(part) for part in kinds}
    return found


def _kind(attack: AttackSummary) -> Line:
    return {
        "name": _name(attack),
        "start_forget": attack.start_forget,
        "start_retain": attack.start_retain,
        "lowest_forget": attack.lowest_forget.value,
        "retain_at_lowest": attack.retain_at_lowest.value,
        "lowest_step": attack.lowest_step,
        "edges": list(attack.edges),
    }


def _name(attack: AttackSummary) -> str:
    kind, stories, learning_rate = attack.attack[:3]
    return str(getattr(attack.attack, "name", f"{kind} {stories} {learning_rate:g}"))


def thinned(points: Sequence[Any], kept: int, most: int = MOST_POINTS) -> list[Any]:
    """At most so many of the points, evenly spread, with the first, the last and the one at place `kept` among them."""
    if len(points) <= most:
        return list(points)
    spread = {round(number * (len(points) - 1) / (most - 2)) for number in range(most - 1)}
    return [points[place] for place in sorted(spread | {kept})]


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return round(value, _DIGITS) if math.isfinite(value) else None
    return value


# ---- Files ----


def read_lines(path: str | Path) -> dict[Key, Line]:
    """The lines of a file by their cells; none if it is not there. Raises `ValueError` for a line that is none, with its
    number."""
    path, found = Path(path), {}
    for number, text in enumerate(read_text(path).splitlines() if path.is_file() else [], 1):
        try:
            line = json.loads(text)
            found[key_of(line)] = line
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}, is no cell of a matrix ({error!r}). Take it out: a cell whose run is there gets "
                "its line again."
            ) from error
    return found


def write_lines(path: str | Path, lines: Iterable[Line]) -> Path:
    """Writes lines in one go."""
    return write_text(path, "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines))
