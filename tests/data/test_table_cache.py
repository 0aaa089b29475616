"""A damaged cache is noticed, named and made anew; it is never read as the user's file."""

import json
from pathlib import Path

import datasets
import pytest

from hf_era.data.sources import load_stories

STORIES = [f"Story {number}: one day Lily saw a tree." for number in range(40)]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture(params=["jsonl", "txt"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    path = tmp_path / f"stories.{request.param}"
    lines = [json.dumps({"text": story}) for story in STORIES] if request.param == "jsonl" else STORIES
    path.write_text("\n".join(lines))
    return str(path)


def arrow_file(cache: Path) -> Path:
    (path,) = (path for path in cache.rglob("*.arrow") if path.stat().st_size > 500)
    return path


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:600])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    place = content.index(b"Story 7") + 6
    content[place] ^= 1  # still valid text, another story
    path.write_bytes(content)


def broken_head(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4:12] = b"\xff" * 8
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut_off, flip, broken_head, Path.unlink])
def test_a_damaged_table_is_made_anew(damage: object, source: str, cache: Path) -> None:
    assert load_stories(source)["text"][:] == STORIES
    path = arrow_file(cache)
    damage(path)  # type: ignore[operator]
    with pytest.warns(UserWarning, match=r"tables/\w+ is damaged: .*\.arrow is .*It is made anew from the files"):
        assert load_stories(source)["text"][:] == STORIES
    assert load_stories(source)["text"][:] == STORIES  # and is whole from then on


def test_a_table_that_was_cut_off_while_it_was_made_is_made_anew(source: str, cache: Path) -> None:
    load_stories(source)
    (manifest,) = (cache / "hf_era" / "tables").rglob("manifest.json")
    manifest.unlink()
    cut_off(arrow_file(cache))
    assert load_stories(source)["text"][:] == STORIES


def test_what_is_computed_of_a_table_is_no_part_of_it(source: str, cache: Path) -> None:
    load_stories(source).map(lambda row: {"text": row["text"] + "!"})
    assert len(list(cache.rglob("*.arrow"))) == 2
    assert load_stories(source)["text"][:] == STORIES


def test_files_that_changed_are_read_again(source: str, cache: Path) -> None:
    load_stories(source)
    Path(source).write_text(Path(source).read_text().replace("Lily", "Tom and Lily"))
    assert load_stories(source)["text"][:] == [story.replace("Lily", "Tom and Lily") for story in STORIES]


def test_a_broken_file_leaves_no_table(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text('{"text": "fine"}\n{"text": "cut o')
    with pytest.raises(ValueError, match="line 2 is no valid JSON"):
        load_stories(str(path))
    assert not [folder for folder in (cache / "hf_era" / "tables").iterdir() if folder.is_dir()]
