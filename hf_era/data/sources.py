"""Stories in: the generator, local files and directories, hub data sets. All end as a `datasets.Dataset` with `text`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError

from hf_era.data.config import GENERATOR
from hf_era.data.generator import generate_stories

SUFFIXES = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".txt": "text"}
TEXT_COLUMNS = ("text", "story", "content")
STORY_SEPARATOR = "<|endoftext|>"


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
            be reached, or there is no text column.
    """
    if source == GENERATOR:
        return Dataset.from_dict({"text": generate_stories(generator_stories, seed=seed)})
    path = Path(source).expanduser()
    if path.is_dir():
        stories = _load_directory(path, field)
    elif path.is_file():
        stories = _load_files([path], field)
    elif _is_meant_as_path(source):
        raise ValueError(
            f"`{field}`: the file {source} does not exist. Check the path, or pass a hub data set id "
            f"(`--{field} roneneldan/TinyStories`) or `--{field} {GENERATOR}`."
        )
    else:
        stories = _load_hub(source, field, split, subset)
    return _only_text(stories, field, source, text_column)


def _is_meant_as_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or Path(source).suffix in SUFFIXES


def _load_directory(path: Path, field: str) -> Dataset:
    if (path / "state.json").is_file():
        return load_from_disk(str(path))
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())
    suffixes = sorted({file.suffix for file in files})
    if not files:
        raise ValueError(f"`{field}`: the directory {path} holds no file ending in {', '.join(SUFFIXES)}.")
    if len(suffixes) > 1:
        raise ValueError(f"`{field}`: the directory {path} mixes {' and '.join(suffixes)}. Name one file instead.")
    return _load_files(files, field)


def _load_files(files: list[Path], field: str) -> Dataset:
    suffix = files[0].suffix
    if suffix not in SUFFIXES:
        raise ValueError(f"`{field}`: {files[0]} ends in `{suffix}`. Known: {', '.join(SUFFIXES)}.")
    names = [str(file) for file in files]
    if suffix == ".txt":
        return Dataset.from_generator(_stories_of_text_files, gen_kwargs={"files": names})
    try:
        return load_dataset(SUFFIXES[suffix], data_files=names, split="train")
    except (DatasetGenerationError, ValueError, OSError) as error:
        if suffix == ".jsonl":
            for file in files:
                _raise_for_broken_line(file, field)
        raise ValueError(f"`{field}`: {', '.join(names)} cannot be read as {SUFFIXES[suffix]}: {error}") from error


def _stories_of_text_files(files: list[str]) -> Iterator[dict[str, str]]:
    """Stories between `<|endoftext|>` marks where a file has them, else one story a line."""
    for name in files:
        content = Path(name).read_text(encoding="utf-8")
        parts = content.split(STORY_SEPARATOR) if STORY_SEPARATOR in content else content.splitlines()
        yield from ({"text": part.strip()} for part in parts if part.strip())


def _raise_for_broken_line(file: Path, field: str) -> None:
    with file.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            try:
                value = json.loads(line) if line.strip() else {}
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


def _only_text(stories: Dataset, field: str, source: str, text_column: str | None) -> Dataset:
    features: dict[str, Any] = stories.features
    with_text = [name for name, kind in features.items() if getattr(kind, "dtype", None) in ("string", "large_string")]
    column = text_column
    if column is None:
        candidates = [name for name in TEXT_COLUMNS if name in with_text] or (with_text if len(with_text) == 1 else [])
        column = candidates[0] if candidates else None
    if column is None or column not in with_text:
        asked = f"no text column `{text_column}`" if text_column else "no column that is clearly the text"
        raise ValueError(
            f"`{field}`: {source} has {asked}. Its columns: {', '.join(features) or 'none'}. "
            "Name the one with the stories: `--data.text_column NAME`."
        )
    stories = stories.select_columns([column])
    return stories if column == "text" else stories.rename_column(column, "text")
