"""A stock model to expand, in memory and saved; gradients under a routing; and the fast paths on and off."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPTNeoForCausalLM

from hf_era import ExpandedGPTNeoForCausalLM, GradientMultipliers
from hf_era.models import get_family
from hf_era.models.fast.causal_lm import ALL_SLOW

Gradients = dict[str, Tensor | None]


@dataclass(frozen=True)
class Paths:
    """The fast paths (GPT-Neo's attention too) on or off, and the model without modules that takes the same paths."""

    fast: bool

    def set(self, model: Any) -> Any:
        if not self.fast:
            model.set_fast_paths(ALL_SLOW)
            if not model.stock_class._supports_sdpa:
                model.set_attn_implementation("eager")
        return model

    def reference(self, stock: Any) -> Any:
        """What an ablated model equals bit for bit: the stock class itself, or the fast one with the same weights."""
        return get_family(stock.config.model_type).fast_class.from_stock(stock) if self.fast else stock


@pytest.fixture
def paths_of() -> Callable[[bool], Paths]:
    return Paths


@pytest.fixture(params=[True, False], ids=["fast", "slow"])
def paths(request: pytest.FixtureRequest) -> Paths:
    return Paths(request.param)


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
