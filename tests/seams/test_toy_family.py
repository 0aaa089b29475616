"""A family that is registered in this file alone: gated, with grouped heads and rotary positions, and without a fast path.

The toy is Llama under a name of its own. What is shown for it is what is shown for GPT-Neo elsewhere; the dense formula is
the paper's, on a SwiGLU that is widened by hand, and uses nothing of `hf_era`.
"""

import copy
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from hf_era import (
    ExpansionConfig,
    FastPaths,
    GradientMultipliers,
    GradientRoutingConfig,
    GradientRoutingTrainer,
    expand_base,
)
from hf_era.data import RoutingCollator
from hf_era.evaluation.relearn.attack import with_lora
from hf_era.models import FAMILIES, Family, get_family, register_family
from hf_era.models.config import ExpandedConfigMixin
from hf_era.models.expanded import ExpandedCausalLMMixin
from hf_era.models.measured import measure_activations

# ---- The toy ----


class ToyConfig(LlamaConfig):
    """A `LlamaConfig` of another name."""

    model_type = "toy_gated"


class ToyForCausalLM(LlamaForCausalLM):
    """A `LlamaForCausalLM` of another name."""

    config_class = ToyConfig


class ExpandedToyConfig(ExpandedConfigMixin, ToyConfig):
    """A `ToyConfig` with an `expansion`."""

    model_type = "expanded_toy_gated"
    expansion: dict | None = None


class ExpandedToyForCausalLM(ExpandedCausalLMMixin, ToyForCausalLM):
    """A `ToyForCausalLM` with auxiliary modules."""

    config_class = ExpandedToyConfig


TOY = Family(
    model_class=ExpandedToyForCausalLM,
    blocks="model.layers",
    mlp="mlp",
    down_projection="down_proj",
    gated=True,
    number_of_layers="num_hidden_layers",
    activation="hidden_act",
    fast_path=None,
)


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[Family]:
    """The toy is known while this file runs: other tests look at all the families that there are."""
    AutoConfig.register(ToyConfig.model_type, ToyConfig)
    AutoModelForCausalLM.register(ToyConfig, ToyForCausalLM)
    register_family(TOY)
    yield TOY
    del FAMILIES[ToyConfig.model_type]
    for config_class in (ToyConfig, ExpandedToyConfig):
        del CONFIG_MAPPING._extra_content[config_class.model_type]
        del MODEL_FOR_CAUSAL_LM_MAPPING._extra_content[config_class]


# ---- Models, and what is done with them ----

HIDDEN, INNER, WIDTH = 16, 24, 8
EXPANSION = ExpansionConfig(width=WIDTH, target_layers=[0, 2])
RELATIVE_TOLERANCE = 1e-9
L1_COEFFICIENT = 0.01

Batch = dict[str, Tensor]
Gradients = dict[str, Tensor | None]


def make_toy_config(**overrides: Any) -> ToyConfig:
    values: dict[str, Any] = {
        "vocab_size": 53,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
        "initializer_range": 0.2,
        "bos_token_id": 52,
        "eos_token_id": 52,
        "use_cache": False,
    }
    return ToyConfig(**{**values, **overrides})


@pytest.fixture
def make_toy(randomize_constants: Callable[..., None]) -> Callable[..., ToyForCausalLM]:
    """A stock toy with random weights, norms too, in training mode."""

    def make(**overrides: Any) -> ToyForCausalLM:
        torch.manual_seed(0)
        model = ToyForCausalLM(make_toy_config(**overrides))
        randomize_constants(model)
        return model.train()

    return make


@pytest.fixture
def make_expanded_toy(make_toy: Callable[..., ToyForCausalLM]) -> Callable[..., ExpandedToyForCausalLM]:
    """An expanded toy with random weights, in training mode."""

    def make(expansion: ExpansionConfig = EXPANSION, **overrides: Any) -> ExpandedToyForCausalLM:
        base = make_toy(**overrides)
        return ExpandedToyForCausalLM.from_base(base, expansion).train()

    return make


