"""Trials of a stopped attack are found again, whatever number of processes kept them, and never lost."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hf_era.evaluation import RelearnCurve, RelearnPoint, RelearnTrial
from hf_era.evaluation.relearn.experiment import KeptTrials, remove_kept_trials


def trial(number: int) -> RelearnTrial:
    return RelearnTrial("full", 4, 1e-3, number, number, RelearnCurve([RelearnPoint(0, 1.5 + number, 2.0)]))


def process(number: int) -> Any:
    """One of several, alone: nothing is gathered, as if the others ran on machines with other disks."""
    return SimpleNamespace(process_index=number, num_processes=1, is_main_process=number == 0)


def numbers(kept: KeptTrials) -> list[int]:
    return sorted(part.trial for part in kept.found)


def test_fewer_processes_go_on_with_what_more_have_kept(tmp_path: Path) -> None:
    first = [KeptTrials(tmp_path, "key", process(number)) for number in range(3)]
    for number, kept in enumerate(first):
        assert kept.found == []
        kept.add(trial(number))
    assert len(list(tmp_path.iterdir())) == 3

    second = KeptTrials(tmp_path, "key", process(0))
    assert numbers(second) == [0, 1, 2]
    assert sorted(second.found, key=lambda part: part.trial) == [trial(0), trial(1), trial(2)]
    second.add(trial(7))  # stopped again: what its file held before is still there
    for path in tmp_path.glob("*-[12].json"):
        path.unlink()
    third = KeptTrials(tmp_path, "key", process(0))
    assert numbers(third) == [0, 1, 2, 7]
    remove_kept_trials(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_trials_of_other_inputs_and_broken_files_are_not_found(tmp_path: Path) -> None:
    KeptTrials(tmp_path, "old", process(0)).add(trial(0))
    (tmp_path / "attack-unfinished-5.json").write_text('{"inputs": "key", "tria')
    kept = KeptTrials(tmp_path, "key", process(0))
    assert kept.found == []
    kept.add(trial(1))
    assert numbers(KeptTrials(tmp_path, "key", process(0))) == [1]


def test_experiments_that_are_kept_at_the_same_time_do_not_write_over_each_other(tmp_path: Path) -> None:
    keys = ["all examples", "those of a module"]
    for number, key in enumerate(keys):
        KeptTrials(tmp_path, key, process(0), number).add(trial(number))
    found = [numbers(KeptTrials(tmp_path, key, process(0), number)) for number, key in enumerate(keys)]
    assert found == [[0], [1]]
    remove_kept_trials(tmp_path)
    assert list(tmp_path.iterdir()) == []
