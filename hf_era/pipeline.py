"""The life cycle: base -> route -> ablate and contract -> coherence -> evaluation -> model card.

Every phase writes its result and is skipped when it is there already and its inputs are unchanged, so a run that was
stopped goes on where it was: `hf-era run CONFIG` again. In the output directory:

    base/           the base, or base control, that was trained here (not with `model.base`; see `model.base_dir`)
    expanded/       the routed model with its auxiliary module, for `AutoModelForCausalLM` with `hf_era` imported
    contracted/     the stock model right after the cut
    model/          the final stock checkpoint, tokenizer and card: this is what a push uploads
    result.json     figures, config, versions
    checkpoints/    of the phase that is running; phases/: what is finished; run.json: whose directory this is
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console

from hf_era.configuration import RunConfig
from hf_era.evaluation import RunResult
from hf_era.phases import Phases
from hf_era.reporting.model_card import write_model_card
from hf_era.reporting.tables import losses_table
from hf_era.run_directory import RunDirectory, fingerprint
from hf_era.run_inputs import load_inputs
from hf_era.training.trainer import nothing_localised_message


def run_pipeline(config: RunConfig, console: Console | None = None) -> RunResult:
    """Runs the life cycle of one config and returns its result, which is also in `result.json`.

    Args:
        config (`RunConfig`): from `load_run_config`.
        console (*optional*): where it says what it does. Not given: standard error.

    Raises:
        ValueError: for bad input, before any long work.
        NonFiniteLossError: if a loss became NaN or infinite; checkpoints from before are kept.
    """
    arguments = config.training_arguments(config.output_path / "checkpoints")
    state = PartialState()
    console = console or Console(stderr=True, quiet=not state.is_main_process, soft_wrap=True)
    directory = RunDirectory(config.output_path, writes=state.is_main_process)
    console.print(_plan(config, arguments.device))

    with state.main_process_first():
        inputs = load_inputs(config)
    settings = inputs.identity_settings(config, arguments)
    identity = fingerprint(settings, inputs.data_fingerprint, inputs.base_fingerprint)
    phases = Phases(config, inputs, arguments, state)
    shared = RunDirectory(config.base_path, writes=state.is_main_process)
    directory.check(identity, settings, config.overwrite_output_dir, inputs=_local_inputs(config))
    if config.model.trains_base:
        _check_shared_base(shared, phases)
    state.wait_for_everyone()
    with directory.lock():
        directory.claim(identity, settings, config.overwrite_output_dir)
        state.wait_for_everyone()
        result = _run_phases(_Runner(directory, console, state), phases, shared, identity)
        _finish(result, config, directory, console, state)
    return result


def _run_phases(runner: _Runner, phases: Phases, shared: RunDirectory, identity: str) -> RunResult:
    config, inputs = phases.config, phases.inputs
    base_key = phases.base_fingerprint()
    if config.model.trains_base:
        what = "Pretraining the base" if config.model.start == "pretrained" else "Training the base control"
        # A base that several runs share keeps its own records; a second run waits for the first one's.
        with shared.lock(wait=True):
            _check_shared_base(shared, phases)  # again: it may have been claimed while this run waited
            shared.claim(base_key, {})
            runner.run("base", base_key, phases.train_base, what, [phases.base_folder / "config.json"], shared)
    route_key = fingerprint(identity, base_key if config.model.start == "pretrained" else None)
    routing = runner.run(
        "route", route_key, phases.route, "Training with gradient routing", [phases.expanded_folder / "config.json"]
    )
    contract_key = fingerprint(route_key, "contract")
    runner.run("contract", contract_key, phases.contract, "Cutting the module out", [phases.contracted_folder])
    coherence_key = fingerprint(contract_key, config.coherence.to_dict())
    what = (
        "Coherence fine-tuning" if config.coherence.enabled else "Saving the final model, without coherence fine-tuning"
    )
    coherence = runner.run("coherence", coherence_key, phases.coherence, what, [phases.final_folder / "config.json"])
    evaluation_key = fingerprint(coherence_key, base_key, config.evaluation.bootstrap_samples)
    evaluation = runner.run("evaluation", evaluation_key, phases.evaluate, "Evaluating")
    provenance = routing.pop("provenance")  # of the training, whenever and wherever the rest was done
    return RunResult(
        name=config.name,
        seed=config.seed,
        config=_without_secrets(config.to_dict()),
        **provenance,
        data=inputs.data.summary,
        routing_table=[row.to_dict() for row in inputs.data.frequency_rows],
        before_kind=phases.before_kind,
        losses=evaluation["losses"],
        selectivity=evaluation["selectivity"],
        coherence=coherence,
        training={**routing, "minimum_ablation_gap": phases.arguments.minimum_ablation_gap},
        seconds=runner.seconds,
    )


def _check_shared_base(shared: RunDirectory, phases: Phases) -> None:
    """A base inside the output directory is covered by that directory's own check."""
    if not phases.config.base_path.is_relative_to(phases.config.output_path):
        shared.check(phases.base_fingerprint(), {}, field="model.base_dir")


