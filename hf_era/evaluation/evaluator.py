"""Evaluates causal LMs on the same forget and retain examples, one after the other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from rich.progress import Progress

from hf_era.data import RoutingCollator, longest_first
from hf_era.data.collator import IGNORE_INDEX
from hf_era.data.columns import order_of_longest_first, present
from hf_era.evaluation.batch_halving import halving_batches
from hf_era.evaluation.distance import is_comparable, loss_barrier, weight_distance
from hf_era.evaluation.intervals import paired_difference, ratio_estimate
from hf_era.evaluation.losses import (
    StoryLosses,
    answers_right,
    concatenated,
    loss_estimate,
    mean_of_batch_means,
    story_losses,
)
from hf_era.evaluation.selectivity import AuxiliaryActivationMeter, MeterParts
from hf_era.utils.checks import check_count, check_path_text
from hf_era.utils.fields import UNLESS_DEFAULT, setting
from hf_era.utils.processes import share_of, share_out

CPU_BATCH_SIZE = 16
GPU_BATCH_SIZE = 512


@dataclass
class EvaluationConfig:
    """How the evaluation runs. Each field's `help` says what it is.

    A `batch_size` that is not given is 16 on a CPU and 512 on a GPU. Where memory does not suffice it is halved until it
    does. The batches of the reference's mean of batch means had 80 examples.

    Raises:
        ValueError: for a number out of range.
    """

    batch_size: int | None = setting(
        None, "Examples a batch; not given: sized to memory. Changes the speed only.", identity=False
    )
    bootstrap_samples: int = setting(1_000, "Bootstrap resamples (0 = no intervals).", identity=True)
    mean_of_batch_means_size: int = setting(
        80, "Examples a batch of the reference's mean of batch means, reported beside ours.", identity=True
    )
    barrier_points: int = setting(
        0,
        "Of a model that was made of another: measure losses at so many points of the line to the final one, for the loss "
        "barrier between them. 0: none.",
        identity=UNLESS_DEFAULT,
    )
    # What identifies the measured tasks is `suite_key`, which knows the files' contents.
    tasks: list[str] = setting(
        list, "Tasks of lm-eval, NAME or NAME=FILE; measured beside the losses (needs lm-eval).", identity=False
    )
    task_files: str | None = setting(None, "Folder with task files of your own for lm-eval.", identity=False)
    task_limit: int | None = setting(None, "Examples of each task at most (none: all).", identity=False)
    num_fewshot: int | None = setting(
        None, "Few-shot examples in each prompt (none: as the task has it).", identity=False
    )

    def __post_init__(self) -> None:
        for name in ("batch_size", "mean_of_batch_means_size"):
            check_count(f"evaluation.{name}", getattr(self, name), 1, 1_000_000)
        check_count("evaluation.bootstrap_samples", self.bootstrap_samples, 0, 1_000_000)
        check_count("evaluation.barrier_points", self.barrier_points, 0, 1_000)
        check_count("evaluation.task_limit", self.task_limit)
        check_count("evaluation.num_fewshot", self.num_fewshot, 0, 1_000)
        check_path_text("evaluation.task_files", self.task_files)
        # `a,b` is two tasks; a comma in the name of a file is none that a task follows.
        parts = [part.strip() for text in self.tasks for part in re.split(r",(?=\s*[\w-]+\s*(?:=|,|$))", text)]
        self.tasks = [part for part in parts if part]


class Evaluator:
    """Measures models on the same examples.

    Args:
        forget, retain (`Dataset`): tokenised examples with `input_ids`, `is_forget_word`, `length`.
        pad_token_id (`int`): any valid id. config (`EvaluationConfig`): batch size and resamples.
        device (*optional*, defaults to `"cpu"`): models are moved there. progress (`bool`, *optional*): show a bar.
        unlabelled (`Dataset`, *optional*): examples that are neither, measured as a set of their own; none if it is empty.
        state (`PartialState`, *optional*): of this process among the launched ones, which share the batches out and all
            get all losses. Each must then measure the same, in the same order. Not given: this process does it all.

    Attributes:
        batch_size (`int`): examples a batch: that of the config, or less once memory did not suffice.

    Raises:
        ValueError: if there is no forget or no retain example.
    """

    def __init__(
        self,
        forget: Dataset,
        retain: Dataset,
        pad_token_id: int,
        config: EvaluationConfig,
        device: Any = "cpu",
        progress: bool = True,
        state: PartialState | None = None,
        unlabelled: Dataset | None = None,
    ) -> None:
        given = {"forget": forget, "retain": retain}
        for name, stories in given.items():
            if not len(stories):
                raise ValueError(f"There is no {name} example to evaluate on. Give at least one.")
        if unlabelled is not None and len(unlabelled):
            given["unlabelled"] = unlabelled
        # Long examples first and like with like: less padding, and too large a batch fails at once.
        self.sets = {
            name: present(longest_first(stories), "input_ids", "is_forget_word", "labels")
            for name, stories in given.items()
        }
        orders = {name: torch.as_tensor(order_of_longest_first(stories)) for name, stories in given.items()}
        self._given_orders = {name: order.argsort() for name, order in orders.items()}
        self.collator, self.config, self.device, self.progress = RoutingCollator(pad_token_id), config, device, progress
        self.state = state
        on_cpu = torch.device(device).type == "cpu"
        self.batch_size = config.batch_size or (CPU_BATCH_SIZE if on_cpu else GPU_BATCH_SIZE)

    def measure(self, model: Any, description: str) -> dict[str, StoryLosses]:
        """`forget`, `retain` (and `unlabelled`) -> the losses of each example, in the order given."""
        return {name: self.measure_set(model, name, description) for name in self.sets}

    def measure_set(
        self, model: Any, name: str, description: str, meter: AuxiliaryActivationMeter | None = None
    ) -> StoryLosses:
        """The losses of each example of one set, in the order given. A meter is told each batch's
        mask; its rows are in the order of reading, the longest first."""
        model.to(self.device)
        losses, self.batch_size = halving_batches(
            lambda size: self._read(model, name, description, meter, size),
            self.batch_size,  # what fitted one model is where the next one starts
            doing=f"Evaluating {name} examples",
            setting="`evaluation.batch_size`",
            state=self.state,
        )
        return StoryLosses(*(values[self._given_orders[name]] for values in losses))

    def in_given_order(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """What a meter measured of each example of a set, (examples, ...), in the order given."""
        return values[self._given_orders[name]]

    def _read(
        self, model: Any, name: str, description: str, meter: AuxiliaryActivationMeter | None, size: int
    ) -> StoryLosses:
        """The losses in the order of reading. The batches are those of a single process, whoever reads them."""
        stories = self.sets[name]
        batches = [range(start, min(start + size, len(stories))) for start in range(0, len(stories), size)]
        with Progress(transient=True, disable=not self.progress) as bar:
            task = bar.add_task(f"{description}: {name} examples", total=len(share_of(batches, self.state)))

            def read(batch: range) -> tuple[StoryLosses, MeterParts]:
                if meter is not None:
                    meter.reset()  # of a try that did not fit
                inputs = [self.collator(list(stories.select(batch)))]
                found = story_losses(
                    model, inputs, device=self.device, on_batch=None if meter is None else meter.set_mask
                )
                bar.advance(task)
                return found, {} if meter is None else meter.take()

            parts = share_out(batches, read, self.state)
        if meter is not None:
            meter.reset()
            for _, measured in parts:
                meter.add(measured)
        return concatenated([losses for losses, _ in parts])

    def losses(self, model: Any, description: str) -> dict[str, dict[str, Any]]:
        """`forget`, `retain` and `forget_words` (the words' own tokens) -> `LossEstimate` as a dict."""
        return self.estimates(self.measure(model, description))

    def estimates(self, measured: Mapping[str, StoryLosses]) -> dict[str, dict[str, Any]]:
        """The same from what `measure` gave."""
        samples = self.config.bootstrap_samples
        estimates = {name: loss_estimate(part.nll, part.tokens, samples).to_dict() for name, part in measured.items()}
        words = measured["forget"]
        estimates["forget_words"] = loss_estimate(words.forget_word_nll, words.forget_word_tokens, samples).to_dict()
        return estimates

    def distance(
        self, model: Any, base: Any, measured: Mapping[str, StoryLosses], of_base: Mapping[str, StoryLosses]
    ) -> dict[str, Any]:
        """How far a model is from the one that it was made of, with the loss barrier where `barrier_points` asks for it
        (`hf_era.evaluation.distance`); empty if they have not the same parameters. `measured`, `of_base`: their losses, as
        `measure` gave them."""
        if not is_comparable(model, base):
            return {}
        kinds = [kind for kind in ("forget", "retain") if measured[kind].tokens.sum() > 0]

        def losses(parts: Mapping[str, StoryLosses]) -> dict[str, float]:
            return {kind: float(parts[kind].nll.sum() / parts[kind].tokens.sum()) for kind in kinds}

        def losses_of(mixed: Any) -> dict[str, float]:
            return losses({kind: self.measure_set(mixed, kind, "On the line to the base") for kind in kinds})

        found, points = weight_distance(model, base), self.config.barrier_points
        ends = [losses(of_base), losses(measured)]
        return {**found, **(loss_barrier(model, base, losses_of, points, ends) if points and kinds else {})}

    def accuracies(self, model: Any, description: str) -> dict[str, dict[str, Any]]:
        """`forget_accuracy`, `retain_accuracy` -> of the examples with a prompt, the share whose completion is right, token
        for token (`answers_right`): an `Estimate` as a dict, and the number of `examples`. Of a set without any: nothing."""
        found = {}
        for name, stories in self.sets.items():
            columns = stories["labels"][:] if "labels" in stories.column_names else []
            asked = stories.select([row for row, labels in enumerate(columns) if labels[0] == IGNORE_INDEX])
            if len(asked):
                right = self._answers_right(model, asked, f"{description}: answers to {name} examples").double()
                estimate = ratio_estimate(right, torch.ones_like(right), self.config.bootstrap_samples)
                found[f"{name}_accuracy"] = {**estimate.to_dict(), "examples": len(asked)}
        return found

    def _answers_right(self, model: Any, asked: Dataset, description: str) -> torch.Tensor:
        model.to(self.device)

        def read(batch: list[dict[str, Any]]) -> torch.Tensor:
            moved = {name: value.to(self.device) for name, value in self.collator(batch).items()}
            return answers_right(model, moved)

        def read_all(size: int) -> torch.Tensor:
            batches = [range(start, min(start + size, len(asked))) for start in range(0, len(asked), size)]
            return torch.cat(share_out(batches, lambda batch: read(list(asked.select(batch))), self.state))

        right, self.batch_size = halving_batches(
            read_all, self.batch_size, doing=description, setting="`evaluation.batch_size`", state=self.state
        )
        return right

    def differences(
        self, later: Mapping[str, StoryLosses], earlier: Mapping[str, StoryLosses]
    ) -> dict[str, dict[str, Any]]:
        """`forget`, `retain`, `forget_words` -> later minus earlier loss on the same examples, an `Estimate` as a dict."""
        samples = self.config.bootstrap_samples
        found = {
            name: paired_difference(part.nll, earlier[name].nll, part.tokens, samples) for name, part in later.items()
        }
        words, before = later["forget"], earlier["forget"].forget_word_nll
        found["forget_words"] = paired_difference(words.forget_word_nll, before, words.forget_word_tokens, samples)
        return {name: estimate.to_dict() for name, estimate in found.items()}

    def means_of_batch_means(self, measured: Mapping[str, StoryLosses]) -> dict[str, float | None]:
        """`forget`, `retain` -> mean of batch means of the examples in the order given, nats a token."""
        size = self.config.mean_of_batch_means_size
        return {name: mean_of_batch_means(part.nll, part.tokens, size) for name, part in measured.items()}
