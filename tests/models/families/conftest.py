"""A tiny random model of every registered family, and what all tests here do with one.

`make_base` and `make_expanded` are those of the other tests for the family of the test: `model_type`, every one in turn. A
test that is dear overrides that fixture, and marks all but one or two as slow.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig

from hf_era import ExpansionConfig, GradientMultipliers
from hf_era.models import FAMILIES, Family

WIDTH, TARGETS = 8, [0, 2]
MULTIPLIERS = GradientMultipliers(-1.75, 0.625, 2.25, -0.375)

Batch = dict[str, Tensor]
Gradients = dict[str, Tensor]

TINY: dict[str, Any] = {
    "vocab_size": 53,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 32,
    "initializer_range": 0.2,
    "bos_token_id": 52,
    "eos_token_id": 52,
    "pad_token_id": 0,
    "use_cache": False,
}
# A window is shorter than the sequences (12), and longer than their padding (5): what sees padding alone is NaN in the stock
# Gemma 2 in float64. Each kind of layer is there.
TINY_OF_TYPE: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 6},
    "qwen2": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "smollm3": {"no_rope_layers": [1, 0, 1]},
    "gemma2": {"sliding_window": 6, "query_pre_attn_scalar": 4},
    "gemma3_text": {
        "sliding_window": 6,
        "query_pre_attn_scalar": 4,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "gpt_neox": {"num_key_value_heads": None, "head_dim": None},
    "gpt2": {"n_inner": 24, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "gpt_neo": {
        "attention_types": [[["global"], 1], [["local"], 1], [["global"], 1]],
        "window_size": 4,
        "embed_dropout": 0.0,
        "attention_dropout": 0.0,
        "resid_dropout": 0.0,
    },
}


class FamilyCheck:
    """What the tests of this folder do with a model."""

    l1_coefficient = 0.01

    @staticmethod
    def inputs(batch: Batch) -> Batch:
        return {name: batch[name] for name in ("input_ids", "attention_mask")}

    @staticmethod
    def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
        """In the logits' own dtype; the stock loss is computed in fp32."""
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    @classmethod
    def total_loss(cls, model: Any, batch: Batch, routed: bool = True, with_l1: bool = True) -> Tensor:
        """The model's own loss on its fast path, that of its logits on the slow one (in float64 too); and the L1 term."""
        options: dict[str, Any] = {"routing_weight": batch["routing_weight"]} if routed else {}
        if model.fast_paths.chunked_loss:
            options["labels"] = batch["labels"]
        outputs = model(**cls.inputs(batch), **options, output_activation_l1=with_l1)
        loss = outputs.loss if "labels" in options else cls.cross_entropy(outputs.logits, batch["labels"])
        return loss + cls.l1_coefficient * outputs.activation_l1 if with_l1 else loss

    @staticmethod
    def gradients_after(model: nn.Module, loss: Callable[[], Tensor]) -> Gradients:
        model.zero_grad(set_to_none=True)
        loss().backward()
        return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}

    @staticmethod
    def largest_deviation(actual: Gradients, expected: Gradients) -> float:
        """Of any gradient, relative to the largest value of its parameter."""
        assert sorted(actual) == sorted(expected)
        assert len(expected) > 20
        for name, gradient in expected.items():
            assert gradient.abs().max() > 0, f"{name}: a gradient of zero compares nothing"
        return max(((actual[name] - value).abs().max() / value.abs().max()).item() for name, value in expected.items())


@pytest.fixture(scope="session")
def check() -> type[FamilyCheck]:
    """A fixture because test modules cannot import this file."""
    return FamilyCheck


@pytest.fixture(params=sorted(FAMILIES))
def model_type(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def family(model_type: str) -> Family:
    return FAMILIES[model_type]


@pytest.fixture(scope="session")
def make_family_config() -> Callable[..., Any]:
    """A tiny config of a model type: 3 layers, hidden 16, MLP 24, vocabulary 53, no dropout."""

    def make(model_type: str, **overrides: Any) -> Any:
        values, known = {**TINY, **TINY_OF_TYPE.get(model_type, {}), **overrides}, AutoConfig.for_model(model_type)
        return AutoConfig.for_model(model_type, **{key: value for key, value in values.items() if hasattr(known, key)})

    return make


@pytest.fixture
def make_base(
    model_type: str, make_family_config: Callable[..., Any], randomize_constants: Callable[..., None]
) -> Callable[..., Any]:
    """A stock model of the family with random weights (biases and norms too), in training mode."""

    def make(seed: int = 0, **overrides: Any) -> Any:
        torch.manual_seed(seed)
        model = FAMILIES[model_type].model_class.stock_class(make_family_config(model_type, **overrides))
        randomize_constants(model, seed)
        return model.train()

    return make


@pytest.fixture
def make_expanded(
    model_type: str, make_family_config: Callable[..., Any], randomize_constants: Callable[..., None]
) -> Callable[..., Any]:
    """An expanded model of the family with random weights (biases and norms too), in training mode, with multipliers that
    are all different and none of them 0 or 1."""

    def make(target_layers: list[int] | None = None, seed: int = 0, width: int = WIDTH, **overrides: Any) -> Any:
        torch.manual_seed(seed)
        model_class = FAMILIES[model_type].model_class
        expansion = ExpansionConfig(width=width, target_layers=TARGETS if target_layers is None else target_layers)
        config = make_family_config(model_type, **overrides)
        model = model_class(model_class.config_class.from_base_config(config, expansion=expansion))
        randomize_constants(model, seed)
        model.gradient_multipliers = copy.copy(MULTIPLIERS)
        return model.train()

    return make


@pytest.fixture
def batch(make_batch: Callable[..., Batch]) -> Batch:
    """Routing weights in 64ths: factors are fp32 on their way to the layers, and such values pass exactly."""
    batch = make_batch(seed=5)
    batch["routing_weight"] = (batch["routing_weight"] * 64).round() / 64
    batch["routing_weight"][0, :4] = 0.0
    batch["routing_weight"][1] = 1.0
    return batch
