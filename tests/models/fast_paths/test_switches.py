"""Each fast path alone, on and off: same results, and a spy shows which path was taken."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_era import ExpandedGPTNeoForCausalLM, FastGPTNeoForCausalLM, FastPaths
from hf_era.models.fast.causal_lm import ALL_FAST, ALL_SLOW

SPIES = {
    "fused_activation": ("hf_era.models.fast.activation", "routed_gelu"),
    "separate_activation": ("hf_era.models.running_call", "scale_gradient"),
    "chunked_loss": ("hf_era.models.fast.causal_lm", "linear_cross_entropy"),
    "whole_loss": ("torch.nn.functional", "cross_entropy"),
    "attention": ("torch.nn.functional", "scaled_dot_product_attention"),
}
LAYERS, TARGET_LAYERS = 3, 2


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often each function was called."""
    found = dict.fromkeys(SPIES, 0)

    def spy_on(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def spy(*args: Any, **kwargs: Any) -> Any:
            found[name] += 1
            return function(*args, **kwargs)

        return spy

    for name, (module, function) in SPIES.items():
        target = F if module == "torch.nn.functional" else __import__(module, fromlist=[function])
        monkeypatch.setattr(target, function, spy_on(name, getattr(target, function)))
    return found


@pytest.fixture
def routed_inputs(make_inputs: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    weight = torch.rand((3, 12), generator=torch.Generator().manual_seed(0))
    return {**make_inputs("middle"), "routing_weight": weight, "output_activation_l1": True}


@pytest.mark.parametrize(("activation", "loss", "attention"), list(itertools.product([True, False], repeat=3)))
def test_every_combination_gives_the_same_and_takes_the_paths_it_names(
    activation: bool,
    loss: bool,
    attention: bool,
    expanded: ExpandedGPTNeoForCausalLM,
    routed_inputs: dict[str, Any],
    counts: dict[str, int],
    compare: Any,
) -> None:
    expected = compare.result(compare.slow(expanded), routed_inputs)
    expanded.set_fast_paths(FastPaths(fused_activation=activation, chunked_loss=loss))
    expanded.set_attn_implementation("sdpa" if attention else "eager")
    counts.update(dict.fromkeys(SPIES, 0))
    compare.assert_same(compare.result(expanded, routed_inputs), expected)
    # The original MLPs of all layers, and the auxiliary modules of the target layers.
    assert (counts["fused_activation"], counts["separate_activation"]) == (
        (LAYERS + TARGET_LAYERS, 0) if activation else (0, 2 * TARGET_LAYERS)
    )
    assert (counts["chunked_loss"], counts["whole_loss"]) == ((1, 0) if loss else (0, 1))
    assert counts["attention"] == (LAYERS if attention else 0)


def test_everything_is_on_unless_switched_off(
    fast: FastGPTNeoForCausalLM, expanded: ExpandedGPTNeoForCausalLM, routed_inputs: dict[str, Any], counts: Any
) -> None:
    assert FastPaths() == ALL_FAST
    assert FastPaths(fused_activation=False, chunked_loss=False) == ALL_SLOW
    for model in (fast, expanded):
        assert model.fast_paths == ALL_FAST
    expanded(**routed_inputs)
    assert min(counts[name] for name in ("fused_activation", "chunked_loss", "attention")) > 0
    assert counts["whole_loss"] == counts["separate_activation"] == 0


def test_switching_is_of_one_model_and_can_be_undone(
    fast: FastGPTNeoForCausalLM, expanded: ExpandedGPTNeoForCausalLM, routed_inputs: dict[str, Any], compare: Any
) -> None:
    before = compare.result(expanded, routed_inputs)
    expanded.set_fast_paths(ALL_SLOW)
    assert fast.fast_paths == ALL_FAST
    slow = compare.result(expanded, routed_inputs)
    assert not all(torch.equal(slow[1][name], gradient) for name, gradient in before[1].items())  # it rounds elsewhere
    expanded.set_fast_paths(ALL_FAST)
    after = compare.result(expanded, routed_inputs)
    assert torch.equal(after[0], before[0])
    assert all(torch.equal(after[1][name], gradient) for name, gradient in before[1].items())


# ---- When logits are returned ----


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("skip_logits", [None, True, False])
@pytest.mark.parametrize("chunked_loss", [True, False])
@pytest.mark.parametrize("with_labels", [True, False])
def test_when_logits_are_returned(
    with_labels: bool,
    chunked_loss: bool,
    skip_logits: bool | None,
    training: bool,
    fast: FastGPTNeoForCausalLM,
    make_inputs: Callable[..., dict[str, Tensor]],
) -> None:
    fast.set_fast_paths(FastPaths(chunked_loss=chunked_loss))
    inputs = make_inputs()
    if not with_labels:
        del inputs["labels"]
    outputs = fast.train(training)(**inputs, **({} if skip_logits is None else {"skip_logits": skip_logits}))
    skipped = with_labels and chunked_loss and (training if skip_logits is None else skip_logits)
    assert (outputs.logits is None) == skipped
    assert (outputs.loss is not None) == with_labels


@pytest.mark.parametrize("reason", ["tuple", "shift_labels", "own loss function", "head with a bias", "head adapted"])
def test_the_whole_loss_is_taken_where_the_chunked_one_would_not_be_the_same(
    reason: str, fast: FastGPTNeoForCausalLM, make_inputs: Callable[..., dict[str, Any]], counts: dict[str, int]
) -> None:
    inputs, expected = make_inputs("none"), None
    if reason == "tuple":
        inputs["return_dict"] = False
    elif reason == "shift_labels":
        inputs["shift_labels"] = inputs["labels"].roll(-2, dims=1)
    elif reason == "own loss function":
        fast.loss_function = lambda logits, labels, **kwargs: logits.sum() * 0 + 7
        expected = 7.0
    elif reason == "head with a bias":
        head = torch.nn.Linear(16, 53)
        head.weight = fast.lm_head.weight
        fast.lm_head = head
    else:

        class Adapted(torch.nn.Linear):
            def forward(self, values: Tensor) -> Tensor:
                return 2 * super().forward(values)

        fast.lm_head.__class__ = Adapted
    outputs = fast(**inputs)
    assert counts["chunked_loss"] == 0
    logits = outputs[1]
    assert logits.shape == (3, 12, 53)
    if expected is None:
        targets = inputs.get("shift_labels")
        targets = F.pad(inputs["labels"], (0, 1), value=-100)[:, 1:] if targets is None else targets
        expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten()).item()
    assert outputs[0].item() == pytest.approx(expected, rel=1e-6)
