"""Evaluates or attacks one causal LM, ours or not: what `hf-era eval` and `hf-era relearn` do."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console

from hf_era.data import padding_token_id
from hf_era.environment import machine_description, package_versions
from hf_era.evaluation import (
    Evaluator,
    ModelResult,
    RelearnExperiment,
    StoryLosses,
    check_attack,
    describe_generations,
    generate_texts,
    load_result,
    stories_needed,
)
from hf_era.model_inputs import ModelEvaluationConfig, ModelInputs, load_model, load_model_inputs
from hf_era.processes import main_first
from hf_era.reporting.figures import yardstick

_DIFFERENCES = {"forget": "unlearning", "retain": "retain_tax", "forget_words": "forget_words_unlearning"}


def evaluate_model(config: ModelEvaluationConfig, attack: bool, console: Console | None = None) -> ModelResult:
    """Measures a model: losses, generations and, with `attack`, what relearn attacks bring back.

    The processes of a launch (`accelerate launch -m hf_era eval ...`) share the work out; all return the same figures.

    Args:
        config (`ModelEvaluationConfig`): which model and stories.
        attack (`bool`): also make the attacks.
        console (*optional*): where it says what it does. Not given: standard error.

    Raises:
        ValueError: for bad input, before any long work; or if a loss is not finite.
    """
    state = PartialState()
    console = console or Console(stderr=True, quiet=not state.is_main_process, soft_wrap=True)
    filtering = None if config.data_filtering is None else load_result(config.data_filtering)
    pool_size = stories_needed(config.relearn) if attack and not config.attack else 0
    inputs = main_first(lambda: load_model_inputs(config, pool_size), state)
    if filtering is not None and filtering.data.get("fingerprint") != inputs.data["fingerprint"]:
        raise ValueError(
            f"`data_filtering`: {config.data_filtering} was measured on other stories. Evaluate that model on those files."
        )
    experiment = _experiment(config, inputs, state) if attack else None
    console.print(_plan(config, inputs, experiment))
    seconds: dict[str, float] = {}
    start = time.monotonic()
    result = _measured(config, inputs, state)
    seconds["evaluation"] = round(time.monotonic() - start, 1)
    result.generations = _generations(config, inputs, state)
    seconds["generation"] = round(time.monotonic() - start - seconds["evaluation"], 1)
    if experiment is not None:
        start = time.monotonic()
        before = None if config.before is None else experiment.losses(load_model(config, config.before, "before"))
        result.attack = experiment.run(inputs.model, before).to_dict()
        seconds["attack"] = round(time.monotonic() - start, 1)
    result.seconds = seconds
    result.data_filtering = None if filtering is None else yardstick(filtering)
    return result


def _experiment(config: ModelEvaluationConfig, inputs: ModelInputs, state: PartialState) -> RelearnExperiment:
    pool: Any = inputs.pool
    check_attack(config.relearn, len(pool))
    padding = padding_token_id(inputs.tokenizer)
    return RelearnExperiment(
        pool,
        inputs.forget,
        inputs.retain,
        padding,
        config.relearn,
        device=config.resolved_device,
        progress=state.is_main_process,
        state=state,
    )


def _plan(config: ModelEvaluationConfig, inputs: ModelInputs, experiment: RelearnExperiment | None) -> str:
    counts = {name: inputs.data.get(f"{name}_stories", 0) for name in ("forget", "retain", "attack")}
    lines = [
        f"[bold]{_name(config)}[/], on {config.resolved_device}, {inputs.model.dtype}".replace("torch.", ""),
        f"  measured on  {counts['forget']:,} forget and {counts['retain']:,} retain stories",
        f"  compared to  {config.before or 'nothing (name the model before the method with --before)'}",
    ]
    if experiment is not None:
        lines.append(f"  attack       {experiment.describe()}, out of {counts['attack']:,} stories")
    return "\n".join(lines)


def _measured(config: ModelEvaluationConfig, inputs: ModelInputs, state: PartialState) -> ModelResult:
    padding = padding_token_id(inputs.tokenizer)
    evaluator = Evaluator(
        inputs.forget,
        inputs.retain,
        padding,
        config.evaluation,
        device=config.resolved_device,
        progress=state.is_main_process,
        state=state,
    )
    measured = {"final": evaluator.measure(inputs.model, "The model")}
    _check_finite(config, measured["final"], config.model)
    if config.before is not None:
        measured["before"] = evaluator.measure(load_model(config, config.before, "before"), "Before the method")
        _check_finite(config, measured["before"], config.before)
    losses = {stage: evaluator.estimates(part) for stage, part in measured.items()}
    differences: dict[str, Any] = {}
    if "before" in measured:
        found = evaluator.differences(measured["final"], measured["before"])
        differences = {name: found[kind] for kind, name in _DIFFERENCES.items()}
    return ModelResult(
        name=_name(config),
        model=config.model,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=package_versions(),
        machine=machine_description(config.resolved_device),
        data=inputs.data,
        losses=losses["final"],
        seed=config.seed,
        before=None if config.before is None else {"model": config.before, "losses": losses["before"]},
        differences=differences,
        mean_of_batch_means={
            "batch_size": config.evaluation.mean_of_batch_means_size,
            **{stage: evaluator.means_of_batch_means(part) for stage, part in measured.items()},
        },
    )


def _check_finite(config: ModelEvaluationConfig, measured: dict[str, StoryLosses], model: str) -> None:
    for name, losses in measured.items():
        total = float(losses.nll.sum())
        if not math.isfinite(total):
            way_out = " float16 overflows easily: pass `--dtype float32`." if config.dtype == "float16" else ""
            raise ValueError(
                f"The {name} loss of {model} is not finite ({total}). Its weights may be broken: look for NaN in the "
                f"checkpoint.{way_out}"
            )


def _generations(config: ModelEvaluationConfig, inputs: ModelInputs, state: PartialState) -> dict[str, Any]:
    settings = config.generation
    if not settings.enabled:
        return {}
    texts: dict[str, list[str]] = {}
    if config.before is not None:
        before = load_model(config, config.before, "before")
        texts["before"], _ = generate_texts(before, inputs.tokenizer, settings, state=state)
    texts["final"], allowed = generate_texts(inputs.model, inputs.tokenizer, settings, state=state)
    return describe_generations(texts, settings.prompts, config.forget_words, settings, allowed)


def _name(config: ModelEvaluationConfig) -> str:
    return config.name or Path(config.model).name or config.model
