"""The attack with LoRA works for every family: adapters on each linear layer, those of the auxiliary modules too."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_era.evaluation.relearn.attack import with_lora


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
