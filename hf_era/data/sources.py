"""Examples in: the generator, local files and directories, hub data sets. All end as a `datasets.Dataset` with `text`."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetGenerationError
from datasets.utils import logging

from hf_era.data.config import GENERATOR
from hf_era.data.generator import generate_stories
from hf_era.data.table_cache import cached_table
from hf_era.utils.checks import error_text
from hf_era.utils.files import BYTE_ORDER_MARK, check_encoding, local_path, read_json, read_text, starts_with
from hf_era.utils.storage_errors import StorageError

SUFFIXES = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".txt": "text"}
TEXT_COLUMNS = ("text", "story", "content")
STORY_SEPARATOR = "<|endoftext|>"
_TEXT_ONLY = Features({"text": Value("string")})
# The words that say in a file's name which split it is of, as `datasets` has them.
_SPLIT_WORDS = {
    "train": ("train", "training", "trainset"),
    "validation": ("validation", "valid", "dev", "val", "validset", "devset", "valset"),
    "test": ("test", "testing", "eval", "evaluation", "testset", "evalset"),
}
_HUMP = re.compile("(?<=[a-z])(?=[A-Z])")
# Where no file says its split, the folder is what these ask for: they are what is asked for when nobody names a split.
_UNSAID_SPLITS = ("train", "validation")


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
    """Loads examples as a data set with the single column `text`.

    Args:
        source (`str`): `generator`, a path, or a hub data set id.
        field (`str`, *optional*): name of the setting, for messages.
        split (`str`, *optional*, defaults to `"train"`): of a hub data set, of a saved one, or of a directory whose files
            say in their names which split they are of (`train.jsonl`, `stories-validation-1.jsonl`). A directory in which no
            file does is read whole.
        subset (`str`, *optional*): of a hub data set.
        text_column (`str`, *optional*): not given: found.
        generator_stories (`int`, *optional*, defaults to `6000`): how many the generator makes.
        seed (`int`, *optional*, defaults to `0`): of the generator.

    Raises:
        ValueError: if the file does not exist or cannot be read (for a broken JSON line with its number), the directory has
            no file of that split, the hub cannot be reached, there is no text column, or no example.
    """
    if not source.strip():
        raise ValueError(f"`{field}` is empty. Pass a file, a directory, a hub data set id, or `{GENERATOR}`.")
    if source == GENERATOR:
        return Dataset.from_dict({"text": generate_stories(generator_stories, seed=seed)})
    path = local_path(source)
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
        raise ValueError(f"`{field}`: {source} holds no example. Check the file, or pass other data.")
    return stories


def _is_meant_as_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or Path(source).suffix.lower() in SUFFIXES


def _load_directory(path: Path, field: str, split: str) -> Dataset:
    if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return _load_saved(path, field, split)
    # As `datasets` does it: folders within are looked through, hidden ones and those of tools are not.
    inside = (file for file in path.rglob("*") if not _is_hidden(file.relative_to(path)))
    files = sorted(file for file in inside if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise ValueError(f"`{field}`: the directory {path} holds no file ending in {', '.join(SUFFIXES)}.")
    files = _files_of_split(files, path, field, split)
    suffixes = sorted({file.suffix.lower() for file in files})
    if len(suffixes) > 1:
        raise ValueError(f"`{field}`: the directory {path} mixes {' and '.join(suffixes)}. Name one file instead.")
    return _load_files(files, field)


def _is_hidden(file: Path) -> bool:
    return any(part.startswith((".", "__")) for part in file.parts)


def _words_of(file: Path) -> set[str]:
    """The words in the names of a file and of the folders that it is in: `data/trainA-1.jsonl` has "data", "train", "a"."""
    names = [part for name in (*file.parts[:-1], file.stem) for part in (name, _HUMP.sub("-", name))]
    return {word for name in names for word in (name.lower(), *re.split(r"[-._ 0-9]+", name.lower()))}


def _files_of_split(files: list[Path], path: Path, field: str, split: str) -> list[Path]:
    """Those files of a directory whose names, or whose folders' names, say this split; all of them if none says any.

    Raises:
        ValueError: if there is none of this split, or some names say one split and others none or several.
    """
    split = next((name for name, words in _SPLIT_WORDS.items() if split.lower() in words), split)
    known = {split: (split.lower(),), **_SPLIT_WORDS}
    splits = {}
    for file in files:
        words = _words_of(file.relative_to(path))
        splits[file] = [name for name, keywords in known.items() if not set(keywords).isdisjoint(words)]
    if not any(splits.values()) and split in _UNSAID_SPLITS:
        return files
    listed = ", ".join(
        f"{file.relative_to(path)} ({' and '.join(names) or 'no split'})" for file, names in list(splits.items())[:20]
    )
    if any(splits.values()) and any(len(names) != 1 for names in splits.values()):
        raise ValueError(
            f"`{field}`: the files of the directory {path} do not each say one split: {listed}. Rename them, or name one "
            "file instead."
        )
    chosen = [file for file in files if splits[file] == [split]]
    if not chosen:
        raise ValueError(
            f"`{field}`: the directory {path} holds no file of the split `{split}`, only {listed}. Name one file, or the "
            f"split: `--{f'{field}_split' if field.startswith('data.') else 'split'}`."
        )
    return chosen


def _load_saved(path: Path, field: str, split: str) -> Dataset:
    """A data set that `save_to_disk` wrote, with or without splits.

    Its files are opened by their names. `load_from_disk` would take `::` in a path for a chain of archives.
    """
    saved = read_json(path / "dataset_dict.json")
    if isinstance(saved, dict):
        if split not in saved.get("splits", []):
            raise ValueError(f"`{field}`: {path} has no split `{split}`. Known: {', '.join(saved.get('splits', []))}.")
        path = path / split
    try:
        parts = [path / part["filename"] for part in read_json(path / "state.json")["_data_files"]]
        # An empty data set is saved in no file.
        return concatenate_datasets([Dataset.from_file(str(part)) for part in parts]) if parts else _no_stories()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"`{field}`: the saved data set {path} cannot be read: {error_text(error)}") from error


def _no_stories() -> Dataset:
    return Dataset.from_dict({"text": []}, features=_TEXT_ONLY)


def _load_files(files: list[Path], field: str) -> Dataset:
    suffix = files[0].suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"`{field}`: {files[0]} ends in `{suffix}`. Known: {', '.join(SUFFIXES)}.")
    names = [str(file.resolve()) for file in files]
    if not any(_has_content(file) for file in files):
        return _no_stories()
    kind = SUFFIXES[suffix]
    try:
        if kind == "text":
            return _load_text_files(names)
        with _without_log():
            stories = cached_table(names, lambda folder: _make_table(kind, names, folder))
        stories.data.validate(full=True)  # JSON is read without a look at its encoding
        return stories
    except StorageError:
        raise
    except (DatasetGenerationError, ValueError, OSError) as error:
        if kind != "parquet":
            for file in files:
                check_encoding(file, field)
        if suffix == ".jsonl":
            for file in files:
                _raise_for_broken_line(file, field)
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) else error
        told = error_text(cause or error)
        raise ValueError(f"`{field}`: {', '.join(names)} cannot be read as {kind}: {told}") from error


def _has_content(file: Path) -> bool:
    """Whether there is anything in a file but white space, behind its byte order mark."""
    with file.open("rb") as content:
        parts = iter(lambda: content.read(65_536), b"")
        return any(part.removeprefix(BYTE_ORDER_MARK).strip() for part in parts)


def _make_table(kind: str, files: list[str], folder: str) -> None:
    """Reads files into a table under a folder, each under a plain name.

    `datasets` takes `[ ] * ?` in a name for a pattern and `::` for a chain of archives, and a byte order mark for a part of
    the text unless it stands in the first of several files.
    """
    with tempfile.TemporaryDirectory() as plain:
        names = []
        for number, file in enumerate(files):
            name = Path(plain) / f"{number}{Path(file).suffix.lower()}"
            if kind == "json" and starts_with(file, BYTE_ORDER_MARK):
                with open(file, "rb") as marked, name.open("wb") as copy:
                    marked.seek(len(BYTE_ORDER_MARK))
                    shutil.copyfileobj(marked, copy)
            else:
                _link(file, name)
            names.append(str(name))
        load_dataset(kind, data_files=names, split="train", cache_dir=folder)


def _link(file: str, name: Path) -> None:
    try:
        name.symlink_to(file)
    except OSError:  # Windows asks for a right that few have
        shutil.copyfile(file, name)


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
    def make(folder: str) -> None:
        arguments = {"files": names}
        Dataset.from_generator(_stories_of_text_files, features=_TEXT_ONLY, gen_kwargs=arguments, cache_dir=folder)

    try:
        return cached_table(names, make)
    except ValueError:
        if next(_stories_of_text_files(names), None) is None:
            return _no_stories()
        raise


def _stories_of_text_files(files: list[str]) -> Iterator[dict[str, str]]:
    """Examples between `<|endoftext|>` marks where a file has them, else one example a line."""
    for name in files:
        content = read_text(name)
        # Not `splitlines`: a form feed or a Unicode line separator ends no example.
        parts = content.split(STORY_SEPARATOR if STORY_SEPARATOR in content else "\n")
        yield from ({"text": part.strip()} for part in parts if part.strip())


def _raise_for_broken_line(file: Path, field: str) -> None:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8")) if line.strip() else {}
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
        "Name the one with the examples: `--data.text_column NAME`."
    )


def _kind(feature: Any) -> str:
    dtype = getattr(feature, "dtype", None)
    return "nulls only" if dtype == "null" else f"values of type {dtype or type(feature).__name__}"
