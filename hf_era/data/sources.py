"""Stories in: the generator, local files and directories, hub data sets. All end as a `datasets.Dataset` with `text`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, Value, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError
from datasets.utils import logging

from hf_era.data.config import GENERATOR
from hf_era.data.generator import generate_stories
from hf_era.data.table_cache import cached_table
from hf_era.utils.checks import error_text
from hf_era.utils.storage_errors import StorageError

SUFFIXES = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".txt": "text"}
TEXT_COLUMNS = ("text", "story", "content")
STORY_SEPARATOR = "<|endoftext|>"
_TEXT_ONLY = Features({"text": Value("string")})


def load_stories(
    source: str,
    *,
    field: str = "data.train",
    split: str = "train",
    subset: str | None = None,
    text_column: str | None = None,
    generator_stories: int = 6_000,
    seed: int = 0,
) -> Dataset:
    """Loads stories as a data set with the single column `text`.

    Args:
        source (`str`): `generator`, a path, or a hub data set id.
        field (`str`, *optional*): name of the setting, for messages.
        split, subset (`str`, *optional*): of a hub data set.
        text_column (`str`, *optional*): not given: found.
        generator_stories (`int`, *optional*, defaults to `6000`): how many the generator makes.
        seed (`int`, *optional*, defaults to `0`): of the generator.

    Raises:
        ValueError: if the file does not exist or cannot be read (for a broken JSON line with its number), the hub cannot
            be reached, there is no text column, or no story.
    """
    if not source.strip():
        raise ValueError(f"`{field}` is empty. Pass a file, a directory, a hub data set id, or `{GENERATOR}`.")
    if source == GENERATOR:
        return Dataset.from_dict({"text": generate_stories(generator_stories, seed=seed)})
    path = Path(source).expanduser()
    if path.is_dir():
        stories = _load_directory(path, field, split)
    elif path.is_file():
        stories = _load_files([path], field)
    elif _is_meant_as_path(source):
        raise ValueError(
            f"`{field}`: the file {source} does not exist. Check the path, or pass a hub data set id "
            f"(`--{field} roneneldan/TinyStories`) or `--{field} {GENERATOR}`."
        )
    else:
        stories = _load_hub(source, field, split, subset)
    stories = _only_text(stories, field, source, text_column)
    if not len(stories):
        raise ValueError(f"`{field}`: {source} holds no story. Check the file, or pass other data.")
    return stories


def _is_meant_as_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or Path(source).suffix.lower() in SUFFIXES


def _load_directory(path: Path, field: str, split: str) -> Dataset:
    if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        saved = load_from_disk(str(path))
        if isinstance(saved, DatasetDict) and split not in saved:
            raise ValueError(f"`{field}`: {path} has no split `{split}`. Known: {', '.join(saved)}.")
        return saved[split] if isinstance(saved, DatasetDict) else saved
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    suffixes = sorted({file.suffix.lower() for file in files})
    if not files:
        raise ValueError(f"`{field}`: the directory {path} holds no file ending in {', '.join(SUFFIXES)}.")
    if len(suffixes) > 1:
        raise ValueError(f"`{field}`: the directory {path} mixes {' and '.join(suffixes)}. Name one file instead.")
    return _load_files(files, field)


def _load_files(files: list[Path], field: str) -> Dataset:
    suffix = files[0].suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"`{field}`: {files[0]} ends in `{suffix}`. Known: {', '.join(SUFFIXES)}.")
    names = [str(file.resolve()) for file in files]
    if not any(file.stat().st_size for file in files):
        return Dataset.from_dict({"text": []}, features=_TEXT_ONLY)
    kind = SUFFIXES[suffix]
    try:
        if kind == "text":
            return _load_text_files(names)
        with _without_log():
            stories = cached_table(
                names, lambda folder: load_dataset(kind, data_files=names, split="train", cache_dir=folder)
            )
        stories.data.validate(full=True)  # JSON is read without a look at its encoding
        return stories
    except StorageError:
        raise
    except (DatasetGenerationError, ValueError, OSError) as error:
        if suffix == ".jsonl":
            for file in files:
                _raise_for_broken_line(file, field)
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) else error
        told = error_text(cause or error)
        raise ValueError(f"`{field}`: {', '.join(names)} cannot be read as {kind}: {told}") from error


@contextmanager
def _without_log() -> Iterator[None]:
    """What `datasets` logs of a file that it cannot read is the file: the error says it shorter."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _load_text_files(names: list[str]) -> Dataset:
    def make(folder: str) -> Dataset:
        arguments = {"files": names}
        return Dataset.from_generator(
            _stories_of_text_files, features=_TEXT_ONLY, gen_kwargs=arguments, cache_dir=folder
        )

    try:
        return cached_table(names, make)
    except ValueError:
        if next(_stories_of_text_files(names), None) is None:
            return Dataset.from_dict({"text": []}, features=_TEXT_ONLY)
        raise


