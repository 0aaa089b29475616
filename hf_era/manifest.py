"""A list of files with their hashes: tells a folder that is as it was written from one that was cut off or damaged."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from hf_era.files import read_json, write_json

MANIFEST = "manifest.json"


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests_of(folder: Path, leave_out: Iterable[str] = ()) -> dict[str, str]:
    """Path relative to `folder` -> SHA-256, of every file under it but those of these names and temporary ones."""
    left_out = {MANIFEST, *leave_out}
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in left_out)
    return {path.relative_to(folder).as_posix(): digest_of_file(path) for path in files if path.suffix != ".tmp"}


def first_damage(folder: Path, digests: Mapping[str, str]) -> str | None:
    """What is wrong with the first file that is not as it was written; `None` if all are. Other files do not matter."""
    if not folder.is_dir():
        return "it is gone"
    for name, digest in digests.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if digest_of_file(path) != digest:
            return f"{name} is not as it was written (its SHA-256 differs)"
    return None


def write_manifest(folder: Path) -> None:
    """Writes `manifest.json` over all files of a folder. Last of all: a folder without one was not finished."""
    write_json(folder / MANIFEST, {"sha256": digests_of(folder)})


def damage_of(folder: Path) -> str | None:
    """What is wrong with a folder that should have a manifest; `None` if it is as it was written."""
    manifest = read_json(folder / MANIFEST)
    digests = manifest.get("sha256") if isinstance(manifest, dict) else None
    if not isinstance(digests, dict):
        return f"it has no {MANIFEST} that can be read"
    return first_damage(folder, digests)
