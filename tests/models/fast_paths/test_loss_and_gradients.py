"""The loss and every gradient of a whole model, in fp32: fast against slow, and against the stock class."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPTNeoForCausalLM

from hf_era import ExpandedGPTNeoForCausalLM, FastGPTNeoForCausalLM

Inputs = dict[str, Any]
ITEMS = 23  # labels of all micro-batches: another number than any batch here has, or dividing by it would show nothing


# ---- The stock class ----


@pytest.mark.parametrize("length", [3, 4, 5, 12])  # the local window is 4
def test_fast_equals_stock(
    length: int,
    padding: str,
    fast: FastGPTNeoForCausalLM,
    stock: GPTNeoForCausalLM,
    make_inputs: Callable[..., Inputs],
    compare: Any,
) -> None:
    inputs = make_inputs(padding, length)
    compare.assert_same(compare.result(fast, inputs), compare.result(stock, inputs))
    with torch.no_grad():
        outputs, expected = fast(**inputs, skip_logits=False), stock(**inputs)
    compare.assert_same_at_real_tokens(outputs.logits, expected.logits, inputs.get("attention_mask"))
    torch.testing.assert_close(outputs.loss, expected.loss, rtol=compare.loss_tolerance, atol=0)


@pytest.mark.parametrize("padding", ["none", "all ones", "right", "left"])
def test_positions_that_start_anew(
    padding: str,
    fast: FastGPTNeoForCausalLM,
    stock: GPTNeoForCausalLM,
    make_inputs: Callable[..., Inputs],
    compare: Any,
) -> None:
    """Documents packed into one row, to transformers, but only where there is no mask."""
    inputs = {**make_inputs(padding), "position_ids": torch.arange(12).remainder(5).expand(3, 12)}
    compare.assert_same(compare.result(fast, inputs), compare.result(stock, inputs))


@pytest.mark.parametrize("count", [None, ITEMS, torch.tensor(ITEMS)], ids=["mean", "int", "tensor"])
@pytest.mark.parametrize("prompt", [0, 5])
def test_normalisation_and_labels_on_a_part(
    prompt: int,
    count: Any,
    fast: FastGPTNeoForCausalLM,
    stock: GPTNeoForCausalLM,
    make_inputs: Callable[..., Inputs],
    compare: Any,
) -> None:
    inputs = {**make_inputs("right", prompt=prompt), **({} if count is None else {"num_items_in_batch": count})}
    assert fast(**inputs).logits is None
    assert (inputs["labels"][:, 1:] != -100).sum() != ITEMS
    compare.assert_same(compare.result(fast, inputs), compare.result(stock, inputs))


@pytest.mark.parametrize("count", [ITEMS, torch.tensor(ITEMS)], ids=["int", "tensor"])
@pytest.mark.parametrize("why", ["fast paths off", "logits asked for"])
def test_normalisation_of_the_loss_from_whole_logits(
    why: str,
    count: Any,
    fast: FastGPTNeoForCausalLM,
    stock: GPTNeoForCausalLM,
    make_inputs: Callable[..., Inputs],
    compare: Any,
) -> None:
    """Micro-batches are divided by the labels of them all on this path too; their own number would be another factor."""
    inputs = {**make_inputs("right", prompt=5), "num_items_in_batch": count}
    assert (inputs["labels"][:, 1:] != -100).sum() != ITEMS
    model, option = (compare.slow(fast), {}) if why == "fast paths off" else (fast, {"skip_logits": False})
    assert model(**inputs, **option).logits is not None
    compare.assert_same(compare.result(model, {**inputs, **option}), compare.result(stock, inputs))


def test_a_number_of_labels_is_not_rounded_to_the_dtype_of_the_model(
    fast: FastGPTNeoForCausalLM, make_inputs: Callable[..., Inputs]
) -> None:
    """1001 is no bf16 number, 100001 is beyond fp16."""
    inputs = make_inputs("right")
    for dtype, count in ((torch.bfloat16, 1_001), (torch.float16, 100_001)):
        model = fast.to(dtype)
        loss = model(**inputs, num_items_in_batch=count).loss
        assert loss == model(**inputs, num_items_in_batch=torch.tensor(count)).loss
        assert loss > 0


def test_without_any_label_the_loss_is_that_of_the_stock_class(
    fast: FastGPTNeoForCausalLM, stock: GPTNeoForCausalLM, make_inputs: Callable[..., Inputs]
) -> None:
    inputs = make_inputs("right", prompt=12)
    for count, value in ((None, "nan"), (8, "0.0"), (torch.tensor(8), "0.0")):
        losses = [model(**inputs, num_items_in_batch=count).loss for model in (fast, stock)]
        assert [str(loss.item()) for loss in losses] == [value, value]
        losses[0].backward()  # as in a micro-batch of padding only
        assert fast.transformer.h[0].mlp.c_fc.weight.grad is not None


@pytest.mark.parametrize("tie_word_embeddings", [True, False])
@pytest.mark.parametrize("activation", ["gelu_new", "gelu", "relu"])
def test_other_activations_and_an_untied_head(
    activation: str,
    tie_word_embeddings: bool,
    make_base: Callable[..., GPTNeoForCausalLM],
    make_inputs: Callable[..., Inputs],
    compare: Any,
) -> None:
    stock = make_base(activation_function=activation, tie_word_embeddings=tie_word_embeddings)
    fast, inputs = FastGPTNeoForCausalLM.from_stock(stock), make_inputs()
    compare.assert_same(compare.result(fast, inputs), compare.result(stock, inputs))


def test_dropout_is_drawn_while_training_only(
    make_base: Callable[..., GPTNeoForCausalLM], make_inputs: Callable[..., Inputs], compare: Any
) -> None:
    stock = make_base(attention_dropout=0.5)
    fast, inputs = FastGPTNeoForCausalLM.from_stock(stock), make_inputs("none")
    assert fast(**inputs).loss != fast(**inputs).loss
    fast.eval()
    assert torch.equal(fast(**inputs).loss, fast(**inputs).loss)
    compare.assert_same(compare.result(fast, inputs), compare.result(stock.eval(), inputs))


# ---- The expanded class ----


@pytest.mark.parametrize("routed", [False, True], ids=["not routed", "routed"])
@pytest.mark.parametrize("with_l1", [False, True], ids=["no L1", "L1"])
@pytest.mark.parametrize("target_layers", [[1], [0, 2], None], ids=str)
@pytest.mark.parametrize("padding", ["none", "right", "several kinds"])
def test_expanded(
    target_layers: list[int] | None,
    with_l1: bool,
    routed: bool,
    padding: str,
    expanded: ExpandedGPTNeoForCausalLM,
    make_expanded: Callable[..., ExpandedGPTNeoForCausalLM],
    make_inputs: Callable[..., Inputs],
    compare: Any,
) -> None:
    model = make_expanded(target_layers)
    model.gradient_multipliers = expanded.gradient_multipliers
    inputs = {**make_inputs(padding), "output_activation_l1": with_l1, "routing_weight": routing_weight(routed)}
    compare.assert_same(compare.result(model, inputs), compare.result(compare.slow(model), inputs))


def routing_weight(routed: bool, seed: int = 0) -> Tensor | None:
    weight = torch.rand((3, 12), generator=torch.Generator().manual_seed(seed))
    return weight if routed else None


@pytest.fixture
def routed_inputs(make_inputs: Callable[..., Inputs]) -> Inputs:
    return {**make_inputs("several kinds"), "output_activation_l1": True, "routing_weight": routing_weight(True)}


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(
    use_reentrant: bool, expanded: ExpandedGPTNeoForCausalLM, routed_inputs: Inputs, compare: Any
) -> None:
    expected = compare.result(compare.slow(expanded), routed_inputs)
    plain = compare.result(expanded, routed_inputs)
    options = {"use_reentrant": use_reentrant}
    if hasattr(expanded, "activation_checkpointing_enable"):  # transformers 5.23 and later
        expanded.activation_checkpointing_enable(options)
    else:
        expanded.gradient_checkpointing_enable(options)
    calls: list[int] = []
    expanded.transformer.h[0].mlp.register_forward_pre_hook(lambda *arguments: calls.append(1))
    checkpointed = compare.result(expanded, routed_inputs)
    assert len(calls) == 2  # it did recompute
    compare.assert_same(checkpointed, expected)
    assert all(torch.equal(checkpointed[1][name], gradient) for name, gradient in plain[1].items())


def test_two_forwards_before_one_backward(
    expanded: ExpandedGPTNeoForCausalLM, make_inputs: Callable[..., Inputs], routed_inputs: Inputs, compare: Any
) -> None:
    other = {**make_inputs("left", seed=1), "routing_weight": routing_weight(True, seed=1)}

    def both(model: nn.Module) -> Any:
        return compare.gradients(model, compare.loss(model, routed_inputs) + compare.loss(model, other))

    compare.assert_same(both(expanded), both(compare.slow(expanded)))


# ---- The comparison can fail ----


@pytest.mark.parametrize("mistake", ["no routing", "no L1", "no window", "a label less", "another factor"])
def test_the_comparison_notices(
    mistake: str,
    expanded: ExpandedGPTNeoForCausalLM,
    make_inputs: Callable[..., Inputs],
    routed_inputs: Inputs,
    compare: Any,
) -> None:
    slow, inputs = compare.slow(expanded), dict(routed_inputs)
    compare.assert_same(compare.result(expanded, inputs), compare.result(slow, inputs))
    if mistake == "no routing":
        inputs["routing_weight"] = None
    elif mistake == "no L1":
        inputs["output_activation_l1"] = False
    elif mistake == "no window":
        expanded.transformer.h[1].attn.attention.bias = expanded.transformer.h[0].attn.attention.bias
    elif mistake == "a label less":
        inputs["labels"] = inputs["labels"].clone()
        inputs["labels"][1, 3] = -100
    else:
        inputs["routing_weight"] = inputs["routing_weight"] + 1e-3
    with pytest.raises(AssertionError):
        compare.assert_same(compare.result(expanded, inputs), compare.result(slow, routed_inputs))