@pytest.fixture
def batch(make_batch: Callable[..., Batch]) -> Batch:
    """Routing weights in eighths of eighths: factors are fp32 on their way to the layers, and such values pass exactly."""
    batch = make_batch(seed=5)
    batch["routing_weight"] = (batch["routing_weight"] * 64).round() / 64
    batch["routing_weight"][0, :4] = 0.0
    batch["routing_weight"][1] = 1.0
    return batch


def inputs_of(batch: Batch) -> Batch:
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """In the logits' own dtype; the stock loss is computed in fp32."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def total_loss(model: Any, batch: Batch, with_l1: bool = False) -> Tensor:
    outputs = model(**inputs_of(batch), routing_weight=batch["routing_weight"], output_activation_l1=with_l1)
    loss = cross_entropy(outputs.logits, batch["labels"])
    return loss + L1_COEFFICIENT * outputs.activation_l1 if with_l1 else loss


def gradients_after(model: nn.Module, loss: Callable[[], Tensor]) -> Gradients:
    model.zero_grad(set_to_none=True)
    loss().backward()
    return {name: None if value.grad is None else value.grad.clone() for name, value in model.named_parameters()}


def largest_deviation(actual: Gradients, expected: Gradients) -> float:
    """Of any gradient, relative to the largest value of its parameter."""
    assert sorted(actual) == sorted(expected)
    largest = 0.0
    for name, gradient in expected.items():
        value = actual[name]
        assert value is not None, name
        assert gradient is not None, name
        assert gradient.abs().max() > 0, f"{name}: a gradient of zero compares nothing"
        largest = max(largest, ((value - gradient).abs().max() / gradient.abs().max()).item())
    return largest


# ---- One registration ----


def test_one_registration_is_all_that_is_needed(make_toy: Callable[..., Any], registered: Family) -> None:
    assert get_family("toy_gated") is registered is ExpandedToyForCausalLM.family
    assert registered.fast_path is registered.fast_class is None
    assert type(expand_base(make_toy(), EXPANSION)) is ExpandedToyForCausalLM
    assert AutoConfig.for_model("expanded_toy_gated").expansion == ExpansionConfig().to_dict()
    with pytest.raises(ValueError, match=r"There is a family `toy_gated` already: ExpandedToyForCausalLM\."):
        register_family(Family(model_class=ExpandedToyForCausalLM))


def test_a_control_of_the_family_has_the_l1_term_of_its_runs(
    make_toy: Callable[..., Any], make_expanded_toy: Callable[..., Any], batch: Batch
) -> None:
    """A stock toy whose layers are measured is an expanded one whose modules are ablated."""
    expanded = make_expanded_toy().double()
    control = measure_activations(make_toy().double(), EXPANSION.target_layers)

    def loss(model: Any) -> Tensor:
        outputs = model(**inputs_of(batch), output_activation_l1=True)
        return cross_entropy(outputs.logits, batch["labels"]) + L1_COEFFICIENT * outputs.activation_l1

    with expanded.ablated():
        expected = gradients_after(expanded, lambda: loss(expanded))
    found = gradients_after(control, lambda: loss(control))
    assert largest_deviation(found, {name: expected[name] for name in found}) < RELATIVE_TOLERANCE


def test_the_auxiliary_module_has_the_familys_own_form(make_expanded_toy: Callable[..., Any]) -> None:
    model = make_expanded_toy()
    names = [name for name, _ in model.named_parameters() if model.is_auxiliary_parameter(name)]
    assert names == [
        f"model.layers.{layer}.mlp.auxiliary.forget.{part}_projection.weight"
        for layer in (0, 2)
        for part in ("up", "gate", "down")
    ]
    assert {type(block).__name__ for block in model.model.layers} == {"ExpandedLlamaDecoderLayer", "LlamaDecoderLayer"}
    assert not model.is_auxiliary_parameter("model.layers.0.mlp.down_proj.weight")


# ---- Routing ----


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_forward_pass_does_not_depend_on_the_routing(
    dtype: torch.dtype, make_expanded_toy: Callable[..., Any], batch: Batch
) -> None:
    model = make_expanded_toy().to(dtype)
    plain = model(**{**batch, "routing_weight": None})
    routed = model(**batch, output_activation_l1=True)
    assert torch.equal(routed.logits, plain.logits)
    assert torch.equal(routed.loss, plain.loss)
    assert plain.activation_l1 is None


MULTIPLIERS = [
    {},
    {"original_forget": -1.75, "original_retain": 0.625, "auxiliary_forget": 2.25, "auxiliary_retain": -0.375},
    {"original_forget": 0.25, "original_retain": -2.5, "auxiliary_forget": -1.125, "auxiliary_retain": 0.875},
]


def widened_toy(model: ExpandedToyForCausalLM, layers: list[int], weight: Tensor, numbers: dict[str, float]) -> Any:
    """The same function as `model` from stock parts: a wider SwiGLU, and `m*a + (1-m)*a.detach()` before `down_proj`.

    Returns the model and a list that fills up with the sum of |a| of each row and token, of every target layer.
    """
    state = model.state_dict()
    stock = ToyForCausalLM(make_toy_config(tie_word_embeddings=model.config.tie_word_embeddings)).double().train()
    stock.load_state_dict({name: value.clone() for name, value in state.items() if "auxiliary" not in name})
    stock.tie_weights()
    retain, forget = weight.double()[..., None], 1 - weight.double()[..., None]
    original = (retain * numbers["original_retain"] + forget * numbers["original_forget"]).expand(-1, -1, INNER)
    auxiliary = (retain * numbers["auxiliary_retain"] + forget * numbers["auxiliary_forget"]).expand(-1, -1, WIDTH)
    m = torch.cat([original, auxiliary], dim=-1)  # (batch, seq, hidden)
    norms: list[Tensor] = []

    def route(_module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (a,) = inputs
        norms.append(a.abs().sum(-1))
        return (m * a + (1 - m) * a.detach(),)

    for layer in layers:
        mlp, prefix = stock.model.layers[layer].mlp, f"model.layers.{layer}.mlp"
        for part, dimension in (("gate", 0), ("up", 0), ("down", 1)):
            own, added = (
                state[f"{prefix}.{part}_proj.weight"],
                state[f"{prefix}.auxiliary.forget.{part}_projection.weight"],
            )
            weights = torch.cat([own, added], dim=dimension)
            wider = nn.Linear(weights.shape[1], weights.shape[0], bias=False, dtype=torch.float64)
            wider.weight = nn.Parameter(weights)
            setattr(mlp, f"{part}_proj", wider)
        mlp.down_proj.register_forward_pre_hook(route)
    return stock, norms


def split(gradients: Gradients, layers: list[int]) -> Gradients:
    """The widened model's gradients under the expanded model's names."""
    found = dict(gradients)
    for layer in layers:
        prefix = f"model.layers.{layer}.mlp"
        for part, dimension in (("gate", 0), ("up", 0), ("down", 1)):
            gradient: Any = gradients[f"{prefix}.{part}_proj.weight"]
            found[f"{prefix}.{part}_proj.weight"] = gradient.narrow(dimension, 0, INNER)
            found[f"{prefix}.auxiliary.forget.{part}_projection.weight"] = gradient.narrow(dimension, INNER, WIDTH)
    return found


def deviation_from_the_formula(
    model: Any, layers: list[int], batch: Batch, numbers: dict[str, float], with_l1: bool = False, shift: int = 0
) -> float:
    weight = batch["routing_weight"].roll(shift, dims=1)
    stock, norms = widened_toy(model, layers, weight, numbers)

    def formula() -> Tensor:
        loss = cross_entropy(stock(**inputs_of(batch)).logits, batch["labels"])
        return loss + L1_COEFFICIENT * sum((norm * batch["attention_mask"]).sum() for norm in norms) * with_l1

    expected = split(gradients_after(stock, formula), layers)
    return largest_deviation(gradients_after(model, lambda: total_loss(model, batch, with_l1)), expected)


@pytest.mark.parametrize("with_l1", [False, True])
@pytest.mark.parametrize("tie_word_embeddings", [True, False])
@pytest.mark.parametrize("multipliers", MULTIPLIERS, ids=["seed", "signed", "mirrored"])
@pytest.mark.parametrize("layers", [[1], [0, 2], [0, 1, 2]], ids=str)
def test_gradients_equal_the_dense_formula(
    layers: list[int],
    multipliers: dict[str, float],
    tie_word_embeddings: bool,
    with_l1: bool,
    make_expanded_toy: Callable[..., Any],
    batch: Batch,
) -> None:
    expansion = ExpansionConfig(width=WIDTH, target_layers=layers)
    model = make_expanded_toy(expansion, tie_word_embeddings=tie_word_embeddings).double()
    model.gradient_multipliers = GradientMultipliers(**multipliers)
    numbers = model.gradient_multipliers.to_dict()
    assert deviation_from_the_formula(model, layers, batch, numbers, with_l1) <= RELATIVE_TOLERANCE


@pytest.mark.parametrize("mistake", ["original_forget", "auxiliary_retain", "shift", "l1"])
def test_the_formula_notices_a_small_mistake(mistake: str, make_expanded_toy: Callable[..., Any], batch: Batch) -> None:
    """Planted: a multiplier off by 1e-6, the weights of the neighbouring tokens, or an L1 term that counts padding."""
    model = make_expanded_toy().double()
    numbers = model.gradient_multipliers.to_dict()
    if mistake in numbers:
        numbers[mistake] += 1e-6
    if mistake == "l1":
        batch = {**batch, "attention_mask": batch["attention_mask"].clone()}
        stock, norms = widened_toy(model, [0, 2], batch["routing_weight"], numbers)
        expected = split(
            gradients_after(
                stock,
                lambda: (
                    cross_entropy(stock(**inputs_of(batch)).logits, batch["labels"])
                    + L1_COEFFICIENT * sum(norm.sum() for norm in norms)
                ),
            ),
            [0, 2],
        )
        found = largest_deviation(gradients_after(model, lambda: total_loss(model, batch, True)), expected)
    else:
        found = deviation_from_the_formula(model, [0, 2], batch, numbers, shift=int(mistake == "shift"))
    assert found > 100 * RELATIVE_TOLERANCE


def test_the_l1_term_is_the_sum_of_absolute_activations(make_expanded_toy: Callable[..., Any], batch: Batch) -> None:
    model, seen = make_expanded_toy().double(), []

    def remember(_module: nn.Module, inputs: tuple[Tensor]) -> None:
        seen.append(inputs[0].detach())

    for layer in (0, 2):
        mlp = model.model.layers[layer].mlp
        for projection in (mlp.down_proj, mlp.auxiliary["forget"].down_projection):
            projection.register_forward_pre_hook(remember)
    on = model(**inputs_of(batch), output_activation_l1=True).activation_l1
    assert [part.shape[-1] for part in seen] == [WIDTH, INNER] * 2
    mask = batch["attention_mask"][..., None]
    assert on.item() == pytest.approx(sum((part * mask).abs().sum().item() for part in seen), rel=1e-12)
    seen.clear()
    with model.ablated():
        off = model(**inputs_of(batch), output_activation_l1=True).activation_l1
    assert [part.shape[-1] for part in seen] == [INNER] * 2
    assert off.item() == pytest.approx(sum((part * mask).abs().sum().item() for part in seen), rel=1e-12)
    assert on.dtype == torch.float64
    as_tuple = model(**inputs_of(batch), output_activation_l1=True, return_dict=False)
    assert torch.equal(as_tuple[-1], on)


def test_hidden_states_are_those_of_the_stock_model_whatever_is_measured(
    make_expanded_toy: Callable[..., Any], batch: Batch
) -> None:
    model = make_expanded_toy().eval()
    model.set_active(None, False)
    options = {**inputs_of(batch), "output_hidden_states": True}
    expected = model.contract()(**options).hidden_states
    for routing in ({}, {"routing_weight": batch["routing_weight"]}, {"output_activation_l1": True}):
        found = model(**options, **routing).hidden_states
        assert len(found) == len(expected) == 4
        assert all(torch.equal(own, other) for own, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(use_reentrant: bool, make_expanded_toy: Callable[..., Any], batch: Batch) -> None:
    model, calls = make_expanded_toy(), []
    expected = gradients_after(model, lambda: total_loss(model, batch, with_l1=True))
    plain = gradients_after(model, lambda: total_loss(model, {**batch, "routing_weight": None}, with_l1=True))  # type: ignore
    assert largest_deviation(expected, plain) > 1e-3
    if hasattr(model, "activation_checkpointing_enable"):  # the name since transformers 5.18
        model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    else:
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *arguments: calls.append(1))
    found = gradients_after(model, lambda: total_loss(model, batch, with_l1=True))
    assert len(calls) == 2  # it is recomputed
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())  # type: ignore[arg-type]


# ---- Expand, ablate, contract ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("tie_word_embeddings", [True, False])
@pytest.mark.parametrize("source", ["memory", "folder"])
def test_ablated_and_contracted_are_the_stock_model_bit_for_bit(
    source: str,
    tie_word_embeddings: bool,
    dtype: torch.dtype,
    make_toy: Callable[..., Any],
    batch: Batch,
    tmp_path: Path,
) -> None:
    """The base is loaded as a user does, in its dtype: rotary frequencies are in fp32 whatever that is."""
    make_toy(tie_word_embeddings=tie_word_embeddings).save_pretrained(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert type(base) is ToyForCausalLM
    model = ExpandedToyForCausalLM.from_base(*((base,) if source == "memory" else (tmp_path,)), EXPANSION, dtype=dtype)
    inputs = {**inputs_of(batch), "labels": batch["labels"]}
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tie_word_embeddings
    with torch.no_grad():
        expected, on = base(**inputs), model.eval()(**inputs)
        contracted = model.contract()
        with model.ablated():
            ablated = model(**inputs)
        for outputs in (ablated, contracted(**inputs)):
            assert torch.equal(outputs.logits, expected.logits)
            assert torch.equal(outputs.loss, expected.loss)
            assert outputs.logits.dtype == dtype
    assert not torch.equal(on.logits, expected.logits)
    assert type(contracted) is ToyForCausalLM
    assert type(contracted.config) is ToyConfig
    assert list(contracted.state_dict()) == list(base.state_dict())
    assert all(torch.equal(value, base.state_dict()[name]) for name, value in contracted.state_dict().items())
    assert (contracted.lm_head.weight is contracted.model.embed_tokens.weight) == tie_word_embeddings


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_is_that_of_the_base_and_of_the_contracted_model(
    attention: str, make_toy: Callable[..., Any], batch: Batch
) -> None:
    base = make_toy().eval()
    base.set_attn_implementation(attention)
    model = ExpandedToyForCausalLM.from_base(base, EXPANSION).eval()
    contracted, expected = model.contract(), base(**inputs_of(batch)).logits
    assert base.config._attn_implementation == model.config._attn_implementation == attention
    assert contracted.config._attn_implementation == attention
    with model.ablated():
        assert torch.equal(model(**inputs_of(batch)).logits, expected)
    assert torch.equal(contracted(**inputs_of(batch)).logits, expected)


@torch.no_grad()
def test_a_model_that_was_cast_contracts_to_what_it_is_when_ablated(
    make_expanded_toy: Callable[..., Any], batch: Batch
) -> None:
    """`.to(bfloat16)` casts rotary frequencies too, which changes what a model computes."""
    model = make_expanded_toy().eval().to(torch.bfloat16)
    contracted = model.contract()
    with model.ablated():
        assert torch.equal(contracted(**inputs_of(batch)).logits, model(**inputs_of(batch)).logits)


READ_WITHOUT_HF_ERA = """
import sys
import torch
from transformers import LlamaForCausalLM, logging

