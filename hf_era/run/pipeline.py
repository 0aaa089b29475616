"""A run from its config to its result.

base, or base control -> the method's own phases -> evaluation -> generations -> relearn attack -> card and report

Gradient routing's own phases are route, contract and coherence (`hf_era.methods.gradient_routing`); the controls are methods
too. Every phase writes its result and is skipped when it is there already and its inputs are unchanged, so a run that was
stopped goes on where it was: `hf-era run CONFIG` again. What is written where: `hf_era.run.directory`.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

from accelerate import PartialState
from rich.console import Console

from hf_era.evaluation import RunResult
from hf_era.evaluation.results import load_control
from hf_era.evaluation.summary import comparison_values
from hf_era.methods import Phase, get_method
from hf_era.methods.base import train_base
from hf_era.models.loading import without_weight_bars
from hf_era.run.budget import within_budget
from hf_era.run.config import RunConfig, without_secrets
from hf_era.run.context import Run
from hf_era.run.directory import RunDirectory
from hf_era.run.inputs import RunInputs, input_notes, load_inputs
from hf_era.run.measuring import Measuring
from hf_era.run.outputs import HELD_OUT, describe_plan, finish, write_held_out
from hf_era.run.push import check_push
from hf_era.run.time_left import RunClock
from hf_era.run.tracking import Tracking
from hf_era.utils.files import local_path, real_path
from hf_era.utils.processes import in_all, main_first
from hf_era.utils.signals import stop_if_requested


@without_weight_bars()
def run_pipeline(config: RunConfig, console: Console | None = None) -> RunResult:
    """Runs the life cycle of one config and returns its result, which is also in `result.json`.

    Args:
        config (`RunConfig`): from `load_run_config`.
        console (*optional*): where it says what it does. Not given: standard error.

    Raises:
        ValueError: for bad input, before any long work.
        NonFiniteLossError: if a loss became NaN or infinite; checkpoints from before are kept.
        StorageError: if something cannot be written; what was whole before is kept.
        StoppedError: within `hf_era.utils.signals.stoppable()`, if a signal asked to stop.
    """
    state = PartialState()
    console = console or Console(stderr=True, quiet=not state.is_main_process, soft_wrap=True)
    ready = prepare_run(config, console, state)
    run, directory = ready.run, ready.directory
    with directory.lock():
        directory.claim(run.identity, run.settings, config.overwrite_output_dir)
        state.wait_for_everyone()
        result = _run_phases(PhaseRunner(directory, console, state, ready.tracking), run, ready.shared)
        result.data_filtering = ready.filtering
        if state.is_main_process:
            write_held_out(run.data, directory.path / HELD_OUT)
        finish(result, config, directory, console, state)
        for said in ready.tracking.log_result(result):
            console.print(said, style="yellow", markup=False)
    return result


class ReadyRun(NamedTuple):
    """A run whose input is loaded and checked: all that is known before the first step. `shared` is the directory of the
    base, `filtering` what its result keeps of the control that it names."""

    run: Run
    directory: RunDirectory
    shared: RunDirectory
    tracking: Tracking
    filtering: dict[str, Any] | None


def prepare_run(config: RunConfig, console: Console, state: PartialState) -> ReadyRun:
    """Loads and checks everything that a run needs, says what it is going to do, and changes nothing on the disk but the
    cache of prepared data. Raises as `run_pipeline`, before any long work."""

    def tell(text: str) -> None:
        console.print(f"[bold red]{text}[/]")

    arguments = config.training_arguments(config.output_path / "checkpoints")
    tracking = Tracking(config, state.is_main_process)
    directory = RunDirectory(config.output_path, state.is_main_process, tell)
    console.print(describe_plan(config, arguments.device))
    if config.training.get("push_to_hub"):
        way_out = "Leave `training.push_to_hub` out, and push later: `hf-era push`."
        check_push(config.training.get("hub_model_id"), way_out)
    inputs = main_first(lambda: load_inputs(config), state)
    notes = []
    if config.budget is not None:
        config, note = within_budget(config, arguments, inputs.data.train)
        arguments, notes = config.training_arguments(config.output_path / "checkpoints"), [note]
    for note in [*notes, *input_notes(config, inputs)]:
        console.print(f"  note       {note}", style="yellow", markup=False)
    run = Run(config, inputs, arguments, state)
    shared = RunDirectory(config.base_path, state.is_main_process, tell)
    filtering = _data_filtering(config, inputs)
    directory.check(run.identity, run.settings, config.overwrite_output_dir, inputs=_local_inputs(config))
    if config.model.trains_base:
        _check_shared_base(shared, run)
    state.wait_for_everyone()
    return ReadyRun(run, directory, shared, tracking, filtering)


class PhaseRunner:
    """Runs phases on all processes of a launch, or skips those that `directory` remembers as done; says so, and takes the
    time.

    Attributes:
        seconds (`dict[str, float]`): phase -> how long it took, when it was run.
        clock (`RunClock`): time used, and time left for the whole run.
    """

    def __init__(
        self, directory: RunDirectory, console: Console, state: PartialState, tracking: Tracking | None = None
    ) -> None:
        self.directory, self.console, self.state = directory, console, state
        self._in_phase = nullcontext if tracking is None else tracking.phase
        self.seconds: dict[str, float] = {}
        self.clock = RunClock(console)

    def run(self, phase: Phase, directory: RunDirectory | None = None) -> dict[str, Any]:
        """What the phase reported, now or when it was run. `directory`: that remembers it, if not the run's own."""
        directory = directory or self.directory
        stop_if_requested()  # a signal that came too late for the last phase to stop at it
        self.state.wait_for_everyone()
        report = directory.finished(phase.name, phase.key, phase.outputs)
        # Each process has decided before one can finish the work and thereby change what the others would decide.
        self.state.wait_for_everyone()
        said = "already done, skipped"
        if report is None:
            when = self.clock.begin(phase)
            self.console.print(f"[bold]{phase.title}[/] ...{f' ({when})' if when else ''}")
            start = time.monotonic()
            with self._in_phase(phase.name):
                report = phase.work(phase.key)
            report = {**report, "seconds": round(time.monotonic() - start, 1)}
            directory.record(phase.name, phase.key, report, phase.outputs)
            said = f"done in {report['seconds']:.1f} s"
        phase.clean_up()  # also where it was done before: a run that was killed in between has left it there
        self.state.wait_for_everyone()
        self.seconds[phase.name] = report["seconds"]
        self.clock.end(phase, report["seconds"])
        self.console.print(f"[bold]{phase.title}[/]: {said}")
        return report


