"""Batches that are known to be padded on the right: attention takes no mask, compiled or not, and computes the same."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_era import FastPaths
from hf_era.models.fast.attention_mask import needs_no_mask

Batch = dict[str, Tensor]
RIGHT = FastPaths(right_padding=True)


@contextmanager
def masks_seen() -> Iterator[list[Any]]:
    """The masks that attention is given while it lasts."""
    seen: list[Any] = []
    attend = F.scaled_dot_product_attention

    def look(*inputs: Any, attn_mask: Any = None, **options: Any) -> Tensor:
        seen.append(attn_mask)
        assert attn_mask is not None or options["is_causal"]
        return attend(*inputs, attn_mask=attn_mask, **options)

    F.scaled_dot_product_attention = look  # transformers looks it up there at every call
    try:
        yield seen
    finally:
        F.scaled_dot_product_attention = attend


def windows_of(model_type: str, longer: bool) -> dict[str, Any]:
    name = {"gpt_neo": "window_size", "mistral": "sliding_window", "qwen2": "sliding_window"}.get(model_type)
    name = "sliding_window" if model_type.startswith("gemma") else name
    return {name: 32} if name is not None and longer else {}


@pytest.mark.parametrize("longer", [True, False], ids=["window longer", "window shorter"])
def test_loss_and_gradients_are_the_same(
    longer: bool, model_type: str, check: Any, make_expanded: Callable[..., Any], batch: Batch
) -> None:
    batch["attention_mask"][:, -3:], batch["labels"][:, -3:] = 0, -100
    model = make_expanded(**windows_of(model_type, longer)).double()
    expected = check.gradients_after(model, lambda: check.total_loss(model, batch))
    model.set_fast_paths(RIGHT)
    with masks_seen() as masks:
        found = check.gradients_after(model, lambda: check.total_loss(model, batch))
    assert check.largest_deviation(found, expected) <= 1e-11
    if model.config._attn_implementation == "eager":  # Gemma 2's scores are capped
        assert not masks
        return
    assert model.config._attn_implementation == "sdpa"
    has_window = bool(windows_of(model_type, longer=True)) and not longer
    assert masks
    assert any(mask is not None for mask in masks) is has_window


@pytest.mark.parametrize("model_type", ["gpt_neo", "llama"], indirect=True)
@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_graph_has_no_mask(
    is_known: bool, model_type: str, make_expanded: Callable[..., Any], batch: Batch
) -> None:
    """And where it is not known it has one: a graph cannot look."""
    model = make_expanded(**windows_of(model_type, longer=True))
    model.set_fast_paths(RIGHT if is_known else FastPaths())
    masks: list[Any] = []

    def look(graph: Any, _example: Any) -> Any:
        masks.extend(
            node.kwargs.get("attn_mask") for node in graph.graph.nodes if node.target is F.scaled_dot_product_attention
        )
        return graph

    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels", "routing_weight")}
    torch.compiler.reset()
    try:
        torch.compile(model, fullgraph=True, backend=look)(**inputs)
    finally:
        torch.compiler.reset()
    assert len(masks) == model.config.num_hidden_layers
    assert all((mask is None) is is_known for mask in masks)


@pytest.mark.parametrize("model_type", ["llama"], indirect=True)
def test_what_needs_a_mask_has_it(make_expanded: Callable[..., Any], batch: Batch) -> None:
    model = make_expanded()
    ids, mask = batch["input_ids"], batch["attention_mask"]
    assert needs_no_mask(model, {"input_ids": ids, "attention_mask": mask})
    assert not needs_no_mask(model, {"input_ids": ids, "position_ids": torch.arange(5)})
    assert not needs_no_mask(model, {"input_ids": ids, "attention_mask": mask[:, None, None].bool()})
    model.config.use_bidirectional_attention = True
    assert not needs_no_mask(model, {"input_ids": ids})
    model.config.use_bidirectional_attention = False
    model.set_attn_implementation("eager")
    assert not needs_no_mask(model, {"input_ids": ids})


@pytest.mark.parametrize("model_type", ["llama"], indirect=True)
def test_without_labels_nothing_is_taken_for_granted(make_expanded: Callable[..., Any], batch: Batch) -> None:
    """Generation pads on the left."""
    model = make_expanded().eval()
    mask = torch.ones_like(batch["attention_mask"])
    mask[:, :3] = 0
    expected = model(batch["input_ids"], attention_mask=mask).logits
    model.set_fast_paths(RIGHT)
    torch.testing.assert_close(model(batch["input_ids"], attention_mask=mask).logits, expected, rtol=0, atol=0)
