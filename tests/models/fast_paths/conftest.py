"""Models with the fast paths on and off, batches of all shapes of padding, and the comparison of losses and gradients."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPTNeoForCausalLM

from hf_era import ExpandedGPTNeoForCausalLM, FastGPTNeoForCausalLM, GradientMultipliers
from hf_era.models.fast.causal_lm import ALL_SLOW

L1_COEFFICIENT = 0.01
MULTIPLIERS = GradientMultipliers(original_forget=-0.75, auxiliary_retain=0.5)
Result = tuple[Tensor, dict[str, Tensor]]


class Comparison:
    """What the tests of this folder do with two models.

    Attributes:
        loss_tolerance (`float`): relative, fp32.
        gradient_tolerance (`float`): of a parameter's largest gradient, fp32.
        logits_tolerance (`float`): of the largest logit, fp32.
    """

    loss_tolerance, gradient_tolerance, logits_tolerance = 1e-6, 1e-5, 5e-6

    @staticmethod
    def slow(model: Any) -> Any:
        """A copy with every fast path off."""
        twin = copy.deepcopy(model)
        twin.set_fast_paths(ALL_SLOW)
        twin.set_attn_implementation("eager")
        return twin

    @staticmethod
    def loss(model: Any, inputs: dict[str, Any]) -> Tensor:
        """The language-model loss, and the L1 term where it is asked for."""
        outputs = model(**inputs)
        norm = getattr(outputs, "activation_l1", None)
        return outputs.loss if norm is None else outputs.loss + L1_COEFFICIENT * norm

    @staticmethod
    def gradients(model: nn.Module, loss: Tensor) -> Result:
        model.zero_grad(set_to_none=True)
        loss.backward()
        found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
        return loss.detach(), found

    @classmethod
    def result(cls, model: nn.Module, inputs: dict[str, Any]) -> Result:
        return cls.gradients(model, cls.loss(model, inputs))

    @classmethod
    def assert_same(cls, actual: Result, expected: Result) -> None:
        torch.testing.assert_close(actual[0], expected[0], rtol=cls.loss_tolerance, atol=0)
        assert sorted(actual[1]) == sorted(expected[1])
        assert len(expected[1]) > 20
        for name, gradient in expected[1].items():
            largest = gradient.abs().max()
            assert largest > 0, f"{name}: a gradient of zero compares nothing"
            deviation = ((actual[1][name] - gradient).abs().max() / largest).item()
            assert deviation <= cls.gradient_tolerance, f"{name}: {deviation:.1e}"

    @classmethod
    def assert_same_at_real_tokens(cls, actual: Tensor, expected: Tensor, mask: Tensor | None) -> None:
        """Logits (batch, seq, vocabulary); what stands at padding means nothing."""
        difference = (actual - expected).abs()
        if mask is not None:
            difference = difference[mask.bool()]
        assert actual.isfinite().all()
        assert difference.max() <= cls.logits_tolerance * expected.abs().max()


@pytest.fixture(scope="session")
def compare() -> type[Comparison]:
    """A fixture because test modules cannot import this file."""
    return Comparison


@pytest.fixture
def stock(make_base: Callable[..., GPTNeoForCausalLM]) -> GPTNeoForCausalLM:
    return make_base()


@pytest.fixture
def fast(stock: GPTNeoForCausalLM) -> FastGPTNeoForCausalLM:
    """With weights of its own that equal those of `stock`."""
    return FastGPTNeoForCausalLM.from_stock(copy.deepcopy(stock))


@pytest.fixture
def expanded(make_expanded: Callable[..., ExpandedGPTNeoForCausalLM]) -> ExpandedGPTNeoForCausalLM:
    model = make_expanded([0, 2])
    model.gradient_multipliers = MULTIPLIERS
    return model


PADDINGS = ("none", "all ones", "right", "left", "middle", "several kinds")


def padding_mask(padding: str, length: int) -> Tensor | None:
    mask = torch.ones(3, length, dtype=torch.long)
    third = max(length // 3, 1)
    if padding == "none":
        return None
    if padding in ("right", "several kinds"):
        mask[1, -third:] = 0
    if padding == "left":
        mask[1, :third] = mask[2, : third + 1] = 0
    if padding in ("middle", "several kinds"):
        mask[2, third : 2 * third] = 0
    if padding == "several kinds" and length > 4:  # of fewer tokens hardly a label would be left
        mask[0, :third] = 0
    return mask


@pytest.fixture(scope="session")
def make_inputs() -> Callable[..., dict[str, Tensor]]:
    """`input_ids`, `labels`, and `attention_mask` unless the padding is "none": 3 rows of `length` tokens.

    A label counts where its own token and the one before it are real. Under left padding the class differs from the
    stock one in what it predicts *from* a padded position, where both look at padding only.
    """

    def make(padding: str = "right", length: int = 12, prompt: int = 0, seed: int = 0) -> dict[str, Tensor]:
        input_ids = torch.randint(0, 52, (3, length), generator=torch.Generator().manual_seed(seed))
        mask, labels = padding_mask(padding, length), input_ids.clone()
        labels[:, :prompt] = -100
        if mask is None:
            return {"input_ids": input_ids, "labels": labels}
        labels[mask == 0] = -100
        labels[:, 1:][mask[:, :-1] == 0] = -100
        return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}

    return make


@pytest.fixture(params=PADDINGS)
def padding(request: pytest.FixtureRequest) -> str:
    return str(request.param)
