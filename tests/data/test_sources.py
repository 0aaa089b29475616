"""Examples from the generator, files, directories and the hub, with all of their columns."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset, DatasetDict

from hf_era.data import DataConfig, generate_stories, load_splits, load_stories, sources

ROWS = [
    {"text": "One tree.", "source": "a"},
    {"text": "Two\nlines.", "source": "b"},
    {"text": "Drei Bäume 🌲", "source": "c"},
]
TEXTS = [row["text"] for row in ROWS]


def texts_of(source: Path | str, **options: Any) -> list[str | None]:
    return list(load_stories(str(source), **options)["text"])


# What can be read


def test_jsonl(write: Callable[..., Path]) -> None:
    assert texts_of(write("stories.jsonl", ROWS)) == TEXTS


def test_blank_lines_in_jsonl_are_no_stories(write: Callable[..., Path]) -> None:
    assert texts_of(write("stories.jsonl", '{"text": "a"}\n\n{"text": "b"}\n')) == ["a", "b"]


def test_json(write: Callable[..., Path]) -> None:
    assert texts_of(write("stories.json", json.dumps(ROWS))) == TEXTS


def test_parquet(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).to_parquet(tmp_path / "stories.parquet")
    assert texts_of(tmp_path / "stories.parquet") == TEXTS


def test_text_has_one_story_a_line(write: Callable[..., Path]) -> None:
    path = write("stories.txt", "First story.\r\n\n  Second one. \nThird\x0c\u2028still third")
    assert texts_of(path) == ["First story.", "Second one.", "Third\x0c\u2028still third"]


def test_text_with_end_marks_has_stories_of_several_lines(write: Callable[..., Path]) -> None:
    path = write("stories.txt", "First\nstory.\n<|endoftext|>\n\n<|endoftext|>Second\n\none.\n<|endoftext|>\n")
    assert texts_of(path) == ["First\nstory.", "Second\n\none."]


def test_suffixes_may_be_upper_case(write: Callable[..., Path]) -> None:
    assert texts_of(write("STORIES.TXT", "a\nb\n")) == ["a", "b"]


@pytest.mark.parametrize(("name", "old", "new"), [("s.txt", "a\nb\n", "c\nd\n"), ("s.jsonl", [ROWS[0]], [ROWS[2]])])
def test_a_changed_file_is_read_again(write: Callable[..., Path], name: str, old: Any, new: Any) -> None:
    path = write(name, old)
    before = texts_of(path)
    assert texts_of(path) == before
    path = write(name, new)
    later = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(later, later))
    assert texts_of(path) != before
    assert set(texts_of(path)).isdisjoint(before)


def test_a_directory_of_files_is_read_in_the_order_of_their_names(write: Callable[..., Path], tmp_path: Path) -> None:
    for name, row in (("b.jsonl", ROWS[1]), ("a.jsonl", ROWS[0]), ("c.jsonl", ROWS[2])):
        write(f"stories/{name}", [row])
    write("stories/README.md", "not a story")
    assert texts_of(tmp_path / "stories") == TEXTS


def test_a_directory_of_text_files(write: Callable[..., Path], tmp_path: Path) -> None:
    write("stories/1.txt", "a\nb")
    write("stories/2.txt", "c\nd<|endoftext|>e")
    assert texts_of(tmp_path / "stories") == ["a", "b", "c\nd", "e"]


def test_a_saved_data_set(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    assert texts_of(tmp_path / "saved") == TEXTS


def test_a_saved_data_set_with_splits(tmp_path: Path) -> None:
    splits = DatasetDict({"train": Dataset.from_list(ROWS[:2]), "validation": Dataset.from_list(ROWS[2:])})
    splits.save_to_disk(tmp_path / "saved")
    assert texts_of(tmp_path / "saved") == TEXTS[:2]
    assert texts_of(tmp_path / "saved", split="validation") == TEXTS[2:]
    with pytest.raises(ValueError, match=r"`data\.train`: .*saved has no split `test`\. Known: train, validation\."):
        load_stories(str(tmp_path / "saved"), split="test")


def test_a_saved_data_set_without_a_story(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).select([]).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"saved holds no example"):
        load_stories(str(tmp_path / "saved"))
    (tmp_path / "saved" / "state.json").write_text('{"_data_files": [{"filename": "gone.arrow"}]}')
    with pytest.raises(ValueError, match=r"`data\.train`: the saved data set .*saved cannot be read: .*gone\.arrow"):
        load_stories(str(tmp_path / "saved"))


# Splits of a directory


def test_a_directory_has_the_splits_that_its_files_say(write: Callable[..., Path], tmp_path: Path) -> None:
    for name, text in (("train-1", "a"), ("train-2", "b"), ("stories_valid", "c"), ("test.v2", "d")):
        write(f"stories/{name}.jsonl", [{"text": text}])
    found = {split: texts_of(tmp_path / "stories", split=split) for split in ("train", "validation", "val", "test")}
    assert found == {"train": ["a", "b"], "validation": ["c"], "val": ["c"], "test": ["d"]}
    write("stories/Extra.jsonl", [{"text": "e"}])
    assert texts_of(tmp_path / "stories", split="extra") == ["e"]  # named: so this one too says a split
    with pytest.raises(
        ValueError,
        match=r"`data\.train`: the files of the directory .*stories do not each say one split: Extra\.jsonl \(no split\), "
        r"stories_valid\.jsonl \(validation\), .*\. Rename them, or name one file instead\.",
    ):
        load_stories(str(tmp_path / "stories"))


def test_a_split_can_be_said_in_many_ways(write: Callable[..., Path], tmp_path: Path) -> None:
    for name, text in (
        ("trainset", "a"),
        ("validA", "b"),
        ("test/c", "c"),
        ("deep/train/d", "d"),
        (".kept/train", "e"),
    ):
        write(f"stories/{name}.jsonl", [{"text": text}])
    found = {split: texts_of(tmp_path / "stories", split=split) for split in ("train", "validation", "test")}
    assert found == {"train": ["d", "a"], "validation": ["b"], "test": ["c"]}
    write("stories/more/e.jsonl", [{"text": "e"}])
    with pytest.raises(ValueError, match=r"do not each say one split: .*more/e\.jsonl \(no split\)"):
        load_stories(str(tmp_path / "stories"), split="validation")


@pytest.mark.parametrize("kind", ["jsonl", "json", "txt"])
@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbf", b"\xef\xbb\xbf\n\n", b" \n"], ids=["mark", "mark and lines", "lines"]
)
def test_a_file_with_nothing_to_read_holds_no_story(tmp_path: Path, content: bytes, kind: str) -> None:
    (tmp_path / f"x.{kind}").write_bytes(content)
    with pytest.raises(ValueError, match=rf"x\.{kind} holds no example"):
        load_stories(str(tmp_path / f"x.{kind}"))


def test_a_directory_without_a_file_of_the_split_is_refused(write: Callable[..., Path], tmp_path: Path) -> None:
    write("stories/train.txt", "a")
    with pytest.raises(
        ValueError,
        match=r"`data\.validation`: the directory .*stories holds no file of the split `validation`, only train\.txt "
        r"\(train\)\. Name one file, or the split: `--data\.validation_split`\.",
    ):
        load_stories(str(tmp_path / "stories"), field="data.validation", split="validation")
    write("others/1.txt", "a")
    for split in ("train", "validation"):  # nobody says a split: all of it
        assert texts_of(tmp_path / "others", split=split) == ["a"]
    with pytest.raises(ValueError, match=r"no file of the split `held_out`, only 1\.txt \(no split\)\. .*`--split`"):
        load_stories(str(tmp_path / "others"), field="forget", split="held_out")


# Names that mean something to others


def write_as(path: Path, text: str, mark: bytes = b"") -> Path:
    """A file of one story, in the form that its suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    forms = {".jsonl": f'{{"text": "{text}"}}\n', ".json": f'[{{"text": "{text}"}}]', ".txt": f"{text}\n"}
    if path.suffix == ".parquet":
        with path.open("wb") as file:
            Dataset.from_dict({"text": [text]}).to_parquet(file)
    else:
        path.write_bytes(mark + forms[path.suffix].encode())
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".txt"])
@pytest.mark.parametrize(
    ("name", "decoy"),
    [
        ("t[ab]", "ta"),
        ("set[2024]/train", "set2/train"),
        ("a?b*", "axb"),
        ("zip::b/c", "zip"),
        ("**", "x"),
        ("~no", "x"),
    ],
)
def test_a_file_is_the_one_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, decoy: str, suffix: str
) -> None:
    write_as(tmp_path / f"{decoy}{suffix}", "wrong")
    path = write_as(tmp_path / f"{name}{suffix}", "right")
    assert texts_of(path) == ["right"]
    monkeypatch.chdir(tmp_path)
    assert texts_of(f"{name}{suffix}") == ["right"]


