"""Ablated and contracted, every family is the stock model that it came from, bit for bit; where there is no hf_era, too."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from hf_era import ExpansionConfig, expand_base
from hf_era.models import FAMILIES

EXPANSION = ExpansionConfig(width=8, target_layers=[0, 2])
Batch = dict[str, Tensor]


def assert_same_outputs(found: Any, expected: Any) -> None:
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.loss, expected.loss)
    assert found.logits.dtype == expected.logits.dtype


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tie_word_embeddings", [True, False], ids=["tied", "untied"])
def test_ablated_and_contracted_are_the_stock_model_bit_for_bit(
    tie_word_embeddings: bool,
    dtype: torch.dtype,
    paths_of: Any,
    family: Any,
    check: Any,
    make_base: Callable[..., Any],
    batch: Batch,
    tmp_path: Path,
) -> None:
    """From a folder and from memory. The base is loaded as users do, in its dtype: rotary frequencies are in fp32 then."""
    make_base(tie_word_embeddings=tie_word_embeddings).save_pretrained(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    inputs = {**check.inputs(batch), "labels": batch["labels"]}
    expected = base(**inputs)
    fast_expected = family.fast_class.from_stock(base)(**inputs, skip_logits=False)
    for source in (base, tmp_path):
        model = expand_base(source, EXPANSION, dtype=dtype).eval()
        assert type(model) is family.model_class
        on, contracted = model(**inputs, skip_logits=False), model.contract()
        with model.ablated():
            assert_same_outputs(model(**inputs, skip_logits=False), fast_expected)
            assert_same_outputs(paths_of(False).set(model)(**inputs), expected)
        assert_same_outputs(contracted(**inputs), expected)
        assert not torch.equal(on.logits, fast_expected.logits)
        assert type(contracted) is type(base) is family.model_class.stock_class
        assert type(contracted.config) is type(base.config)
        state, own = base.state_dict(), contracted.state_dict()
        assert list(own) == list(state)
        assert all(torch.equal(value, state[name]) for name, value in own.items())
        for whole in (model, contracted):
            same = whole.get_output_embeddings().weight is whole.get_input_embeddings().weight
            assert same == tie_word_embeddings


@torch.no_grad()
def test_a_model_that_was_cast_contracts_to_what_it_is_when_ablated(
    paths_of: Any, check: Any, make_expanded: Callable[..., Any], batch: Batch
) -> None:
    """`.to(bfloat16)` casts rotary frequencies too, which changes what a model computes."""
    model = paths_of(False).set(make_expanded().eval().to(torch.bfloat16))
    with model.ablated():
        expected = model(**check.inputs(batch)).logits
    assert torch.equal(model.contract()(**check.inputs(batch)).logits, expected)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_is_that_of_the_base_and_of_the_contracted_model(
    attention: str, paths_of: Any, check: Any, make_base: Callable[..., Any], batch: Batch
) -> None:
    base = make_base().eval()
    if attention == "sdpa" and not base._supports_sdpa:
        attention = "eager"  # the only one
    base.set_attn_implementation(attention)
    model = expand_base(base, EXPANSION).eval()
    contracted, expected = model.contract(), base(**check.inputs(batch)).logits
    assert contracted.config._attn_implementation == attention
    if base._supports_sdpa:
        assert model.config._attn_implementation == attention
    with paths_of(False).set(model).ablated():
        assert torch.equal(model(**check.inputs(batch)).logits, expected)
    assert torch.equal(contracted(**check.inputs(batch)).logits, expected)


READ_WITHOUT_HF_ERA = """
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)
inputs = torch.load(sys.argv[1] + "/inputs.pt")
for folder in sorted(Path(sys.argv[1]).glob("*/")):
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    with torch.no_grad():
        logits = model(**inputs).logits
    generated = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False, pad_token_id=52)
    assert 3 < generated.shape[1] <= 7
    torch.save((type(model).__module__, type(model).__name__, logits), folder / "read.pt")
assert not [name for name in sys.modules if name.startswith("hf_era")]
"""


@pytest.fixture(scope="module")
def contracted_folder(
    check: Any,
    make_family_config: Callable[..., Any],
    randomize_constants: Callable[..., None],
    make_batch: Callable[..., Batch],
    run_python: Callable[..., str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Of every family: `TYPE/expected.pt`, the logits of an ablated model, and `TYPE/read.pt`, the class and the logits of
    its contracted checkpoint in a process that never imported `hf_era`. One process for all of them."""
    folder, inputs = tmp_path_factory.mktemp("contracted"), check.inputs(make_batch(seed=5))
    torch.save(inputs, folder / "inputs.pt")
    for model_type, family in FAMILIES.items():
        torch.manual_seed(0)
        config = family.model_class.config_class.from_base_config(make_family_config(model_type), expansion=EXPANSION)
        model = family.model_class(config).eval()
        randomize_constants(model, 0)
        model.set_fast_paths(type(model.fast_paths)(fused_activation=False, chunked_loss=False))
        model.set_attn_implementation("sdpa" if family.model_class.stock_class._supports_sdpa else "eager")
        model.contract().save_pretrained(folder / model_type)
        with torch.no_grad(), model.ablated():
            torch.save(model(**inputs).logits, folder / model_type / "expected.pt")
    run_python(READ_WITHOUT_HF_ERA, str(folder), cwd=folder)
    return folder


def test_a_contracted_checkpoint_is_read_where_there_is_no_hf_era(
    model_type: str, family: Any, contracted_folder: Path
) -> None:
    folder = contracted_folder / model_type
    module, name, logits = torch.load(folder / "read.pt")
    assert module.startswith("transformers.models.")
    assert name == family.model_class.stock_class.__name__
    assert torch.equal(logits, torch.load(folder / "expected.pt"))
    values = json.loads((folder / "config.json").read_text())
    assert values["model_type"] == model_type
    assert values["architectures"] == [name]
    assert "expansion" not in values
