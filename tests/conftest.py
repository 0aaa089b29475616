"""Fixtures for all tests: tiny random models made in the process, batches, and where the real stories are."""

import os

# Before anything imports huggingface_hub, which reads them once: no test may wait for a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from hf_era import ExpandedGPTNeoConfig, ExpandedGPTNeoForCausalLM, ExpansionConfig

# The models here are so small that a second thread costs more than it gives.
torch.set_num_threads(1)

REPOSITORY_ROOT = Path(__file__).resolve().parents[1]
# More than ten seconds each, with the slow tests.
LONGEST_FILES = (
    "faults/test_two_processes.py",
    "distributed/test_two_processes.py",
    "faults/test_killed_and_continued.py",
    "test_recipes.py",
    "test_examples.py",
    "distributed/test_three_processes.py",
    "distributed/test_measuring.py",
    "faults/test_storage.py",
    "test_lm_eval.py",
    "models/families/test_wrappers.py",
    "run/test_continuing.py",
    "models/families/test_stock_models.py",
)


@pytest.fixture(scope="session")
def repository_root() -> Path:
    return REPOSITORY_ROOT


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder beside the checkout with the real stories and the reference figures."""
    folder = REPOSITORY_ROOT.parent / "shared"
    if not (folder / "reference").is_dir():
        pytest.skip("needs the folder ../shared with real stories and reference figures")
    return folder


@pytest.fixture(scope="session")
def run_python() -> Callable[..., str]:
    """Runs code in a fresh interpreter with the checkout importable, returns its stdout, and fails if it fails."""

    def run(code: str, *arguments: str, cwd: Path = REPOSITORY_ROOT) -> str:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY_ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            cwd=cwd,
            env=environment,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def make_config() -> Callable[..., GPTNeoConfig]:
    """A tiny GPT-Neo: 3 layers (global, local with window 4, global), hidden 16, MLP 64, vocabulary 53, no dropout."""

    def make(**overrides: Any) -> GPTNeoConfig:
        values: dict[str, Any] = {
            "vocab_size": 53,
            "hidden_size": 16,
            "num_layers": 3,
            "num_heads": 2,
            "attention_types": [[["global"], 1], [["local"], 1], [["global"], 1]],
            "max_position_embeddings": 32,
            "window_size": 4,
            "initializer_range": 0.2,
            "embed_dropout": 0.0,
            "attention_dropout": 0.0,
            "resid_dropout": 0.0,
            "bos_token_id": 52,
            "eos_token_id": 52,
            "use_cache": False,
        }
        return GPTNeoConfig(**{**values, **overrides})

    return make


@pytest.fixture(scope="session")
def randomize_constants() -> Callable[[nn.Module, int], None]:
    """Gives every parameter that starts constant (biases, layer norms) random values, so that no term is hidden."""

    def randomize(model: nn.Module, seed: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))

    return randomize


@pytest.fixture(scope="session")
def make_base(
    make_config: Callable[..., GPTNeoConfig], randomize_constants: Callable[..., None]
) -> Callable[..., GPTNeoForCausalLM]:
    """A stock GPT-Neo with random weights (biases too), in training mode."""

    def make(seed: int = 0, **overrides: Any) -> GPTNeoForCausalLM:
        torch.manual_seed(seed)
        model = GPTNeoForCausalLM(make_config(**overrides))
        randomize_constants(model, seed)
        return model.train()

    return make


@pytest.fixture(scope="session")
def make_expanded(
    make_config: Callable[..., GPTNeoConfig], randomize_constants: Callable[..., None]
) -> Callable[..., ExpandedGPTNeoForCausalLM]:
    """An expanded GPT-Neo with random weights (biases too), auxiliary width 8, in training mode."""

    def make(
        target_layers: list[int] | None = None, seed: int = 0, width: int = 8, **overrides: Any
    ) -> ExpandedGPTNeoForCausalLM:
        torch.manual_seed(seed)
        expansion = ExpansionConfig(width=width, target_layers=target_layers)
        model = ExpandedGPTNeoForCausalLM(
            ExpandedGPTNeoConfig.from_base_config(make_config(**overrides), expansion=expansion)
        )
        randomize_constants(model, seed)
        return model.train()

    return make


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., dict[str, Tensor]]:
    """`input_ids`, `attention_mask`, `labels` and a random `routing_weight`: 3 rows of 12, two of them right-padded."""

    def make(seed: int = 0, padded: bool = True) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        input_ids = torch.randint(0, 52, (3, 12), generator=generator)
        lengths = torch.tensor([12, 7, 9] if padded else [12, 12, 12])
        attention_mask = (torch.arange(12) < lengths[:, None]).long()
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": input_ids.masked_fill(attention_mask == 0, -100),
            "routing_weight": torch.rand((3, 12), generator=generator),
        }

    return make


@pytest.fixture(scope="session")
def gradients_of() -> Callable[[nn.Module], dict[str, Tensor | None]]:
    """Every parameter's gradient (a copy; `None` where the backward pass did not come by)."""

    def gradients(model: nn.Module) -> dict[str, Tensor | None]:
        return {
            name: None if parameter.grad is None else parameter.grad.clone()
            for name, parameter in model.named_parameters()
        }

    return gradients


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: at the end, one core would wait for them."""
    places = {REPOSITORY_ROOT / "tests" / name: place for place, name in enumerate(LONGEST_FILES)}
    assert [path for path in places if not path.is_file()] == []
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish() -> None:
    """What the libraries hold is never garbage: each full collection would walk through it again, for half a second."""
    gc.collect()
    gc.freeze()