def test_a_directory_is_the_one_that_is_named(tmp_path: Path) -> None:
    for name in ("set[1]::*", "set1"):
        write_as(tmp_path / name / "a[b].jsonl", name)
        Dataset.from_list([{"text": name}]).save_to_disk(tmp_path / "saved" / name.replace("::", ""))
    (tmp_path / "saved" / "set[1]*").rename(tmp_path / "saved" / "set[1]::*")  # `save_to_disk` takes no such name
    assert texts_of(tmp_path / "set[1]::*") == ["set[1]::*"]
    assert texts_of(tmp_path / "saved" / "set[1]::*") == ["set[1]::*"]


def test_files_are_read_where_no_link_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise OSError("A required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refused)
    assert texts_of(write_as(tmp_path / "a.jsonl", "right")) == ["right"]


# Byte order marks


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".txt"])
def test_a_byte_order_mark_is_no_part_of_the_stories(tmp_path: Path, suffix: str) -> None:
    mark = "\ufeff".encode()
    alone = write_as(tmp_path / f"alone{suffix}", "One tree.", mark)
    assert texts_of(alone) == ["One tree."]
    for name in ("a", "b", "c"):
        write_as(tmp_path / "several" / f"{name}{suffix}", name, mark)
    assert texts_of(tmp_path / "several") == ["a", "b", "c"]


