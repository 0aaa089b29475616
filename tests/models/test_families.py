"""Each family describes a model that exists."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_era.models import FAMILIES
from hf_era.routing import routed_gelu, scale_gradient


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_a_family_names_real_parts(model_type: str) -> None:
    family = FAMILIES[model_type]
    model_class = family.model_class
    assert model_class.family is family
    assert model_class.config_class.base_config_class.model_type == family.model_type == model_type
    assert model_class.config_class.model_type == f"expanded_{model_type}"
    if family.fast_path is not None:
        assert family.fast_class.config_class is model_class.config_class.base_config_class
        assert family.fast_class.stock_class is model_class.stock_class
        assert not issubclass(model_class, family.fast_class)  # it uses the fast path, and is none
    config = model_class.config_class.base_config_class()
    assert all(hasattr(config, name) for name in (family.hidden_size, family.number_of_layers, family.activation))


def test_what_is_routed_is_the_input_of_the_down_projection(
    make_expanded: Callable[..., Any],
    make_batch: Callable[..., dict[str, Tensor]],
    monkeypatch: pytest.MonkeyPatch,
    paths: Any,
) -> None:
    model, batch = paths.set(make_expanded([1])), make_batch()
    routed: list[Tensor] = []

    def remember_scaled(activation: Tensor, factor: Tensor | None) -> Tensor:
        routed.append(scale_gradient(activation, factor))
        return routed[-1]

    def remember_fused(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        activation, norm = routed_gelu(*args, **kwargs)
        routed.append(activation)
        return activation, norm

    function = "routed_gelu" if paths.fast else "scale_gradient"
    where = "hf_era.models.fast.activation" if paths.fast else "hf_era.models.running_call"
    monkeypatch.setattr(f"{where}.{function}", remember_fused if paths.fast else remember_scaled)
    received: list[Tensor] = []
    mlp = model.family.get_mlp(model.family.get_blocks(model)[1])
    linear, product = F.linear, mlp.c_proj.weight

    def remember_input(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if weight is product:
            received.append(inputs)
        return linear(inputs, weight, bias)

    monkeypatch.setattr(F, "linear", remember_input)
    with torch.no_grad():
        model(**batch)
    assert len(received) == 1
    assert any(received[0] is activation for activation in routed)