logging.set_verbosity_error()
folder = sys.argv[1]
model = LlamaForCausalLM.from_pretrained(folder + "/contracted")
with torch.no_grad():
    torch.save(model(**torch.load(folder + "/inputs.pt")).logits, folder + "/logits.pt")
assert not [name for name in sys.modules if name.startswith("hf_era")]
"""


def test_a_contracted_checkpoint_holds_llamas_weights_and_no_others(
    make_expanded_toy: Callable[..., Any], batch: Batch, run_python: Callable[..., str], tmp_path: Path
) -> None:
    """Nothing but Llama's own class knows the toy where `hf_era` was never imported; it reads all that there is."""
    model = make_expanded_toy().eval()
    model.contract().save_pretrained(tmp_path / "contracted")
    values = json.loads((tmp_path / "contracted" / "config.json").read_text())
    assert values["architectures"] == ["ToyForCausalLM"]
    assert "expansion" not in values
    torch.save(inputs_of(batch), tmp_path / "inputs.pt")
    run_python(READ_WITHOUT_HF_ERA, str(tmp_path), cwd=tmp_path)
    with torch.no_grad(), model.ablated():
        assert torch.equal(model(**inputs_of(batch)).logits, torch.load(tmp_path / "logits.pt"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "contracted").eval()
    assert type(loaded) is ToyForCausalLM
    assert torch.equal(loaded(**inputs_of(batch)).logits, torch.load(tmp_path / "logits.pt"))


@pytest.mark.parametrize("tie_word_embeddings", [True, False])
def test_saved_and_loaded_it_is_the_same_model(
    tie_word_embeddings: bool, make_expanded_toy: Callable[..., Any], batch: Batch, tmp_path: Path
) -> None:
    model = make_expanded_toy(tie_word_embeddings=tie_word_embeddings).eval()
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is ExpandedToyForCausalLM
    assert not any(report.values())
    assert loaded.config.expansion_config == EXPANSION
    assert torch.equal(loaded(**inputs_of(batch)).logits, model(**inputs_of(batch)).logits)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tie_word_embeddings


def test_auxiliary_weights_start_at_the_expansions_scale(make_toy: Callable[..., Any], tmp_path: Path) -> None:
    base, expansion = make_toy(), ExpansionConfig(width=64, initialization_scale=0.5)
    base.save_pretrained(tmp_path)
    for source in (base, tmp_path):
        for named in ExpandedToyForCausalLM.from_base(source, expansion).auxiliary_modules().values():
            for parameter in named["forget"].parameters():
                assert parameter.std().item() == pytest.approx(0.1, rel=0.15)


def test_a_base_of_another_family_is_refused(make_toy: Callable[..., Any], make_base: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="expands `toy_gated`, but the base model is of type `gpt_neo`"):
        ExpandedToyForCausalLM.from_base(make_base())
    with pytest.raises(ValueError, match=r"is of type `expanded_toy_gated`: it is expanded already\."):
        expand_base(ExpandedToyForCausalLM.from_base(make_toy(), EXPANSION))


def test_what_no_memory_holds_is_refused_before_it_is_made(make_toy: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"^`expansion.width`: an auxiliary module of width 1,000,000,000 in 2 layers of width 16 needs at least "
        r"392\.0 GB of memory, and this machine has .* GB\. Lower it; 64 is the default\.$",
    ):
        ExpandedToyForCausalLM.from_base(make_toy(), ExpansionConfig(width=1_000_000_000, target_layers=[0, 1]))
    make_toy().save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "vocab_size": 9_000_000, "hidden_size": 9_000_000}))
    with pytest.raises(ValueError, match=r"^`model\.base`: a model of 3 layers of width 9,000,000 .* needs at least"):
        ExpandedToyForCausalLM.from_base(tmp_path, EXPANSION)


