"""The core is what is trained of the original model, whatever was put around or in place of its layers, and when."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig

from hf_era import ExpandedGPTNeoForCausalLM, ExpansionConfig
from hf_era.models.loading import expanded_from_config
from hf_era.models.trainable import LoraSettings, choose_trainable
from hf_era.routing import make_router

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft's own business
Make = Callable[..., ExpandedGPTNeoForCausalLM]
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj"]


@pytest.fixture
def taught(make_batch: Callable[..., dict[str, Tensor]]) -> Callable[[Any, float], set[str]]:
    """Names of the original model's parameters that a batch of this routing weight teaches anything, L1 term included."""
    batch = make_batch()

    def names(model: Any, weight: float) -> set[str]:
        model.zero_grad()
        inputs = {**batch, "routing_weight": torch.full((3, 12), weight)}
        outputs = model(**inputs, output_activation_l1=True)
        (outputs.loss + 1e-3 * outputs.activation_l1).backward()
        values = {name: value for name, value in model.named_parameters() if value.grad is not None}
        assert any(value.grad.any() for name, value in values.items() if ".auxiliary." in name)
        return {name for name, value in values.items() if ".auxiliary." not in name and value.grad.any()}

    return names


def put_on_adapters(model: Any, **settings: Any) -> None:
    names = settings.pop("target_modules", ["q_proj"])
    get_peft_model(model, LoraConfig(r=2, target_modules=names, init_lora_weights=False, **settings))
    for name, value in model.named_parameters():
        if ".auxiliary." in name:
            value.requires_grad_(True)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "adapters": lambda model: put_on_adapters(model, target_modules=ALL_LINEAR),
    "trained copies": lambda model: put_on_adapters(model, modules_to_save=["lm_head", "wte", "wpe", "ln_1", "ln_f"]),
    "biases alone": lambda model: put_on_adapters(model, bias="all"),
    "another embedding": lambda model: model.set_input_embeddings(nn.Embedding(53, 16)),
    "another head": lambda model: model.set_output_embeddings(nn.Linear(16, 53, bias=False)),
}


@pytest.mark.parametrize("again", [False, True], ids=["router once", "router again"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_comes_after_the_router_is_routed(change: str, again: bool, make_expanded: Make, taught: Any) -> None:
    model = make_expanded([0, 1], tie_word_embeddings=False)
    model.router = make_router("parameter")
    assert taught(model, 0.0) == set()
    CHANGES[change](model)
    if again:
        model.router = make_router("parameter")
    assert taught(model, 0.0) == set()
    assert taught(model, 1.0)


def test_a_frozen_gain_does_not_let_the_bias_learn(make_expanded: Make, taught: Any) -> None:
    model = make_expanded([0, 1])
    model.router = make_router("parameter")
    for name, value in model.named_parameters():
        if "ln_" in name:
            value.requires_grad_(name.endswith("bias"))
    assert taught(model, 0.0) == set()
    assert {"transformer.ln_f.bias", "transformer.h.2.ln_1.bias"} <= taught(model, 1.0)
    assert not any(name.endswith("ln_f.weight") for name in taught(model, 1.0))


def test_forget_examples_teach_the_good_adapter_nothing(make_expanded: Make, taught: Any) -> None:
    """Dual LoRA: the base is frozen, adapters learn of retain examples alone, the module of all."""
    model = make_expanded([0, 1])
    choose_trainable(model, None, LoraSettings(rank=2, target_modules="all-linear"))
    model.router = make_router("parameter")
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_()
    assert taught(model, 0.0) == set()
    assert taught(model, 1.0) == {name for name, _ in model.named_parameters() if "lora_" in name}


def test_adapters_learn_by_the_routing_weight_of_each_token(make_expanded: Make, make_batch: Any) -> None:
    """In float64: dB = s * sum_t w_t d_t (A x_t)^T, dA = s * sum_t w_t (B^T d_t) x_t^T, of the last block's query."""
    model = make_expanded([0, 1]).double()
    choose_trainable(model, None, LoraSettings(rank=2, alpha=6.0, target_modules=["out_proj"]))
    model.router = make_router("parameter")
    adapter = model.transformer.h[2].attn.attention.out_proj
    a, b = adapter.lora_A["default"].weight, adapter.lora_B["default"].weight
    with torch.no_grad():
        b.normal_()
    seen: dict[str, Tensor] = {}
    adapter.register_forward_hook(lambda _layer, inputs, output: seen.update(x=inputs[0], y=output))
    adapter.register_full_backward_hook(lambda _layer, _inputs, outputs: seen.update(d=outputs[0]))
    batch = make_batch()
    model(**batch).loss.backward()
    x, d = seen["x"].detach(), seen["d"] * batch["routing_weight"].double()[..., None]
    assert b.grad is not None
    assert a.grad is not None
    torch.testing.assert_close(b.grad, 3.0 * torch.einsum("bto,btr->or", d, x @ a.T), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(a.grad, 3.0 * torch.einsum("btr,bti->ri", d @ b, x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([{"name": "forget", "width": 8, "kind": "heads"}], "`forget` stands beside the attention"),
        (
            [{"name": "one", "width": 8, "target_layers": [0, 1]}, {"name": "two", "width": 8, "target_layers": [1]}],
            r"the modules `one`, `two` stand in different layers",
        ),
    ],
)
def test_demix_needs_a_module_in_place_of_every_mlp(modules: Any, message: str) -> None:
    """Elsewhere a forget example would run without an MLP, and without a word."""
    config = LlamaConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, vocab_size=9)
    model = expanded_from_config(config, ExpansionConfig(modules=modules), 0)
    with pytest.raises(ValueError, match=message):
        model.router = make_router("demix")
    assert model.router.name == "activation"
