"""`budget`: how long a method trains, as a share of what the pretraining of its model took.

Compute goes with tokens, as long as the model is the same. Nothing is counted but the method's own training: not a teacher,
the evaluation or the attack.
"""

from __future__ import annotations

import copy

from datasets import Dataset

from hf_era.data.columns import arrow_batches, flat_column
from hf_era.methods import get_method
from hf_era.run.config import LIMITS, RunConfig
from hf_era.run.context import steps_of
from hf_era.training import GradientRoutingConfig
from hf_era.utils.checks import check_count


def within_budget(config: RunConfig, arguments: GradientRoutingConfig, train: Dataset) -> tuple[RunConfig, str]:
    """The config with the `training.max_steps` that its budget allows, at least 1, and a note that says so.

    Args:
        config (`RunConfig`): with a `budget`. It stays as it is.
        arguments (`GradientRoutingConfig`): of its training; they know batch and launch.
        train (`Dataset`): tokenised training examples, all of them: a step has their mean number of tokens, whichever the
            method trains on. How often it reads its own is said.
    """
    assert config.budget is not None
    batch = steps_of(arguments, len(train))[1]
    if config.pretraining_tokens is not None:
        per_step = batch * mean_tokens(train)
        whole, of = config.pretraining_tokens / per_step, f"{config.pretraining_tokens:,.0f} tokens"
        of += f", with {per_step:,.0f} tokens a step"
    elif config.pretraining_steps is not None:
        whole, of = config.pretraining_steps, f"{config.pretraining_steps:,} steps"
    else:
        pretraining = config.stock_training_arguments(config.output_path, **config.pretraining)
        number, size = steps_of(pretraining, len(train))
        whole, of = number * size / batch, f"{number:,} steps of {size} examples"
    steps = max(round(config.budget * whole), 1)
    check_count("training.max_steps", steps, *LIMITS["max_steps"])
    within = copy.copy(config)
    within.training = {**config.training, "max_steps": steps}
    labels = get_method(config.method).labels_learnt(config)
    own = sum(map(train["label"][:].count, labels))
    passes = f"{steps * batch / max(own, 1):.1f} times the {own:,} examples that are trained on"
    beyond = " That is more than the pretraining took: a quarter of it is 0.25." if config.budget > 1 else ""
    return within, f"`budget` {config.budget:g} of a pretraining of {of}: {steps:,} steps, {passes}.{beyond}"


def mean_tokens(examples: Dataset) -> float:
    """Tokens of an example, without padding."""
    lengths = [flat_column(table, "input_ids")[1].sum() for table in arrow_batches(examples, ["input_ids"])]
    return float(sum(lengths)) / max(len(examples), 1)
