"""Files that cannot be written: what happened, on which path, and what to do, in one error."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_REASONS = {
    errno.ENOSPC: "no space is left on the device",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than this file system or process may write",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "there is no permission to write there",
    errno.EPERM: "there is no permission to write there",
    errno.EIO: "the device reported an input/output error",
}
_WAYS_OUT = {
    errno.ENOSPC: "Free some space, or choose another `--output_dir`",
    errno.EDQUOT: "Free some space, or choose another `--output_dir`",
    errno.EIO: "Check the device, or choose another `--output_dir`",
}
# Libraries with writers of their own (safetensors, Arrow) pass on the system's words instead of its error.
_WORDS = {
    "no space left on device": errno.ENOSPC,
    "storagefull": errno.ENOSPC,
    "disk quota exceeded": errno.EDQUOT,
    "file too large": errno.EFBIG,
    "read-only file system": errno.EROFS,
    "permission denied": errno.EACCES,
    "input/output error": errno.EIO,
}


class StorageError(OSError):
    """Something could not be written. What was whole before still is; the message says what to do.

    Attributes:
        path (`Path`): what was to be written.
        errno (`int`): the system's number of the reason.
    """

    def __init__(self, message: str, path: Path, number: int) -> None:
        super().__init__(message)
        self.path, self.errno = path, number


@contextmanager
def as_storage_error(path: str | Path) -> Iterator[None]:
    """Raises `StorageError` in place of any error of the block that says that `path` cannot be written."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        number = _number_of(error)
        if number is None:
            raise
        raise StorageError(_message(Path(path), number), Path(path), number) from error


def check_writable(folder: str | Path, field: str) -> None:
    """Makes sure that files can be written in a folder, or that it can be made; nothing is left behind.

    Raises:
        StorageError: if not; `field` names the setting.
    """
    existing = _nearest(Path(folder))
    # `os.access` knows a read-only file system too, even for root.
    if not os.access(existing, os.W_OK | os.X_OK):
        with as_storage_error(folder):
            probe = existing / f".hf_era-{os.getpid()}.tmp"
            probe.touch()  # says why not
            probe.unlink()
        return
    if _free_bytes(existing) == 0:
        message = f"`{field}`: {_message(Path(folder), errno.ENOSPC)}"
        raise StorageError(message, Path(folder), errno.ENOSPC)


def _number_of(error: BaseException) -> int | None:
    number = getattr(error, "errno", None)
    if number is not None:
        return number if number in _REASONS else None
    text = str(error).lower()
    return next((number for words, number in _WORDS.items() if words in text), None)


def _message(path: Path, number: int) -> str:
    free = f"{_free_bytes(path) / 2**20:.0f} MiB are free there. " if number == errno.ENOSPC else ""
    way_out = _WAYS_OUT.get(number, "Choose another `--output_dir`, or change that")
    return (
        f"{path} cannot be written: {_REASONS[number]}. {free}{way_out}, then give the same command again. What was saved "
        "before is whole and was kept."
    )


def _nearest(path: Path) -> Path:
    """What is there of a path: itself, or the nearest folder above it."""
    return next((folder for folder in (path, *path.parents) if folder.exists()), Path())


def _free_bytes(path: Path) -> int:
    return shutil.disk_usage(_nearest(path)).free
