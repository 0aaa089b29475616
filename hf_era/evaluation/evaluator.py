"""Evaluates a causal LM on the forget and the retain validation stories."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import DataLoader

from hf_era.data import RoutingCollator
from hf_era.evaluation.losses import StoryLosses, loss_estimate, story_losses
from hf_era.evaluation.selectivity import AuxiliaryActivationMeter, selectivity


@dataclass
class EvaluationConfig:
    """How the evaluation runs.

    Args:
        batch_size (`int`, *optional*, defaults to `16`): stories a batch; it changes the speed, not the figures.
        bootstrap_samples (`int`, *optional*, defaults to `1000`): resamples of the intervals. 0: no intervals.

    Raises:
        ValueError: for a number out of range.
    """

    batch_size: int = field(default=16, metadata={"help": "Stories a batch; changes the speed, not the figures."})
    bootstrap_samples: int = field(default=1_000, metadata={"help": "Bootstrap resamples (0 = no intervals)."})

    def __post_init__(self) -> None:
        if self.batch_size < 1:
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
            name: _longest_first(stories).select_columns(columns)
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
                measured[name] = self._story_losses(model, name, description, meter.set_mask)
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
        self, model: Any, name: str, description: str, on_batch: Callable[[Tensor], None] | None = None
    ) -> StoryLosses:
        loader: Any = DataLoader(self.sets[name], self.config.batch_size, collate_fn=self.collator)  # type: ignore
        model.to(self.device)
        with Progress(transient=True, disable=not self.progress) as bar:
            batches = bar.track(loader, total=len(loader), description=f"{description}: {name} stories")
            return story_losses(model, batches, device=self.device, on_batch=on_batch)


def _longest_first(stories: Dataset) -> Dataset:
    lengths = list(stories["length"])
    return stories.select(sorted(range(len(lengths)), key=lambda index: -lengths[index]))
