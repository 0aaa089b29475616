"""Files that are either whole or not there: written to a temporary name, flushed to the device, then renamed."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_era.utils.storage_errors import as_storage_error


def write_text(path: str | Path, text: str) -> Path:
    """Writes a text file in one go: readers see the old file or the new one, never half of it.

    Raises:
        StorageError: if it cannot be written (disk full, read-only, ...).
    """
    path = Path(path)
    with as_storage_error(path):
        make_folder(path.parent)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            flush_names(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    return path


def write_json(path: str | Path, value: Any) -> Path:
    """Writes JSON in one go, keys in the order given."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Reads JSON; `None` if the file is missing or no JSON (not even text)."""
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError, RecursionError):
        return None


BYTE_ORDER_MARK = codecs.BOM_UTF8
"""What Windows programs write at the beginning of a file. It says that the file is UTF-8 and is no part of the text."""
_OTHER_MARKS = (
    ("UTF-32", codecs.BOM_UTF32_LE),  # begins as UTF-16's does
    ("UTF-32", codecs.BOM_UTF32_BE),
    ("UTF-16", codecs.BOM_UTF16_LE),
    ("UTF-16", codecs.BOM_UTF16_BE),
)


def local_path(name: str | os.PathLike[str]) -> Path:
    """The path that somebody typed, with `~` as a shell has it: `~draft.txt`, of no user, is a name like any other."""
    return Path(os.path.expanduser(name))


def recipes_folder() -> Path:
    """The folder with `configs`, `templates`, `accelerate`, `slurm` and `lm_eval`: in an installed package it lies inside,
    in a checkout beside it."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def real_path(path: str | Path) -> Path:
    """The absolute path without links: two names of one directory have the same one. It need not exist."""
    return Path(os.path.realpath(path))


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, without a byte order mark, and with every line's end as a line feed.

    Raises:
        UnicodeDecodeError: if it is no UTF-8.
    """
    return Path(path).read_text(encoding="utf-8-sig")


def starts_with(path: str | Path, mark: bytes) -> bool:
    """Whether a file's first bytes are these."""
    with open(path, "rb") as file:
        return file.read(len(mark)) == mark


def check_encoding(path: str | Path, field: str) -> None:
    """Raises `ValueError` for a file that says of itself that it is UTF-16 or UTF-32; `field` names the setting."""
    for encoding, mark in _OTHER_MARKS:
        if starts_with(path, mark):
            raise ValueError(f"`{field}`: {path} is {encoding} text. Save it as UTF-8.")


@contextmanager
def whole_directory(path: str | Path) -> Iterator[Path]:
    """A directory to fill; it takes the place of `path` only if the block ends without an error.

    Raises:
        StorageError: if it cannot be written; what was at `path` is still there.
    """
    path = Path(path)
    with as_storage_error(path):
        make_folder(path.parent)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            temporary.mkdir()
            yield temporary
            put_in_place(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def put_in_place(temporary: Path, path: Path) -> None:
    """Gives a directory that is complete its name, once all of it is on the device; what had that name is removed."""
    flush_tree(temporary)
    old = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.old")
    if path.exists():
        path.rename(old)  # killed from here on: `recover_leftovers` gives it its name back
    try:
        temporary.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    flush_names(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove_directory(path: Path) -> None:
    """Removes a directory so that no half of it is ever found under its name."""
    hidden = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.gone.tmp")
    try:
        path.rename(hidden)
    except FileNotFoundError:
        return
    flush_names(path.parent)
    shutil.rmtree(hidden, ignore_errors=True)


def empty_directory(path: Path, last: str) -> None:
    """Removes all that is in a directory, the file named `last` after everything else."""
    for inside in sorted(path.iterdir(), key=lambda inside: inside.name == last):
        if inside.is_dir() and not inside.is_symlink():
            shutil.rmtree(inside)
        else:
            inside.unlink()


def recover_leftovers(folder: str | Path) -> None:
    """Puts in order what writes that were killed left in a folder: a directory that was about to be replaced gets its name
    back if nothing took its place, and everything else under a temporary name is removed."""
    for path in sorted(Path(folder).glob(".*")):
        if path.suffix == ".old" and path.is_dir():
            replaced = path.with_name(path.name.removeprefix(".").rsplit(".", 2)[0])
            if replaced.exists():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.rename(replaced)
        elif path.suffix == ".tmp" and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix == ".tmp":
            path.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Makes a folder and those above it that are missing, and makes sure that their names are on the device."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        flush_names(folder.parent)


def flush_tree(folder: Path) -> None:
    """Makes sure that all files under a folder, and their names, are on the device and not only in memory."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    for path in (*(path for path in sorted(folder.rglob("*")) if path.is_dir()), folder):
        flush_names(path)


def flush_names(folder: Path) -> None:
    """Makes sure that the names in a folder are on the device: a rename is kept there, not in the file."""
    if os.name == "nt":
        return  # directories cannot be opened there
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


# ---- Fingerprints ----


def fingerprint(*parts: Any) -> str:
    """A hash of JSON-like values; equal values give equal hashes in any process."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def model_fingerprint(folder: Path) -> str:
    """A hash over the contents of a saved model's weight and config files."""
    digest = hashlib.sha256()
    for path in [*sorted(folder.glob("*.safetensors")), folder / "config.json"]:
        digest.update(path.name.encode())
        digest.update(bytes.fromhex(digest_of_file(path)))
    return digest.hexdigest()[:16]
