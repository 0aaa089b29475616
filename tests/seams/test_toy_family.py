"""A family that is registered in this file alone, and without a fast path.

The toy is Llama under a name of its own. What holds of every family is said by `tests/models/families/`; here is that one
registration is all that it takes, and that nothing needs a fast path.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from hf_era import ExpansionConfig, FastPaths, GradientMultipliers, expand_base
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


TOY = Family(model_class=ExpandedToyForCausalLM, gated=True, fast_path=None)


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

EXPANSION = ExpansionConfig(width=8, target_layers=[0, 2])

Batch = dict[str, Tensor]


@pytest.fixture
def base(randomize_constants: Callable[..., None]) -> ToyForCausalLM:
    """A stock toy with random weights, norms too, in training mode."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 53, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32}
    config = ToyConfig(**sizes, **heads, initializer_range=0.2, bos_token_id=52, eos_token_id=52, use_cache=False)
    model = ToyForCausalLM(config)
    randomize_constants(model)
    return model.train()


@pytest.fixture
def model(base: ToyForCausalLM) -> ExpandedToyForCausalLM:
    """The toy, expanded, in training mode."""
    return ExpandedToyForCausalLM.from_base(base, EXPANSION).train()


@pytest.fixture
def batch(make_batch: Callable[..., Batch]) -> Batch:
    return make_batch(seed=5)


def inputs_of(batch: Batch) -> Batch:
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


# ---- One registration ----


def test_one_registration_is_all_that_is_needed(base: ToyForCausalLM, registered: Family) -> None:
    assert get_family("toy_gated") is registered is ExpandedToyForCausalLM.family
    assert registered.fast_path is registered.fast_class is None
    assert type(expand_base(base, EXPANSION)) is ExpandedToyForCausalLM
    assert AutoConfig.for_model("expanded_toy_gated").expansion == ExpansionConfig().to_dict()
    with pytest.raises(ValueError, match=r"There is a family `toy_gated` already: ExpandedToyForCausalLM\."):
        register_family(Family(model_class=ExpandedToyForCausalLM))


def test_the_auxiliary_module_has_the_familys_own_form(model: ExpandedToyForCausalLM) -> None:
    names = [name for name, _ in model.named_parameters() if model.is_auxiliary_parameter(name)]
    assert names == [
        f"model.layers.{layer}.mlp.auxiliary.forget.{part}_projection.weight"
        for layer in (0, 2)
        for part in ("up", "gate", "down")
    ]
    assert {type(block).__name__ for block in model.model.layers} == {"ExpandedLlamaDecoderLayer", "LlamaDecoderLayer"}
    assert not model.is_auxiliary_parameter("model.layers.0.mlp.down_proj.weight")


@torch.no_grad()
def test_ablated_contracted_saved_and_loaded_it_is_what_it_was(
    base: ToyForCausalLM, model: ExpandedToyForCausalLM, batch: Batch, tmp_path: Path
) -> None:
    inputs = {**inputs_of(batch), "labels": batch["labels"]}
    expected, on = base.eval()(**inputs), model.eval()(**inputs)
    model.save_pretrained(tmp_path / "model")
    model.contract().save_pretrained(tmp_path / "contracted")
    values = json.loads((tmp_path / "contracted" / "config.json").read_text())
    assert values["architectures"] == ["ToyForCausalLM"]
    assert "expansion" not in values
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    contracted = AutoModelForCausalLM.from_pretrained(tmp_path / "contracted")
    assert (type(loaded), type(contracted)) == (ExpandedToyForCausalLM, ToyForCausalLM)
    assert torch.equal(loaded(**inputs).logits, on.logits)
    assert not torch.equal(on.logits, expected.logits)
    with model.ablated():
        for outputs in (model(**inputs), contracted(**inputs)):
            assert torch.equal(outputs.logits, expected.logits)
            assert torch.equal(outputs.loss, expected.loss)


def test_a_base_of_another_family_is_refused(model: ExpandedToyForCausalLM, make_base: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="expands `toy_gated`, but the base model is of type `gpt_neo`"):
        ExpandedToyForCausalLM.from_base(make_base())
    with pytest.raises(ValueError, match=r"is of type `expanded_toy_gated`: it is expanded already\."):
        expand_base(model)


def test_what_no_memory_holds_is_refused_before_it_is_made(base: ToyForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"^`expansion.width`: an auxiliary module of width 1,000,000,000 in 2 layers of width 16 needs at least "
        r"392\.0 GB of memory, and this machine has .* GB\. Lower it; 64 is the default\.$",
    ):
        ExpandedToyForCausalLM.from_base(base, ExpansionConfig(width=1_000_000_000, target_layers=[0, 1]))
    base.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "vocab_size": 9_000_000, "hidden_size": 9_000_000}))
    with pytest.raises(ValueError, match=r"^`model\.base`: a model of 3 layers of width 9,000,000 .* needs at least"):
        ExpandedToyForCausalLM.from_base(tmp_path, EXPANSION)


# ---- Without a fast path ----


def test_it_is_routed_without_a_fast_path(
    model: ExpandedToyForCausalLM, batch: Batch, gradients_of: Callable[..., Any]
) -> None:
    """In the last layer, by a power of two: what lies before the down projections gets exactly that part."""
    model = ExpandedToyForCausalLM.from_base(model.contract(), ExpansionConfig(width=8, target_layers=[2])).train()
    model.gradient_multipliers = GradientMultipliers(original_forget=-0.5, auxiliary_forget=0.25)
    found = []
    for weight in (None, torch.zeros(3, 12)):
        model.zero_grad(set_to_none=True)
        outputs = model(**{**batch, "routing_weight": weight})
        assert outputs.logits is not None
        outputs.loss.backward()
        found.append(gradients_of(model))
    plain, routed = found
    factors = {"gate_proj": -0.5, "up_proj": -0.5, "down_proj": 1.0}
    for part in ("gate", "up", "down"):
        factors[f"auxiliary.forget.{part}_projection"] = 1.0 if part == "down" else 0.25
    for name, factor in factors.items():
        key = f"model.layers.2.mlp.{name}.weight"
        assert plain[key].abs().max() > 0
        assert torch.equal(routed[key], factor * plain[key]), key


def test_the_l1_term_is_that_of_a_control_that_is_measured(
    base: ToyForCausalLM, model: ExpandedToyForCausalLM, batch: Batch
) -> None:
    assert model(**inputs_of(batch)).activation_l1 is None
    with model.ablated():
        expected = model(**inputs_of(batch), output_activation_l1=True).activation_l1
    found = measure_activations(base, [0, 2])(**inputs_of(batch), output_activation_l1=True).activation_l1
    assert expected > 0
    assert torch.equal(found, expected)


@torch.no_grad()
def test_label_losses_are_those_of_the_logits(model: ExpandedToyForCausalLM, batch: Batch) -> None:
    labels = batch["labels"]
    logits = model(**inputs_of(batch)).logits
    expected = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
    for training in (True, False):
        assert torch.equal(model.train(training).label_losses(labels, **inputs_of(batch)), expected)
    assert torch.count_nonzero(expected[labels[:, 1:] == -100]) == 0


def test_the_switches_of_a_fast_path_change_nothing(model: ExpandedToyForCausalLM, batch: Batch) -> None:
    expected = model(**batch).logits
    model.set_fast_paths(FastPaths(fused_activation=False, chunked_loss=False))
    assert torch.equal(model(**batch).logits, expected)
    assert torch.equal(model(**batch, skip_logits=True).logits, expected)
