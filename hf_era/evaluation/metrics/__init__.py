"""Thin `evaluate` modules over the pure functions of `hf_era.evaluation`; one folder each, as `evaluate.load` wants.

`load("target_words")` gives one, offline and without a cache.
"""

from __future__ import annotations

import importlib
import os
import tempfile
from pathlib import Path
from typing import Any

from hf_era.utils.checks import unknown_value_message

METRICS_FOLDER = Path(__file__).parent
"""`evaluate.load(str(METRICS_FOLDER / "target_words"))` works too; `evaluate` then copies the module into its own cache."""
METRIC_NAMES = tuple(sorted(file.stem for file in METRICS_FOLDER.glob("*/*.py") if file.stem == file.parent.name))


def load(name: str, *, cache_dir: str | os.PathLike[str] | None = None, **kwargs: Any) -> Any:
    """One of our metrics, ready to `compute`. Nothing is fetched, and nothing is left in any folder but `cache_dir`.

    Args:
        name (`str`): `forget_retain_loss`, `target_words`, `repetition` or `relearning`.
        cache_dir (*optional*): where what is added in batches is kept until it is computed. Not given: in memory.
        kwargs: what else `evaluate.Metric` takes. Several processes (`num_process`, `process_id`) need a `cache_dir`.

    Returns: an `evaluate.Metric`.

    Raises:
        ValueError: for an unknown name, or settings that need a `cache_dir` without one.
    """
    if name not in METRIC_NAMES:
        raise ValueError(unknown_value_message("name", name, METRIC_NAMES))
    module = importlib.import_module(f"hf_era.evaluation.metrics.{name}.{name}")
    metric_class = getattr(module, "".join(part.capitalize() for part in name.split("_")))
    if cache_dir is not None:
        return metric_class(cache_dir=os.fspath(cache_dir), **kwargs)
    if kwargs.get("num_process", 1) != 1 or not kwargs.get("keep_in_memory", True):
        raise ValueError(
            "Several processes, or `keep_in_memory=False`, need files, but `cache_dir` is None. Pass a folder that all "
            "processes see."
        )
    # `evaluate` makes a folder even for a metric that keeps everything in memory and never looks into it.
    with tempfile.TemporaryDirectory() as unused:
        return metric_class(cache_dir=unused, **{**kwargs, "keep_in_memory": True})
