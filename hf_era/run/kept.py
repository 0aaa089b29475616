"""What a finished run keeps to be measured again: its expanded model, and the examples that it never trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_era.run.directory import RUN_FILE
from hf_era.run.outputs import HELD_OUT
from hf_era.utils.files import local_path, read_json

EXPANDED = "expanded"


def expanded_model_of(model: str, needs_examples: bool = True) -> dict[str, Any]:
    """Where the expanded model of a run is, and its examples if they are needed, as fields of a `ModelEvaluationConfig`;
    empty if `model` is not the folder of a run. Raises `ValueError` if that run has no expanded model, or lacks its
    examples."""
    folder = local_path(model)
    if not (folder / RUN_FILE).is_file():
        return {}
    if not (folder / EXPANDED / "config.json").is_file():
        raise ValueError(
            f"`profiles`: {folder} has no expanded model (`{EXPANDED}/`). A run with `method: gradient_routing` keeps one; "
            "if it was deleted, give the run's command again, and it is made anew. Or name an expanded model with "
            "`--forget FILE --retain FILE`."
        )
    found: dict[str, Any] = {"model": str(folder / EXPANDED), **_limits_of(folder)}
    return {**found, **_examples_of(folder), "max_characters": None} if needs_examples else found


def _examples_of(folder: Path) -> dict[str, str]:
    files = {name: folder / HELD_OUT / f"{name}.jsonl" for name in ("forget", "retain")}
    missing = [path for path in files.values() if not path.is_file()]
    if missing:
        raise ValueError(
            f"`profiles`: the run's own examples are not there: {missing[0]}. They are written when the run ends: give its "
            "command again, or name others: `--forget FILE --retain FILE`."
        )
    return {name: str(path) for name, path in files.items()}


def _limits_of(folder: Path) -> dict[str, Any]:
    """An example is cut where the run cut it, and begins and ends as it did there: else the figures were not the run's."""
    found = read_json(folder / "result.json")
    config = found.get("config") if isinstance(found, dict) else None
    data = config.get("data") if isinstance(config, dict) else None
    kinds = {"max_tokens": int, "add_bos": bool, "add_eos": bool}
    return {
        name: data[name] for name, kind in kinds.items() if isinstance(data, dict) and isinstance(data.get(name), kind)
    }
