"""Output directories: nobody's run overwritten, nothing done twice, one launch at a time."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState
from rich.console import Console

from hf_era.methods import Phase
from hf_era.run.directory import RUN_FILE, RunDirectory
from hf_era.run.pipeline import PhaseRunner
from hf_era.utils.files import fingerprint, read_json
from hf_era.version import __version__

SETTINGS = {"seed": 0, "expansion": {"width": 64, "target_layers": [0, 1]}, "training": {"learning_rate": 1e-3}}


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Another run


def claimed(path: Path, identity: str = "one", settings: Any = None) -> RunDirectory:
    directory = RunDirectory(path)
    directory.check(identity, settings or SETTINGS)
    directory.claim(identity, settings or SETTINGS)
    return directory


def test_a_new_an_empty_and_an_own_directory_are_fine(tmp_path: Path) -> None:
    new, empty = tmp_path / "new", tmp_path / "empty"
    empty.mkdir()
    for path in (new, empty):
        claimed(path)
        assert read_json(path / RUN_FILE) == {"identity": "one", "settings": SETTINGS, "hf_era": __version__}
        claimed(path)  # the very same run goes on


def test_a_run_that_was_killed_in_its_first_write_goes_on(tmp_path: Path) -> None:
    (tmp_path / f".{RUN_FILE}.0a1b2c3d.tmp").write_text('{"iden')
    claimed(tmp_path)
    assert names_in(tmp_path) == [RUN_FILE]


def test_a_run_that_was_killed_while_another_was_thrown_away_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed(tmp_path)
    for name in ("phases", "model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("old")

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    directory = RunDirectory(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("hf_era.utils.files.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            directory.claim("two", SETTINGS, overwrite=True)
    directory.check("two", SETTINGS, overwrite=True)  # still known as a run of ours
    directory.claim("two", SETTINGS, overwrite=True)
    assert names_in(tmp_path) == [RUN_FILE]


def test_what_killed_writes_left_is_put_in_order(tmp_path: Path) -> None:
    claimed(tmp_path)
    checkpoints = tmp_path / "checkpoints" / "route-key"
    for name in (".saving.tmp/checkpoint-4", ".checkpoint-2.0a1b2c3d.gone.tmp", ".checkpoint-3.0a1b2c3d.old"):
        (checkpoints / name).mkdir(parents=True)
    for name in ("phases/.route.json.0a1b2c3d.tmp", "model/.README.md.0a1b2c3d.tmp"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("half")
    claimed(tmp_path)
    assert names_in(checkpoints) == ["checkpoint-3"]  # it has its name back
    assert names_in(tmp_path / "phases") == names_in(tmp_path / "model") == []


def test_checking_changes_nothing(tmp_path: Path) -> None:
    RunDirectory(tmp_path / "new").check("one", SETTINGS)
    assert names_in(tmp_path) == []


def test_another_run_is_refused_and_what_differs_is_named(tmp_path: Path) -> None:
    claimed(tmp_path / "run")
    before = (tmp_path / "run" / RUN_FILE).read_bytes()
    others = {"seed": 1, "expansion": {"width": 32, "target_layers": [0, 1]}, "training": {"max_steps": 5}}
    with pytest.raises(
        ValueError,
        match=r"`output_dir`: .*run holds another run \(`expansion\.width` was 64, is now 32; `seed` was 0, is now 1; "
        r"`training\.learning_rate` was 0\.001, is now None; `training\.max_steps` was None, is now 5\)\. "
        r"Choose another `--output_dir`, or pass `--overwrite_output_dir` to throw that run away\.",
    ):
        RunDirectory(tmp_path / "run").check("two", others)
    with pytest.raises(ValueError, match=r"holds another run \(the data or the base model changed\)\."):
        RunDirectory(tmp_path / "run").check("two", SETTINGS)
    assert (tmp_path / "run" / RUN_FILE).read_bytes() == before


def test_a_list_that_was_a_tuple_is_no_difference(tmp_path: Path) -> None:
    claimed(tmp_path / "run", fingerprint({"layers": (0, 1)}), {"layers": (0, 1)})
    RunDirectory(tmp_path / "run").check(fingerprint({"layers": [0, 1]}), {"layers": [0, 1]})


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("content", [None, "{half", "[1]"])
def test_a_directory_of_something_else_is_refused(tmp_path: Path, content: str | None, overwrite: bool) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    if content is not None:
        (tmp_path / RUN_FILE).write_text(content)
    with pytest.raises(
        ValueError,
        match=r"`output_dir`: .* is not empty and holds no run of hf_era\. Choose another directory, or empty it\.",
    ):
        RunDirectory(tmp_path).check("one", SETTINGS, overwrite=overwrite)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"`output_dir`: .*run is a file\. Choose another `--output_dir`\."):
            RunDirectory(tmp_path / "run").check("one", SETTINGS, overwrite=overwrite)


def test_overwriting_throws_another_run_away_and_keeps_the_own(tmp_path: Path) -> None:
    directory = claimed(tmp_path / "run")
    directory.record("route", "inputs", {"loss": 1.0})
    directory.check("one", SETTINGS, overwrite=True)
    directory.claim("one", SETTINGS, overwrite=True)
    assert directory.finished("route", "inputs") == {"loss": 1.0}  # the same run is not thrown away
    directory.check("two", {"seed": 9}, overwrite=True)
    directory.claim("two", {"seed": 9}, overwrite=True)
    assert directory.finished("route", "inputs") is None
    assert names_in(tmp_path / "run") == [RUN_FILE]
    assert read_json(tmp_path / "run" / RUN_FILE)["identity"] == "two"


def test_a_process_that_does_not_write_leaves_everything(tmp_path: Path) -> None:
    claimed(tmp_path / "run").record("route", "inputs", {"loss": 1.0})
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").rglob("*.json")}
    other = RunDirectory(tmp_path / "run", writes=False)
    other.claim("two", {"seed": 9}, overwrite=True)
    other.record("route", "else", {"loss": 2.0})
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").rglob("*.json")} == before
    RunDirectory(tmp_path / "none", writes=False).claim("one", SETTINGS)
    assert not (tmp_path / "none").exists()


def test_a_shared_base_of_other_inputs_is_refused_and_kept(tmp_path: Path) -> None:
    shared = claimed(tmp_path / "base", "mine", {})
    shared.record("base", "mine", {"steps": 3})
    shared.check("mine", {}, field="model.base_dir")
    with pytest.raises(ValueError, match=r"`model\.base_dir`: .* holds another run .* or delete it\."):
        shared.check("other", {}, field="model.base_dir")
    assert shared.finished("base", "mine") == {"steps": 3}


def test_overwriting_spares_a_directory_that_holds_an_input(tmp_path: Path) -> None:
    directory = claimed(tmp_path / "run")
    (tmp_path / "run" / "contracted").mkdir()
    with pytest.raises(ValueError, match=r"is to be thrown away, but the run reads .*contracted inside it"):
        directory.check("two", {"seed": 9}, overwrite=True, inputs=[str(tmp_path / "run" / "contracted")])
    directory.check("two", {"seed": 9}, overwrite=True, inputs=[str(tmp_path / "elsewhere")])


def test_a_second_launch_is_refused_or_waits(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    with directory.lock():
        with pytest.raises(ValueError, match=r"another process is at work in .*run"), directory.lock():
            pytest.fail("two launches in one directory")
        with RunDirectory(tmp_path / "run", writes=False).lock():
            pass
    with directory.lock(wait=True):
        pass


def test_a_directory_has_one_lock_whatever_leads_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real" / "run").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/run")
    (tmp_path / "folder").symlink_to("real")
    monkeypatch.chdir(tmp_path / "real")
    paths = [tmp_path / "link", tmp_path / "folder" / "run", Path("run"), Path("../link"), tmp_path / "x/../real/run"]
    with RunDirectory(tmp_path / "real" / "run").lock():
        for path in paths:
            with pytest.raises(ValueError, match=r"another process is at work in "), RunDirectory(path).lock():
                pytest.fail(f"two launches in one directory: {path}")
    assert sorted(path.name for path in tmp_path.rglob(".*.lock")) == [".run.lock"]


def test_claiming_clears_what_a_killed_write_left(tmp_path: Path) -> None:
    directory = claimed(tmp_path / "run")
    (tmp_path / "run" / ".model.12345678.tmp").mkdir()
    (tmp_path / "run" / ".result.json.12345678.tmp").write_text("{half")
    (tmp_path / "run" / "model").mkdir()
    directory.claim("one", SETTINGS)
    assert names_in(tmp_path / "run") == ["model", RUN_FILE]


# Phases


def test_a_phase_is_finished_with_these_inputs_and_outputs_only(tmp_path: Path) -> None:
    directory = claimed(tmp_path / "run")
    output = tmp_path / "run" / "model"
    assert directory.finished("route", "a") is None
    directory.record("route", "a", {"loss": 1.25})
    assert directory.finished("route", "a") == {"loss": 1.25}
    assert directory.finished("route", "b") is None
    assert directory.finished("ablate", "a") is None
    assert directory.finished("route", "a", [output]) is None
    output.mkdir()
    assert directory.finished("route", "a", [output]) is None  # nobody knows whether it is as it was written
    directory.record("route", "a", {"loss": 1.25}, [output])
    assert directory.finished("route", "a", [output]) == {"loss": 1.25}
    assert RunDirectory(tmp_path / "run").finished("route", "a") == {"loss": 1.25}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda model: (model / "model.safetensors").write_bytes(b"weightS"),
            "model.safetensors is not as it was written",
        ),
        (lambda model: (model / "model.safetensors").write_bytes(b"wei"), "model.safetensors is not as it was written"),
        (lambda model: (model / "config.json").unlink(), "config.json is missing"),
        (lambda model: model.rename(model.with_name("elsewhere")), "it is gone"),
    ],
)
def test_a_phase_whose_output_is_damaged_is_not_finished(
    tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    told: list[str] = []
    directory = RunDirectory(tmp_path / "run", on_damage=told.append)
    directory.claim("one", SETTINGS)
    output = tmp_path / "run" / "model"
    output.mkdir()
    (output / "model.safetensors").write_bytes(b"weights")
    (output / "config.json").write_text("{}")
    directory.record("route", "a", {"loss": 1.25}, [output])
    (output / "README.md").write_text("a card that is written later, and again")
    assert directory.finished("route", "a", [output]) == {"loss": 1.25}
    assert told == []
    damage(output)
    assert directory.finished("route", "a", [output]) is None
    assert len(told) == 1
    assert f"{output} is not as the phase 'route' left it: {message}" in told[0]


@pytest.mark.parametrize("content", ["", "{half", "[]", '{"inputs": "a"}'])
def test_a_damaged_record_counts_as_not_finished(tmp_path: Path, content: str) -> None:
    directory = claimed(tmp_path / "run")
    directory.record("route", "a", {})
    (tmp_path / "run" / "phases" / "route.json").write_text(content)
    assert directory.finished("route", "a") is None


@pytest.fixture
def counting() -> tuple[list[int], Callable[[], dict[str, Any]]]:
    runs: list[int] = []

    def work() -> dict[str, Any]:
        runs.append(1)
        return {"run": len(runs)}

    return runs, work


def run_phase(
    directory: RunDirectory, name: str, key: str, work: Callable[[], dict[str, Any]], outputs: Iterable[Path] = ()
) -> tuple[dict[str, Any], bool]:
    """What the phase reported, without the time it took, and whether it was skipped."""
    called: list[str] = []

    def noted(key: str) -> dict[str, Any]:
        called.append(key)
        return work()

    runner = PhaseRunner(directory, Console(quiet=True), PartialState())
    report = runner.run(Phase(name, name, key, noted, tuple(outputs)))
    assert report.pop("seconds") == runner.seconds[name] >= 0
    return report, not called


def test_a_phase_runs_once_and_again_when_its_inputs_change(
    tmp_path: Path, counting: tuple[list[int], Callable[[], dict[str, Any]]]
) -> None:
    runs, work = counting
    directory = claimed(tmp_path / "run")
    assert run_phase(directory, "route", "a", work) == ({"run": 1}, False)
    assert run_phase(directory, "route", "a", work) == ({"run": 1}, True)
    assert run_phase(RunDirectory(tmp_path / "run"), "route", "a", work) == ({"run": 1}, True)
    assert run_phase(directory, "route", "b", work) == ({"run": 2}, False)
    assert run_phase(directory, "route", "b", work) == ({"run": 2}, True)
    assert run_phase(directory, "route", "a", work) == ({"run": 3}, False)
    assert len(runs) == 3


def test_a_phase_whose_output_is_gone_runs_again(
    tmp_path: Path, counting: tuple[list[int], Callable[[], dict[str, Any]]]
) -> None:
    runs, work = counting
    directory = claimed(tmp_path / "run")
    output = tmp_path / "run" / "model"
    output.mkdir()
    assert run_phase(directory, "route", "a", work, [output]) == ({"run": 1}, False)
    assert run_phase(directory, "route", "a", work, [output])[1]
    output.rmdir()
    assert run_phase(directory, "route", "a", work, [output]) == ({"run": 2}, False)
    assert len(runs) == 2


def test_a_phase_that_fails_is_not_finished(tmp_path: Path) -> None:
    directory = claimed(tmp_path / "run")

    def work() -> dict[str, Any]:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        run_phase(directory, "route", "a", work)
    assert directory.finished("route", "a") is None
    assert not (tmp_path / "run" / "phases").exists()
