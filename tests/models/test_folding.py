"""`contract(keep=...)`: what cannot be folded into a stock MLP is refused; adapters, dtypes and switches."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import GPTNeoForCausalLM

from hf_era import ExpandedGPTNeoForCausalLM, ExpansionConfig, expand_base
from hf_era.models.layers import AuxiliaryMLP

MODULES = [{"name": "biology", "width": 4, "target_layers": [0, 2]}, {"name": "chemistry", "width": 3}]


@pytest.fixture
def model(base: GPTNeoForCausalLM) -> ExpandedGPTNeoForCausalLM:
    return expand_base(base, ExpansionConfig(modules=MODULES))


def logits(model: Any, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model.eval()(batch["input_ids"]).logits


def test_layers_without_the_module_get_units_of_zero(model: Any) -> None:
    """The new units come last; the module's own numbers are in them, its dial in the down projection."""
    model.set_dial("biology", 0.5)
    contracted = model.contract(keep=["biology"])
    assert type(contracted) is GPTNeoForCausalLM
    assert contracted.config.intermediate_size == 68
    own = model.auxiliary_modules()[2]["biology"]
    for layer, block in enumerate(contracted.transformer.h):
        stock, mlp = model.transformer.h[layer].mlp, block.mlp
        assert torch.equal(mlp.c_fc.weight[:64], stock.c_fc.weight)
        assert torch.equal(mlp.c_proj.weight[:, :64], stock.c_proj.weight)
        assert torch.equal(mlp.c_proj.bias, stock.c_proj.bias)
        if layer == 1:
            new = (mlp.c_fc.weight[64:], mlp.c_fc.bias[64:], mlp.c_proj.weight[:, 64:])
            assert not any(torch.count_nonzero(part) for part in new)
    assert torch.equal(mlp.c_fc.weight[64:], own.up_projection.weight)
    assert torch.equal(mlp.c_proj.weight[:, 64:], own.down_projection.weight * 0.5)


def test_keeping_none_is_contracting_and_the_order_does_not_matter(model: Any) -> None:
    for one, other in (([], ()), (["biology", "chemistry"], ["chemistry", "biology", "chemistry"])):
        states = [model.contract(keep=keep).state_dict() for keep in (one, other)]
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert model.contract(keep=[]).config.to_dict() == model.contract().config.to_dict()


def test_a_kept_module_stays_even_if_it_is_off_now(model: Any, make_batch: Callable[..., Any]) -> None:
    batch = make_batch()
    with model.ablated("chemistry"):
        expected = logits(model, batch)
    with model.ablated():
        contracted = model.contract(keep=["biology"])
    torch.testing.assert_close(logits(contracted, batch), expected, rtol=1e-5, atol=1e-5)


def test_half_precision_and_frozen_weights_stay_so(model: Any) -> None:
    model.bfloat16().transformer.h[0].mlp.c_fc.weight.requires_grad_(False)
    contracted = model.contract(keep=["biology"])
    assert {value.dtype for value in contracted.parameters()} == {torch.bfloat16}
    assert not contracted.transformer.h[0].mlp.c_fc.weight.requires_grad
    assert contracted.transformer.h[1].mlp.c_fc.weight.requires_grad


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers by an old name
def test_adapters_are_merged_first(model: Any, make_batch: Callable[..., Any]) -> None:
    batch = make_batch()
    get_peft_model(model, LoraConfig(target_modules=["c_fc", "up_projection"], init_lora_weights=False))
    with model.ablated("chemistry"):
        expected = logits(model, batch)
    contracted = model.contract(keep=["biology"])
    torch.testing.assert_close(logits(contracted, batch), expected, rtol=1e-4, atol=1e-4)


class OtherKind(AuxiliaryMLP):
    """Of a kind of its own."""

    kind = "other"


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (["biologie"], "Unknown key `biologie` in `keep`. Did you mean `biology`? Known: biology, chemistry."),
        ("biology", "`keep` should be a list of the modules to keep, such as ['forget'], got 'biology'."),
        (True, "`keep` should be a list of the modules to keep, such as ['forget'], got True."),
        ([0], "Unknown key `0` in `keep`. Known: biology, chemistry."),
    ],
)
def test_what_is_no_list_of_modules_is_refused(keep: Any, message: str, model: Any) -> None:
    with pytest.raises(ValueError, match="keep") as caught:
        model.contract(keep=keep)
    assert str(caught.value) == message


def test_what_is_no_wider_mlp_is_refused(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of another kind; a family without the config field; an MLP of more layers; one without a bias."""
    way_out = (
        r"Leave it out of `keep`, and save it with `save_module`: attached to the contracted model, it is the same\.$"
    )
    model.transformer.h[2].mlp.auxiliary["chemistry"].__class__ = OtherKind
    with pytest.raises(ValueError, match=rf"^`keep`: the module `chemistry` is of the kind `other`, .*{way_out}"):
        model.contract(keep=["chemistry"])
    model.transformer.h[2].mlp.auxiliary["chemistry"].__class__ = AuxiliaryMLP
    family = replace(model.family, intermediate_size=None)
    monkeypatch.setattr(type(model), "family", family)
    with pytest.raises(ValueError, match=rf"^`keep`: modules of the family `gpt_neo` cannot be folded .*{way_out}"):
        model.contract(keep=["biology"])
    monkeypatch.undo()
    way_out = r"Contract without `keep`, and attach the module's file to the result\.$"
    model.transformer.h[1].mlp.c_fc.register_parameter("bias", None)
    with pytest.raises(
        ValueError, match=rf"^`keep`: the module has a bias, and `transformer.h.1.mlp.c_fc` .*{way_out}"
    ):
        model.contract(keep=["chemistry"])
    model.transformer.h[0].mlp.more = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=rf"has the linear layers c_fc, c_proj, more, and which of them .*{way_out}"):
        model.contract(keep=["biology"])


def test_a_quantised_model_is_refused(model: Any) -> None:
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(ValueError, match=r"The base model is quantised \(`quantization_config`\)"):
        model.contract(keep=["biology"])
