"""Finding a checkpoint to continue from."""

from __future__ import annotations

from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_era.files import read_json


def last_complete_checkpoint(folder: str | Path) -> str | None:
    """The newest `checkpoint-N` in `folder` that was written to its end, or `None`.

    The Trainer writes `trainer_state.json` last; a checkpoint without a readable one was cut off while being saved, and
    the one before it is taken.
    """
    found = []
    for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        step = path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        state = read_json(path / TRAINER_STATE_NAME)
        if step.isdigit() and isinstance(state, dict) and state.get("global_step") == int(step):
            found.append((int(step), str(path)))
    return max(found)[1] if found else None