def test_the_generator() -> None:
    assert texts_of("generator", generator_stories=5, seed=3) == generate_stories(5, seed=3)


def test_files_go_into_the_cache_of_these_tests(write: Callable[..., Path], data_set_cache: Path) -> None:
    stories = load_stories(str(write("cached.jsonl", ROWS)))
    assert data_set_cache in Path(stories.cache_files[0]["filename"]).parents


# The hub


@pytest.mark.parametrize("name", ["someone/stories", "stories"])
def test_a_hub_id_while_offline_fails_at_once(name: str) -> None:
    assert datasets.config.HF_HUB_OFFLINE
    start = time.monotonic()
    with pytest.raises(
        ValueError,
        match=rf"`data\.train`: could not get the data set `{name}` from the hub \(offline, .*not in the local cache\. "
        r"Pass a local file instead, e\.g\. `--data\.train \./stories\.jsonl`\.",
    ):
        load_stories(name)
    assert time.monotonic() - start < 5


def test_a_hub_id_is_passed_on_with_subset_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load_dataset(*arguments: Any, **options: Any) -> Dataset:
        calls.append((arguments, options))
        return Dataset.from_list(ROWS)

    monkeypatch.setattr(sources, "load_dataset", load_dataset)
    assert texts_of("someone/stories", split="test", subset="small") == TEXTS
    assert texts_of("stories") == TEXTS
    assert calls == [(("someone/stories", "small"), {"split": "test"}), (("stories", None), {"split": "train"})]


def test_an_unknown_split_of_a_hub_data_set_names_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> Dataset:
        raise ValueError("Unknown split \"dev\". Should be one of ['train'].")

    monkeypatch.setattr(sources, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match=r"`data\.validation`: the data set `someone/stories` .*Unknown split \"dev\""):
        load_stories("someone/stories", split="dev", field="data.validation")


def test_settings_reach_the_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load_dataset(name: str, subset: str | None, split: str) -> Dataset:
        calls.append((name, subset, split))
        marks = range(20) if split == "part" else range(20, 40)
        return Dataset.from_dict({"title": ["x"] * 40, "tale": [f"{w} {n}." for n in marks for w in ("Tree", "Sea")]})

    monkeypatch.setattr(sources, "load_dataset", load_dataset)
    config = DataConfig(
        train="a/b", validation="c/d", train_split="part", validation_split="rest", subset="small", text_column="tale",
        forget_words=["tree"], max_train_stories=11, forget_validation_stories=3, retain_validation_stories=4,
        attack_stories=5,
    )  # fmt: skip
    splits = load_splits(config, seed=0)
    assert calls == [("a/b", "small", "part"), ("c/d", "small", "rest")]
    assert list(splits.train["text"]) == [f"{w} {n}." for n in range(6) for w in ("Tree", "Sea")][:11]
    assert (len(splits.validation_forget), len(splits.validation_retain), len(splits.attack_forget)) == (3, 4, 5)