# ---- Used as any causal LM is ----


@pytest.mark.parametrize("use_cache", [False, True])
def test_generation_with_left_padding_equals_the_stock_models(
    use_cache: bool, make_expanded_toy: Callable[..., Any]
) -> None:
    model = make_expanded_toy().eval()
    prompt = torch.tensor([[0, 0, 1, 2, 3], [4, 5, 6, 7, 8], [0, 9, 10, 11, 12]])
    options = {
        "attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]]),
        "max_new_tokens": 10,
        "do_sample": False,
        "use_cache": use_cache,
        "pad_token_id": 0,
    }
    expected = model.contract().generate(prompt, **options)
    with model.ablated():
        assert torch.equal(model.generate(prompt, **options), expected)
    on = model.generate(prompt, **options)
    assert on.shape[1] > prompt.shape[1]
    assert not torch.equal(on, expected)


@torch.no_grad()
def test_label_losses_are_those_of_the_logits(make_expanded_toy: Callable[..., Any], batch: Batch) -> None:
    model, labels = make_expanded_toy(), batch["labels"]
    logits = model(**inputs_of(batch)).logits
    expected = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
    for training in (True, False):
        assert torch.equal(model.train(training).label_losses(labels, **inputs_of(batch)), expected)
    assert torch.count_nonzero(expected[labels[:, 1:] == -100]) == 0
    mean = model(**inputs_of(batch), labels=labels).loss
    torch.testing.assert_close(expected.sum() / (labels[:, 1:] != -100).sum(), mean)


