"""What is said of stories that cannot be read: the source, the file, the line and the way out."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset

from hf_era.data import DataConfig, load_splits, load_stories
from hf_era.data.tokenising import label_examples

ROWS = [{"text": "One tree."}, {"text": "Two\nlines."}]


def test_a_missing_file_is_named() -> None:
    for source in ("./nowhere/stories.jsonl", "stories.jsonl", "/nowhere", "~/nowhere/x", "a/b/c"):
        with pytest.raises(
            ValueError,
            match=rf"`data\.validation`: the file {source} does not exist\. Check the path, or pass a hub data set id "
            r"\(`--data\.validation roneneldan/TinyStories`\) or `--data\.validation generator`\.",
        ):
            load_stories(source, field="data.validation")


def test_an_empty_name_is_not_the_current_directory() -> None:
    with pytest.raises(ValueError, match=r"`data\.train` is empty\. Pass a file, a directory, a hub data set id, or"):
        load_stories(" ")


def test_an_unknown_suffix_lists_the_known_ones(write: Callable[..., Path]) -> None:
    for name, suffix in (("stories.xlsx", r"\.xlsx"), ("stories.xlsx.gz", r"\.xlsx\.gz"), ("stories", "")):
        with pytest.raises(
            ValueError,
            match=rf"{name} ends in `{suffix}`\. Known: \.jsonl, \.json, \.ndjson, \.csv, \.tsv, \.parquet, \.arrow, \.txt, "
            r"also compressed \(\.gz, \.bz2, \.xz, \.zip\)\.",
        ):
            load_stories(str(write(name, "text\na\n")))


def test_a_directory_without_stories(write: Callable[..., Path], tmp_path: Path) -> None:
    write("stories/README.md", "x")
    with pytest.raises(
        ValueError, match=r"the directory .*stories holds no file ending in \.jsonl, \.json, \.ndjson, \.csv, "
    ):
        load_stories(str(tmp_path / "stories"))


def test_a_directory_of_several_kinds(write: Callable[..., Path], tmp_path: Path) -> None:
    write("stories/a.jsonl", ROWS)
    write("stories/b.txt", "x")
    with pytest.raises(ValueError, match=r"the directory .*stories mixes \.jsonl and \.txt\. Name one file instead\."):
        load_stories(str(tmp_path / "stories"))


@pytest.mark.parametrize(
    ("name", "content"), [("s.txt", ""), ("s.txt", " \n\n"), ("s.jsonl", ""), ("s.json", "[]"), ("s.parquet", "")]
)
def test_a_file_without_stories(write: Callable[..., Path], name: str, content: str) -> None:
    path = write(name, content)
    with pytest.raises(
        ValueError, match=rf"`data\.train`: .*{name} (holds no example\. Check the file|cannot be read)"
    ):
        load_stories(str(path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "x"', r"is no valid JSON \(.* at column \d+\)\. Repair or delete that line\."),
        (b"not json", r"is no valid JSON \(Expecting value at column 1\)"),
        (b"[1, 2]", r"is no JSON object, got list\."),
        (b'"a string"', r"is no JSON object, got str\."),
        (b'{"text": "caf\xe9"}', r"is no UTF-8 text \(invalid continuation byte\)\."),
    ],
)
def test_a_broken_line_is_given_with_its_number(write: Callable[..., Path], line: bytes, message: str) -> None:
    good = [json.dumps({"text": f"Story {number}."}).encode() for number in range(9)]
    path = write("stories.jsonl", b"\n".join([*good[:4], b"", line, *good[4:]]) + b"\n")
    with pytest.raises(ValueError, match=rf"`data\.train`: .*stories\.jsonl line 6 {message}"):
        load_stories(str(path))


def test_a_broken_line_in_the_second_file_names_that_file(write: Callable[..., Path], tmp_path: Path) -> None:
    write("stories/a.jsonl", ROWS)
    write("stories/b.jsonl", '{"text": "a"}\n{"text": \n')
    with pytest.raises(ValueError, match=r"b\.jsonl line 2 is no valid JSON"):
        load_stories(str(tmp_path / "stories"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.json", b"{oops", r"s\.json cannot be read as json: .*JSON parse error"),
        ("s.parquet", b"junk", r"s\.parquet cannot be read as parquet: .*footer"),
        ("s.txt", b"caf\xe9\n", r"s\.txt cannot be read as text: 'utf-8' codec can't decode byte 0xe9"),
    ],
)
def test_an_unreadable_file_is_named(write: Callable[..., Path], name: str, content: bytes, message: str) -> None:
    path = write(name, content)
    with pytest.raises(ValueError, match=rf"`data\.train`: .*{message}"):
        load_stories(str(path))


@pytest.mark.parametrize("name", ["s.jsonl", "s.json", "s.txt"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_another_encoding_is_said(write: Callable[..., Path], name: str, encoding: str) -> None:
    path = write(name, '{"text": "One tree."}\n'.encode(encoding))
    with pytest.raises(ValueError, match=rf"`data\.train`: .*{name} is {encoding.upper()} text\. Save it as UTF-8\."):
        load_stories(str(path))


def test_a_broken_line_after_a_byte_order_mark_has_its_number(write: Callable[..., Path]) -> None:
    path = write("s.jsonl", '\ufeff{"text": "a"}\n{"text": \n')
    with pytest.raises(ValueError, match=r"s\.jsonl line 2 is no valid JSON"):
        load_stories(str(path))


def test_the_generator_as_validation_source_is_refused() -> None:
    config = DataConfig(validation="generator", generator_stories=20)
    with pytest.raises(ValueError, match=r"`data\.validation` cannot be `generator`\. Leave it out"):
        load_splits(config, seed=0)


def test_only_blank_stories_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"All of the 3 training examples are blank\. Check the text column\."):
        label_examples(Dataset.from_dict({"text": ["", " ", None]}), DataConfig(), "training examples")


def test_rows_with_more_values_than_the_header_has_names(write: Callable[..., Path]) -> None:
    """Each value would stand under the name of its neighbour. One that is empty in all rows is a comma at the line's end."""
    rows = load_stories(str(write("commas.csv", "text,topic\nacid,chemistry,\nsoup,cooking,\n")))
    assert rows[0] == {"text": "acid", "topic": "chemistry"}
    with pytest.raises(ValueError, match=r"more\.csv cannot be read as csv: Length of header or names does not match"):
        load_stories(str(write("more.csv", "text,topic\n1,acid,chemistry\n2,soup,cooking\n")))
