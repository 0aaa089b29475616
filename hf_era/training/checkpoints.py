"""Finding a checkpoint to continue from: whole, as it was written, and without a pickle in it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from hf_era.files import read_json
from hf_era.manifest import MANIFEST, damage_of


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
