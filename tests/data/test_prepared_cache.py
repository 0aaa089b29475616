"""Prepared data is found again, and only where everything that it was made of is the same and every file is whole."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

import hf_era.data.prepared_cache as cache_module
from hf_era.data import (
    CachedData,
    DataConfig,
    Sources,
    cached_data,
    data_fingerprint,
    generate_stories,
    prepare_data,
    prepared_data_key,
    split_sources,
    tokenizer_from_json,
    train_tokenizer,
)
from hf_era.data.word_pieces import ForgetWordPiecesWarning
from hf_era.routing import RoutingRuleConfig

CONFIG = DataConfig(forget_validation_stories=3, retain_validation_stories=4, attack_stories=2, max_tokens=40)
RULE = RoutingRuleConfig()


@pytest.fixture(scope="module")
def sources() -> Sources:
    return Sources(Dataset.from_dict({"text": generate_stories(60, seed=0)}), None)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the data is kept: each test has a cache of its own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "hf_era"


@pytest.fixture(scope="module")
def prepared(sources: Sources, small_tokenizer: PreTrainedTokenizerFast) -> CachedData:
    splits = split_sources(sources, CONFIG, 0)
    return CachedData(prepare_data(splits, small_tokenizer, CONFIG, RULE, 600), data_fingerprint(splits), "{}")


@pytest.fixture
def keep(prepared: CachedData) -> Callable[..., tuple[CachedData, bool]]:
    """Asks for what is kept; returns it, and whether it had to be prepared."""

    def keep(key: str = "key") -> tuple[CachedData, bool]:
        calls: list[int] = []

        def prepare() -> CachedData:
            calls.append(1)
            return prepared

        return cached_data(key, prepare), bool(calls)

    return keep


def contents(kept: CachedData) -> list[Any]:
    parts = (
        "train",
        "validation_forget",
        "validation_retain",
        "validation_unlabelled",
        "attack_forget",
        "coherence_validation",
    )
    data = [getattr(kept.data, name).to_dict() for name in parts]
    features = [getattr(kept.data, name).features for name in parts]
    return [data, features, kept.data.summary, kept.data.frequency_rows, kept.fingerprint, kept.trained_tokenizer]


def test_the_second_time_nothing_is_prepared(
    keep: Callable[..., tuple[CachedData, bool]], prepared: CachedData, folder: Path
) -> None:
    first, second = keep(), keep()
    assert (first[1], second[1]) == (True, False)
    assert contents(first[0]) == contents(second[0]) == contents(prepared)
    assert prepared.data.frequency_rows
    assert keep("another key")[1]
    assert sorted(path.name for path in folder.iterdir()) == ["another key", "key"]
    assert {path.name for path in (folder / "key").iterdir()} == {".lock", "data"}


def test_what_was_warned_of_is_warned_of_again(prepared: CachedData) -> None:
    words = [{"text": "dragon", "share": 1.0, "pieces": [{"token": " d", "per_10k_elsewhere": 93.1}]}]
    data = replace(prepared.data, summary={**prepared.data.summary, "forget_word_pieces": words})
    cached_data("pieces", lambda: replace(prepared, data=data))  # `prepare_data` itself has warned
    with pytest.warns(ForgetWordPiecesWarning, match=r"'dragon' is ' d' \(93\.1\)\. Take a tokenizer that knows"):
        cached_data("pieces", lambda: pytest.fail("it is kept"))


def test_the_key_covers_everything(sources: Sources, small_tokenizer: PreTrainedTokenizerFast) -> None:
    texts = sources.train["text"][:]

    def key(**changes: Any) -> str:
        values = {"sources": sources, "config": CONFIG, "seed": 0, "rule": RULE, "tokenizer": small_tokenizer,
                  "vocabulary_size": 600, **changes}  # fmt: skip
        return prepared_data_key(**values)

    def of_texts(train: list[str | None], validation: list[str] | None = None) -> Sources:
        parts = [None if part is None else Dataset.from_dict({"text": part}) for part in (train, validation)]
        return Sources(parts[0], parts[1])  # type: ignore[arg-type]

    same = key()
    assert key(sources=of_texts(texts)) == key(config=replace(CONFIG, num_proc=2)) == same
    other_tokenizer = train_tokenizer(texts, vocab_size=600)
    other_eos = PreTrainedTokenizerFast(
        tokenizer_object=small_tokenizer.backend_tokenizer, bos_token="<|bos|>", eos_token="<|pad|>"
    )
    others = [
        key(sources=of_texts([texts[0] + "!", *texts[1:]])),
        key(sources=of_texts([texts[0] + texts[1][0], texts[1][1:], *texts[2:]])),  # a character moved on
        key(sources=of_texts([*texts, ""])),
        key(sources=of_texts([*texts, None])),
        key(sources=of_texts(texts, texts)),
        key(sources=of_texts(texts[::-1])),
        *(key(config=replace(CONFIG, **values)) for values in changed_settings().values()),
        key(seed=1),
        key(rule=replace(RULE, frequency_bias=-3.0)),
        key(vocabulary_size=601),
        key(vocabulary_size=None),
        key(tokenizer=600),
        key(tokenizer=other_tokenizer),
        key(tokenizer=other_eos),
    ]
    assert len({same, *others}) == len(others) + 1


def changed_settings() -> dict[str, dict[str, Any]]:
    """Another value for every setting of the data but the number of processes, and what has to change with it."""
    alone = {
        "train": "a.jsonl", "validation": "b.jsonl", "train_split": "x", "validation_split": "y", "subset": "z",
        "text_column": "story", "max_train_stories": 50, "generator_stories": 70, "forget_words": ["tree"],
        "labelled_fraction": 0.5, "labelled_retain_fraction": 0.5,
        "max_characters": 100, "max_tokens": 30, "add_bos": False, "add_eos": True,
        "forget_validation_stories": 2, "retain_validation_stories": 2, "unlabelled_validation_stories": 7,
        "attack_stories": 1, "coherence_validation_stories": 1,
    }  # fmt: skip
    column = {"forget_words": [], "label_column": "topic", "forget_labels": ["a"]}
    sources = {"forget_words": [], "forget": "f.jsonl", "retain": "r.jsonl"}
    return {name: {name: value} for name, value in alone.items()} | {
        "label_column": column,
        "forget_labels": {**column, "forget_labels": ["b"]},
        "retain_labels": {**column, "retain_labels": ["c"]},
        "score_column": {"forget_words": [], "score_column": "topic"},
        "label_errors": {"labelled_fraction": 0.5, "label_errors": "short"},
        "label_threshold": {"label_errors": "score", "label_threshold": 0.5},
        "forget": sources,
        "retain": {**sources, "retain": "other.jsonl"},
        "modules": {**column, "modules": {"forget": ["a"]}},
        "attack_labels": {**column, "forget_labels": ["a", "b"], "attack_labels": ["a"]},
        "stories_file": {"train": "second_language", "stories_file": "s.jsonl"},
    }


def test_every_setting_is_tried() -> None:
    assert {*changed_settings(), "num_proc"} == set(CONFIG.to_dict())
    assert all(CONFIG.to_dict()[name] != values[name] for name, values in changed_settings().items())


@pytest.mark.parametrize("name", ["FORMAT", "__version__"])
def test_another_version_has_another_key(
    sources: Sources, small_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before = prepared_data_key(sources, CONFIG, 0, RULE, small_tokenizer, None)
    monkeypatch.setattr(cache_module, name, "other")
    assert prepared_data_key(sources, CONFIG, 0, RULE, small_tokenizer, None) != before


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut_in_half, flip_a_byte, Path.unlink], ids=["half", "a byte", "gone"])
@pytest.mark.parametrize("file", ["train/*.arrow", "validation_retain/*.arrow", "train/dataset_info.json"])
def test_what_is_damaged_is_made_again(
    keep: Callable[..., tuple[CachedData, bool]],
    prepared: CachedData,
    folder: Path,
    file: str,
    damage: Callable[[Path], None],
) -> None:
    keep()
    (path,) = (folder / "key" / "data").glob(file)
    damage(path)
    again, made = keep()
    assert made
    assert contents(again) == contents(prepared)
    assert not keep()[1]


@pytest.mark.parametrize("record", ["", "{", "[]", "{}", '{"files": {}}', '{"files": [1]}', "null"])
def test_without_a_whole_record_nothing_is_trusted(
    keep: Callable[..., tuple[CachedData, bool]], folder: Path, record: str
) -> None:
    keep()
    (folder / "key" / "data" / "prepared.json").write_text(record)
    assert keep()[1]
    assert not keep()[1]


def test_a_write_that_was_killed_leaves_nothing_behind(
    keep: Callable[..., tuple[CachedData, bool]], folder: Path
) -> None:
    leftover = folder / "key" / ".data.12345678.tmp"
    leftover.mkdir(parents=True)
    assert keep()[1]
    assert not leftover.exists()


def test_a_cache_that_cannot_be_written_to_is_no_obstacle(
    keep: Callable[..., tuple[CachedData, bool]], prepared: CachedData, folder: Path
) -> None:
    folder.parent.mkdir()
    folder.write_text("a file where the folder should be")
    for _ in range(2):
        with pytest.warns(UserWarning, match="Prepared data cannot be kept for the next run"):
            kept, made = keep()
        assert made
        assert contents(kept) == contents(prepared)


def test_an_error_while_preparing_is_not_hidden(folder: Path) -> None:
    def fail() -> CachedData:
        raise OSError("the hub is away")

    with pytest.raises(OSError, match="the hub is away"):
        cached_data("key", fail)
    assert not (folder / "key" / "data").exists()


def test_a_trained_tokenizer_comes_back_as_it_was(small_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    text = small_tokenizer.backend_tokenizer.to_str()
    again = tokenizer_from_json(text)
    assert again.backend_tokenizer.to_str() == text
    assert again.special_tokens_map == small_tokenizer.special_tokens_map
    for name, tokenizer in (("a", small_tokenizer), ("b", again)):
        tokenizer.save_pretrained(tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_no_story_may_be_held_back(small_tokenizer: PreTrainedTokenizerFast, sources: Sources) -> None:
    config = replace(CONFIG, attack_stories=0)
    splits = split_sources(sources, config, 0)

    def prepare() -> CachedData:
        return CachedData(prepare_data(splits, small_tokenizer, config, RULE, 600), data_fingerprint(splits))

    for _ in range(2):
        kept = cached_data("none", prepare)
        assert len(kept.data.attack_forget) == kept.data.summary["attack_forget_tokens"] == 0
