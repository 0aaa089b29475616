"""Expanding a stock model: from a local directory or from memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, GPTNeoForCausalLM

from hf_era import ExpandedGPTNeoForCausalLM, ExpansionConfig, FastGPTNeoForCausalLM, expand_base
from hf_era.models.generation_config import GenerationConfigWarning
from hf_era.models.loading import load_causal_lm, without_weight_bars

EXPANSION = ExpansionConfig(width=8, target_layers=[0, 2])

MakeBase = Callable[..., GPTNeoForCausalLM]


def original_state(model: ExpandedGPTNeoForCausalLM) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if not model.is_auxiliary_parameter(name)}


def assert_same_state(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert sorted(actual) == sorted(expected)
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        assert torch.equal(actual[name], value), name


@pytest.mark.parametrize("source", ["memory", "folder", "string"])
@pytest.mark.parametrize("tie_word_embeddings", [True, False])
def test_from_base_keeps_the_bases_weights(
    source: str, tie_word_embeddings: bool, make_base: MakeBase, tmp_path: Path
) -> None:
    base = make_base(tie_word_embeddings=tie_word_embeddings)
    base.save_pretrained(tmp_path / "base")
    argument = {"memory": base, "folder": tmp_path / "base", "string": str(tmp_path / "base")}[source]
    for model in (ExpandedGPTNeoForCausalLM.from_base(argument, EXPANSION), expand_base(argument, EXPANSION)):
        assert type(model) is ExpandedGPTNeoForCausalLM
        assert_same_state(original_state(model), base.state_dict())
        assert model.config.expansion_config == EXPANSION
        assert (model.lm_head.weight is model.transformer.wte.weight) == tie_word_embeddings
        for modules in model.auxiliary_modules().values():
            assert modules["forget"].up_projection.weight.std().item() == pytest.approx(0.2, rel=0.3)
            assert torch.count_nonzero(modules["forget"].up_projection.bias) == 0


def test_from_base_defaults_to_the_default_expansion(base: GPTNeoForCausalLM) -> None:
    assert ExpandedGPTNeoForCausalLM.from_base(base).config.expansion_config == ExpansionConfig()


def test_a_base_in_memory_is_copied(base: GPTNeoForCausalLM) -> None:
    before = {name: value.clone() for name, value in base.state_dict().items()}
    model = ExpandedGPTNeoForCausalLM.from_base(base, EXPANSION)
    pointers = {value.untyped_storage().data_ptr() for value in base.state_dict().values()}
    assert not pointers & {value.untyped_storage().data_ptr() for value in model.state_dict().values()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert_same_state(base.state_dict(), before)
    assert type(base.transformer.h[0]).__name__ == "GPTNeoBlock"


def test_a_base_in_memory_keeps_what_it_had(base: GPTNeoForCausalLM) -> None:
    """What is frozen, the mode, gradient checkpointing, each weight's own dtype; and contraction keeps it too."""
    frozen = {"transformer.wte.weight", "lm_head.weight", "transformer.h.0.mlp.c_proj.bias"}
    for name, parameter in base.named_parameters(remove_duplicate=False):
        parameter.requires_grad_(name not in frozen)
    base.bfloat16().transformer.h[1].ln_1.float()
    enable = getattr(base, "activation_checkpointing_enable", base.gradient_checkpointing_enable)  # the older name
    enable({"use_reentrant": True})
    model = expand_base(base, EXPANSION)
    for made in (model, model.contract()):
        assert {n for n, part in made.named_parameters(remove_duplicate=False) if not part.requires_grad} == frozen
        assert made.transformer.gradient_checkpointing
        assert made.transformer.h[1].gradient_checkpointing
        assert made.transformer.h[1]._gradient_checkpointing_func.keywords == {"use_reentrant": True}
        assert not made.training
        assert made.transformer.h[1].ln_1.weight.dtype == torch.float32
        assert made.lm_head.weight is made.transformer.wte.weight
    assert_same_state(original_state(model), base.state_dict())
    assert {model.state_dict()[name].dtype for name in model.state_dict().keys() - base.state_dict().keys()} == {
        torch.bfloat16
    }
    assert {n for n, part in base.named_parameters(remove_duplicate=False) if not part.requires_grad} == frozen
    assert expand_base(base.train(), EXPANSION).training
    assert {value.dtype for value in expand_base(base, EXPANSION, dtype=torch.float64).parameters()} == {torch.float64}


@pytest.mark.parametrize("source", ["memory", "folder"])
def test_from_base_in_bf16(source: str, make_base: MakeBase, tmp_path: Path) -> None:
    base = make_base().bfloat16()
    base.save_pretrained(tmp_path / "base")
    if source == "memory":
        model = ExpandedGPTNeoForCausalLM.from_base(base, EXPANSION)
    else:
        model = ExpandedGPTNeoForCausalLM.from_base(tmp_path / "base", EXPANSION, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert_same_state(original_state(model), base.state_dict())


def test_options_reach_from_pretrained(make_base: MakeBase, tmp_path: Path) -> None:
    make_base().save_pretrained(tmp_path / "repository" / "base")
    model = ExpandedGPTNeoForCausalLM.from_base(
        tmp_path / "repository" / "base", EXPANSION, dtype=torch.float64, attn_implementation="eager"
    )
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}


