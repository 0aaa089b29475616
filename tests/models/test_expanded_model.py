"""The expanded model: three ways to make one, ablation, generation, and the errors of bad input."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from hf_era import ExpandedGPTNeoConfig, ExpandedGPTNeoForCausalLM, ExpansionConfig, expand_base
from hf_era.models import AuxiliaryMLP, ExpandedCausalLMOutput
from hf_era.models.loading import expanded_from_config

EXPANSION = ExpansionConfig(width=8, target_layers=[0, 2])

MakeBase = Callable[..., GPTNeoForCausalLM]
MakeExpanded = Callable[..., ExpandedGPTNeoForCausalLM]


@pytest.fixture
def base(make_base: MakeBase) -> GPTNeoForCausalLM:
    return make_base().eval()


@pytest.fixture
def base_folder(base: GPTNeoForCausalLM, tmp_path: Path) -> Path:
    base.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


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


@pytest.mark.parametrize("scale", [0.25, 1.0, 3.0])
def test_auxiliary_weights_start_at_the_chosen_scale(scale: float, make_config: Callable[..., GPTNeoConfig]) -> None:
    expansion = ExpansionConfig(width=512, initialization_scale=scale)
    model = expanded_from_config(make_config(initializer_range=0.1), expansion, seed=0)
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


# ---- Made from a base ----


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


def test_output_has_the_l1_norm_only_when_asked(make_expanded: MakeExpanded, make_batch: Callable) -> None:
    model, batch = make_expanded([0, 2]), make_batch()
    plain, measured = model(**batch), model(**batch, output_activation_l1=True)
    assert isinstance(plain, ExpandedCausalLMOutput)
    assert plain.activation_l1 is None
    assert measured.activation_l1.shape == ()
    assert measured.activation_l1.dtype == torch.float32
    assert torch.equal(measured.logits, plain.logits)


def test_l1_norm_by_hand(make_expanded: MakeExpanded, make_batch: Callable) -> None:
    """Over target layers, both kinds of dims, real tokens; the ablated module does not count."""
    model, batch = make_expanded([0, 2]), make_batch()
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


def test_tuple_outputs(make_expanded: MakeExpanded, make_batch: Callable) -> None:
    model, batch = make_expanded([0]), make_batch()
    expected = model(**batch, output_activation_l1=True)
    loss, logits = model(**batch, return_dict=False)
    assert torch.equal(loss, expected.loss)
    assert torch.equal(logits, expected.logits)
    *_, norm = model(**batch, return_dict=False, output_activation_l1=True)
    assert torch.equal(norm, expected.activation_l1)


@pytest.mark.parametrize("with_l1", [False, True])
def test_hidden_states_attentions_and_cache_are_those_of_the_stock_model(
    with_l1: bool, base: GPTNeoForCausalLM, make_batch: Callable
) -> None:
    batch = make_batch()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    options = {"output_hidden_states": True, "use_cache": True}
    model = ExpandedGPTNeoForCausalLM.from_base(base, EXPANSION).eval()
    expected = base(**inputs, **options)
    with model.ablated():
        outputs = model(**inputs, **options, routing_weight=batch["routing_weight"], output_activation_l1=with_l1)
    assert torch.equal(outputs.loss, expected.loss)
    assert len(outputs.hidden_states) == len(expected.hidden_states) == 4
    assert all(torch.equal(a, b) for a, b in zip(outputs.hidden_states, expected.hidden_states, strict=True))
    assert outputs.past_key_values.get_seq_length() == expected.past_key_values.get_seq_length() == 12


# ---- Ablation ----


def test_ablated_model_equals_the_base_bit_for_bit(base: GPTNeoForCausalLM, make_batch: Callable) -> None:
    model, batch = ExpandedGPTNeoForCausalLM.from_base(base, EXPANSION).eval(), make_batch()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        on, stock = model(**inputs).logits, base(**inputs).logits
        with model.ablated() as same:
            assert same is model
            off = model(**inputs).logits
        again = model(**inputs).logits
    assert torch.equal(off, stock)
    assert not torch.equal(on, stock)
    assert torch.equal(again, on)


def activity(model: ExpandedGPTNeoForCausalLM) -> list[bool]:
    return [module.active for modules in model.auxiliary_modules().values() for module in modules.values()]


def test_ablated_contexts_nest(make_expanded: MakeExpanded) -> None:
    model = make_expanded([0, 2])
    with model.ablated():
        assert activity(model) == [False, False]
        with model.ablated():
            assert activity(model) == [False, False]
        assert activity(model) == [False, False]
    assert activity(model) == [True, True]


def test_ablated_context_restores_each_module_to_what_it_was(make_expanded: MakeExpanded) -> None:
    model = make_expanded([0, 2])
    model.auxiliary_modules()[0]["forget"].active = False
    with model.ablated():
        assert activity(model) == [False, False]
    assert activity(model) == [False, True]


def stop_inside_ablated(model: ExpandedGPTNeoForCausalLM) -> None:
    with model.ablated():
        assert activity(model) == [False, False]
        raise RuntimeError("stop")


def test_ablated_context_restores_after_an_error(make_expanded: MakeExpanded) -> None:
    model = make_expanded([0, 2])
    with pytest.raises(RuntimeError, match="stop"):
        stop_inside_ablated(model)
    assert activity(model) == [True, True]


def test_set_ablated_lasts(make_expanded: MakeExpanded) -> None:
    model = make_expanded([0, 2])
    model.set_ablated(True)
    with model.ablated():
        pass
    assert activity(model) == [False, False]
    model.set_ablated(False)
    assert activity(model) == [True, True]


# ---- Generation ----


@pytest.mark.parametrize("use_cache", [False, True])
def test_generation_when_ablated_equals_that_of_the_contracted_model(
    use_cache: bool, make_expanded: MakeExpanded
) -> None:
    model = make_expanded([0, 2]).eval()
    prompt = torch.tensor([[1, 2, 3], [4, 5, 6]])
    options = {
        "attention_mask": torch.ones_like(prompt),
        "max_new_tokens": 10,
        "do_sample": False,
        "use_cache": use_cache,
        "pad_token_id": 52,
    }
    contracted = model.contract().generate(prompt, **options)
    with model.ablated():
        ablated = model.generate(prompt, **options)
    on = model.generate(prompt, **options)
    assert torch.equal(ablated, contracted)
    assert on.shape[0] == 2
    assert on.shape[1] > 3
    assert not torch.equal(on, ablated)  # the random auxiliary module does change what is said


# ---- Errors ----


def test_unknown_architecture_lists_the_known(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=53, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    for argument in (tmp_path, str(tmp_path), LlamaForCausalLM(config)):
        for expand in (ExpandedGPTNeoForCausalLM.from_base, expand_base):
            with pytest.raises(
                ValueError, match=r"No architecture spec for the base model's type `llama`\. Known: gpt_neo"
            ):
                expand(argument, EXPANSION)


def test_an_expanded_model_is_no_base(make_expanded: MakeExpanded, tmp_path: Path) -> None:
    model = make_expanded([0])
    model.save_pretrained(tmp_path)
    for argument in (tmp_path, model):
        for expand in (ExpandedGPTNeoForCausalLM.from_base, expand_base):
            with pytest.raises(ValueError, match=r"it is expanded already\. Load it with `from_pretrained`") as caught:
                expand(argument, EXPANSION)
            assert "or pass its contracted checkpoint as the base" in str(caught.value)


@pytest.mark.parametrize("prefix", ["./", "", "absolute"])
def test_a_missing_directory(prefix: str, tmp_path: Path) -> None:
    name = str(tmp_path / "nowhere") if prefix == "absolute" else f"{prefix}no/such/folder"
    for argument in (name, Path(name)):
        with pytest.raises(
            ValueError, match=r"^`model.base`: the directory .* does not exist\. Check the path, or pass a hub id\.$"
        ):
            ExpandedGPTNeoForCausalLM.from_base(argument, EXPANSION)


def test_a_directory_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"the directory {re.escape(str(tmp_path))} holds no config.json"):
        ExpandedGPTNeoForCausalLM.from_base(tmp_path, EXPANSION)


def test_a_file_instead_of_a_directory(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="should be a directory with a saved model or a hub id, got the file"):
        ExpandedGPTNeoForCausalLM.from_base(file, EXPANSION)


def test_a_directory_without_weights(base_folder: Path) -> None:
    (base_folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"`model\.base`: could not get"):
        ExpandedGPTNeoForCausalLM.from_base(base_folder, EXPANSION)


@pytest.mark.parametrize("expand", [ExpandedGPTNeoForCausalLM.from_base, expand_base])
def test_a_hub_id_while_offline_names_the_way_out(expand: Callable) -> None:
    with pytest.raises(ValueError, match="could not get the model `hf-era-tests/no-such-model` from the hub") as caught:
        expand("hf-era-tests/no-such-model", EXPANSION)
    assert "offline" in str(caught.value)
    assert "Pass the path of a local directory instead, for instance `--model.base ./my_model`." in str(caught.value)


def test_a_checkpoint_that_lacks_a_weight(base: GPTNeoForCausalLM, tmp_path: Path) -> None:
    state = {name: value for name, value in base.state_dict().items() if name != "transformer.h.1.ln_1.bias"}
    base.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"lacks transformer\.h\.1\.ln_1\.bias"):
        ExpandedGPTNeoForCausalLM.from_base(tmp_path, EXPANSION)


def test_a_target_layer_that_the_base_does_not_have(base: GPTNeoForCausalLM, base_folder: Path) -> None:
    for argument in (base, base_folder):
        with pytest.raises(ValueError, match="names layer 5, but the model has 3 layers"):
            ExpandedGPTNeoForCausalLM.from_base(argument, ExpansionConfig(target_layers=[5]))


@pytest.mark.parametrize("shape", [(3, 11), (2, 12), (12,), (3, 12, 16)])
def test_a_routing_weight_of_the_wrong_shape(
    shape: tuple[int, ...], make_expanded: MakeExpanded, make_batch: Callable
) -> None:
    with pytest.raises(ValueError, match="Pass a `routing_weight` of the same"):
        make_expanded([0])(**{**make_batch(), "routing_weight": torch.ones(shape)})
