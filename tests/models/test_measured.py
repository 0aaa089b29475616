"""A stock model whose layers measure their activations: the L1 term of a control, and nothing else about it is new."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from hf_era import ExpandedGPTNeoForCausalLM, ExpansionConfig, FastGPTNeoForCausalLM
from hf_era.models.measured import measure_activations

LAYERS, L1_COEFFICIENT = [0, 2], 0.05
Batch = dict[str, Tensor]
CLASSES = pytest.mark.parametrize("is_fast", [True, False], ids=["fast class", "stock class"])


@pytest.fixture
def batch(make_batch: Callable[..., Batch]) -> Batch:
    """With padding on the right."""
    batch = make_batch(seed=5)
    batch["attention_mask"][0, -3:] = 0
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    names, values = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, values, allow_unused=True)
    return {name: value for name, value in zip(names, found, strict=True) if value is not None}


def measured_loss(model: Any, batch: Batch) -> Tensor:
    """As a trainer adds the two up, but with the cross entropy in the logits' own dtype."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    outputs = model(**inputs, output_activation_l1=True)
    return cross_entropy(outputs.logits, batch) + L1_COEFFICIENT * outputs.activation_l1 / batch["attention_mask"].sum()


def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())


def dense_loss(model: Any, batch: Batch) -> Tensor:
    """The same of a stock model: its MLPs' activations are worked out here, from their inputs."""
    norms, mask = [], batch["attention_mask"][..., None]
    for layer in LAYERS:
        mlp = model.transformer.h[layer].mlp

        def add(mlp: Any, inputs: tuple[Tensor, ...]) -> None:
            hidden = inputs[0] @ mlp.c_fc.weight.T + mlp.c_fc.bias
            norms.append((F.gelu(hidden, approximate="tanh").abs() * mask).sum())

        mlp.register_forward_pre_hook(add)
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return cross_entropy(logits, batch) + L1_COEFFICIENT * sum(norms) / mask.sum()


def largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Relative to the largest value of each gradient."""
    assert found.keys() == expected.keys()
    return max(float((found[name] - expected[name]).abs().max() / expected[name].abs().max()) for name in expected)


@pytest.fixture
def make_stock(make_base: Callable[..., Any]) -> Callable[[bool], Any]:
    """In fp64, but for the attention scores of the stock class, which are fp32 whatever its weights are."""

    def make(is_fast: bool) -> Any:
        stock = make_base().double()
        return FastGPTNeoForCausalLM.from_stock(stock) if is_fast else stock

    return make


@pytest.fixture
def make_measured(make_stock: Callable[[bool], Any]) -> Callable[[bool], Any]:
    return lambda is_fast: measure_activations(make_stock(is_fast), LAYERS)


@CLASSES
def test_its_gradient_is_that_of_the_dense_formula(
    is_fast: bool, make_measured: Callable[[bool], Any], make_stock: Callable[[bool], Any], batch: Batch
) -> None:
    model, stock = make_measured(is_fast), make_stock(is_fast)
    found = gradients(model, measured_loss(model, batch))
    assert largest_difference(found, gradients(stock, dense_loss(stock, batch))) < 1e-9
    # The check can fail: without the term the gradient is another one.
    plain = gradients(
        stock, cross_entropy(stock(batch["input_ids"], attention_mask=batch["attention_mask"]).logits, batch)
    )
    assert largest_difference(found, plain) > 1e-3


def test_a_run_without_routing_differs_from_its_control_in_the_module_alone(
    make_measured: Callable[[bool], Any], make_base: Callable[..., Any], batch: Batch
) -> None:
    """With the module ablated, loss, L1 term and gradients are those of the control; with it, they are not."""
    expansion = ExpansionConfig(width=8, target_layers=LAYERS)
    expanded = ExpandedGPTNeoForCausalLM.from_base(make_base().double(), expansion).train()
    control = make_measured(True)
    expected = gradients(control, measured_loss(control, batch))

    def found() -> dict[str, Tensor]:
        loss = measured_loss(expanded, {**batch, "routing_weight": torch.ones(batch["input_ids"].shape)})
        return {name: value for name, value in gradients(expanded, loss).items() if ".auxiliary." not in name}

    assert largest_difference(found(), expected) > 1e-3
    with expanded.ablated():
        assert largest_difference(found(), expected) < 1e-9


@CLASSES
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_the_term_survives_gradient_checkpointing(
    is_fast: bool, use_reentrant: bool, make_measured: Callable[[bool], Any], batch: Batch
) -> None:
    model = make_measured(is_fast)
    expected = gradients(model, measured_loss(model, batch))
    options = {"use_reentrant": use_reentrant}
    if hasattr(model, "activation_checkpointing_enable"):  # the name since transformers 5.23
        model.activation_checkpointing_enable(options)
    else:
        model.gradient_checkpointing_enable(options)
    model.zero_grad()
    measured_loss(model, batch).backward()  # the reentrant kind knows no other way
    found = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    assert largest_difference(found, expected) < 1e-12


@CLASSES
def test_it_computes_and_saves_what_the_stock_model_does(
    is_fast: bool, make_base: Callable[..., Any], batch: Batch, tmp_path: Path
) -> None:
    stock = make_base()
    model = FastGPTNeoForCausalLM.from_stock(stock) if is_fast else stock
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    before = model(**inputs)
    measured = measure_activations(model, LAYERS)
    after = measured(**inputs)
    assert torch.equal(after.logits, before.logits)
    assert after.activation_l1 is None
    assert measured(**inputs, return_dict=False, output_activation_l1=True)[-1].shape == ()
    measured.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["GPTNeoForCausalLM"]
    saved = load_file(tmp_path / "model.safetensors")
    assert {name: saved[name].tolist() for name in saved} == {
        name: value.tolist() for name, value in make_base().state_dict().items() if name in saved
    }
    assert saved.keys() == {name for name, _ in make_base().named_parameters()}
