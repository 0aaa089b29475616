"""Running again: finished phases are skipped, a killed run goes on where it was, another run is refused."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

import hf_era.run.inputs as run_inputs_module
from hf_era import RunConfig, run_pipeline
from hf_era.evaluation import RunResult
from hf_era.evaluation.relearn.attack import RelearnAttack
from hf_era.run.context import Run
from hf_era.run.directory import RunDirectory
from hf_era.run.inputs import load_inputs
from hf_era.training import CausalLMTrainer, GradientRoutingTrainer
from hf_era.utils.files import read_json


@pytest.fixture(autouse=True)
def _a_short_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page with its plots is a quarter of a tiny run, and has tests of its own."""
    monkeypatch.setattr("hf_era.run.outputs.write_report", lambda result, path, seeds: path.write_text(result.name))


class KilledError(Exception):
    pass


def test_a_second_run_skips_every_phase(
    finished_copy: tuple[RunConfig, RunResult], monkeypatch: pytest.MonkeyPatch, replace_work: Callable[..., None]
) -> None:
    config, result = finished_copy
    replace_work(monkeypatch, lambda phase, key: pytest.fail("ran again"))
    again = run_pipeline(config)
    assert again.losses == result.losses
    assert again.attack == result.attack


def test_changed_coherence_runs_again_from_there(
    finished_copy: tuple[RunConfig, RunResult],
    monkeypatch: pytest.MonkeyPatch,
    make_run_config: Callable[..., RunConfig],
    replace_work: Callable[..., None],
) -> None:
    config, _ = finished_copy
    ran: list[str] = []
    replace_work(monkeypatch, lambda phase, key: (ran.append(phase.name), phase.work(key))[1])
    changed = make_run_config(config.output_path.parent, coherence={"steps": 1})
    result = run_pipeline(changed)
    assert ran == ["coherence", "evaluation", "generation", "attack"]
    assert len(result.coherence["history"]) == 2


def test_another_run_in_the_directory_is_refused_and_kept(
    finished_copy: tuple[RunConfig, RunResult], make_run_config: Callable[..., RunConfig]
) -> None:
    config, _ = finished_copy
    before = (config.output_path / "expanded" / "model.safetensors").read_bytes()
    other = make_run_config(config.output_path.parent, training={"learning_rate": 0.123})
    with pytest.raises(ValueError, match=r"holds another run \(`training.learning_rate` was None, is now 0.123\)"):
        run_pipeline(other)
    assert (config.output_path / "expanded" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "is_refused"),
    [
        ({"dataloader_drop_last": True}, True),  # other batches
        ({"gradient_accumulation_steps": 2}, True),
        ({"dataloader_num_workers": 1}, False),
        ({"dataloader_prefetch_factor": 3, "dataloader_num_workers": 1}, False),
        ({"logging_steps": 1, "save_total_limit": 1, "run_name": "another"}, False),
    ],
)
def test_only_settings_that_change_what_is_computed_make_another_run(
    changes: dict[str, Any],
    is_refused: bool,
    finished_copy: tuple[RunConfig, RunResult],
    make_run_config: Callable[..., RunConfig],
) -> None:
    config, result = finished_copy
    changed = make_run_config(config.output_path.parent, training=changes)
    if is_refused:
        name, value = next(iter(changes.items()))
        with pytest.raises(ValueError, match=rf"holds another run \(`training.{name}` was None, is now {value}\)"):
            run_pipeline(changed)
    else:
        assert run_pipeline(changed).losses == result.losses


def test_provenance_is_that_of_the_training(
    finished_copy: tuple[RunConfig, RunResult],
    monkeypatch: pytest.MonkeyPatch,
    make_run_config: Callable[..., RunConfig],
) -> None:
    config, result = finished_copy
    monkeypatch.setattr("hf_era.run.context.git_revision", lambda: "another")
    for changes in ({}, {"coherence": {"steps": 1}}):  # nothing runs again, and what follows the training does
        again = run_pipeline(make_run_config(config.output_path.parent, **changes))
        assert (again.git_revision, again.created) == (result.git_revision, result.created)


class KillAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KilledError