def test_the_switches_of_a_fast_path_change_nothing(make_expanded_toy: Callable[..., Any], batch: Batch) -> None:
    model = make_expanded_toy()
    expected = model(**batch).logits
    model.set_fast_paths(FastPaths(fused_activation=False, chunked_loss=False))
    assert torch.equal(model(**batch).logits, expected)
    assert torch.equal(model(**batch, skip_logits=True).logits, expected)


@pytest.mark.parametrize("how", ["copied", "pickled"])
def test_a_copy_routes_on_its_own(
    how: str, make_expanded_toy: Callable[..., Any], batch: Batch, tmp_path: Path
) -> None:
    model = make_expanded_toy()
    model.gradient_multipliers = GradientMultipliers(original_forget=-0.5)
    expected = gradients_after(model, lambda: total_loss(model, batch, with_l1=True))
    if how == "copied":
        twin = copy.deepcopy(model)
    else:
        torch.save(model, tmp_path / "model.pt")
        twin = torch.load(tmp_path / "model.pt", weights_only=False)
    assert type(twin.model.layers[0]) is type(model.model.layers[0])
    assert twin.gradient_multipliers == model.gradient_multipliers
    for block in (twin.model.layers[0], twin.model.layers[2]):
        assert block.routing_channel is twin.routing_channel is not model.routing_channel
        assert block.mlp_call is block.mlp.call is block.mlp.down_proj.call
    found = gradients_after(twin, lambda: total_loss(twin, batch, with_l1=True))
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())  # type: ignore[arg-type]
    twin.set_active(None, False)
    assert model.auxiliary_modules()[0]["forget"].active


