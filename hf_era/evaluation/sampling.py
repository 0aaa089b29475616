"""How the next token of a generated text is chosen: the settings, and what is done to the logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper

from hf_era.utils.checks import check_count, short_repr
from hf_era.utils.fields import UNLESS_DEFAULT, setting


@dataclass
class SamplingConfig:
    """How texts are generated. Defaults: the reference's. Each field's `help` says what it is.

    Texts begin with `prompts` or, where none are given, with the first tokens of forget and retain examples that were not
    trained on (`hf_era.evaluation.prompts`). There are fewer than `new_tokens` where the model has no room for them, or ends
    the text itself. A run whose texts may be longer than the examples it trains on (`data.max_tokens`) says so. Sampling
    leaves the caller's random state alone.

    Raises:
        ValueError: for an empty list of prompts, or a number out of range.
    """

    enabled: bool = setting(True, "false leaves generation out.", identity=True)
    prompts: list[str] | None = setting(
        None, "What texts begin with. Not given: the first tokens of held-out examples.", identity=True
    )
    prompt_examples: int = setting(
        4, "Forget examples, and as many retain examples, that prompts are taken from.", identity=UNLESS_DEFAULT
    )
    prompt_tokens: int = setting(8, "Tokens of such a prompt; its last word is finished.", identity=UNLESS_DEFAULT)
    new_tokens: int = setting(200, "Tokens to add at most.", identity=True)
    temperature: float = setting(0.7, "Of sampling (0 = greedy).", identity=True)
    top_k: int = setting(50, "Sample from so many of the likeliest tokens (0 = from all).", identity=True)
    seed: int = setting(0, "Of sampling, and of the choice of examples for prompts.", identity=True)

    def __post_init__(self) -> None:
        if isinstance(self.prompts, str):
            raise ValueError(
                f"`generation.prompts` should be a list, got the string {short_repr(self.prompts)}. Pass a list."
            )
        if self.prompts is not None and not self.prompts:
            raise ValueError(
                "`generation.prompts` is empty. Give at least one, leave it out to take prompts from held-out examples, or "
                "set `generation.enabled` to false."
            )
        for prompt in self.prompts or []:
            if not isinstance(prompt, str):
                raise ValueError(
                    f"`generation.prompts` should hold strings, got {short_repr(prompt)}. Put it in quotation marks."
                )
        for name, most in (("new_tokens", 1_000_000), ("prompt_examples", 10_000), ("prompt_tokens", 1_000_000)):
            check_count(f"generation.{name}", getattr(self, name), 1, most)
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ValueError(f"`generation.temperature` should be >= 0, got {self.temperature}. 0 is greedy decoding.")
        for name, most in (("top_k", 10_000_000), ("seed", 2**32 - 1)):
            check_count(f"generation.{name}", getattr(self, name), 0, most)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def choice_of_tokens(config: SamplingConfig, numbers: Sequence[int]) -> LogitsProcessorList:
    """What is done to the logits of the prompts with these numbers before the likeliest token is taken."""
    processors: list[LogitsProcessor] = [_FiniteLogits()]
    if config.temperature > 0:
        processors.append(TemperatureLogitsWarper(float(config.temperature)))
        if config.top_k > 0:
            processors.append(TopKLogitsWarper(config.top_k))
        processors.append(_GumbelNoise(config.seed, numbers))
    return LogitsProcessorList(processors)


class _FiniteLogits(LogitsProcessor):
    """Raises `ValueError` where no probabilities can be made of the logits."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if not scores.logsumexp(-1).isfinite().all():
            raise ValueError(
                "The model's logits are not finite (NaN or infinite), so no token can be chosen. Look for NaN in its "
                "weights; float16 overflows easily: try float32 or bfloat16."
            )
        return scores


class _GumbelNoise(LogitsProcessor):
    """Adds Gumbel noise: the likeliest token is then a sample of softmax(scores), exactly.

    Why not `do_sample`: each prompt's noise comes from its own generator on the CPU, so that it does not depend on the
    batch, the device or the other prompts, two models get the same noise, and no global random state is touched.
    """

    def __init__(self, seed: int, numbers: Sequence[int]) -> None:
        # Mixed, or prompt 1 with seed 0 would have the noise of prompt 0 with seed 1.
        mixed = [int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0]) for number in numbers]
        self._generators = [torch.Generator().manual_seed(value >> 1) for value in mixed]

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        size = scores.shape[1]
        drawn = [torch.empty(size).exponential_(generator=generator) for generator in self._generators]
        return scores - torch.stack(drawn).log().to(scores.device)
