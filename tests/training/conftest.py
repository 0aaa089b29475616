"""Small training sets for the tests of the trainer."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from hf_era import ExpandedGPTNeoForCausalLM, GradientRoutingConfig, GradientRoutingTrainer
from hf_era.data import RoutingCollator

VOCABULARY = 53


@pytest.fixture(scope="session")
def make_stories() -> Callable[..., Dataset]:
    """Random token sequences of different lengths; every second one has routing weights below 1."""

    def make(number: int = 16, seed: int = 0, routed: bool = True) -> Dataset:
        generator = torch.Generator().manual_seed(seed)
        rows: dict[str, list[Any]] = {"input_ids": [], "routing_weight": [], "length": []}
        for index in range(number):
            length = int(torch.randint(5, 13, (1,), generator=generator))
            weights = torch.rand(length, generator=generator) if index % 2 == 0 else torch.ones(length)
            rows["input_ids"].append(torch.randint(0, VOCABULARY, (length,), generator=generator).tolist())
            rows["routing_weight"].append(weights.tolist())
            rows["length"].append(length)
        stories = Dataset.from_dict(rows)
        return stories if routed else stories.remove_columns("routing_weight")

    return make


class SignalAt(TrainerCallback):
    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.fixture(scope="session")
def signal_at() -> Callable[..., TrainerCallback]:
    """A callback that sends this process a signal when so many steps are done: `signal_at(3, signal.SIGTERM)`."""
    return lambda step, number=signal.SIGTERM: SignalAt(step, number)


@pytest.fixture
def make_trainer(
    tmp_path: Path, make_expanded: Callable[..., ExpandedGPTNeoForCausalLM], make_stories: Callable[..., Dataset]
) -> Callable[..., GradientRoutingTrainer]:
    """A trainer over a tiny expanded model. Keyword arguments go to the config; `model`, `stories`, `evaluation` do not."""

    def make(
        model: Any = None,
        stories: Dataset | None = None,
        evaluation: Any = None,
        callbacks: Any = None,
        **settings: Any,
    ) -> GradientRoutingTrainer:
        values: dict[str, Any] = {
            "output_dir": str(tmp_path / "out"),
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "warmup_steps": 0,
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
        }
        return GradientRoutingTrainer(
            model if model is not None else make_expanded([0, 1]),
            GradientRoutingConfig(**{**values, **settings}),
            train_dataset=stories if stories is not None else make_stories(),
            eval_dataset=evaluation,
            data_collator=RoutingCollator(pad_token_id=0),
            callbacks=callbacks,
        )

    return make