def test_lora_adapters_train(make_expanded_toy: Callable[..., Any], batch: Batch) -> None:
    model = make_expanded_toy()
    linear = {name for name, part in model.named_modules() if isinstance(part, nn.Linear)} - {"lm_head"}
    before = model(**inputs_of(batch)).logits
    torch.manual_seed(0)
    model = with_lora(model, 2, 4)
    trained = {name: part for name, part in model.named_parameters() if part.requires_grad}
    assert set(trained) == {f"{name}.lora_{part}.default.weight" for name in linear for part in "AB"}
    assert len(linear) == 3 * 7 + 2 * 3
    assert torch.equal(model(**inputs_of(batch)).logits, before)  # adapters start as no change; the module takes part
    optimizer, losses = torch.optim.AdamW(trained.values(), lr=1e-2), []
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(**{**batch, "routing_weight": None}).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.01
    assert all(part.grad is not None for part in trained.values())


def test_the_path_through_an_adapter_is_routed_too(make_expanded_toy: Callable[..., Any], batch: Batch) -> None:
    """In the last layer, by a power of two: what lies before the down projection and its adapter gets exactly that part."""
    model = with_lora(make_expanded_toy(ExpansionConfig(width=WIDTH, target_layers=[2])), 2, 4)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    forget = {**batch, "routing_weight": torch.zeros(3, 12)}
    model.gradient_multipliers = GradientMultipliers(original_forget=-0.5, auxiliary_forget=0.25)
    norms = [model(**inputs_of(batch), output_activation_l1=True).activation_l1]
    plain = gradients_after(model, lambda: total_loss(model, {**forget, "routing_weight": None}))  # type: ignore[dict-item]
    routed = gradients_after(model, lambda: total_loss(model, forget))
    prefix, factors = "model.layers.2.mlp.", {"gate_proj": -0.5, "up_proj": -0.5, "down_proj": 1.0}
    for part in ("gate", "up", "down"):
        factors[f"auxiliary.forget.{part}_projection"] = 1.0 if part == "down" else 0.25
    for name, factor in factors.items():
        for matrix in "AB":
            key = f"{prefix}{name}.lora_{matrix}.default.weight"
            assert plain[key].abs().max() > 0  # type: ignore[union-attr]
            assert torch.equal(routed[key], factor * plain[key]), key  # type: ignore[arg-type, operator]
    # What is measured is measured once, whatever the adapter is.
    model.model.layers[2].mlp.down_proj.enable_adapters(False)
    norms.append(model(**inputs_of(batch), output_activation_l1=True).activation_l1)
    assert torch.equal(*norms)


