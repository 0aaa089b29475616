"""A stock model to expand, in memory and saved; and gradients under a routing."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import GPTNeoForCausalLM

from hf_era import ExpandedGPTNeoForCausalLM, GradientMultipliers

Gradients = dict[str, Tensor | None]


@pytest.fixture
def base(make_base: Callable[..., GPTNeoForCausalLM]) -> GPTNeoForCausalLM:
    return make_base().eval()


@pytest.fixture
def base_folder(base: GPTNeoForCausalLM, tmp_path: Path) -> Path:
    base.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def concept_weight() -> Tensor:
    """0 on some tokens of each row, 1 on the others."""
    weight = torch.ones(3, 12)
    weight[0, 2:4] = weight[1, 5] = weight[2, [0, 7]] = 0.0
    return weight


@pytest.fixture
def routed_gradients(
    make_batch: Callable[..., dict[str, Tensor]], gradients_of: Callable[[nn.Module], Gradients]
) -> Callable:
    """Gradients of the language-model loss under a routing (or none)."""
    batch = make_batch(seed=3)

    def gradients(
        model: ExpandedGPTNeoForCausalLM, settings: GradientMultipliers | None = None, weight: Tensor | None = None
    ) -> Gradients:
        model.zero_grad(set_to_none=True)
        model.gradient_multipliers = settings or GradientMultipliers()
        model(**{**batch, "routing_weight": weight}).loss.backward()
        return gradients_of(model)

    return gradients
