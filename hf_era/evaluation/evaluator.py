"""Evaluates causal LMs on the same forget and retain stories, one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import find_executable_batch_size
from datasets import Dataset
from rich.progress import Progress
from torch.utils.data import DataLoader

from hf_era.checks import check_count
from hf_era.data import RoutingCollator, longest_first
from hf_era.data.ordering import order_of_longest_first
from hf_era.evaluation.batch_means import mean_of_batch_means
from hf_era.evaluation.intervals import Estimate, paired_difference
from hf_era.evaluation.losses import StoryLosses, loss_estimate, story_losses
from hf_era.evaluation.selectivity import AuxiliaryActivationMeter

CPU_BATCH_SIZE = 16
GPU_BATCH_SIZE = 512


@dataclass
class EvaluationConfig:
    """How the evaluation runs.

    Args:
        batch_size (`int`, *optional*): stories a batch; it changes the speed, not the figures. Not given: 16 on a CPU; on
            a GPU as many as fit, from 512 down by halves.
        bootstrap_samples (`int`, *optional*, defaults to `1000`): resamples of the intervals. 0: no intervals.
        mean_of_batch_means_size (`int`, *optional*, defaults to `80`): stories a batch of the reference's way of
            averaging losses, which is reported beside the token-weighted one. The seed's batches had 80.

    Raises:
        ValueError: for a number out of range.
    """

    batch_size: int | None = field(
        default=None, metadata={"help": "Stories a batch; not given: sized to memory. Changes the speed only."}
    )
    bootstrap_samples: int = field(default=1_000, metadata={"help": "Bootstrap resamples (0 = no intervals)."})
    mean_of_batch_means_size: int = field(
        default=80, metadata={"help": "Stories a batch of the reference's mean of batch means, reported beside ours."}
    )

    def __post_init__(self) -> None:
        for name in ("batch_size", "mean_of_batch_means_size"):
            check_count(f"evaluation.{name}", getattr(self, name), 1, 1_000_000)
        check_count("evaluation.bootstrap_samples", self.bootstrap_samples, 0, 1_000_000)


class Evaluator:
    """Measures models on the same stories.

    Args:
        forget, retain (`Dataset`): tokenised stories with `input_ids`, `is_forget_word`, `length`.
        pad_token_id (`int`): any valid id.
        config (`EvaluationConfig`): batch size and resamples.
        device: where models run. Models are moved there.
        progress (`bool`, *optional*, defaults to `True`): show a bar.

    Raises:
        ValueError: if there is no forget or no retain story.
    """

    def __init__(
        self,
        forget: Dataset,
        retain: Dataset,
        pad_token_id: int,
        config: EvaluationConfig,
        device: Any = "cpu",
        progress: bool = True,
    ) -> None:
        columns = ["input_ids", "is_forget_word"]
        given = {"forget": forget, "retain": retain}
        for name, stories in given.items():
            if not len(stories):
                raise ValueError(f"There is no {name} story to evaluate on. Give at least one.")
        # Long stories first and like with like: less padding, and too large a batch fails at once.
        self.sets = {name: longest_first(stories).select_columns(columns) for name, stories in given.items()}
        self._orders = {name: torch.as_tensor(order_of_longest_first(stories)) for name, stories in given.items()}
        self.collator, self.config, self.device, self.progress = RoutingCollator(pad_token_id), config, device, progress

    def measure(self, model: Any, description: str) -> dict[str, StoryLosses]:
        """`forget`, `retain` -> the losses of each story, in the order in which the stories were given."""
        return {name: self.measure_set(model, name, description) for name in self.sets}

    def measure_set(
        self, model: Any, name: str, description: str, meter: AuxiliaryActivationMeter | None = None
    ) -> StoryLosses:
        """The losses of each story of one set, `forget` or `retain`, in the order given.

        Args:
            meter (*optional*): is told each batch's mask; its rows are in the order of reading, the longest first.
        """
        model.to(self.device)
        on_cpu = torch.device(self.device).type == "cpu"
        start = self.config.batch_size or (CPU_BATCH_SIZE if on_cpu else GPU_BATCH_SIZE)

        def read(batch_size: int) -> StoryLosses:
            if meter is not None:
                meter.reset()  # of a try that did not fit
            stories: Any = self.sets[name]
            loader: Any = DataLoader(stories, batch_size, collate_fn=self.collator, pin_memory=not on_cpu)
            with Progress(transient=True, disable=not self.progress) as bar:
                batches = bar.track(loader, total=len(loader), description=f"{description}: {name} stories")
                return story_losses(
                    model, batches, device=self.device, on_batch=None if meter is None else meter.set_mask
                )

        if self.config.batch_size is not None or on_cpu:
            return self._in_given_order(name, read(start))
        # The longest stories come first, so that a batch that does not fit fails before anything was measured.
        sized: Any = find_executable_batch_size(read, starting_batch_size=start)
        return self._in_given_order(name, sized())

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

    def differences(
        self, later: Mapping[str, StoryLosses], earlier: Mapping[str, StoryLosses]
    ) -> dict[str, dict[str, Any]]:
        """`forget`, `retain`, `forget_words` -> later minus earlier loss on the same stories, an `Estimate` as a dict."""
        found = {name: self._difference(later[name].nll, earlier[name].nll, later[name].tokens) for name in later}
        words, before = later["forget"], earlier["forget"]
        found["forget_words"] = self._difference(
            words.forget_word_nll, before.forget_word_nll, words.forget_word_tokens
        )
        return {name: estimate.to_dict() for name, estimate in found.items()}

    def means_of_batch_means(self, measured: Mapping[str, StoryLosses]) -> dict[str, float | None]:
        """`forget`, `retain` -> mean of batch means of the stories in the order given, nats a token."""
        size = self.config.mean_of_batch_means_size
        return {name: mean_of_batch_means(part.nll, part.tokens, size) for name, part in measured.items()}

    def _difference(self, later: torch.Tensor, earlier: torch.Tensor, tokens: torch.Tensor) -> Estimate:
        return paired_difference(later, earlier, tokens, self.config.bootstrap_samples)

    def _in_given_order(self, name: str, losses: StoryLosses) -> StoryLosses:
        order = self._orders[name]
        parts = []
        for values in (losses.nll, losses.tokens, losses.forget_word_nll, losses.forget_word_tokens):
            sorted_back = torch.empty_like(values)
            sorted_back[order] = values
            parts.append(sorted_back)
        return StoryLosses(*parts)
