"""bf16, by autocast and by weights: the fast paths are as near to the truth as the slow ones.

The truth is the slow path in float64 (its attention scores in fp32). Errors are norms, relative to the truth's.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_era import ExpandedGPTNeoForCausalLM

RATIO, BATCHES = 1.5, 12
# What rounding may do to a single small loss or gradient by chance.
LOSS_EPS, GRADIENT_EPS, ALL_GRADIENTS_EPS = 1e-3, 3e-3, 1e-3

Result = tuple[Tensor, dict[str, Tensor]]
Errors = tuple[float, dict[str, float]]


def routed_batches(make_inputs: Callable[..., dict[str, Tensor]], with_l1: bool) -> list[dict[str, Any]]:
    generator, paddings = torch.Generator().manual_seed(0), ("none", "right", "left", "several kinds")
    return [
        {
            **make_inputs(paddings[seed % 4], seed=seed),
            "routing_weight": torch.rand((3, 12), generator=generator),
            "output_activation_l1": with_l1,
        }
        for seed in range(BATCHES)
    ]


def bf16_result(model: Any, inputs: dict[str, Tensor], precision: str, compare: Any) -> Result:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "autocast"):
        loss = compare.loss(model, inputs)
    assert loss.dtype == torch.float32
    value, gradients = compare.gradients(model, loss)
    weights = torch.float32 if precision == "autocast" else torch.bfloat16
    assert {gradient.dtype for gradient in gradients.values()} == {weights}
    return value, gradients


def errors(result: Result, truth: Result) -> Errors:
    """Of the loss, of each parameter's gradient, and of all gradients together."""
    loss_error = ((result[0].double() - truth[0]).abs() / truth[0]).item()
    differences = {name: result[1][name].double() - gradient for name, gradient in truth[1].items()}
    found = {name: (value.norm() / truth[1][name].norm()).item() for name, value in differences.items()}
    everything = torch.cat([value.flatten() for value in truth[1].values()])
    found["all"] = (torch.cat([value.flatten() for value in differences.values()]).norm() / everything.norm()).item()
    return loss_error, found


def check_errors(fast: Errors, slow: Errors) -> None:
    assert fast[0] <= RATIO * slow[0] + LOSS_EPS, (fast[0], slow[0])
    for name, error in slow[1].items():
        eps = ALL_GRADIENTS_EPS if name == "all" else GRADIENT_EPS
        assert fast[1][name] <= RATIO * error + eps, (name, fast[1][name], error)


def errors_of_both(
    model: Any, batches: list[dict[str, Any]], batches_of_fast: list[dict[str, Any]], precision: str, compare: Any
) -> tuple[Errors, Errors]:
    """Of the fast and of the slow paths: root mean squares over the batches, since the error of one small parameter in
    one batch is mostly chance."""
    slow_model, exact = compare.slow(model), compare.slow(model).double()
    fast, slow = [], []
    for batch, batch_of_fast in zip(batches, batches_of_fast, strict=True):
        # The L1 norm is fp32 and takes no float64.
        truth = compare.result(exact.float() if batch["output_activation_l1"] else exact, batch)
        slow.append(errors(bf16_result(slow_model, batch, precision, compare), truth))
        fast.append(errors(bf16_result(model, batch_of_fast, precision, compare), truth))
    return root_mean_squares(fast), root_mean_squares(slow)


def root_mean_squares(found: list[Errors]) -> Errors:
    def over_batches(values: list[float]) -> float:
        return float(torch.tensor(values).pow(2).mean().sqrt())

    return (
        over_batches([loss for loss, _ in found]),
        {name: over_batches([gradients[name] for _, gradients in found]) for name in found[0][1]},
    )


@pytest.mark.parametrize("precision", ["autocast", "bf16 weights"])
@pytest.mark.parametrize("with_l1", [False, True], ids=["no L1", "L1"])
def test_the_error_is_no_larger_than_that_of_the_slow_paths(
    with_l1: bool,
    precision: str,
    expanded: ExpandedGPTNeoForCausalLM,
    make_inputs: Callable[..., dict[str, Tensor]],
    compare: Any,
) -> None:
    if precision == "bf16 weights":
        expanded = expanded.bfloat16()
    batches = routed_batches(make_inputs, with_l1)
    fast, slow = errors_of_both(expanded, batches, batches, precision, compare)
    assert slow[1]["all"] > 1e-3  # it was bf16 indeed
    check_errors(fast, slow)


def test_the_comparison_notices_a_factor_that_is_off_by_a_twentieth(
    expanded: ExpandedGPTNeoForCausalLM, make_inputs: Callable[..., dict[str, Tensor]], compare: Any
) -> None:
    batches = routed_batches(make_inputs, with_l1=False)
    wrong = [{**batch, "routing_weight": 0.95 * batch["routing_weight"]} for batch in batches]
    fast, slow = errors_of_both(expanded, batches, wrong, "autocast", compare)
    with pytest.raises(AssertionError):
        check_errors(fast, slow)


def test_the_loss_of_many_labels_is_summed_in_fp32(
    make_expanded: Callable[..., ExpandedGPTNeoForCausalLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    """2,000 labels in chunks of 16: a sum in bf16 would be off by tenths."""
    monkeypatch.setattr("hf_era.models.fast.chunked_loss.BYTES_PER_CHUNK", 1)
    model = make_expanded([1])
    ids = torch.randint(0, 52, (64, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = model(ids, labels=ids).loss.item()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            chunked = model(ids, labels=ids).loss.item()
            summed = model(ids, labels=ids, num_items_in_batch=1).loss.item()
    assert chunked == pytest.approx(exact, rel=2e-3)
    assert summed == pytest.approx(exact * 64 * 31, rel=2e-3)
