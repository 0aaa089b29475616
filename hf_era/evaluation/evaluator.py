"""Evaluates a causal LM on the forget and the retain validation stories."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import find_executable_batch_size
from datasets import Dataset
from rich.progress import Progress
from torch.utils.data import DataLoader

from hf_era.data import RoutingCollator, longest_first
from hf_era.evaluation.losses import StoryLosses, loss_estimate, story_losses
from hf_era.evaluation.selectivity import AuxiliaryActivationMeter, selectivity

CPU_BATCH_SIZE = 16
GPU_BATCH_SIZE = 512


@dataclass
class EvaluationConfig:
    """How the evaluation runs.

    Args:
        batch_size (`int`, *optional*): stories a batch; it changes the speed, not the figures. Not given: 16 on a CPU; on
            a GPU as many as fit, from 512 down by halves.
        bootstrap_samples (`int`, *optional*, defaults to `1000`): resamples of the intervals. 0: no intervals.

    Raises:
        ValueError: for a number out of range.
    """

    batch_size: int | None = field(
        default=None, metadata={"help": "Stories a batch; not given: sized to memory. Changes the speed only."}
    )
    bootstrap_samples: int = field(default=1_000, metadata={"help": "Bootstrap resamples (0 = no intervals)."})

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"`evaluation.batch_size` should be at least 1, got {self.batch_size}.")
        if self.bootstrap_samples < 0:
            raise ValueError(f"`evaluation.bootstrap_samples` should be >= 0, got {self.bootstrap_samples}.")


class Evaluator:
    """Measures models on the same stories, one after the other.

    Args:
        forget, retain (`Dataset`): tokenised stories with `input_ids`, `is_forget_word`, `length`.
        pad_token_id (`int`): any valid id.
        config (`EvaluationConfig`): batch size and resamples.
        device: where models run. Models are moved there.
        progress (`bool`, *optional*, defaults to `True`): show a bar.
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
        # Long stories first and like with like: less padding, and too large a batch fails at once.
        self.sets = {
            name: longest_first(stories).select_columns(columns)
            for name, stories in (("forget", forget), ("retain", retain))
        }
        self.collator, self.config, self.device, self.progress = RoutingCollator(pad_token_id), config, device, progress

    def losses(self, model: Any, description: str) -> dict[str, dict[str, Any]]:
        """`forget`, `retain` and `forget_words` (the words' own tokens) -> `LossEstimate` as a dict."""
        measured = {name: self._story_losses(model, name, description) for name in self.sets}
        return self._estimates(measured)

    def losses_and_selectivity(
        self, model: Any, description: str
    ) -> tuple[dict[str, dict[str, Any]], dict[str, float | None]]:
        """The same for an expanded model, module on, and the selectivity per layer from the same passes."""
        measured, means = {}, {}
        for name in self.sets:
            with AuxiliaryActivationMeter(model) as meter:
                measured[name] = self._story_losses(model, name, description, meter)
            means[name] = meter.means()
        ratios = selectivity(means["forget"], means["retain"])
        return self._estimates(measured), {str(layer): ratio for layer, ratio in ratios.items()}

    def _estimates(self, measured: dict[str, StoryLosses]) -> dict[str, dict[str, Any]]:
        samples = self.config.bootstrap_samples
        estimates = {name: loss_estimate(part.nll, part.tokens, samples).to_dict() for name, part in measured.items()}
        words = measured["forget"]
        estimates["forget_words"] = loss_estimate(words.forget_word_nll, words.forget_word_tokens, samples).to_dict()
        return estimates

    def _story_losses(
        self, model: Any, name: str, description: str, meter: AuxiliaryActivationMeter | None = None
    ) -> StoryLosses:
        model.to(self.device)
        on_cpu = torch.device(self.device).type == "cpu"
        start = self.config.batch_size or (CPU_BATCH_SIZE if on_cpu else GPU_BATCH_SIZE)

        def measure(batch_size: int) -> StoryLosses:
            if meter is not None:
                meter.reset()  # of a try that did not fit
            loader: Any = DataLoader(
                self.sets[name],  # type: ignore[arg-type]
                batch_size,
                collate_fn=self.collator,
                pin_memory=not on_cpu,
            )
            with Progress(transient=True, disable=not self.progress) as bar:
                batches = bar.track(loader, total=len(loader), description=f"{description}: {name} stories")
                return story_losses(
                    model, batches, device=self.device, on_batch=None if meter is None else meter.set_mask
                )

        if self.config.batch_size is not None or on_cpu:
            return measure(start)
        # The longest stories come first, so that a batch that does not fit fails before anything was measured.
        sized: Any = find_executable_batch_size(measure, starting_batch_size=start)
        return sized()