@pytest.mark.parametrize("source", ["memory", "folder"])
def test_generation_config_is_carried_over(source: str, make_base: MakeBase, tmp_path: Path) -> None:
    base = make_base()
    base.generation_config = GenerationConfig(max_new_tokens=7, do_sample=True, temperature=0.4, bos_token_id=52)
    base.save_pretrained(tmp_path / "base")
    model = ExpandedGPTNeoForCausalLM.from_base(base if source == "memory" else tmp_path / "base", EXPANSION)
    for name in ("max_new_tokens", "do_sample", "temperature", "bos_token_id"):
        assert getattr(model.generation_config, name) == getattr(base.generation_config, name), name


def test_the_bases_generation_config_is_not_shared(base: GPTNeoForCausalLM) -> None:
    model = ExpandedGPTNeoForCausalLM.from_base(base, EXPANSION)
    model.generation_config.max_new_tokens = 3
    assert base.generation_config.max_new_tokens != 3


def test_loading_prints_no_warning_of_new_weights(
    base_folder: Path, capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    ExpandedGPTNeoForCausalLM.from_base(base_folder, EXPANSION)
    printed = capfd.readouterr()
    for text in (printed.out, printed.err, caplog.text):
        assert "newly initialized" not in text
        assert "MISSING" not in text


def test_a_generation_config_that_cannot_be_saved_is_repaired(base: GPTNeoForCausalLM, tmp_path: Path) -> None:
    base.generation_config.update(temperature=0.7, top_k=3, do_sample=False, max_new_tokens=9)
    with pytest.warns(GenerationConfigWarning, match=r"so `temperature` = 0.7, `top_k` = 3 was left out.*`do_sample`"):
        model = expand_base(base, EXPANSION)
    assert base.generation_config.temperature == 0.7
    assert (model.generation_config.do_sample, model.generation_config.max_new_tokens) == (False, 9)
    model.generation_config.temperature = 0.5
    with pytest.warns(GenerationConfigWarning, match="`temperature` = 0.5"):
        model.contract().save_pretrained(tmp_path)
    with pytest.warns(GenerationConfigWarning, match="`temperature` = 0.7"):
        FastGPTNeoForCausalLM.from_stock(base).save_pretrained(tmp_path)
    base.generation_config.do_sample = True
    assert expand_base(base, EXPANSION).generation_config.temperature == 0.7


def test_generation_parameters_in_the_models_config_are_moved(base: GPTNeoForCausalLM, tmp_path: Path) -> None:
    model = expand_base(base, EXPANSION)
    model.generation_config.update(do_sample=True, top_k=9)
    own = model.generation_config
    model.config.max_length, model.config.temperature, model.config.top_k = 30, 0.7, 5
    with pytest.warns(GenerationConfigWarning, match=r"`model.config` .*`max_length` = 30.*`temperature` = 0.7"):
        model.contract().save_pretrained(tmp_path / "stock")
    kept = model.generation_config
    assert (kept.max_length, kept.temperature, kept.top_k) == (30, 0.7, 9)  # what it says itself goes first
    assert own.max_length != 30
    assert GenerationConfig.from_pretrained(tmp_path / "stock").max_length == 30
    model.save_pretrained(tmp_path / "expanded")


@pytest.mark.parametrize("other", [None, {"max_length": 30}])
def test_a_model_without_a_generation_config_gets_one(other: Any, base: GPTNeoForCausalLM, tmp_path: Path) -> None:
    base.generation_config = other
    text = "`model.generation_config` should be a `GenerationConfig`, got (None|{)"
    with pytest.warns(GenerationConfigWarning, match=text):
        model = expand_base(base, EXPANSION)
    assert model.generation_config.eos_token_id == 52
    model.save_pretrained(tmp_path / "expanded")
    model.generation_config = other
    with pytest.warns(GenerationConfigWarning, match=text):
        model.contract().save_pretrained(tmp_path / "stock")


@pytest.mark.parametrize(("name", "value"), [("max_new_tokens", {1, 2}), ("note", object()), ("note", {"a": [{3}]})])
def test_what_is_no_json_in_a_generation_config_is_left_out(
    name: str, value: Any, base: GPTNeoForCausalLM, tmp_path: Path
) -> None:
    setattr(base.generation_config, name, value)
    with pytest.warns(GenerationConfigWarning, match=rf"so `{name}` = .* was left out"):
        model = expand_base(base, EXPANSION)
    assert getattr(model.generation_config, name, None) is None
    model.save_pretrained(tmp_path)


def test_what_is_no_json_in_the_models_config_is_refused(base: GPTNeoForCausalLM) -> None:
    model = expand_base(base, EXPANSION)
    model.config.note = {1, 2}
    with pytest.raises(ValueError, match=r"`model.config.note` is {1, 2}.*cannot be saved.*Delete it"):
        model.contract()


def test_a_checkpoints_generation_config_is_repaired(base: GPTNeoForCausalLM, tmp_path: Path) -> None:
    base.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.7, "max_new_tokens": 9}')
    with pytest.warns(GenerationConfigWarning, match="`temperature` = 0.7"):
        model = expand_base(tmp_path, EXPANSION)
    model.generation_config.pad_token_id = 5  # as the Trainer does
    model.save_pretrained(tmp_path / "expanded")


def test_bars_of_weights_are_quiet_where_asked(
    base: GPTNeoForCausalLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with without_weight_bars():
        base.save_pretrained(tmp_path)
        load_causal_lm(tmp_path)
        assert capsys.readouterr().err == ""
    GPTNeoForCausalLM.from_pretrained(tmp_path)  # the user's own
    assert "Loading weights" in capsys.readouterr().err