class RunPlan:
    """The phases of a run, in order: of the base where one is trained here, of the method, and those that measure.

    Attributes:
        base, own, measured (`list[Phase]`): the three parts. measuring (`Measuring`): whose the last ones are.
    """

    def __init__(self, run: Run) -> None:
        method = get_method(run.config.method)
        self.base = [_base_phase(run)] if run.config.model.trains_base else []
        self.own = method.phases(run)
        self.measuring = Measuring(run, method)
        self.measured = self.measuring.phases(model_key=self.own[-1].key)

    def phases(self) -> list[Phase]:
        return [*self.base, *self.own, *self.measured]

    def seconds_done(self, directory: RunDirectory, shared: RunDirectory) -> dict[str, float]:
        """Phase -> how long it took, of those that the directories remember as done."""
        found = {phase.name: shared.seconds_of(phase.name, phase.key) for phase in self.base}
        found |= {phase.name: directory.seconds_of(phase.name, phase.key) for phase in (*self.own, *self.measured)}
        return {name: seconds for name, seconds in found.items() if seconds is not None}


def _run_phases(runner: PhaseRunner, run: Run, shared: RunDirectory) -> RunResult:
    plan = RunPlan(run)
    runner.clock.plan(plan.phases(), plan.seconds_done(runner.directory, shared))
    run.progress = runner.clock.progress
    base_training: dict[str, Any] = {}
    for phase in plan.base:
        # A base that several runs share keeps its own records; a second run waits for the first one's.
        with shared.lock(wait=True):
            in_all(lambda: None, run.state)  # the main process may have waited for hours
            _check_shared_base(shared, run)  # again: it may have been claimed while this run waited
            shared.claim(run.base_key, run.control_settings)
            base_training = runner.run(phase, shared)
    reports = {phase.name: runner.run(phase) for phase in plan.own}
    method = get_method(run.config.method)
    training = reports[method.training_phase]
    provenance = training.pop("provenance")  # of the training, whenever and wherever the rest was done
    measured: dict[str, Any] = {}
    for phase in plan.measured:
        measured |= runner.run(phase)
    del measured["seconds"]
    for module, attack in measured.pop("module_attacks", {}).items():
        measured["modules"][module]["attack"] = attack
    return RunResult(
        name=run.config.name,
        seed=run.seed,
        config=without_secrets(run.config.to_dict()),
        **provenance,
        data={**run.data.summary, "fingerprint": run.inputs.data_fingerprint},
        routing_table=[row.to_dict() for row in run.data.frequency_rows],
        before_kind=run.before_kind,
        base_training=base_training,
        coherence=reports.get("coherence", {"enabled": False}),
        training={**training, "minimum_ablation_gap": run.arguments.minimum_ablation_gap},
        seconds=runner.seconds,
        method=method.name,
        method_title=method.title_of(run.config),
        method_role=method.role,
        method_texts=method.texts_of(run.config),
        stages=[stage.describe() for stage in plan.measuring.stages.values()],
        **measured,
    )


def _base_phase(run: Run) -> Phase:
    key = run.base_key
    cost = run.training_cost(run.stock_arguments("base", key), len(run.data.train))
    return Phase(
        "base",
        "Pretraining the base" if run.start == "pretrained" else "Training the base control",
        key,
        partial(train_base, run),
        (run.folder("base"),),
        partial(run.remove_checkpoints, "base", key),
        cost,
    )


def _data_filtering(config: RunConfig, inputs: RunInputs) -> dict[str, Any] | None:
    """The figures of the control that the config names, checked before any long work."""
    if config.data_filtering is None:
        return None
    result = load_control(config.data_filtering)
    if result.data.get("fingerprint") != inputs.data_fingerprint:
        raise ValueError(
            f"`data_filtering`: {config.data_filtering} was measured on other examples than this run's. Run the control "
            "with the same data, split and seed (`--method data_filtering --model.start scratch`)."
        )
    return comparison_values(result)


def _check_shared_base(shared: RunDirectory, run: Run) -> None:
    """A base inside the output directory is covered by that directory's own check."""
    if not real_path(run.config.base_path).is_relative_to(real_path(run.config.output_path)):
        shared.check(run.base_key, run.control_settings, field="model.base_dir")


def _local_inputs(config: RunConfig) -> list[str]:
    """Paths that the run reads: the output directory must not be thrown away with one of them inside."""
    given = (
        config.model.base, config.model.tokenizer, *config.data.sources.values(), config.data.validation,
        config.data.stories_file, config.data_filtering,
    )  # fmt: skip
    return [name for name in given if name is not None and local_path(name).exists()]
