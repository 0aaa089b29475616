"""Everything a run reads: model config, tokenizer, data. Made and checked before any long work."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from hf_era.data import (
    FORGET,
    RETAIN,
    UNLABELLED,
    CachedData,
    DataConfig,
    PreparedData,
    cached_data,
    data_fingerprint,
    load_sources,
    prepare_data,
    prepared_data_key,
    split_sources,
    tokenizer_from_json,
    train_tokenizer,
)
from hf_era.data.sources import check_source
from hf_era.evaluation import LabelledPrompts, SamplingConfig, check_attack, prompts_for
from hf_era.evaluation.generation import longest_prompt
from hf_era.methods import get_method
from hf_era.methods.gradient_routing import GradientRouting
from hf_era.models import family_for, get_family
from hf_era.models.loading import check_round_trip, expanded_from_config, load_base_config, load_tokenizer
from hf_era.models.size import check_config_numbers, check_model_fits
from hf_era.routing import make_router
from hf_era.run.config import SMALL_ARCHITECTURE, RunConfig
from hf_era.training import GradientRoutingConfig
from hf_era.training.checks import scores_message
from hf_era.utils.checks import error_text, listed, short_repr
from hf_era.utils.fields import identity_values
from hf_era.utils.files import fingerprint, local_path, model_fingerprint


@dataclass(frozen=True)
class RunInputs:
    """What all phases read: made before any long work, so that bad input is found at once."""

    base_config: PreTrainedConfig
    tokenizer: Any
    data: PreparedData
    data_fingerprint: str
    base_fingerprint: str

    def prompts(self, settings: SamplingConfig) -> LabelledPrompts:
        """What generated texts begin with: the settings' prompts, or the first tokens of validation examples."""
        examples = {"forget": self.data.validation_forget, "retain": self.data.validation_retain}
        return prompts_for(settings, self.tokenizer, examples)


def load_inputs(config: RunConfig) -> RunInputs:
    """Loads config, tokenizer and data, and checks them against each other; raises `ValueError` for bad input.

    Data that an earlier run prepared of the same examples with the same settings is taken from the disk.
    """
    # First of all: the hub may take long to say that it cannot be reached.
    for field in (*config.data.sources, "stories_file", "validation"):
        if getattr(config.data, field) is not None:
            check_source(getattr(config.data, field), f"data.{field}")
    base = config.model.base
    base_config = _base_config(config)
    family = family_for(base_config, config.expansion)
    config.expansion.resolve_layers(family.layers_of(base_config))
    config.expansion.resolved(family, base_config)  # else known only after a base control was trained
    _check_router(config, base_config)
    _check_length(config, base_config)
    name = config.model.tokenizer or base
    tokenizer: Any = None if name is None else load_tokenizer(name)  # `None`: one is trained on the examples
    if base is not None:
        _check_vocabulary(tokenizer, base_config.vocab_size)
    kept = _prepared_data(config, tokenizer, None if base is None else base_config.vocab_size)
    if kept.trained_tokenizer is not None:
        tokenizer = tokenizer_from_json(kept.trained_tokenizer)
    if base is None:
        base_config.vocab_size = len(tokenizer)
        base_config.bos_token_id, base_config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        base_config.pad_token_id = tokenizer.pad_token_id
        check_model_fits("model.architecture", base_config)  # again: now its vocabulary is known
    counts = kept.data.summary
    unlabelled = counts["train_unlabelled"] + counts["train_forget_unlabelled"]
    check_labels(config, counts["train_forget_labelled"], counts["train_retain"], unlabelled)
    check_attack(config.relearn, len(kept.data.attack_forget), len(kept.data.validation_forget), counts["train_retain"])
    cuts = identity_values(DataConfig, config.data.to_dict())
    local = base is not None and local_path(base).is_dir()
    return RunInputs(
        base_config=base_config,
        tokenizer=tokenizer,
        data=kept.data,
        data_fingerprint=fingerprint(kept.fingerprint, cuts, tokenizer.backend_tokenizer.to_str()),
        base_fingerprint=model_fingerprint(local_path(str(base))) if local else fingerprint(base),
    )


def check_labels(config: RunConfig, forget: int, retain: int, unlabelled: int) -> None:
    """Raises `ValueError` if the method needs other training examples; so many have each label."""
    method = get_method(config.method)
    if method.needs_forget_examples and not forget:
        raise ValueError(
            f"`method: {method.name}` learns from forget examples, but no training example is labelled so. Raise "
            "`data.labelled_fraction`, or say with the labels of the section `data` which examples are to be forgotten."
        )
    method.check_data(config, retain, unlabelled)


