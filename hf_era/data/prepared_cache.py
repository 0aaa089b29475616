"""Prepared data is kept on disk: the same examples, tokenizer and settings are not labelled, tokenised and weighed twice.

It is kept in the folder `hf_era` of the `datasets` cache (`HF_DATASETS_CACHE`), one folder per key, and all runs share
it. The key covers everything that the prepared data depends on, so nothing stale is ever found; what is there is trusted
only if every file is still as its manifest says. The folder may be deleted at any time.

Not left to `datasets`' own cache: it reads a table whose bytes changed, or that was cut at the end of a record batch, as if
it were whole, and of any other cut it makes an error until someone deletes the file.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, load_from_disk
from filelock import FileLock

from hf_era.data.columns import arrow_batches
from hf_era.data.config import DataConfig
from hf_era.data.preparation import PreparedData, Sources
from hf_era.data.splits import PARTS
from hf_era.data.word_pieces import warn_of_pieces
from hf_era.routing import FrequencyRow, RoutingRuleConfig
from hf_era.utils.files import damage_of, read_json, recover_leftovers, whole_directory, write_json, write_manifest
from hf_era.version import __version__

FORMAT = 7
"""To be raised with every change of what is made of the same examples, or of how it is kept."""

_LIBRARIES = ("datasets", "tokenizers", "transformers")
_RECORD = "prepared.json"


@dataclass(frozen=True)
class CachedData:
    """What is kept under a key."""

    data: PreparedData
    fingerprint: str
    """`data_fingerprint` of the splits that it was made from."""
    trained_tokenizer: str | None = None
    """The tokenizer as JSON, if it was trained on these examples."""


def prepared_data_key(
    sources: Sources,
    config: DataConfig,
    seed: int,
    rule: RoutingRuleConfig,
    tokenizer: Any,
    vocabulary_size: int | None,
    modules: Sequence[str] | None = None,
) -> str:
    """The key of prepared data: the contents of all that it is made of, and the versions that make it.

    Args:
        tokenizer: a fast tokenizer, or the vocabulary size to train one with on these examples.
        vocabulary_size (`int`, *optional*): of the model; `None`: that of the tokenizer.
        modules (`Sequence[str]`, *optional*): of the model, in order, as `prepare_data` takes them.
    """
    # How many processes work at it changes nothing.
    settings = {name: value for name, value in config.to_dict().items() if name != "num_proc"}
    parts = [
        FORMAT,
        {"hf_era": __version__, **{name: metadata.version(name) for name in _LIBRARIES}},
        [None if part is None else _digest_of(part) for part in (sources.train, sources.validation)],
        sources.unused_columns,
        # In a mapping the order is lost.
        [settings, seed, rule.to_dict(), vocabulary_size, list(config.modules if modules is None else modules)],
        tokenizer if isinstance(tokenizer, int) else _identity_of(tokenizer),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def cached_data(key: str, prepare: Callable[[], CachedData]) -> CachedData:
    """What is kept under `key`; if that is nothing, or damaged, what `prepare` makes, which is then kept.

    One process prepares and others that want the same wait for it. Where the cache cannot be written to, the data is
    prepared every time, with a warning. What was warned of when the data was prepared is warned of again.
    """
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "hf_era" / key
    kept = _read(folder / "data")
    if kept is None:
        with _lock(folder / ".lock"):
            kept = _read(folder / "data")  # it may have been written while this process waited
            if kept is None:
                prepared = prepare()
                return _write(folder, prepared) or prepared
    warn_of_pieces(kept.data.summary)
    return kept


def _digest_of(examples: Dataset) -> str:
    digest = hashlib.sha256()
    others = sorted({*examples.column_names} - {"text"})
    for table in arrow_batches(examples, ["text", *others]):
        texts = table["text"].to_pylist()
        # The lengths tell where an example ends, and a missing example from an empty one.
        digest.update(json.dumps([None if text is None else len(text) for text in texts]).encode())
        digest.update("".join(text or "" for text in texts).encode())
        if others:
            digest.update(json.dumps([others, [table[name].to_pylist() for name in others]]).encode())
    return digest.hexdigest()


def _identity_of(tokenizer: Any) -> list[Any]:
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
    special.append(sorted(tokenizer.all_special_ids))
    options = [tokenizer.split_special_tokens, getattr(tokenizer, "clean_up_tokenization_spaces", None)]
    return [type(tokenizer).__name__, tokenizer.backend_tokenizer.to_str(), special, options]


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError):
        pass  # nothing can be kept here, so there is nothing to wait for; `_write` says so
    try:
        yield
    finally:
        lock.release()


def _write(folder: Path, kept: CachedData) -> CachedData | None:
    """Keeps the data and returns it as it is read back, from the disk instead of memory; `None` if that is impossible."""
    try:
        recover_leftovers(folder)
        with whole_directory(folder / "data") as temporary:
            for name in PARTS:
                # One file each: an empty part would be saved in none, and could not be loaded again.
                getattr(kept.data, name).save_to_disk(temporary / name, num_shards=1)
            record = {
                "fingerprint": kept.fingerprint,
                "trained_tokenizer": kept.trained_tokenizer,
                "summary": kept.data.summary,
                "frequency_rows": [row.to_dict() for row in kept.data.frequency_rows],
            }
            write_json(temporary / _RECORD, record)
            write_manifest(temporary)
    except OSError as error:
        warnings.warn(f"Prepared data cannot be kept for the next run: {error}", stacklevel=2)
        return None
    return _read(folder / "data")


def _read(folder: Path) -> CachedData | None:
    """What is kept in a folder; `None` if it is not there, or not as it was written."""
    if damage_of(folder) is not None:
        return None
    record = read_json(folder / _RECORD)
    try:
        parts: dict[str, Any] = {name: load_from_disk(str(folder / name)) for name in PARTS}
        rows = [FrequencyRow(**row) for row in record["frequency_rows"]]
        data = PreparedData(frequency_rows=rows, summary=record["summary"], **parts)
        return CachedData(data, record["fingerprint"], record["trained_tokenizer"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
