"""The life cycle: base -> route -> ablate and contract -> coherence -> evaluation -> relearn attack -> card and report.

Every phase writes its result and is skipped when it is there already and its inputs are unchanged, so a run that was
stopped goes on where it was: `hf-era run CONFIG` again. In the output directory:

    base/           the base, or base control, that was trained here (not with `model.base`; see `model.base_dir`)
    expanded/       the routed model with its auxiliary module, for `AutoModelForCausalLM` with `hf_era` imported
    contracted/     the stock model right after the cut
    model/          the final stock checkpoint, tokenizer and card: this is what a push uploads
    result.json     figures, config, versions
    report.html     the same to look at: one file, plots and texts in it
    checkpoints/    of the phase that is running; phases/: what is finished; run.json: whose directory this is

The controls are runs too: `method: data_filtering` trains a stock model on the retain stories alone, `method: base` only
measures the model before the method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console

from hf_era.evaluation import RunResult
from hf_era.evaluation.results import load_result, method_fields
from hf_era.evaluation.summary import comparison_values
from hf_era.run.config import RunConfig
from hf_era.run.directory import RunDirectory, fingerprint
from hf_era.run.inputs import RunInputs, load_inputs
from hf_era.run.measuring import EvaluationPhases
from hf_era.run.outputs import describe_plan, finish
from hf_era.run.phase_runner import PhaseRunner
from hf_era.run.phases import Phases
from hf_era.utils.processes import in_all, main_first


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
    arguments = config.training_arguments(config.output_path / "checkpoints")
    state = PartialState()
    console = console or Console(stderr=True, quiet=not state.is_main_process, soft_wrap=True)

    def tell(text: str) -> None:
        console.print(f"[bold red]{text}[/]")

    directory = RunDirectory(config.output_path, state.is_main_process, tell)
    console.print(describe_plan(config, arguments.device))

    inputs = main_first(lambda: load_inputs(config), state)
    settings = inputs.identity_settings(config, arguments)
    identity = fingerprint(settings, inputs.data_fingerprint, inputs.base_fingerprint)
    phases = Phases(config, inputs, arguments, state)
    shared = RunDirectory(config.base_path, state.is_main_process, tell)
    filtering = _data_filtering(config, inputs)
    directory.check(identity, settings, config.overwrite_output_dir, inputs=_local_inputs(config))
    if config.model.trains_base:
        _check_shared_base(shared, phases)
    state.wait_for_everyone()
    with directory.lock():
        directory.claim(identity, settings, config.overwrite_output_dir)
        state.wait_for_everyone()
        runner = PhaseRunner(directory, console, state)
        result = _run_phases(runner, phases, shared, identity)
        result.data_filtering = filtering
        finish(result, config, directory, console, state)
    return result


def _run_phases(runner: PhaseRunner, phases: Phases, shared: RunDirectory, identity: str) -> RunResult:
    config, inputs = phases.config, phases.inputs
    base_key = phases.base_fingerprint()
    if config.model.trains_base:
        what = "Pretraining the base" if config.model.start == "pretrained" else "Training the base control"
        # A base that several runs share keeps its own records; a second run waits for the first one's.
        with shared.lock(wait=True):
            in_all(lambda: None, phases.state)  # the main process may have waited for hours
            _check_shared_base(shared, phases)  # again: it may have been claimed while this run waited
            shared.claim(base_key, {})
            _run_training(runner, phases, "base", base_key, phases.train_base, what, phases.folders.base, shared)
    train = {"gradient_routing": _route, "data_filtering": _filter_data, "base": _leave_untouched}[config.method]
    model_key, training, coherence = train(runner, phases, identity, base_key)
    measured = _measure(runner, phases, model_key, base_key)
    provenance = training.pop("provenance")  # of the training, whenever and wherever the rest was done
    return RunResult(
        name=config.name,
        seed=config.seed,
        config=_without_secrets(config.to_dict()),
        **provenance,
        data={**inputs.data.summary, "fingerprint": inputs.data_fingerprint},
        routing_table=[row.to_dict() for row in inputs.data.frequency_rows],
        before_kind=phases.before_kind,
        coherence=coherence,
        training={**training, "minimum_ablation_gap": phases.arguments.minimum_ablation_gap},
        seconds=runner.seconds,
        **method_fields(config.method, measured["losses"]),
        **measured,
    )


def _route(
    runner: PhaseRunner, phases: Phases, identity: str, base_key: str
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Route, contract, coherence; returns the key of the final model and the reports of training and coherence."""
    config, folders = phases.config, phases.folders
    route_key = fingerprint(identity, base_key if config.model.start == "pretrained" else None)
    what = "Training with gradient routing"
    routing = _run_training(runner, phases, "route", route_key, phases.route, what, folders.expanded)
    contract_key = fingerprint(route_key, "contract")
    runner.run("contract", contract_key, phases.contract, "Cutting the module out", [folders.contracted])
    coherence_key = fingerprint(contract_key, config.coherence.to_dict())
    what = (
        "Coherence fine-tuning" if config.coherence.enabled else "Saving the final model, without coherence fine-tuning"
    )
    coherence = _run_training(runner, phases, "coherence", coherence_key, phases.coherence, what, folders.final)
    return coherence_key, routing, coherence


