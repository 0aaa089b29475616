"""Examples in: built-in sources, local files and directories, hub data sets. All end as a `datasets.Dataset`.

Which columns of it are the text and the label: `hf_era.data.examples`.
"""

from __future__ import annotations

import json
import lzma
import re
import shutil
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from datasets import Dataset, Features, Value, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetGenerationError
from datasets.utils import logging
from fsspec.compression import compr
from fsspec.utils import infer_compression
from huggingface_hub import metadata_load
from pandas.errors import ParserWarning

from hf_era.data.config import BUILT_IN, FACTS, FROM_STORIES, GENERATOR, TOPICS
from hf_era.data.facts import among_facts
from hf_era.data.generator import generate_stories
from hf_era.data.second_language import in_two_languages
from hf_era.data.table_cache import cached_table
from hf_era.data.topics import generate_topics
from hf_era.utils.checks import error_text
from hf_era.utils.files import BYTE_ORDER_MARK, check_encoding, local_path, read_json, read_text, starts_with
from hf_era.utils.storage_errors import StorageError

# A column of texts may hold "NA" or "None" as such: only what is empty is a null. And where rows have a value more than the
# header, the first one is no name of the row: all others would move under the name of their neighbour.
_CSV = {"keep_default_na": False, "na_values": [""], "index_col": False}
READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".ndjson": ("json", {}),
    ".csv": ("csv", _CSV),
    ".tsv": ("csv", {**_CSV, "sep": "\t"}),
    ".parquet": ("parquet", {}),
    ".arrow": ("arrow", {}),
    ".txt": ("text", {}),
}
"""End of a file's name -> the reader of `datasets`, and its options."""
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zip")
"""May follow these."""
_UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
"""What a file raises that is not there, or not whole."""
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
    generator_stories: int = 6_000,
    seed: int = 0,
) -> Dataset:
    """Loads examples as a data set with the columns that the source has.

    Args:
        source (`str`): built in (`BUILT_IN`), a path, or a hub data set id.
        field (`str`, *optional*): name of the setting, for messages.
        split (`str`, *optional*, defaults to `"train"`): of a hub data set, of a saved one, or of a directory whose files
            say in their names which split they are of (`train.jsonl`, `stories-validation-1.jsonl`). A directory in which no
            file does is read whole.
        subset (`str`, *optional*): of a hub data set, or of a snapshot of one.
        generator_stories (`int`, *optional*, defaults to `6000`): how many the generator makes, and with them the sources
            that are made of its stories.
        seed (`int`, *optional*, defaults to `0`): of the generator.

    Raises:
        ValueError: if the file does not exist or cannot be read (for a broken JSON line with its number), the directory has
            no file of that split, the hub cannot be reached, or there is no example.
    """
    if not source.strip():
        raise ValueError(f"`{field}` is empty. Pass a file, a directory, a hub data set id, or `{GENERATOR}`.")
    if source == GENERATOR:
        return Dataset.from_dict({"text": generate_stories(generator_stories, seed=seed)})
    if source == TOPICS:
        return Dataset.from_dict(generate_topics(generator_stories, seed=seed))
    if source in FROM_STORIES:
        return made_of_texts(source, generate_stories(generator_stories, seed=seed), seed)
    check_source(source, field)
    path = local_path(source)
    if path.is_dir():
        stories = _load_directory(path, field, split, subset)
    elif path.is_file():
        stories = _load_files([path], field)
    else:
        stories = _load_hub(source, field, split, subset)
    if not len(stories):
        raise ValueError(f"`{field}`: {source} holds no example. Check the file, or pass other data.")
    return stories


def made_of_texts(source: str, texts: Sequence[str | None], seed: int) -> Dataset:
    """The rows of a source of `FROM_STORIES` with these texts."""
    return Dataset.from_dict((among_facts if source == FACTS else in_two_languages)(texts, seed))


def check_source(source: str, field: str) -> None:
    """Raises `ValueError` for a file or directory that does not exist; what may be an id of the hub passes."""
    if source not in BUILT_IN and not local_path(source).exists() and _is_meant_as_path(source):
        raise ValueError(
            f"`{field}`: the file {source} does not exist. Check the path, or pass a hub data set id "
            f"(`--{field} roneneldan/TinyStories`) or `--{field} {GENERATOR}`."
        )


def _is_meant_as_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or _reader_of(Path(source)) is not None


