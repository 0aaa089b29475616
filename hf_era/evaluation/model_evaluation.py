"""Evaluates or attacks one causal LM, ours or not: what `hf-era eval` and `hf-era relearn` do."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import PartialState
from rich.console import Console

from hf_era.data import (
    padding_token_id,
)  # fmt: skip
from hf_era.evaluation import (
    Evaluator,
    ModelResult,
    RelearnExperiment,
    StoryLosses,
    describe_generations,
    generate_texts,
    load_control,
    prompts_for,
    stories_needed,
)
from hf_era.evaluation.model_inputs import (
    ModelEvaluationConfig,
    ModelInputs,
    load_model,
    load_model_inputs,
    shown_name,
)  # fmt: skip
from hf_era.evaluation.modules import examples_of_modules
from hf_era.evaluation.profiles import measure_profiles, modules_to_switch
from hf_era.evaluation.relearn.config import retain_stories_needed
from hf_era.evaluation.results import ABLATED
from hf_era.evaluation.summary import comparison_values
from hf_era.evaluation.tasks import Suite, load_suite, measure_in_main
from hf_era.models.loading import without_weight_bars
from hf_era.utils.environment import provenance
from hf_era.utils.processes import main_first

WORDS_SHOWN = 5
"""Forget words in a message; of more, no one reads one."""

_DIFFERENCES = {
    "forget": "unlearning", "retain": "retain_tax", "forget_words": "forget_words_unlearning",
    "unlabelled": "unlabelled_unlearning",
}  # fmt: skip


@without_weight_bars()
def evaluate_model(config: ModelEvaluationConfig, attack: bool, console: Console | None = None) -> ModelResult:
    """Measures a model: losses, generations and, with `attack`, what relearn attacks bring back.

    The processes of a launch (`accelerate launch -m hf_era eval ...`) share the work out; all return the same figures. What
    is done is said on the console, or on standard error.

    Warns: `ForgetWordsWarning` if the forget words are not those of the forget examples.

    Raises:
        ValueError: for bad input, before any long work; or if a loss is not finite.
    """
    state = PartialState()
    console = console or Console(stderr=True, quiet=not state.is_main_process, soft_wrap=True)
    filtering = None if config.data_filtering is None else load_control(config.data_filtering)
    pool_sizes = (stories_needed(config.relearn), retain_stories_needed(config.relearn)) if attack else (0, 0)
    if attack and config.only_tasks:
        raise ValueError("An attack needs examples: `--forget FILE --retain FILE`. For tasks alone: `hf-era eval`.")
    inputs = main_first(lambda: load_model_inputs(config, *pool_sizes), state)
    suite = load_suite(config.evaluation, inputs.tokenizer, state)
    if config.only_tasks:
        console.print(_plan(config, inputs, None, suite))
        return _with_tasks(config, inputs, suite, state, _described(config, inputs))
    if filtering is not None and filtering.data.get("fingerprint") != inputs.data["fingerprint"]:
        raise ValueError(
            f"`data_filtering`: {config.data_filtering} was measured on other examples. Evaluate that model on those files."
        )
    message = words_message(config.forget_words, inputs.data) if config.forget_words else None
    if message is not None and state.is_main_process:
        warnings.warn(message, ForgetWordsWarning, stacklevel=2)
    shared = {"device": config.resolved_device, "progress": state.is_main_process, "state": state}
    embeddings = inputs.model.get_input_embeddings().num_embeddings
    measured = (inputs.forget, inputs.retain, padding_token_id(inputs.tokenizer, embeddings))
    evaluator = Evaluator(*measured, config.evaluation, unlabelled=inputs.unlabelled, **shared)
    experiment = None
    if attack:
        shared_pools = {**shared, "retain_pool": inputs.retain_pool}
        experiment = RelearnExperiment(inputs.pool, *measured, config.relearn, **shared_pools)
    modules = [] if config.profiles is None else modules_to_switch(inputs.model, config.profiles)
    console.print(_plan(config, inputs, experiment, suite, modules))
    seconds: dict[str, float] = {}
    start = time.monotonic()
    result = _measured(config, inputs, evaluator)
    if modules:
        own = examples_of_modules(inputs.forget, inputs.model.module_names)
        result.profiles = measure_profiles(evaluator, inputs.model, own, modules)
    seconds["evaluation"] = round(time.monotonic() - start, 1)
    result.generations = _generations(config, inputs, state)
    seconds["generation"] = round(time.monotonic() - start - seconds["evaluation"], 1)
    if config.evaluation.tasks:
        result = _with_tasks(config, inputs, suite, state, result)
    if experiment is not None:
        start = time.monotonic()
        result.attack = _attacked(config, inputs, experiment)
        seconds["attack"] = round(time.monotonic() - start, 1)
    result.seconds |= seconds
    result.data_filtering = None if filtering is None else comparison_values(filtering)
    return result


def _attacked(config: ModelEvaluationConfig, inputs: ModelInputs, experiment: RelearnExperiment) -> dict[str, Any]:
    """What the attacks do to the model, and the strongest to the one before the method, where that is named."""
    if config.before is None:
        return experiment.run(inputs.model).to_dict()
    attacked = experiment.run(inputs.model, experiment.losses(load_model(config, config.before, "before")))
    return experiment.attack_before(load_model(config, config.before, "before"), attacked).to_dict()


def _plan(
    config: ModelEvaluationConfig,
    inputs: ModelInputs,
    experiment: RelearnExperiment | None,
    suite: Suite | None,
    modules: Sequence[str] = (),
) -> str:
    counts = {name: inputs.data.get(f"{name}_stories", 0) for name in ("forget", "retain", "unlabelled", "attack")}
    unlabelled = f", and {counts['unlabelled']:,} without a label" if counts["unlabelled"] else ""
    lines = [
        f"[bold]{shown_name(config)}[/], on {config.resolved_device}, {inputs.model.dtype}".replace("torch.", ""),
        f"  measured on  {counts['forget']:,} forget and {counts['retain']:,} retain examples{unlabelled}"
        if inputs.forget is not None
        else "  measured on  tasks alone (losses need examples: --forget, --retain or --data)",
        f"  compared to  {config.before or 'nothing (name the model before the method with --before)'}",
    ]
    if modules:
        lines.append(f"  profiles     {2 ** len(modules)}, of the modules {', '.join(modules)}")
    if suite is not None:
        lines.append(f"  tasks        {suite.describe()}; in brackets the number of examples")
    if experiment is not None:
        lines.append(f"  attack       {experiment.describe()}, drawn from {counts['attack']:,} held back")
    return "\n".join(lines)


def _measured(config: ModelEvaluationConfig, inputs: ModelInputs, evaluator: Evaluator) -> ModelResult:
    measured = {"final": evaluator.measure(inputs.model, "The model")}
    accuracies = {"final": evaluator.accuracies(inputs.model, "The model")}
    _check_finite(config, measured["final"], config.model)
    distance: dict[str, Any] = {}
    if config.before is not None:
        before = load_model(config, config.before, "before")
        measured["before"] = evaluator.measure(before, "Before the method")
        accuracies["before"] = evaluator.accuracies(before, "Before the method")
        _check_finite(config, measured["before"], config.before)
        distance = evaluator.distance(inputs.model, before, measured["final"], measured["before"])
    losses = {stage: evaluator.estimates(part) for stage, part in measured.items()}
    found = evaluator.differences(measured["final"], measured["before"]) if "before" in measured else {}
    return _described(
        config,
        inputs,
        losses=losses["final"],
        accuracies={stage: found for stage, found in accuracies.items() if found},
        before=None if config.before is None else {"model": config.before, "losses": losses["before"]},
        base_distance=distance,
        differences={_DIFFERENCES[kind]: difference for kind, difference in found.items()},
        mean_of_batch_means={
            "batch_size": config.evaluation.mean_of_batch_means_size,
            **{stage: evaluator.means_of_batch_means(part) for stage, part in measured.items()},
        },
    )


def _described(config: ModelEvaluationConfig, inputs: ModelInputs, **measured: Any) -> ModelResult:
    """A result with what is known of the model, and what was measured of it."""
    before = None if config.before is None else {"model": config.before, "losses": {}}
    values = {"losses": {}, "before": before, **measured}
    where = provenance(config.resolved_device)
    return ModelResult(
        name=shown_name(config), model=config.model, **where, data=inputs.data, seed=config.seed, **values
    )


def _with_tasks(
    config: ModelEvaluationConfig, inputs: ModelInputs, suite: Suite | None, state: PartialState, result: ModelResult
) -> ModelResult:
    """The result with the tasks' figures: of the model before the method, of this one and, if it is expanded, of this one
    with its modules off."""
    start = time.monotonic()

    def measure() -> dict[str, Any]:
        assert suite is not None
        found = {}
        if config.before is not None:
            found["before"] = suite.measure(load_model(config, config.before, "before"))
        found["final"] = suite.measure(inputs.model)
        if getattr(inputs.model, "module_names", None):
            with inputs.model.ablated():
                found[ABLATED] = suite.measure(inputs.model)
        return found

    result.tasks = measure_in_main(measure, state)
    result.seconds["tasks"] = round(time.monotonic() - start, 1)
    return result


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
    if not config.generation.enabled:
        return {}
    examples = {"forget": inputs.forget, "retain": inputs.retain}
    prompts = prompts_for(config.generation, inputs.tokenizer, examples)
    texts: dict[str, list[str]] = {}
    if config.before is not None:
        before = load_model(config, config.before, "before")
        texts["before"], _ = generate_texts(before, inputs.tokenizer, prompts.settings, state=state)
    texts["final"], allowed = generate_texts(inputs.model, inputs.tokenizer, prompts.settings, state=state)
    # 0 of words that the capability has nothing to do with would read as if it were gone.
    words = config.forget_words if inputs.data.get("forget_stories_with_a_forget_word") else []
    return describe_generations(texts, prompts, words, allowed)


class ForgetWordsWarning(UserWarning):
    """The forget words do not seem to be those of the forget examples."""


def words_message(words: Sequence[str], data: Mapping[str, Any]) -> str | None:
    """What is odd about the examples that hold forget words, given the counts of a `ModelInputs`; `None` if nothing is.

    Which file an example is in says what it is, so this is no error: a subject is more than its words.
    """
    kinds = [kind for kind in ("forget", "retain", "attack") if data.get(f"{kind}_stories")]
    stories = {kind: data[f"{kind}_stories"] for kind in kinds}
    held = {kind: data[f"{kind}_stories_with_a_forget_word"] for kind in kinds}
    shares = {kind: held[kind] / stories[kind] for kind in kinds}
    listed = ", ".join(words[:WORDS_SHOWN]) + (f" and {len(words) - WORDS_SHOWN} more" if words[WORDS_SHOWN:] else "")
    if shares["retain"] > 0 and shares["retain"] >= 2 * shares["forget"]:
        return (
            f"`forget_words`: {held['retain']} of the {stories['retain']} retain examples hold one of {listed}, but "
            f"{held['forget']} of the {stories['forget']} forget examples. Are `--forget` and `--retain` swapped? If not, "
            "name the forget words: `--forget-words`."
        )
    if not held["forget"]:
        return (
            f"`forget_words`: none of the {stories['forget']} forget examples holds one of {listed}. So "
            "neither their loss nor their number in generated texts is given. Name theirs: `--forget-words`."
        )
    if "attack" in kinds and not held["attack"]:
        return (
            f"`forget_words`: none of the {stories['attack']} attack examples holds one of {listed}, but {held['forget']} "
            f"of the {stories['forget']} forget examples do. Is `--attack` a file of forget examples?"
        )
    return None