def _stories_of_text_files(files: list[str]) -> Iterator[dict[str, str]]:
    """Stories between `<|endoftext|>` marks where a file has them, else one story a line."""
    for name in files:
        content = Path(name).read_text(encoding="utf-8")
        # Not `splitlines`: a form feed or a Unicode line separator ends no story.
        parts = content.split(STORY_SEPARATOR if STORY_SEPARATOR in content else "\n")
        yield from ({"text": part.strip()} for part in parts if part.strip())


def _raise_for_broken_line(file: Path, field: str) -> None:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                value = json.loads(line.decode("utf-8")) if line.strip() else {}
            except UnicodeDecodeError as error:
                raise ValueError(f"`{field}`: {file} line {number} is no UTF-8 text ({error.reason}).") from error
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"`{field}`: {file} line {number} is no valid JSON ({error.msg} at column {error.colno}). "
                    "Repair or delete that line."
                ) from error
            if not isinstance(value, dict):
                raise ValueError(f"`{field}`: {file} line {number} is no JSON object, got {type(value).__name__}.")


def _load_hub(source: str, field: str, split: str, subset: str | None) -> Dataset:
    try:
        return load_dataset(source, subset, split=split)
    except OSError as error:  # offline, unreachable, not found: all of them are OSErrors
        raise ValueError(
            f"`{field}`: could not get the data set `{source}` from the hub (offline, no such id, or no access) and it is "
            f"not in the local cache. Pass a local file instead, e.g. `--{field} ./stories.jsonl`."
        ) from error
    except ValueError as error:  # an unknown split or subset
        raise ValueError(f"`{field}`: the data set `{source}` cannot be loaded: {error_text(error)}") from error


def _only_text(stories: Dataset, field: str, source: str, text_column: str | None) -> Dataset:
    features: dict[str, Any] = stories.features
    with_text = [name for name, kind in features.items() if getattr(kind, "dtype", None) in ("string", "large_string")]
    names = TEXT_COLUMNS if text_column is None else (text_column,)
    candidates = [name for name in names if name in with_text]
    if not candidates and text_column is None and len(with_text) == 1:
        candidates = with_text
    if candidates:
        stories = stories.select_columns(candidates[:1])
        return stories if candidates[0] == "text" else stories.rename_column(candidates[0], "text")
    unreadable = next((name for name in names if name in features), None)
    if unreadable is not None:
        raise ValueError(
            f"`{field}`: the column `{unreadable}` of {source} holds {_kind(features[unreadable])}, but every value should "
            f"be a string (or null). Repair it, or name another with `--data.text_column`: {', '.join(features)}."
        )
    asked = f"no text column `{text_column}`" if text_column else "no column that is clearly the text"
    raise ValueError(
        f"`{field}`: {source} has {asked}. Its columns: {', '.join(features) or 'none'}. "
        "Name the one with the stories: `--data.text_column NAME`."
    )


def _kind(feature: Any) -> str:
    dtype = getattr(feature, "dtype", None)
    return "nulls only" if dtype == "null" else f"values of type {dtype or type(feature).__name__}"
