"""Selectivity against a computation by hand, padding left out, hooks gone afterwards."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_era.evaluation import AuxiliaryActivationMeter, selectivity


def test_means_match_a_computation_by_hand(
    make_expanded: Callable[..., Any], make_batch: Callable[..., dict[str, Tensor]]
) -> None:
    model, batch = make_expanded([0, 2]).eval(), make_batch(padded=True)
    seen: dict[int, Tensor] = {}
    for layer in (0, 2):
        module = model.transformer.h[layer].mlp.auxiliary["forget"]
        module.act.register_forward_hook(lambda _module, _inputs, output, layer=layer: seen.update({layer: output}))
    with torch.no_grad(), AuxiliaryActivationMeter(model) as meter:
        for _ in range(2):
            meter.set_mask(batch["attention_mask"])
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    real = batch["attention_mask"].bool()
    for layer, mean in meter.means().items():
        assert mean == pytest.approx(float(seen[layer][real].abs().mean()), rel=1e-5)
        assert mean != pytest.approx(float(seen[layer].abs().mean()), rel=1e-3)  # padding would change it
    assert list(meter.means()) == [0, 2]
    assert not model.transformer.h[0].mlp.auxiliary["forget"].down_projection._forward_pre_hooks


def test_ratio_per_layer() -> None:
    assert selectivity({0: 3.0, 1: 1.0}, {0: 1.5, 1: 0.0}) == {0: 2.0, 1: None}
