"""The checkpoints in a folder: which one to continue from, whole and without a pickle in it, and which to remove."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from hf_era.training.optimizer_state import OPTIMIZER_FILE
from hf_era.utils.files import MANIFEST, damage_of, read_json, remove_directory


class DamagedCheckpointWarning(UserWarning):
    """A checkpoint is not as it was written, and was passed over."""


def _warn(text: str) -> None:
    warnings.warn(text, DamagedCheckpointWarning, stacklevel=3)


def step_of(checkpoint: Path) -> int | None:
    """The step of a folder `checkpoint-N`; `None` for any other name."""
    step = checkpoint.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
    return int(step) if checkpoint.name != step and step.isdigit() and step.isascii() else None


def checkpoints_in(folder: str | Path) -> list[Path]:
    """The folders `checkpoint-N` in a folder, the oldest first."""
    found = [(step_of(path), path) for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*")]
    return [path for _, path in sorted((step, path) for step, path in found if step is not None)]


def last_whole_checkpoint(folder: str | Path, tell: Callable[[str], None] = _warn) -> str | None:
    """The newest checkpoint in `folder` whose files all have the hashes of its manifest, or `None`.

    Args:
        folder: with `checkpoint-N` in it.
        tell (*optional*): is told, in a sentence each, which checkpoints were passed over and why. Not given: a
            `DamagedCheckpointWarning`.
    """
    for path in reversed(checkpoints_in(folder)):
        damage = damage_of(path)
        if damage is None:
            return str(path)
        tell(f"The checkpoint {path} is damaged: {damage}. It is passed over for the one before.")
    return None


def check_checkpoint(path: str | Path) -> None:
    """Raises `ValueError` if a folder is no checkpoint of ours, or not as it was written."""
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"`resume_from_checkpoint`: the directory {folder} does not exist.")
    if not (folder / MANIFEST).is_file():
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".pkl"))
        held = f" It holds {', '.join(pickles)}: pickles, which are never read." if pickles else ""
        raise ValueError(
            f"`resume_from_checkpoint`: {folder} has no {MANIFEST}, so it is no finished checkpoint of hf_era.{held} To "
            "start from its weights, load them as a model."
        )
    damage = damage_of(folder)
    if damage is not None:
        raise ValueError(
            f"`resume_from_checkpoint`: {folder} is damaged: {damage}. Pass an earlier checkpoint, or `True` for the last "
            "that is whole."
        )
    if not isinstance(read_json(folder / TRAINER_STATE_NAME), dict):
        raise ValueError(f"`resume_from_checkpoint`: {folder} has no {TRAINER_STATE_NAME}, so it is no checkpoint.")
    if not any((folder / name).is_file() for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)):
        raise ValueError(f"`resume_from_checkpoint`: {folder} has no {SAFE_WEIGHTS_NAME}.")


def check_has_optimizer(checkpoint: Path) -> None:
    """Raises `ValueError` if a checkpoint holds weights alone."""
    if not (checkpoint / OPTIMIZER_FILE).is_file():
        raise ValueError(
            f"`resume_from_checkpoint`: {checkpoint} has no {OPTIMIZER_FILE}: it was saved with `save_only_model=True`, "
            "and training cannot go on from it as it would have. To start from its weights, load them as a model."
        )


def remove_old_checkpoints(newest: Path, best: Path | None, limit: int | None) -> None:
    """Removes checkpoints beside the newest until `limit` are left (`None` or 0: all), never the newest or the best."""
    if limit is None or limit <= 0:
        return
    found, last_step = checkpoints_in(newest.parent), step_of(newest) or 0
    # Those of later steps were passed over, being damaged: they go first.
    found.sort(key=lambda path: (step_of(path) or 0) <= last_step)
    removable = [path for path in found if path not in (newest, best)]
    for path in removable[: max(len(found) - limit, 0)]:
        remove_directory(path)
