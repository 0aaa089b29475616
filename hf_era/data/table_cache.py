"""The tables that `datasets` makes of local files and keeps: used again only if they are as they were made.

A table that was cut off (a full disk) or damaged would otherwise be read as the user's own file: as an error that blames
the file, or as other examples without a word. Each set of files has a folder of its own in the `datasets` cache, with a
manifest of hashes; whatever is wrong with it, it is made anew from the files.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, concatenate_datasets
from filelock import FileLock

from hf_era.utils.files import MANIFEST, damage_of, fingerprint, read_json, write_manifest
from hf_era.utils.storage_errors import as_storage_error

FORMAT = 3
"""To be raised with every change of what is made of the same files."""


def cached_table(files: Sequence[str], make: Callable[[str], Any]) -> Dataset:
    """The table of local files, from the cache if it is there and whole.

    Args:
        files: paths. Another size or time of change makes another table.
        make: reads the files into a table that it keeps under the folder it is given: `.arrow` files, in the order of their
            names.

    Raises:
        StorageError: if the cache cannot be written to.
    """
    versions = [[name, os.stat(name).st_size, os.stat(name).st_mtime_ns] for name in files]
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "hf_era" / "tables" / fingerprint(FORMAT, versions)
    # A file that may not be read is no fault of the cache.
    with as_storage_error(folder) if all(os.access(name, os.R_OK) for name in files) else nullcontext():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if folder.exists():
                damage = damage_of(folder)
                if damage is None:
                    return _read(folder)
                if (folder / MANIFEST).exists():  # one without was cut off while it was made
                    warnings.warn(
                        f"The table that is kept in {folder} is damaged: {damage}. It is made anew from the files.",
                        stacklevel=2,
                    )
                shutil.rmtree(folder)
            try:
                make(str(folder))
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            write_manifest(folder)
            return _read(folder)


def _read(folder: Path) -> Dataset:
    # Those of the manifest: what is later computed of the table is kept beside it.
    names = sorted(name for name in read_json(folder / MANIFEST)["sha256"] if name.endswith(".arrow"))
    return concatenate_datasets([Dataset.from_file(str(folder / name)) for name in names])
