"""Reading result files: which kind they are, and what to say of one that is not whole or of another version."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

SCHEMA_VERSION = 2
KINDS = {"run": "the `result.json` of `hf-era run`", "model": "a result of `hf-era eval` or `hf-era relearn`"}

Result = TypeVar("Result")


def read_values(path: str | Path) -> dict[str, Any]:
    """The content of a result file of any kind.

    Raises:
        ValueError: if there is no such file, it is cut off, it is no result, or it has another schema version.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"The result file {path} does not exist. Pass {' or '.join(KINDS.values())}.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is cut off or no JSON ({error}). Write it again: evaluate the run again.") from error
    if not isinstance(values, dict) or "schema_version" not in values:
        raise ValueError(f"{path} is no result file of hf_era. Pass {' or '.join(KINDS.values())}.")
    if values["schema_version"] != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema version {values['schema_version']}, this hf_era reads {SCHEMA_VERSION}. "
            "Evaluate again (give the same command; what was trained is kept), or use the hf_era that wrote it."
        )
    return values


def read_result(cls: type[Result], path: str | Path, kind: str) -> Result:
    """Reads a result of one kind; raises `ValueError` as `read_values`, or for another kind or missing fields."""
    values = read_values(path)
    found = values.get("kind", "run")
    if found != kind:
        raise ValueError(f"{path} is {KINDS.get(found, f'a result of kind {found!r}')}. Pass {KINDS[kind]}.")
    known = {item.name: item for item in fields(cls)}  # type: ignore[arg-type]
    missing = sorted(
        name
        for name, item in known.items()
        if name not in values and item.default is MISSING and item.default_factory is MISSING
    )
    if missing:
        raise ValueError(f"{path} lacks fields of a result file: {', '.join(missing)}. Evaluate again.")
    return cls(**{name: value for name, value in values.items() if name in known})
