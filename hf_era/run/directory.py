"""The output directory of a run: every path that a run writes, which phases are done, and whether another run lives there.

run.json        whose directory this is: the run's identity, the settings behind it, and the version of hf_era
phases/         NAME.json: a finished phase: its key, the hashes of what it made, its report; attack-unfinished-*.json: the
                trials so far of an attack that is running
checkpoints/    PHASE-KEY/checkpoint-N: of a phase that is running; PHASE-KEY/best, best-history.json: of coherence
base/           the base, or base control, that was trained here (elsewhere with `model.base_dir`)
expanded/       the routed model with its auxiliary modules, for `AutoModelForCausalLM` with `hf_era` imported
contracted/     the stock model right after the cut
model/          the final stock checkpoint, tokenizer and card: this is what a push uploads
tracking/       files of trackers that write any (`training.report_to: tensorboard`)
result.json     figures, config, versions
report.html     the same to look at: one file, plots and texts in it

Beside it (where it really lies, if its path is a link) is `.NAME.lock`; tokenised examples are kept in the `datasets` cache
(`hf_era.data.prepared_cache`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hf_era.utils.files import (
    digests_of,
    empty_directory,
    first_damage,
    local_path,
    read_json,
    real_path,
    recover_leftovers,
    write_json,
)
from hf_era.utils.storage_errors import as_storage_error, check_writable
from hf_era.version import __version__

RUN_FILE = "run.json"
OWN_FOLDERS = (
    "phases", "checkpoints", "expanded", "contracted", "unlearned", "teacher", "elicitor", "model", "held_out",
)  # fmt: skip
"""Folders that a run fills and replaces: nothing else may live in them."""
_AS_EARLIER_VERSIONS = (
    "If an earlier version of hf_era began it, set `--data.coherence_validation_stories 0`: its examples are then split as "
    "they were, and it goes on. Otherwise: "
)
_NOT_HASHED = ("README.md",)  # the card is written, and may be written again, after the phase


class RunDirectory:
    """Remembers finished phases in `phases/<phase>.json`: the fingerprint of their inputs, the hashes of what they made.

    Args:
        path (`Path`): the directory; made when the run is claimed.
        writes (`bool`, *optional*, defaults to `True`): whether this process writes (the main process does).
        on_damage (*optional*): is told, in a sentence, of what a finished phase made and is no longer as it was written.
    """

    def __init__(self, path: Path, writes: bool = True, on_damage: Callable[[str], None] = lambda text: None) -> None:
        self.path, self.writes, self._on_damage = path, writes, on_damage

    def check(
        self,
        identity: str,
        settings: Mapping[str, Any],
        overwrite: bool = False,
        inputs: Iterable[str] = (),
        field: str = "output_dir",
    ) -> None:
        """Makes sure that the directory is new or holds this very run; nothing is changed.

        Args:
            identity: fingerprint of the run. settings: the config's parts behind it, to say what differs.
            overwrite: another run may be thrown away, if none of the paths `inputs`, which this run reads, is inside.
            field: name of the setting, for messages.

        Raises:
            ValueError: if it holds another run, or files that are no run.
            StorageError: if it cannot be written to.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"`{field}`: {self.path} is a file. Choose another `--{field}`.")
        if self.writes:
            check_writable(self.path, field)
        # `claim`, killed while it wrote its first file, leaves that one under its temporary name.
        if not self.path.exists() or all(path.match(f".{RUN_FILE}.*.tmp") for path in self.path.iterdir()):
            return
        stored = read_json(self.path / RUN_FILE)
        if not isinstance(stored, dict):  # `overwrite` does not reach here: these files are not ours to throw away
            raise ValueError(
                f"`{field}`: {self.path} is not empty and holds no run of hf_era. Choose another directory, or empty it."
            )
        if stored.get("identity") == identity:
            return
        if overwrite:
            inside = [name for name in inputs if real_path(local_path(name)).is_relative_to(real_path(self.path))]
            if inside:
                raise ValueError(
                    f"`{field}`: {self.path} is to be thrown away, but the run reads {inside[0]} inside it. Choose another "
                    f"`--{field}`, or move that first."
                )
        else:
            differing = _differences(stored.get("settings", {}), settings)
            listed = "; ".join(differing[:5]) or "the data or the base model changed"
            # Earlier versions held back no examples for coherence fine-tuning: with theirs the same run is another one.
            is_earlier = not differing and "hf_era" not in stored
            raise ValueError(
                f"`{field}`: {self.path} holds another run ({listed}). "
                + f"{_AS_EARLIER_VERSIONS if is_earlier else ''}Choose another `--{field}`, or "
                + ("pass `--overwrite_output_dir` to throw that run away." if field == "output_dir" else "delete it.")
            )

    def claim(self, identity: str, settings: Mapping[str, Any], overwrite: bool = False) -> None:
        """Writes down that this run lives here; throws another run away if `overwrite` allows it."""
        if not self.writes:
            return
        stored = read_json(self.path / RUN_FILE)
        if overwrite and isinstance(stored, dict) and stored.get("identity") != identity:
            empty_directory(self.path, last=RUN_FILE)  # killed in between, it is still known as a run of ours
        for folder in (self.path, *self.path.glob("*/"), *self.path.glob("*/*/")):
            recover_leftovers(folder)
        write_json(self.path / RUN_FILE, {"identity": identity, "settings": settings, "hf_era": __version__})

    @contextmanager
    def lock(self, wait: bool = False) -> Iterator[None]:
        """Keeps other launches out of this directory while the block runs; only the writing process takes the lock.

        Raises:
            ValueError: if another launch is at work here; with `wait`, it is waited for instead.
        """
        if not self.writes:
            yield
            return
        # Beside the directory, not in it: the directory may be thrown away and made anew. Its real one: a link is another
        # name of the same directory.
        path = real_path(self.path)
        lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=-1 if wait else 0)
        try:
            with as_storage_error(self.path):
                path.parent.mkdir(parents=True, exist_ok=True)
                lock.acquire()
        except Timeout as error:
            raise ValueError(
                f"`output_dir`: another process is at work in {self.path}. Wait for it, or stop it."
            ) from error
        try:
            yield
        finally:
            lock.release()

    def finished(self, phase: str, inputs: str, outputs: Iterable[Path] = ()) -> dict[str, Any] | None:
        """What a finished phase reported; `None` if it has not run with these inputs, or if one of the folders that it made
        is gone or not as it was written."""
        record = read_json(self._record(phase))
        if not isinstance(record, dict) or record.get("inputs") != inputs or "report" not in record:
            return None
        hashes = record.get("outputs", {})
        for folder in outputs:
            damage = first_damage(folder, hashes[folder.name]) if folder.name in hashes else "it has no hashes"
            if damage is not None:
                if self.writes:
                    self._on_damage(
                        f"{folder} is not as the phase '{phase}' left it: {damage}. The phase is run again."
                    )
                return None
        report: dict[str, Any] = record["report"]
        return report

    def seconds_of(self, phase: str, inputs: str) -> float | None:
        """How long a phase took that was finished with these inputs; `None` if it is to be run. Its outputs are not looked
        at: that takes long, and this is for an estimate."""
        record = read_json(self._record(phase))
        if not isinstance(record, dict) or record.get("inputs") != inputs:
            return None
        seconds = (record.get("report") or {}).get("seconds")
        return float(seconds) if isinstance(seconds, (int, float)) else None

    def record(self, phase: str, inputs: str, report: dict[str, Any], outputs: Iterable[Path] = ()) -> None:
        """Writes down that a phase is finished. Call it after its outputs, folders, are in place."""
        if self.writes:
            hashes = {folder.name: digests_of(folder, _NOT_HASHED) for folder in outputs}
            write_json(self._record(phase), {"inputs": inputs, "outputs": hashes, "report": report})

    def _record(self, phase: str) -> Path:
        return self.path / "phases" / f"{phase}.json"


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in sorted({*old, *new}):
        name, before, after = f"{prefix}{key}", old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += _differences(before, after, f"{name}.")
        elif before != after:
            found.append(f"`{name}` was {before!r}, is now {after!r}")
    return found