_SECRETS = ("hub_token", "push_to_hub_token")


def _local_inputs(config: RunConfig) -> list[str]:
    """Paths that the run reads: the output directory must not be thrown away with one of them inside."""
    given = (config.model.base, config.model.tokenizer, config.data.train, config.data.validation)
    return [name for name in given if name is not None and Path(name).expanduser().exists()]


def _without_secrets(config: dict[str, Any]) -> dict[str, Any]:
    """The config without hub tokens: results and cards are there to be shared."""
    for section in ("training", "pretraining"):
        config[section] = {name: value for name, value in config[section].items() if name not in _SECRETS}
    return config


class _Runner:
    """Runs phases on all processes, says what happens, and takes the time."""

    def __init__(self, directory: RunDirectory, console: Console, state: PartialState) -> None:
        self.directory, self.console, self.state = directory, console, state
        self.seconds: dict[str, float] = {}

    def run(
        self,
        phase: str,
        inputs: str,
        work: Callable[[str], dict[str, Any]],
        description: str,
        outputs: list[Path] | None = None,
        directory: RunDirectory | None = None,
    ) -> dict[str, Any]:
        def timed() -> dict[str, Any]:
            self.console.print(f"[bold]{description}[/] ...")
            start = time.monotonic()
            report = work(inputs)
            return {**report, "seconds": round(time.monotonic() - start, 1)}

        where, wait = directory or self.directory, self.state.wait_for_everyone
        wait()
        report, skipped = where.run_phase(phase, inputs, timed, outputs or [], synchronise=wait)
        wait()
        self.seconds[phase] = report["seconds"]
        done = "already done, skipped" if skipped else f"done in {report['seconds']:.1f} s"
        self.console.print(f"[bold]{description}[/]: {done}")
        return report


def _plan(config: RunConfig, device: Any) -> str:
    rule = config.routing.rule + (f" ({config.routing.weighting})" if config.routing.rule == "full_seq" else "")
    layers = "all layers" if config.expansion.target_layers is None else f"layers {config.expansion.target_layers}"
    if config.model.base is not None:
        start = f"from {config.model.base}"
    elif config.model.start == "pretrained":
        start = f"from a base pretrained here ({config.base_path})"
    else:
        start = "from random weights" + (", beside a base control" if config.model.base_control else "")
    coherence = f"{config.coherence.steps} steps at most" if config.coherence.enabled else "left out"
    return (
        f"[bold]{config.name}[/], seed {config.seed}, on {device}\n"
        f"  model      {start}\n"
        f"  expansion  auxiliary module '{config.expansion.module_name}' of width {config.expansion.width}, {layers}\n"
        f"  data       {config.data.train}; forgetting: {', '.join(config.data.forget_words)}\n"
        f"  routing    {rule}\n"
        f"  coherence  {coherence}\n"
        f"  output     {config.output_path}"
    )


def _finish(
    result: RunResult, config: RunConfig, directory: RunDirectory, console: Console, state: PartialState
) -> None:
    if state.is_main_process:
        result.save(directory.path / "result.json")
        write_model_card(result, directory.path / "model")
    console.print(losses_table(result), markup=False)
    gap = result.ablation_gap
    if gap is not None and not result.localised:
        message = nothing_localised_message(gap, float(result.training["minimum_ablation_gap"]))
        console.print(f"[bold red]{message}[/]")
    console.print(f"Checkpoint: {directory.path / 'model'}   Figures: {directory.path / 'result.json'}")
    if state.is_main_process and config.training.get("push_to_hub"):
        _push(result, config, directory.path / "model", console)


def _push(result: RunResult, config: RunConfig, folder: Path, console: Console) -> None:
    import huggingface_hub

    repository = config.training.get("hub_model_id") or config.output_path.name
    token = config.training.get("hub_token")
    private = config.training.get("hub_private_repo")
    repository = huggingface_hub.create_repo(repository, token=token, private=private, exist_ok=True).repo_id
    revision = config.training.get("hub_revision")
    write_model_card(result, folder, repository=repository)
    huggingface_hub.upload_folder(
        repo_id=repository,
        folder_path=str(folder),
        commit_message="Contracted model of hf_era",
        token=token,
        revision=revision,
    )
    console.print(f"Pushed to {repository}")
