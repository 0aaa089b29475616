"""`FastGPTNeoForCausalLM` from a stock model and back: shared weights, stock files, the same weights for a seed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, GPTNeoConfig, GPTNeoForCausalLM

from hf_era import FastGPTNeoForCausalLM

MakeBase = Callable[..., GPTNeoForCausalLM]

tied_or_not = pytest.mark.parametrize("tie_word_embeddings", [True, False])


def assert_same_weights(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(actual) == list(expected)
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        assert torch.equal(actual[name], value), name


@tied_or_not
@pytest.mark.parametrize("seed", [0, 1])
def test_a_seed_gives_the_weights_of_the_stock_class(
    seed: int, tie_word_embeddings: bool, make_config: Callable[..., GPTNeoConfig]
) -> None:
    states = []
    for model_class in (FastGPTNeoForCausalLM, GPTNeoForCausalLM):
        torch.manual_seed(seed)
        model = model_class(make_config(tie_word_embeddings=tie_word_embeddings))
        states.append({**model.state_dict(), "drawn next": torch.rand(1)})
    assert_same_weights(*states)


@tied_or_not
@pytest.mark.parametrize("training", [True, False])
def test_from_stock_shares_the_parameters_and_leaves_the_stock_model_alone(
    training: bool, tie_word_embeddings: bool, make_base: MakeBase
) -> None:
    stock = make_base(tie_word_embeddings=tie_word_embeddings).train(training)
    stock.generation_config = GenerationConfig(max_new_tokens=7)
    stock.transformer.wpe.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in stock.state_dict().items()}
    torch.manual_seed(3)
    fast = FastGPTNeoForCausalLM.from_stock(stock)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))
    assert fast.training is training
    assert fast.config is not stock.config
    assert fast.generation_config.max_new_tokens == 7
    assert fast.generation_config is not stock.generation_config
    theirs = dict(stock.named_parameters())
    assert [name for name, _ in fast.named_parameters()] == list(theirs)
    assert all(parameter is theirs[name] for name, parameter in fast.named_parameters())
    assert (fast.lm_head.weight is fast.transformer.wte.weight) == tie_word_embeddings
    assert not fast.transformer.wpe.weight.requires_grad
    assert type(stock) is GPTNeoForCausalLM
    assert {type(block.mlp.act).__name__ for block in stock.transformer.h} == {"NewGELUActivation"}
    assert_same_weights(dict(stock.state_dict()), before)


@tied_or_not
def test_to_stock_shares_the_parameters(tie_word_embeddings: bool, make_base: MakeBase) -> None:
    stock = make_base(tie_word_embeddings=tie_word_embeddings)
    fast = FastGPTNeoForCausalLM.from_stock(stock)
    fast.transformer.wpe.weight.requires_grad_(False)
    back = fast.to_stock()
    assert type(back) is GPTNeoForCausalLM
    assert type(back.config) is GPTNeoConfig
    assert back.config._attn_implementation == "eager"
    assert fast.config._attn_implementation == "sdpa"
    ours = dict(fast.named_parameters())
    assert [parameter.requires_grad for parameter in ours.values()].count(False) == 1  # still frozen, in both
    assert all(parameter is ours[name] for name, parameter in back.named_parameters())
    assert (back.lm_head.weight is back.transformer.wte.weight) == tie_word_embeddings
    ids = torch.arange(12)[None]
    assert torch.equal(back(ids).logits, stock(ids).logits)


@tied_or_not
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_files_are_those_of_the_stock_class(
    dtype: torch.dtype, tie_word_embeddings: bool, make_base: MakeBase, tmp_path: Path
) -> None:
    stock = make_base(tie_word_embeddings=tie_word_embeddings).to(dtype)
    FastGPTNeoForCausalLM.from_stock(stock).save_pretrained(tmp_path / "fast")
    stock.save_pretrained(tmp_path / "stock")
    names = sorted(path.name for path in (tmp_path / "stock").iterdir())
    assert "model.safetensors" in names
    assert sorted(path.name for path in (tmp_path / "fast").iterdir()) == names
    for name in names:
        assert (tmp_path / "fast" / name).read_bytes() == (tmp_path / "stock" / name).read_bytes(), name
    config = json.loads((tmp_path / "fast" / "config.json").read_text())
    assert config["architectures"] == ["GPTNeoForCausalLM"]
    assert config["model_type"] == "gpt_neo"
    assert config["tie_word_embeddings"] is tie_word_embeddings


@tied_or_not
def test_saved_and_loaded(tie_word_embeddings: bool, make_base: MakeBase, tmp_path: Path) -> None:
    fast = FastGPTNeoForCausalLM.from_stock(make_base(tie_word_embeddings=tie_word_embeddings))
    fast.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is GPTNeoConfig
    for model_class, expected in ((AutoModelForCausalLM, GPTNeoForCausalLM), (FastGPTNeoForCausalLM,) * 2):
        loaded: Any = model_class.from_pretrained(tmp_path)
        assert type(loaded) is expected
        assert_same_weights(loaded.state_dict(), fast.state_dict())
        assert (loaded.lm_head.weight is loaded.transformer.wte.weight) == tie_word_embeddings


def test_what_is_saved_is_the_state_that_is_handed_over(make_base: MakeBase, tmp_path: Path) -> None:
    """As trainers do that gather the weights themselves."""
    fast = FastGPTNeoForCausalLM.from_stock(make_base())
    doubled = {name: 2 * value for name, value in fast.state_dict().items()}
    fast.save_pretrained(tmp_path, state_dict=doubled)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.transformer.wpe.weight, 2 * fast.transformer.wpe.weight)


def test_a_loaded_model_trains_and_saves_what_it_learned(
    make_base: MakeBase, make_inputs: Callable[..., dict[str, Tensor]], tmp_path: Path
) -> None:
    make_base().save_pretrained(tmp_path / "before")
    fast = FastGPTNeoForCausalLM.from_pretrained(tmp_path / "before").train()
    fast.transformer.wpe.requires_grad_(False)
    fast.save_pretrained(tmp_path / "on the way")  # saving, as a Trainer does while it trains, unfreezes nothing
    optimizer = torch.optim.AdamW(fast.parameters(), lr=1e-2)
    fast(**make_inputs()).loss.backward()
    optimizer.step()
    fast.save_pretrained(tmp_path / "after")
    before, after = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("before", "after"))
    for name, value in before.items():
        assert torch.equal(after[name], value) == (name == "transformer.wpe.weight"), name
    assert_same_weights(after, fast.state_dict())