def _filter_data(
    runner: PhaseRunner, phases: Phases, identity: str, base_key: str
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    key = fingerprint(identity, "data filtering")
    what = "Training on the retain stories alone"
    report = _run_training(runner, phases, "filter", key, phases.train_on_retain_alone, what, phases.folders.final)
    return key, report, {"enabled": False}


def _run_training(
    runner: PhaseRunner,
    phases: Phases,
    phase: str,
    key: str,
    work: Callable[[str], dict[str, Any]],
    description: str,
    output: Path,
    directory: RunDirectory | None = None,
) -> dict[str, Any]:
    """Runs a phase that keeps checkpoints until it is written down as done."""
    return runner.run(phase, key, work, description, [output], directory, lambda: phases.remove_checkpoints(phase, key))


def _leave_untouched(
    runner: PhaseRunner, phases: Phases, identity: str, base_key: str
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    report = runner.run("untouched", base_key, phases.untouched, "Taking the model as it is")
    return base_key, report, {"enabled": False}


def _measure(runner: PhaseRunner, phases: Phases, model_key: str, base_key: str) -> dict[str, Any]:
    """Evaluation, generations and attack: what they report, without the time they took."""
    config, measuring = phases.config, EvaluationPhases(phases)
    settings = config.evaluation
    sizes = (settings.bootstrap_samples, settings.mean_of_batch_means_size)
    words = config.data.forget_words
    keys = {
        "evaluation": fingerprint(model_key, base_key, *sizes, "with the leak audit"),
        "generation": fingerprint(model_key, base_key, asdict(config.generation), words),
        "attack": fingerprint(model_key, base_key, config.relearn.to_dict()),
    }
    reports = [
        runner.run("evaluation", keys["evaluation"], measuring.evaluate, "Evaluating"),
        runner.run("generation", keys["generation"], measuring.generate, "Generating"),
        runner.run(
            "attack",
            keys["attack"],
            measuring.attack,
            "Attacking: relearning forget stories",
            remove_unfinished=measuring.remove_kept_trials,
        ),
    ]
    return {name: value for report in reports for name, value in report.items() if name != "seconds"}


def _data_filtering(config: RunConfig, inputs: RunInputs) -> dict[str, Any] | None:
    """The yardstick that the config names, checked before any long work."""
    if config.data_filtering is None:
        return None
    result = load_result(config.data_filtering)
    if result.data.get("fingerprint") != inputs.data_fingerprint:
        raise ValueError(
            f"`data_filtering`: {config.data_filtering} was measured on other stories than this run's. Run the control with "
            "the same data, split and seed (`--method data_filtering --model.start scratch`)."
        )
    return comparison_values(result)


def _check_shared_base(shared: RunDirectory, phases: Phases) -> None:
    """A base inside the output directory is covered by that directory's own check."""
    if not phases.config.base_path.is_relative_to(phases.config.output_path):
        shared.check(phases.base_fingerprint(), {}, field="model.base_dir")


_SECRETS = ("hub_token", "push_to_hub_token")


def _local_inputs(config: RunConfig) -> list[str]:
    """Paths that the run reads: the output directory must not be thrown away with one of them inside."""
    given = (
        config.model.base, config.model.tokenizer, config.data.train, config.data.validation, config.data_filtering
    )  # fmt: skip
    return [name for name in given if name is not None and Path(name).expanduser().exists()]


def _without_secrets(config: dict[str, Any]) -> dict[str, Any]:
    """The config without hub tokens: results and cards are there to be shared."""
    for section in ("training", "pretraining"):
        config[section] = {name: value for name, value in config[section].items() if name not in _SECRETS}
    return config