def test_the_trainer_trains_it_and_saves_a_stock_checkpoint(
    make_expanded_toy: Callable[..., Any], batch: Batch, tmp_path: Path
) -> None:
    rows = [row[mask.bool()].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    weights = [[index % 2.0] * len(row) for index, row in enumerate(rows)]
    stories = Dataset.from_dict({"input_ids": rows, "routing_weight": weights})
    model = make_expanded_toy()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = GradientRoutingTrainer(
        model,
        GradientRoutingConfig(
            output_dir=str(tmp_path / "out"),
            max_steps=2,
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            warmup_steps=0,
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            l1_coefficient=1e-3,
            minimum_ablation_gap=-100.0,
        ),
        train_dataset=stories,
        eval_dataset={"forget": stories, "retain": stories},
        data_collator=RoutingCollator(pad_token_id=0),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.train()
    assert all(not torch.equal(before[name], value) for name, value in model.state_dict().items())
    logged = {key for entry in trainer.state.log_history for key in entry}
    assert {"l1_loss", "eval_forget_loss_ablated", "eval_selectivity_layer_0", "eval_selectivity_layer_2"} <= logged
    folder = trainer.save_contracted(tmp_path / "contracted")
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert type(loaded) is ToyForCausalLM
    with torch.no_grad(), model.eval().ablated():
        assert torch.equal(loaded(**inputs_of(batch)).logits, model(**inputs_of(batch)).logits)
