"""The attack with LoRA works for every family: adapters on each linear layer, those of the auxiliary modules too."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_era.evaluation.relearn.attack import with_lora
from hf_era.models.fast.causal_lm import ALL_SLOW


def test_lora_adapters_train(check: Any, make_expanded: Callable[..., Any], batch: dict[str, Tensor]) -> None:
    model, inputs = make_expanded(), check.inputs(batch)
    head = model.get_output_embeddings()
    linear = {
        name for name, part in model.named_modules() if isinstance(part, (nn.Linear, Conv1D)) and part is not head
    }
    before = model(**inputs).logits
    torch.manual_seed(0)
    model = with_lora(model, 2, 4)
    assert torch.equal(model(**inputs).logits, before)  # adapters start as no change; the module takes part
    trained = {name: part for name, part in model.named_parameters() if part.requires_grad}
    assert set(trained) == {f"{name}.lora_{part}.default.weight" for name in linear for part in "AB"}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = check.total_loss(model, batch, routed=False, with_l1=False)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.01
    assert all(part.grad is not None for part in trained.values())


@pytest.mark.parametrize("model_type", ["llama", "gpt_neo"])
@pytest.mark.parametrize("whole_mlp", [False, True])
@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers by an old name
def test_a_layer_that_peft_copies_is_routed(
    whole_mlp: bool, check: Any, family: Any, make_expanded: Callable[..., Any], batch: dict[str, Tensor]
) -> None:
    """`modules_to_save`: the copy that is trained in a layer's place adds what the modules add, and is routed."""
    from peft import LoraConfig, get_peft_model

    model = make_expanded()
    logits = model(**check.inputs(batch)).logits
    expected = check.gradients_after(model, lambda: check.total_loss(model, batch))
    copied = family.mlp if whole_mlp else family.down_projection
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["k_proj"], modules_to_save=[copied]))
    assert torch.equal(adapted(**check.inputs(batch)).logits, logits)
    found = check.gradients_after(model, lambda: check.total_loss(model, batch))
    learning = {name: value for name, value in found.items() if ".modules_to_save.default." in name}
    assert len(learning) > 2
    assert any(map(model.is_auxiliary_parameter, learning)) == whole_mlp
    for name, gradient in learning.items():
        assert torch.equal(gradient, expected[name.replace(".modules_to_save.default", "")]), name
    with model.ablated():
        assert not torch.equal(adapted(**check.inputs(batch)).logits, logits)


@pytest.mark.parametrize("model_type", ["llama", "gpt_neo"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_adapter_that_scales_its_layer_leaves_what_modules_add(
    model_type: str, family: Any, check: Any, make_expanded: Callable[..., Any], batch: dict[str, Tensor]
) -> None:
    """DoRA multiplies what the down projection gives: merged, it is the function that was trained."""
    from peft import LoraConfig, get_peft_model

    model, inputs = make_expanded().double().eval(), check.inputs(batch)
    model.set_fast_paths(ALL_SLOW)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=[family.down_projection], use_dora=True))
    for part in adapted.parameters():
        if part.requires_grad:
            part.data.add_(torch.rand_like(part))
    with torch.no_grad():
        logits = model(**inputs, routing_weight=batch["routing_weight"]).logits
        assert torch.equal(model(**inputs).logits, logits)
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(merged(**inputs).logits, logits, rtol=0, atol=1e-9)
