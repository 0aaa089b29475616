"""LoRA attacks: which parameters take part, and that the fast class does the same as the stock one."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from hf_era import FastGPTNeoForCausalLM
from hf_era.evaluation import RelearnAttack, RelearnAttackConfig
from hf_era.evaluation.relearn.attack import MeasuredStories, with_lora
from hf_era.evaluation.relearn.measured import PaddedExamples


def stories(number: int, seed: int) -> Dataset:
    generator = torch.Generator().manual_seed(seed)
    lengths = [4 + index % 5 for index in range(number)]
    ids = [torch.randint(0, 52, (length,), generator=generator).tolist() for length in lengths]
    return Dataset.from_dict({"input_ids": ids, "length": lengths})


def make_attack(seed: int = 0, **settings: Any) -> RelearnAttack:
    """Measured on the attacker's own stories."""
    values = {"steps": 5, "learning_rate": 1e-2, "patience": None, "lora_rank": 2, "lora_alpha": 4, "seed": seed}
    own = stories(4, 0)
    measured = MeasuredStories(own, stories(5, 2), 0)
    return RelearnAttack(own, measured, 0, RelearnAttackConfig(**{**values, **settings}), kind="lora")


def small_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 53, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    return LlamaForCausalLM(
        LlamaConfig(**sizes, num_attention_heads=2, max_position_embeddings=32, bos_token_id=0, eos_token_id=0)
    )


def small_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 53, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def test_every_linear_layer_but_the_head_has_adapters_and_nothing_else_is_trained(
    make_base: Callable[..., Any],
) -> None:
    fast = FastGPTNeoForCausalLM.from_stock(make_base())
    linear = {name for name, module in fast.named_modules() if isinstance(module, nn.Linear)} - {"lm_head"}
    model = with_lora(fast, 2, 4)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(linear) == 3 * 6  # 3 layers: q, k, v, out, c_fc, c_proj
    assert trained == {f"{name}.lora_{part}.default.weight" for name in linear for part in "AB"}
    assert isinstance(model, FastGPTNeoForCausalLM)  # not a wrapper: it keeps its chunked loss


@pytest.mark.parametrize("started", [False, True])
def test_gradients_reach_every_adapter_of_the_fast_class(make_base: Callable[..., Any], started: bool) -> None:
    """As in the stock class. `started`: B is no longer zero, so that the loss depends on A too."""
    found = []
    for fast in (True, False):
        model = make_base()
        torch.manual_seed(1)
        model = with_lora(FastGPTNeoForCausalLM.from_stock(model) if fast else model, 2, 4)
        if started:
            generator = torch.Generator().manual_seed(3)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "lora_B" in name:
                        parameter.copy_(torch.randn(parameter.shape, generator=generator))
        loss = model(**PaddedExamples(stories(4, 0), 0, "cpu").batches(range(4), 4)[0]).loss
        loss.backward()
        gradients = {name: part.grad for name, part in model.named_parameters() if part.requires_grad}
        found.append((loss.item(), gradients))
    (fast_loss, fast_gradients), (stock_loss, stock_gradients) = found
    assert fast_loss == pytest.approx(stock_loss, rel=1e-6)
    assert set(fast_gradients) == set(stock_gradients)
    for name, gradient in fast_gradients.items():
        assert torch.allclose(gradient, stock_gradients[name], rtol=1e-4, atol=1e-6), name
        assert bool(gradient.abs().max() > 0) == (started or "lora_B" in name), name


def test_the_curve_is_that_of_peft_on_the_stock_class(make_base: Callable[..., Any]) -> None:
    """Against the plain loop through peft's wrapper, with whole logits."""
    from peft import LoraConfig, get_peft_model

    curve = make_attack().run(make_base())
    torch.manual_seed(0)
    base = make_base()
    torch.manual_seed(0)  # after the model: the adapters' own seed
    settings = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # peft asks transformers by an old name
        model = get_peft_model(base, settings)
    optimizer = torch.optim.AdamW(
        [part for part in model.parameters() if part.requires_grad], lr=1e-2, betas=(0.9, 0.95)
    )
    batch = PaddedExamples(stories(4, 0), 0, "cpu").batches(range(4), 4)[0]
    expected = [model(**batch).loss.item()]
    for _ in range(5):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
        expected.append(model(**batch).loss.item())
    assert [point.forget_loss for point in curve.points] == pytest.approx(expected, rel=1e-5)
    assert expected[-1] < expected[0] - 0.05


@pytest.mark.parametrize("make_model", [small_llama, small_gpt2])
def test_any_causal_lm_is_attacked_and_left_as_it_was(make_model: Callable[[], Any]) -> None:
    model = make_model().eval().requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    one, same, other = (make_attack(seed).run(model) for seed in (0, 0, 1))
    assert one.points[-1].forget_loss < one.points[0].forget_loss
    assert one == same
    assert one != other
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_expanded_models_and_half_precision_too(make_expanded: Callable[..., Any]) -> None:
    model = make_expanded([0])
    expected = make_attack().run(model.to(torch.bfloat16).float())
    curve = make_attack().run(model.to(torch.bfloat16))
    assert curve == expected
    assert curve.points[-1].forget_loss < curve.points[0].forget_loss


def test_rank_and_alpha_are_heard(make_base: Callable[..., Any]) -> None:
    curves = [make_attack(**settings).run(make_base()) for settings in ({}, {"lora_rank": 4}, {"lora_alpha": 8.0})]
    assert all(curve.points[0] == curves[0].points[0] for curve in curves)
    assert len({curve.points[-1].forget_loss for curve in curves}) == 3


def test_a_model_without_linear_layers_is_refused(make_base: Callable[..., Any]) -> None:
    class NoLayers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = make_base().config
            self.weight = nn.Parameter(torch.zeros(3))

        prepare_inputs_for_generation = None

    with pytest.raises(
        ValueError, match=r"`relearn.lora`: peft can put no adapters on NoLayers .*--relearn\.lora false"
    ):
        with_lora(NoLayers(), 2, 4)
