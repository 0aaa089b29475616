"""Files and directories are written whole or not at all, and what is no JSON reads as nothing."""

import errno
import json
import os
from pathlib import Path

import pytest

from hf_era.utils import files
from hf_era.utils.files import read_json, recover_leftovers, whole_directory, write_json, write_text
from hf_era.utils.storage_errors import StorageError


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_text_is_written_with_its_folders_and_nothing_else(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a" / "b" / "x.txt", "Bäume 🌲\n")
    assert path.read_text(encoding="utf-8") == "Bäume 🌲\n"
    write_text(path, "new")
    assert path.read_text() == "new"
    assert names_in(path.parent) == ["x.txt"]


def test_a_failing_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_json(tmp_path / "x.json", {"old": 1})

    def full_disk(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(StorageError, match=r"x\.json cannot be written: no space is left on the device\."):
            write_json(path, {"new": 2})
    assert read_json(path) == {"old": 1}
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half of it \udc80")
    with pytest.raises(TypeError):
        write_json(path, {"bad": object()})
    assert read_json(path) == {"old": 1}
    assert names_in(tmp_path) == ["x.json"]  # no temporary file is left
    write_json(path, {"new": 2})
    assert read_json(path) == {"new": 2}


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_text(tmp_path / "x.txt", "old")
    seen = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append(path.read_text()))
    with path.open() as reader:
        write_text(path, "new")
        assert reader.read() == "old"  # another file took its place: a reader sees the one or the other
    assert seen == ["old", "new"]  # the file is flushed before it gets its name, the name after
    assert path.read_text() == "new"


def test_json_keeps_the_order_of_keys_and_is_readable(tmp_path: Path) -> None:
    path = write_json(tmp_path / "x.json", {"b": 1, "a": "Bäume", "c": [1.5, None, True]})
    assert (
        path.read_text(encoding="utf-8")
        == json.dumps({"b": 1, "a": "Bäume", "c": [1.5, None, True]}, indent=2, ensure_ascii=False) + "\n"
    )


@pytest.mark.parametrize("content", [None, b"", b"{half", b"\xff\xfe\x00binary"])
def test_what_is_no_json_reads_as_none(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    assert read_json(path) is None
    assert read_json(tmp_path) is None


def test_a_directory_takes_its_place_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "models" / "final"
    with whole_directory(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    assert names_in(target) == ["a"]
    with whole_directory(target) as folder:
        (folder / "b").write_text("2")
        assert names_in(target) == ["a"]  # until the end
    assert names_in(target) == ["b"]  # replaced, not mixed
    assert names_in(target.parent) == ["final"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_the_old_directory(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "final"
    target.mkdir()
    (target / "a").write_text("1")

    def fill() -> None:
        with whole_directory(target) as folder:
            (folder / "half").write_text("2")
            raise error("stop")

    with pytest.raises(error, match="stop"):
        fill()
    assert names_in(target) == ["a"]
    assert (target / "a").read_text() == "1"
    assert names_in(tmp_path) == ["final"]


def test_a_failing_exchange_puts_the_old_directory_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "final"
    target.mkdir()
    (target / "a").write_text("1")
    rename = Path.rename

    def failing(self: Path, other: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise OSError("no permission")
        return rename(self, other)

    monkeypatch.setattr(files.Path, "rename", failing)
    with pytest.raises(OSError, match="no permission"), whole_directory(target) as folder:
        (folder / "b").write_text("2")
    assert names_in(target) == ["a"]
    assert names_in(tmp_path) == ["final"]


def killed_between_the_renames(target: Path) -> None:
    """Leaves what a kill leaves after the old directory lost its name and before the new one got it."""
    target.rename(target.with_name(f".{target.name}.0123abcd.old"))
    new = target.with_name(f".{target.name}.4567cdef.tmp")
    new.mkdir()
    (new / "b").write_text("2")


def test_a_directory_that_was_about_to_be_replaced_gets_its_name_back(tmp_path: Path) -> None:
    target = tmp_path / "final.v1"
    target.mkdir()
    (target / "a").write_text("1")
    killed_between_the_renames(target)
    (tmp_path / ".x.json.89ab0123.tmp").write_text("{half")
    (tmp_path / ".keep").write_text("not ours")
    recover_leftovers(tmp_path)
    assert names_in(tmp_path) == [".keep", "final.v1"]
    assert names_in(target) == ["a"]
    target.rename(tmp_path / ".final.v1.0123abcd.old")
    (target).mkdir()  # killed after both renames
    recover_leftovers(tmp_path)
    assert names_in(tmp_path) == [".keep", "final.v1"]
    assert names_in(target) == []