@pytest.mark.usefixtures("_no_localisation_warning")
def test_a_killed_run_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_run_config: Callable[..., RunConfig]
) -> None:
    scratch = {"model": {"start": "scratch", "base_control": False}, "coherence": {"enabled": False}}
    whole = make_run_config(tmp_path / "whole", **scratch)
    run_pipeline(whole)

    config = make_run_config(tmp_path / "killed", **scratch)
    steps: list[int] = []
    with monkeypatch.context() as patch:
        original = GradientRoutingTrainer.__init__

        def with_kill(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            self.add_callback(KillAt(3))

        patch.setattr(GradientRoutingTrainer, "__init__", with_kill)
        with pytest.raises(KilledError):
            run_pipeline(config)
    assert not (config.output_path / "expanded").exists()
    original_step = GradientRoutingTrainer.training_step
    monkeypatch.setattr(
        GradientRoutingTrainer,
        "training_step",
        lambda self, *args: (steps.append(self.state.global_step), original_step(self, *args))[1],
    )
    run_pipeline(config)
    assert steps == [2, 3]  # from the checkpoint of step 2, not from the start
    files = [path / "expanded" / "model.safetensors" for path in (whole.output_path, config.output_path)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not (config.output_path / "checkpoints" / "route").exists()


@pytest.mark.usefixtures("_no_localisation_warning")
def test_a_run_killed_before_saving_does_not_train_another_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_run_config: Callable[..., RunConfig]
) -> None:
    config = make_run_config(tmp_path, model={"start": "scratch", "base_control": False}, coherence={"enabled": False})
    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", lambda self, *args, **kwargs: (_ for _ in ()).throw(KilledError))
        with pytest.raises(KilledError):
            run_pipeline(config)
    (checkpoint,) = (config.output_path / "checkpoints").glob("route-*/checkpoint-4")
    trained = (checkpoint / "model.safetensors").read_bytes()
    result = run_pipeline(config)
    assert result.training["steps"] == 4
    assert (config.output_path / "expanded" / "model.safetensors").read_bytes() == trained


@pytest.mark.slow
@pytest.mark.usefixtures("_no_localisation_warning")
def test_scratch_without_the_l1_term_in_its_control_shares_it_with_a_posttrain_base(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_run_config: Callable[..., RunConfig],
    replace_work: Callable[..., None],
) -> None:
    shared, scratch = str(tmp_path / "base"), {"start": "scratch", "controls_share_l1": False}
    first = run_pipeline(make_run_config(tmp_path / "a", model={**scratch, "base_dir": shared}))
    assert first.before_kind == "base_control"
    replace_work(monkeypatch, lambda phase, key: pytest.fail("trained again"), "base")
    second = run_pipeline(make_run_config(tmp_path / "b", model={"base_dir": shared}))
    assert second.losses["before"] == first.losses["before"]


def test_a_shared_base_of_other_settings_is_refused(
    tmp_path: Path, make_run_config: Callable[..., RunConfig], replace_work: Callable[..., None]
) -> None:
    shared = str(tmp_path / "base")
    with pytest.MonkeyPatch.context() as patch:
        replace_work(patch, lambda phase, key: (_ for _ in ()).throw(KilledError), "route")
        with pytest.raises(KilledError):
            run_pipeline(make_run_config(tmp_path / "a", model={"base_dir": shared}))
    with pytest.raises(ValueError, match=r"`model.base_dir`: .*base holds another run"):
        run_pipeline(make_run_config(tmp_path / "b", model={"base_dir": shared}, training={"learning_rate": 0.05}))
    with pytest.raises(
        ValueError, match=r"base holds another run \(`l1_coefficient` was None, is now 0.0001; `l1_layers` "
    ):
        run_pipeline(make_run_config(tmp_path / "b", model={"start": "scratch", "base_dir": shared}))
    assert not (tmp_path / "b").exists()
    other = tmp_path / "thesis"
    (other / "model").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"`model.base_dir`: .*thesis is not empty and holds no run"):
        run_pipeline(make_run_config(tmp_path / "b", model={"base_dir": str(other)}))