def _reader_of(file: Path) -> str | None:
    """The end of a file's name that says how it is read, without that of its compression; `None` if none is known."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in READERS else None


def _load_directory(path: Path, field: str, split: str, subset: str | None) -> Dataset:
    if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return _load_saved(path, field, split)
    configs = _configs_of_card(path, field)
    if configs:
        return _load_files(_files_of_config(path, configs, field, split, subset), field)
    # As `datasets` does it: folders within are looked through, hidden ones and those of tools are not.
    inside = (file for file in path.rglob("*") if not _is_hidden(file.relative_to(path)))
    files = sorted(file for file in inside if _reader_of(file) is not None and file.is_file())
    if not files:
        raise ValueError(f"`{field}`: the directory {path} holds no file ending in {', '.join(READERS)}.")
    files = _files_of_split(files, path, field, split)
    suffixes = sorted({str(_reader_of(file)) for file in files})
    if len(suffixes) > 1:
        raise ValueError(f"`{field}`: the directory {path} mixes {' and '.join(suffixes)}. Name one file instead.")
    return _load_files(files, field)


def _configs_of_card(path: Path, field: str) -> dict[str, Any]:
    """Name -> `data_files` of the configurations that the card of a data set lists, as in a snapshot of the hub."""
    if not (path / "README.md").is_file():
        return {}
    try:
        configs = (metadata_load(path / "README.md") or {}).get("configs") or []
        found = {str(config["config_name"]): config.get("data_files") for config in configs}
    except Exception as error:  # a card may hold anything; each library under it has errors of its own
        raise ValueError(
            f"`{field}`: the card {path / 'README.md'} cannot be read: {error_text(error)}. Name a file instead."
        ) from error
    return {name: files for name, files in found.items() if files}


def _files_of_config(path: Path, configs: dict[str, Any], field: str, split: str, subset: str | None) -> list[Path]:
    """The files of a split of one configuration; without a name, of the only one, or of `default`."""
    name = subset or ("default" if "default" in configs else next(iter(configs)))
    if name not in configs or (subset is None and len(configs) > 1 and name != "default"):
        asked = "no configuration is named" if subset is None else f"there is no configuration `{subset}`"
        raise ValueError(f"`{field}`: {path} has several, and {asked}: `data.subset`. Known: {', '.join(configs)}.")
    given = configs[name]
    if isinstance(given, dict):
        given = [{"split": key, "path": value} for key, value in given.items()]
    rows = given if isinstance(given, list) else [given]
    parts = [row if isinstance(row, dict) else {"split": "train", "path": row} for row in rows]
    chosen = [part["path"] for part in parts if part.get("split") == split and "path" in part]
    if not chosen:
        known = ", ".join(dict.fromkeys(str(part.get("split")) for part in parts))
        raise ValueError(f"`{field}`: {path} has no split `{split}`. Known: {known}.")
    patterns = [str(pattern) for paths in chosen for pattern in (paths if isinstance(paths, list) else [paths])]
    # What a card says reaches no further than the folder that it lies in.
    inside = [name for name in map(Path, patterns) if not name.is_absolute() and ".." not in name.parts]
    files = sorted({file for pattern in inside for file in path.glob(str(pattern)) if file.is_file()})
    if not files:
        raise ValueError(f"`{field}`: {path} holds no file {' or '.join(patterns)}, which its card names.")
    return files


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
    suffix = _reader_of(files[0])
    if suffix is None:
        ending = "".join(files[0].suffixes[-2 if _is_compressed(files[0]) else -1 :]).lower()
        raise ValueError(
            f"`{field}`: {files[0]} ends in `{ending}`. Known: {', '.join(READERS)}, also compressed "
            f"({', '.join(COMPRESSIONS)})."
        )
    names = [str(file.resolve()) for file in files]
    kind, options = READERS[suffix]
    try:
        if not any(_has_content(file) for file in files):
            return _no_stories()
        if kind == "text":
            return _load_text_files(names)
        with _without_log(), warnings.catch_warnings():
            warnings.simplefilter("error", ParserWarning)  # of values that have no name in the header
            stories = cached_table(names, lambda folder: _make_table(kind, names, folder, options))
        stories.data.validate(full=True)  # JSON is read without a look at its encoding
        return stories
    except StorageError:
        raise
    except (DatasetGenerationError, ValueError, KeyError, *_UNREADABLE) as error:
        for file in (file for file in files if kind not in ("parquet", "arrow") and not _is_compressed(file)):
            check_encoding(file, field)
        for file in (file for file in files if suffix in (".jsonl", ".ndjson")):
            with suppress(*_UNREADABLE):  # it ends within a line: then there is none to name
                _raise_for_broken_line(file, field)
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) else error
        told = error_text(cause or error)
        raise ValueError(f"`{field}`: {', '.join(names)} cannot be read as {kind}: {told}") from error


def _has_content(file: Path) -> bool:
    """Whether there is anything in a file but white space, behind its byte order mark."""
    with _open(file) as content:
        parts = iter(lambda: content.read(65_536), b"")
        return any(part.removeprefix(BYTE_ORDER_MARK).strip() for part in parts)


def _is_compressed(file: Path) -> bool:
    return file.suffix.lower() in COMPRESSIONS


@contextmanager
def _open(file: Path) -> Iterator[IO[bytes]]:
    """A file as it was before it was compressed."""
    compression = infer_compression(file.name.lower())
    with file.open("rb") as content:
        if compression is None:
            yield content
        else:
            with compr[compression](content, mode="rb") as whole:
                yield whole


def _read_compressed(file: Path) -> str:
    with _open(file) as content:
        return content.read().decode("utf-8-sig")


def _make_table(kind: str, files: list[str], folder: str, options: dict[str, Any]) -> None:
    """Reads files into a table under a folder, each under a plain name.

    `datasets` takes `[ ] * ?` in a name for a pattern and `::` for a chain of archives, and a byte order mark for a part of
    the text unless it stands in the first of several files.
    """
    with tempfile.TemporaryDirectory() as plain:
        names = []
        for number, file in enumerate(files):
            name = Path(plain) / f"{number}{''.join(Path(file).suffixes[-2:]).lower()}"
            if kind == "json" and starts_with(file, BYTE_ORDER_MARK):
                with open(file, "rb") as marked, name.open("wb") as copy:
                    marked.seek(len(BYTE_ORDER_MARK))
                    shutil.copyfileobj(marked, copy)
            else:
                _link(file, name)
            names.append(str(name))
        load_dataset(kind, data_files=names, split="train", cache_dir=folder, **options)


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
        content = _read_compressed(Path(name)) if _is_compressed(Path(name)) else read_text(name)
        # Not `splitlines`: a form feed or a Unicode line separator ends no example.
        parts = content.split(STORY_SEPARATOR if STORY_SEPARATOR in content else "\n")
        yield from ({"text": part.strip()} for part in parts if part.strip())


def _raise_for_broken_line(file: Path, field: str) -> None:
    with _open(file) as lines:
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
