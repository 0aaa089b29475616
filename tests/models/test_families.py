"""Each row of the architecture table describes a model that exists."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_era.models import ARCHITECTURES
from hf_era.routing import routed_gelu, scale_gradient


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_a_row_names_real_parts(model_type: str) -> None:
    spec = ARCHITECTURES[model_type]
    model_class = spec.load_model_class()
    assert model_class.architecture is spec
    assert model_class.config_class.base_config_class.model_type == spec.model_type == model_type
    assert spec.load_fast_class().config_class is model_class.config_class.base_config_class
    assert spec.load_fast_class().stock_class is model_class.stock_class
    config = model_class.config_class.base_config_class()
    assert all(hasattr(config, name) for name in (spec.hidden_size, spec.number_of_layers, spec.activation))


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
    monkeypatch.setattr(f"hf_era.models.fast.activation.{function}", remember_fused if paths.fast else remember_scaled)
    received: list[Tensor] = []
    mlp = model.architecture.get_mlp(model.architecture.get_blocks(model)[1])
    down_projection = getattr(mlp, model.architecture.down_projection)
    down_projection.register_forward_pre_hook(lambda _module, inputs: received.append(inputs[0]))
    with torch.no_grad():
        model(**batch)
    assert len(received) == 1
    assert any(received[0] is activation for activation in routed)