def input_notes(config: RunConfig, inputs: RunInputs) -> list[str]:
    """What a user should know of what was loaded, before the work begins, though it is no error."""
    notes = [_counts(config, inputs.data.summary)] if "train_retain" in inputs.data.summary else []
    summary, limit = inputs.data.summary, config.data.max_tokens
    unrouted, labelled = (summary[f"train_forget_{name}"] for name in ("without_routed_token", "labelled"))
    if config.routing.rule == "concept" and unrouted:
        # They keep their label: what an example is about does not change where it is cut. But it has to be said.
        mistaken = summary.get("train_retain_labelled_forget", 0)
        or_mistaken = (
            f", or they are among the {mistaken:,} retain examples that are labelled forget" if mistaken else ""
        )
        notes.append(
            f"Of the {labelled:,} labelled forget examples {unrouted:,} route no token: their forget words lie beyond the "
            f"cut at `data.max_tokens` {limit}{or_mistaken}. What is left of them is trained as retain examples are. Raise "
            "`data.max_tokens`, or lower `data.max_characters`: an example is cut there before it is labelled."
        )
    warmup, steps = (config.training.get(name) for name in ("warmup_steps", "max_steps"))
    warmup = GradientRoutingConfig.warmup_steps if warmup is None else warmup
    if steps is not None and 0 < steps <= warmup:
        notes.append(
            f"`training.warmup_steps` is {warmup:g}, and there are {steps} steps: the learning rate never gets to its peak. "
            "Lower the one or raise the other."
        )
    names = [module.name for module in config.expansion.module_configs]
    if len(names) > 1 and not config.data.modules:
        notes.append(
            f"The modules {listed(names)} all learn the same: nothing says whose examples are whose. Give each its labels, "
            "or words: `data.modules`."
        )
    for module, own in summary.get("modules", {}).items():
        if not own["validation_forget_stories"]:
            notes.append(
                f"No example of the module '{module}' is among those to evaluate on. Raise `data.forget_validation_stories`."
            )
    if contradictions := summary.get("contradictions_dropped"):
        notes.append(f"{contradictions:,} examples repeat an earlier one that has another label. The first one counts.")
    if long := summary.get("long_prompts_dropped"):
        notes.append(
            f"{long:,} examples are left out: their prompt fills all of `data.max_tokens` {limit}, so nothing of the "
            "completion is left. Raise it, or shorten the prompts."
        )
    for name, columns in summary.get("unused_columns", {}).items():
        notes.append(f"`{name}`: read, but not used: the columns {listed(columns)}.")
    if config.generation.enabled:
        asked_for = config.generation.new_tokens
        positions = getattr(inputs.base_config, "max_position_embeddings", None) or math.inf
        prompt = longest_prompt(inputs.prompts(config.generation).settings.prompts or [], inputs.tokenizer)
        reached = min(prompt + asked_for, positions)
        if reached > limit:
            notes.append(
                f"`generation.new_tokens` is {asked_for}, so texts may reach {reached} tokens, but examples are cut at "
                f"`data.max_tokens` {limit}: nothing beyond was trained in this run. Lower `generation.new_tokens` to "
                f"{max(limit - prompt, 1)}, or raise `data.max_tokens`."
            )
    return notes


def _counts(config: RunConfig, summary: dict[str, Any]) -> str:
    """Examples per label, and of those to be forgotten per module, that are trained on, and how many are not."""
    of_labels = {
        FORGET: ("forget", summary["train_forget_labelled"]),
        RETAIN: ("retain", summary["train_retain"]),
        UNLABELLED: ("unlabelled", summary["train_unlabelled"] + summary["train_forget_unlabelled"]),
    }
    learnt = get_method(config.method).labels_learnt(config)
    counts = {name: number for label, (name, number) in of_labels.items() if label in learnt}
    left_out = [f"{number:,} {name}" for label, (name, number) in of_labels.items() if label not in learnt and number]
    names = {name: name for name in counts}
    if of_modules := summary.get("modules"):
        shares = ", ".join(f"{module} {own['train_stories']:,}" for module, own in of_modules.items())
        names["forget"] = f"forget ({shares})"
    told = ", ".join(f"{number:,} {names[name]}" for name, number in counts.items() if number or name != "unlabelled")
    others = f" Not trained on: {', '.join(left_out)}." if left_out else ""
    return f"To be trained on: {told} examples.{others}{_wrong_labels(summary)}"