def test_a_second_run_does_not_prepare_the_data_again(
    finished_copy: tuple[RunConfig, RunResult],
    monkeypatch: pytest.MonkeyPatch,
    make_run_config: Callable[..., RunConfig],
) -> None:
    config, _ = finished_copy
    first = load_inputs(config)
    with monkeypatch.context() as patch:
        for name in ("split_sources", "train_tokenizer", "prepare_data"):
            patch.setattr(run_inputs_module, name, lambda *_, **__: pytest.fail("prepared again"))
        again = load_inputs(config)
    assert again.data_fingerprint == first.data_fingerprint
    assert again.data.train.to_dict() == first.data.train.to_dict()
    assert again.tokenizer.get_vocab() == first.tokenizer.get_vocab()
    # What is kept is enough to refuse what cannot be.
    with pytest.raises(ValueError, match=r"`coherence.stories` asks for 5000 retain examples"):
        load_inputs(make_run_config(config.output_path.parent, coherence={"stories": 5000}))


@pytest.mark.slow
def test_trials_of_a_stopped_attack_are_not_made_again(
    finished_copy: tuple[RunConfig, RunResult],
    monkeypatch: pytest.MonkeyPatch,
    make_run_config: Callable[..., RunConfig],
) -> None:
    config, _ = finished_copy
    changed = make_run_config(config.output_path.parent, relearn={"steps": 3})
    made: list[str] = []
    original = RelearnAttack.run

    def stopped(self: RelearnAttack, *arguments: Any, **options: Any) -> Any:
        made.append(self.kind)
        if len(made) == 2:
            raise KilledError
        return original(self, *arguments, **options)

    monkeypatch.setattr(RelearnAttack, "run", stopped)
    with pytest.raises(KilledError):
        run_pipeline(changed)
    kept = config.output_path / "phases" / "attack-unfinished.json"
    assert len(read_json(kept)["trials"]) == 1
    continued = run_pipeline(changed)
    # N = 1, N = 3 and the sweep: three trials in all; the first was kept, the second begun twice.
    assert len(made) == 4
    assert not kept.exists()
    whole = run_pipeline(make_run_config(config.output_path.parent / "other", relearn={"steps": 3}))
    assert continued.attack == whole.attack


@pytest.mark.usefixtures("_no_localisation_warning")
@pytest.mark.parametrize("killed_in", ["record", pytest.param("remove", marks=pytest.mark.slow)])
def test_a_run_killed_at_the_end_of_a_phase_does_none_of_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_run_config: Callable[..., RunConfig], killed_in: str
) -> None:
    """Before a phase is written down as done, or right after, with all that it kept still there."""
    scratch = {"model": {"start": "scratch", "base_control": False}}
    work: list[str] = []
    _count(monkeypatch, CausalLMTrainer, "training_step", work)
    _count(monkeypatch, RelearnAttack, "run", work)
    run_pipeline(make_run_config(tmp_path / "whole", **scratch))
    expected = Counter(work)
    assert len(expected) == 2
    work.clear()
    config = make_run_config(tmp_path / "killed", **scratch)
    for phase in ("route", "coherence", "attack"):
        with monkeypatch.context() as patch:
            _kill_at_the_end(patch, phase, before_record=killed_in == "record")
            with pytest.raises(KilledError):
                run_pipeline(config)
    run_pipeline(config)
    assert Counter(work) == expected
    left = [path.name for path in (config.output_path / "checkpoints").rglob("checkpoint-*")]
    assert left == []
    assert not list((config.output_path / "phases").glob("attack-unfinished*"))


def _count(monkeypatch: pytest.MonkeyPatch, kind: type, method: str, calls: list[str]) -> None:
    original = getattr(kind, method)

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(method)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(kind, method, counted)


def _kill_at_the_end(patch: pytest.MonkeyPatch, phase: str, before_record: bool) -> None:
    original = RunDirectory.record

    def record(self: RunDirectory, name: str, *args: Any, **kwargs: Any) -> None:
        if name != phase or not before_record:
            original(self, name, *args, **kwargs)
        if name == phase:
            raise KilledError

    patch.setattr(RunDirectory, "record", record)
