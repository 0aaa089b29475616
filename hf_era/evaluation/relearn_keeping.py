"""Trials of an attack that was stopped: kept as they are through, found again whatever number of processes goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from accelerate import PartialState

from hf_era.evaluation.relearn_result import RelearnTrial
from hf_era.files import read_json, write_json
from hf_era.processes import in_all

_NAME = "attack-unfinished"


class KeptTrials:
    """The trials of an unfinished attack, in files of a folder: one a process, so that none waits for another.

    Args:
        folder (`Path`): for the files. It need not be shared between machines: each process reads what it finds, and all get
            the trials of all.
        key (`str`): fingerprint of the attack's inputs; trials that were kept under another one are not found.
        state (`PartialState`): of this process among the launched ones, all of which do the same.

    Attributes:
        found (`list[RelearnTrial]`): those kept before, the same in every process, none twice.
    """

    def __init__(self, folder: Path, key: str, state: PartialState) -> None:
        self._folder, self._key, self._state = folder, key, state
        number = "" if state.is_main_process else f"-{state.process_index}"
        self._own = folder / f"{_NAME}{number}.json"
        # Gathering is waiting, too: all have read before one of them writes.
        everyones = in_all(lambda: list(self._read()), state)
        distinct = {(*trial.attack, trial.trial, trial.seed): trial for trials in everyones for trial in trials}
        self.found = list(distinct.values())
        self._trials = list(self.found)  # an own file is written over: what stood there must not be lost

    def add(self, trial: RelearnTrial) -> None:
        """Keeps a trial, in the process that made it."""
        self._trials.append(trial)
        write_json(self._own, {"inputs": self._key, "trials": [part.to_dict() for part in self._trials]})

    def _read(self) -> Iterator[RelearnTrial]:
        for path in sorted(self._folder.glob(f"{_NAME}*.json")):
            kept = read_json(path)
            if isinstance(kept, dict) and kept.get("inputs") == self._key:
                yield from map(RelearnTrial.from_dict, kept["trials"])


def remove_kept_trials(folder: Path) -> None:
    """Removes all files of `KeptTrials` in a folder, once the attack is through in all processes."""
    for path in folder.glob(f"{_NAME}*.json"):
        path.unlink(missing_ok=True)
