"""A training step with a large vocabulary never holds the whole logits, nor several copies of the activation.

The profiler notes every allocation, those inside custom operations too.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from hf_era import ExpandedGPTNeoForCausalLM, FastGPTNeoForCausalLM, FastPaths

ROWS, LENGTH, VOCABULARY = 16, 32, 4000
LOGITS = ROWS * LENGTH * VOCABULARY * 4  # bytes, fp32
CHUNK = 64 * VOCABULARY * 4


def allocations(step: Callable[[], Any]) -> list[int]:
    """Bytes of each allocation (positive) and release (negative), in order of time."""
    # acc_events: there is one cycle; torch 2.11 warns of others without it
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    found = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    assert any(size > 0 for size in found)
    return found


def peak(sizes: list[int]) -> int:
    total = highest = 0
    for size in sizes:
        total += size
        highest = max(highest, total)
    return highest


def batch(with_prompt: bool = False) -> dict[str, Tensor]:
    ids = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    if with_prompt:
        labels[:, : LENGTH - 4] = -100
    return {"input_ids": ids, "labels": labels}


def training_step(model: Any, inputs: dict[str, Tensor]) -> Callable[[], None]:
    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(**inputs).loss.backward()

    step()  # what is allocated once is not counted
    return step


@pytest.fixture
def model(make_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> FastGPTNeoForCausalLM:
    monkeypatch.setattr("hf_era.models.fast.chunked_loss.BYTES_PER_CHUNK", CHUNK)
    torch.manual_seed(0)
    return FastGPTNeoForCausalLM(make_config(vocab_size=VOCABULARY)).train()


def test_no_allocation_is_as_large_as_the_logits(model: FastGPTNeoForCausalLM) -> None:
    sizes = allocations(training_step(model, batch()))
    assert max(sizes) <= 1.1 * CHUNK
    assert peak(sizes) < LOGITS  # all of the step together
    model.set_fast_paths(FastPaths(chunked_loss=False))
    whole = allocations(training_step(model, batch()))
    assert max(whole) >= LOGITS  # the profiler does see logits where there are some
    assert peak(whole) > 3 * peak(sizes)


def test_positions_without_a_label_cost_nothing(model: FastGPTNeoForCausalLM) -> None:
    sizes = allocations(training_step(model, batch(with_prompt=True)))
    assert max(sizes) <= ROWS * 4 * VOCABULARY * 4


@torch.no_grad()
def test_label_losses(model: FastGPTNeoForCausalLM) -> None:
    inputs = batch()
    assert max(allocations(lambda: model.label_losses(**inputs))) <= 1.1 * CHUNK
    assert max(allocations(lambda: model.eval()(**inputs))) >= LOGITS


def test_routing_and_l1_keep_nothing_more(make_expanded: Callable[..., ExpandedGPTNeoForCausalLM]) -> None:
    """What the forward pass leaves behind for the backward pass; transformers' own GELU leaves several tensors more."""
    model = make_expanded([0, 1, 2], width=64, intermediate_size=1024)
    ids = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    activation = ROWS * LENGTH * 1024 * 4
    kept = {}
    for fused in (True, False):
        for routed in (True, False):
            model.set_fast_paths(FastPaths(fused_activation=fused))
            options: dict[str, Any] = (
                {"routing_weight": torch.rand(ROWS, LENGTH), "output_activation_l1": True} if routed else {}
            )
            outputs: list[Any] = [model(ids, labels=ids, **options)]  # what is allocated once is not counted
            outputs.clear()
            kept[fused, routed] = sum(
                allocations(lambda options=options, outputs=outputs: outputs.append(model(ids, labels=ids, **options)))
            )
            outputs.clear()
    assert kept[True, True] - kept[True, False] < 0.1 * activation
    assert kept[False, True] - kept[True, True] > 2.9 * activation  # in three layers
