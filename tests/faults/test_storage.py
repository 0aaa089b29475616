"""A disk that is full or read-only, data that vanished, caches that were damaged: a message, and nothing lost."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hf_era import cli
from hf_era.utils import exit_codes
from hf_era.utils.files import damage_of
from hf_era.utils.storage_errors import StorageError, as_storage_error, check_writable


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a small tmpfs: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def fill_up(disk: Path, leave: int) -> Path:
    """Takes the free space of a file system but for `leave` bytes."""
    ballast = disk / "ballast"
    ballast.write_bytes(b"\0" * (shutil.disk_usage(disk).free - leave))
    return ballast


@pytest.mark.slow
def test_a_full_disk_loses_nothing_and_the_run_goes_on_when_there_is_space(
    small_disk: Path, undisturbed: Any, faulty_run: Callable[..., Any]
) -> None:
    run = faulty_run(small_disk / "full")
    middle = undisturbed.events("any", "route") // 2
    assert run.start("route", "any", middle, "SIGTERM") == exit_codes.STOPPED, run.stderr
    (checkpoints,) = (run.output / "checkpoints").iterdir()
    kept = sorted(path.name for path in checkpoints.iterdir())
    ballast = fill_up(small_disk, leave=100_000)  # a checkpoint takes twice that
    assert run.start() == exit_codes.STORAGE, run.stderr
    assert "Traceback" not in run.stderr
    assert "cannot be written: no space is left on the device" in run.stderr
    assert f"The last whole checkpoint is {checkpoints / kept[-1]}" in run.stderr
    assert sorted(path.name for path in checkpoints.iterdir()) == kept  # and nothing half-written beside them
    assert all(damage_of(checkpoints / name) is None for name in kept)
    ballast.unlink()
    assert run.start() == 0, run.stderr
    assert run.outcome() == undisturbed.outcome()


def test_a_read_only_output_directory_is_refused_at_once(
    small_disk: Path, faulty_run: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run = faulty_run(small_disk.parent / "elsewhere", output_dir=str(small_disk / "run"))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert cli.main(["run", str(run.config)]) == exit_codes.STORAGE
    said = capsys.readouterr().err
    assert f"{run.output} cannot be written: the file system is read-only. Choose another `--output_dir`" in said
    assert "Pretraining" not in said


@pytest.mark.slow
def test_a_data_file_that_vanished_is_named_and_the_run_goes_on_when_it_is_back(
    tmp_path: Path, undisturbed: Any, faulty_run: Callable[..., Any]
) -> None:
    from hf_era.data.generator import generate_stories

    stories = tmp_path / "stories.txt"
    stories.write_text("\n".join(story.replace("\n", " ") for story in generate_stories(120, seed=0)))
    run = faulty_run(tmp_path / "vanished", data={"train": str(stories), "forget_words": ["tree", "forest"]})
    assert run.start("route", "any", 200, "SIGTERM") == exit_codes.STOPPED, run.stderr
    away = stories.rename(tmp_path / "away.txt")
    assert run.start() == exit_codes.BAD_INPUT
    assert f"`data.train`: the file {stories} does not exist" in run.stderr
    assert "Traceback" not in run.stderr
    away.rename(stories)
    assert run.start() == 0, run.stderr


def test_the_reason_is_said_in_words_and_other_errors_are_left_alone(tmp_path: Path) -> None:
    for raised, words in (
        (OSError(28, "No space left on device"), "no space is left on the device"),
        (RuntimeError("IoError(Os { code: 28, kind: StorageFull, message: ... })"), "no space is left on the device"),
        (PermissionError(13, "Permission denied"), "there is no permission to write there"),
    ):
        with pytest.raises(StorageError, match=words) as caught, as_storage_error(tmp_path / "x"):
            raise raised
        assert caught.value.__cause__ is raised
    for other in (ValueError("no such field"), FileNotFoundError(2, "No such file")):
        with pytest.raises(type(other)) as kept, as_storage_error(tmp_path):
            raise other
        assert kept.value is other


def test_looking_whether_a_folder_can_be_written_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "not" / "there" / "yet", "output_dir")
    check_writable(tmp_path, "output_dir")
    assert os.listdir(tmp_path) == []