def _wrong_labels(summary: dict[str, Any]) -> str:
    """Which labels are wrong because the settings say so."""
    lost, errors = summary["train_forget_unlabelled"], summary.get("label_errors", {})
    if "threshold" in errors:
        mistaken = summary["train_retain_labelled_forget"]
        return (
            f" A classifier labelled them: {lost:,} forget examples are unlabelled, and {mistaken:,} retain examples are "
            "labelled forget."
        )
    which = {"short": "the shortest", "score": "those with the lowest scores"}.get(
        errors.get("kind"), "drawn at random"
    )
    return f" Forget examples that lost their label: {lost:,}, {which}." if lost else ""


def _prepared_data(config: RunConfig, given_tokenizer: Any, vocabulary_size: int | None) -> CachedData:
    """The prepared data, kept from an earlier run or made now; with the tokenizer, if it is trained on the examples."""
    data, seed = config.data, config.seed
    modules = [module.name for module in config.expansion.module_configs] if data.modules else None
    sources = load_sources(data, seed, given_tokenizer)

    def prepare() -> CachedData:
        splits = split_sources(sources, data, seed)
        # Again once the data is there, kept or not; here too, because tokenising can take long.
        labels = splits.train["label"][:]
        check_labels(config, *map(labels.count, (FORGET, RETAIN, UNLABELLED)))
        check_attack(config.relearn, len(splits.attack_forget), len(splits.validation_forget), labels.count(RETAIN))
        tokenizer, trained = given_tokenizer, None
        if tokenizer is None:
            tokenizer = train_tokenizer(splits.train["text"][:], config.model.vocabulary_size)
            trained = tokenizer.backend_tokenizer.to_str()
        size = vocabulary_size or len(tokenizer)
        prepared = prepare_data(splits, tokenizer, data, config.routing, size, modules)
        return CachedData(prepared, data_fingerprint(splits), trained)

    tokenizer = config.model.vocabulary_size if given_tokenizer is None else given_tokenizer
    key = prepared_data_key(sources, data, seed, config.routing, tokenizer, vocabulary_size, modules)
    return cached_data(key, prepare)


def _base_config(config: RunConfig) -> Any:
    if config.model.base is not None:
        base_config = load_base_config(config.model.base)
        check_model_fits("model.base", base_config)
        return base_config
    values = dict(config.model.architecture or SMALL_ARCHITECTURE)
    model_type = values.pop("model_type", "gpt_neo")
    if not isinstance(model_type, str):
        raise ValueError(f"`model.architecture.model_type` should be text, got {short_repr(model_type)}.")
    if config.expansion.mlp is None:  # otherwise it is looked for in the model
        get_family(model_type)
    check_config_numbers("model.architecture", {**values, "model_type": model_type})
    try:
        base_config = AutoConfig.for_model(model_type, **values)
        check_round_trip(base_config)
    except Exception as error:  # a field that does not exist or has a wrong type: each a class of error of its own
        raise ValueError(f"`model.architecture` does not fit `{model_type}`: {error_text(error)}") from error
    family_for(base_config, config.expansion)  # before anything is built of it
    check_model_fits("model.architecture", base_config)
    return base_config


def _check_router(config: RunConfig, base_config: Any) -> None:
    """Raises `ValueError` for a router that this model or these labels do not fit: parameters of its core that cannot be
    reached, modules that cannot take an MLP's place, scores where it asks for labels. Controls do not route."""
    if not isinstance(get_method(config.method), GradientRouting):
        return
    router = make_router(config.router)
    if router.decides_by_example and config.data.score_column is not None:
        raise ValueError(scores_message(router, f"`data.score_column` is {short_repr(config.data.score_column)}"))
    if (router.core is not None or router.replaces_original) and config.expansion.module_configs:
        with torch.device("meta"):
            expanded_from_config(copy.deepcopy(base_config), config.expansion, config.seed).router = router


def _check_vocabulary(tokenizer: Any, vocabulary_size: int) -> None:
    if len(tokenizer) > vocabulary_size:
        raise ValueError(
            f"`model.tokenizer` has {len(tokenizer)} tokens, but the base model's vocabulary has {vocabulary_size}. "
            "Use the tokenizer that the base was trained with (leave `model.tokenizer` out)."
        )


def _check_length(config: RunConfig, base_config: Any) -> None:
    positions = getattr(base_config, "max_position_embeddings", None)
    if positions is not None and config.data.max_tokens > positions:
        raise ValueError(
            f"`data.max_tokens` is {config.data.max_tokens}, but the model has {positions} positions. Lower it."
        )
