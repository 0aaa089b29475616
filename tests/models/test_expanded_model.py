"""The expanded model made from a config, saved and loaded, and its forward pass."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from torch import Tensor
from transformers import AutoModelForCausalLM, GPTNeoConfig, GPTNeoForCausalLM

from hf_era import ExpandedGPTNeoConfig, ExpandedGPTNeoForCausalLM, ExpansionConfig
from hf_era.models import AuxiliaryMLP, ExpandedCausalLMOutput
from hf_era.models.fast.causal_lm import CACHE_NAME
from hf_era.models.loading import expanded_from_config

EXPANSION = ExpansionConfig(width=8, target_layers=[0, 2])

MakeBase = Callable[..., GPTNeoForCausalLM]
MakeExpanded = Callable[..., ExpandedGPTNeoForCausalLM]


def original_state(model: ExpandedGPTNeoForCausalLM) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if not model.is_auxiliary_parameter(name)}


def assert_same_state(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert sorted(actual) == sorted(expected)
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        assert torch.equal(actual[name], value), name


# ---- Made from a config ----


def test_original_weights_keep_names_and_shapes(make_config: Callable[..., GPTNeoConfig]) -> None:
    stock = GPTNeoForCausalLM(make_config())
    model = ExpandedGPTNeoForCausalLM(ExpandedGPTNeoConfig.from_base_config(make_config(), EXPANSION))
    assert isinstance(model, GPTNeoForCausalLM)
    assert {name: value.shape for name, value in original_state(model).items()} == {
        name: value.shape for name, value in stock.state_dict().items()
    }
    added = {name: tuple(value.shape) for name, value in model.state_dict().items() if "auxiliary" in name}
    assert added == {
        f"transformer.h.{layer}.mlp.auxiliary.forget.{part}": shape
        for layer in (0, 2)
        for part, shape in {
            "up_projection.weight": (8, 16),
            "up_projection.bias": (8,),
            "down_projection.weight": (16, 8),
        }.items()
    }


@pytest.mark.parametrize("tie_word_embeddings", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_same_seed_gives_the_same_original_weights_as_the_stock_model(
    seed: int, tie_word_embeddings: bool, make_config: Callable[..., GPTNeoConfig]
) -> None:
    """What makes a base control of a from-scratch run a fair one."""
    config = make_config(tie_word_embeddings=tie_word_embeddings)
    torch.manual_seed(seed)
    stock = GPTNeoForCausalLM(config)
    model = expanded_from_config(config, EXPANSION, seed=seed)
    assert_same_state(original_state(model), stock.state_dict())


def test_same_seed_gives_the_same_model(make_config: Callable[..., GPTNeoConfig]) -> None:
    first, second = (expanded_from_config(make_config(), EXPANSION, seed=4) for _ in range(2))
    assert_same_state(first.state_dict(), second.state_dict())


@pytest.mark.parametrize("source", ["config", "memory", "folder"])
@pytest.mark.parametrize("scale", [0.25, 1.0, 3.0])
def test_auxiliary_weights_start_at_the_chosen_scale(
    scale: float, source: str, make_base: MakeBase, tmp_path: Path
) -> None:
    expansion = ExpansionConfig(width=512, initialization_scale=scale)
    base = make_base(initializer_range=0.1)
    base.save_pretrained(tmp_path)
    if source == "config":
        model = expanded_from_config(base.config, expansion, seed=0)
    else:
        model = ExpandedGPTNeoForCausalLM.from_base(base if source == "memory" else tmp_path, expansion)
    for modules in model.auxiliary_modules().values():
        module = modules["forget"]
        for weight in (module.up_projection.weight, module.down_projection.weight):
            assert weight.std().item() == pytest.approx(0.1 * scale, rel=0.05)  # 8,192 draws: 0.8 % standard error
            assert weight.mean().item() == pytest.approx(0, abs=0.01 * scale)
        assert torch.count_nonzero(module.up_projection.bias) == 0
    weights = [modules["forget"].up_projection.weight for modules in model.auxiliary_modules().values()]
    assert not torch.equal(weights[0], weights[1])
    # The original weights keep their own scale.
    assert model.transformer.h[0].mlp.c_fc.weight.std().item() == pytest.approx(0.1, rel=0.1)


def test_initializing_again_leaves_the_weights_alone(make_expanded: MakeExpanded) -> None:
    """transformers calls it more than once: after loading, and when embeddings are resized."""
    model = make_expanded([0])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.init_weights()
    assert_same_state(model.state_dict(), before)


def test_expanding_adds_the_output_of_the_side_branch(make_expanded: MakeExpanded, make_batch: Callable) -> None:
    model = make_expanded([1]).eval()
    hidden = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))
    mlp = model.transformer.h[1].mlp
    auxiliary = mlp.auxiliary["forget"]
    by_hand = mlp.c_proj(mlp.act(mlp.c_fc(hidden))) + auxiliary.down_projection(
        mlp.act(auxiliary.up_projection(hidden))
    )
    torch.testing.assert_close(mlp(hidden), by_hand)


@pytest.mark.parametrize(("target_layers", "expected"), [(None, [0, 1, 2]), ([1], [1]), ([2, 0], [0, 2])])
def test_only_target_layers_are_expanded(
    target_layers: list[int] | None, expected: list[int], make_expanded: MakeExpanded
) -> None:
    model = make_expanded(target_layers)
    assert list(model.auxiliary_modules()) == expected
    for layer, block in enumerate(model.transformer.h):
        is_expanded = type(block).__name__ == "ExpandedGPTNeoBlock"
        assert is_expanded == (layer in expected)
    assert all(isinstance(modules["forget"], AuxiliaryMLP) for modules in model.auxiliary_modules().values())


def test_the_modules_name_is_part_of_the_parameters_names(make_config: Callable[..., GPTNeoConfig]) -> None:
    model = expanded_from_config(make_config(), ExpansionConfig(module_name="forest", width=2), seed=0)
    assert list(model.auxiliary_modules()[0]) == ["forest"]
    assert "transformer.h.0.mlp.auxiliary.forest.up_projection.weight" in model.state_dict()


def test_which_parameters_are_auxiliary(make_expanded: MakeExpanded) -> None:
    model = make_expanded([0])
    found = {name for name, _ in model.named_parameters() if model.is_auxiliary_parameter(name)}
    inside = {id(parameter) for parameter in model.auxiliary_modules()[0]["forget"].parameters()}
    assert {id(dict(model.named_parameters())[name]) for name in found} == inside
    assert len(found) == 3


def test_intermediate_size_is_untouched(make_base: MakeBase) -> None:
    base = make_base(intermediate_size=24)
    model = ExpandedGPTNeoForCausalLM.from_base(base, EXPANSION)
    assert model.config.intermediate_size == 24
    assert model.transformer.h[0].mlp.c_fc.weight.shape == (24, 16)


# ---- Saved and loaded ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded_through_the_auto_class(
    dtype: torch.dtype, make_expanded: MakeExpanded, make_batch: Callable, tmp_path: Path
) -> None:
    model = make_expanded([0, 2]).to(dtype).eval()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert type(loaded) is ExpandedGPTNeoForCausalLM
    assert_same_state(loaded.state_dict(), model.state_dict())
    batch = make_batch()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
        # Loaded means loaded: the auxiliary weights matter to these logits.
        with loaded.ablated():
            assert not torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_going_on_with_a_saved_expanded_model_keeps_its_auxiliary_weights(
    make_expanded: MakeExpanded, tmp_path: Path
) -> None:
    model = make_expanded([1])
    model.save_pretrained(tmp_path)
    loaded = ExpandedGPTNeoForCausalLM.from_pretrained(tmp_path)
    assert_same_state(loaded.state_dict(), model.state_dict())


# ---- Forward ----


def test_output_has_the_l1_norm_only_when_asked(make_expanded: MakeExpanded, make_batch: Callable, paths: Any) -> None:
    model, batch = paths.set(make_expanded([0, 2])), {**make_batch(), "skip_logits": False}
    plain, measured = model(**batch), model(**batch, output_activation_l1=True)
    assert isinstance(plain, ExpandedCausalLMOutput)
    assert plain.activation_l1 is None
    assert measured.activation_l1.shape == ()
    assert measured.activation_l1.dtype == torch.float32
    assert torch.equal(measured.logits, plain.logits)


def test_l1_norm_by_hand(make_expanded: MakeExpanded, make_batch: Callable, paths: Any) -> None:
    """Over target layers, both kinds of dims, real tokens; the ablated module does not count."""
    model, batch = paths.set(make_expanded([0, 2])), make_batch()
    seen: dict[str, list[Tensor]] = {"original": [], "auxiliary": []}
    for block in (model.transformer.h[0], model.transformer.h[2]):
        block.mlp.c_proj.register_forward_pre_hook(lambda module, inputs: seen["original"].append(inputs[0].detach()))
        block.mlp.auxiliary["forget"].down_projection.register_forward_pre_hook(
            lambda module, inputs: seen["auxiliary"].append(inputs[0].detach())
        )
    norm = model(**batch, output_activation_l1=True).activation_l1
    real = batch["attention_mask"].bool()

    def by_hand(kind: str) -> float:
        return sum(activation[real].double().abs().sum().item() for activation in seen[kind])

    assert norm.item() == pytest.approx(by_hand("original") + by_hand("auxiliary"), rel=1e-6)
    for activations in seen.values():
        activations.clear()
    with model.ablated():
        ablated_norm = model(**batch, output_activation_l1=True).activation_l1
    assert seen["auxiliary"] == []
    assert ablated_norm.item() == pytest.approx(by_hand("original"), rel=1e-6)


def test_tuple_outputs(make_expanded: MakeExpanded, make_batch: Callable, paths: Any) -> None:
    model, batch = paths.set(make_expanded([0])), {**make_batch(), "skip_logits": False}
    expected = model(**batch, output_activation_l1=True)
    loss, logits = model(**batch, return_dict=False)
    assert torch.equal(loss, expected.loss)
    assert torch.equal(logits, expected.logits)
    *_, norm = model(**batch, return_dict=False, output_activation_l1=True)
    assert torch.equal(norm, expected.activation_l1)


@pytest.mark.parametrize("with_l1", [False, True])
def test_hidden_states_attentions_and_cache_are_those_of_the_stock_model(
    with_l1: bool, base: GPTNeoForCausalLM, make_batch: Callable, paths: Any
) -> None:
    batch = make_batch()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    options = {"output_hidden_states": True, "use_cache": True}
    model = paths.set(ExpandedGPTNeoForCausalLM.from_base(base, EXPANSION)).eval()
    expected = paths.reference(base)(**inputs, **options)
    with model.ablated():
        outputs = model(**inputs, **options, routing_weight=batch["routing_weight"], output_activation_l1=with_l1)
    assert torch.equal(outputs.loss, expected.loss)
    assert len(outputs.hidden_states) == len(expected.hidden_states) == 4
    assert all(torch.equal(a, b) for a, b in zip(outputs.hidden_states, expected.hidden_states, strict=True))
    assert outputs[CACHE_NAME].get_seq_length() == expected[CACHE_NAME].get_seq_length() == 12


def test_a_saved_model_says_how_to_load_it(make_expanded: Callable[..., Any], tmp_path: Path) -> None:
    """transformers alone does not know its type, and says to update transformers."""
    model = make_expanded([0, 2])
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["load_with"].startswith("import hf_era, which makes")
    readme = (tmp_path / "README.md").read_text()
    for text in (
        "import hf_era",
        "`expanded_gpt_neo`",
        "has not been removed",
        "* `forget`: 8 hidden units, in layers [0, 2]",
    ):
        assert text in readme
    assert len(readme.splitlines()) < 40
    assert ModelCard.load(tmp_path / "README.md").data.library_name == "hf_era"
    loaded = ExpandedGPTNeoForCausalLM.from_pretrained(tmp_path)
    assert not hasattr(loaded.config, "load_with")
    assert loaded.config.to_dict() == {
        **model.config.to_dict(),
        "_name_or_path": loaded.config.to_dict()["_name_or_path"],
    }
    assert "load_with" not in loaded.contract().config.to_dict()
    (tmp_path / "README.md").write_text("mine")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
