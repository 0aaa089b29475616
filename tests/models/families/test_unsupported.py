"""A base model of no family hears what it is, which families there are, and what works for it anyway."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    SiglipVisionConfig,
    StableLmConfig,
    StableLmForCausalLM,
)

from hf_era import ExpandedGPTNeoForCausalLM, ExpansionConfig, expand_base
from hf_era.models import FAMILIES, get_family
from hf_era.models.families.unsupported import why_no_causal_lm
from hf_era.models.loading import load_causal_lm

SIZES: dict[str, Any] = {
    "vocab_size": 53,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
KNOWN = "gemma2, gemma3_text, gpt2, gpt_neo, gpt_neox, llama, mistral, olmo2, qwen2, qwen3, smollm3"
EXPANSION = ExpansionConfig(width=8)


def test_these_are_the_families() -> None:
    assert ", ".join(sorted(FAMILIES)) == KNOWN


@pytest.mark.parametrize("expand", [ExpandedGPTNeoForCausalLM.from_base, expand_base])
def test_a_causal_lm_of_no_family(expand: Any, tmp_path: Path) -> None:
    base = StableLmForCausalLM(StableLmConfig(**SIZES, num_key_value_heads=2))
    base.save_pretrained(tmp_path)
    for argument in (tmp_path, str(tmp_path), base):
        with pytest.raises(ValueError, match="stablelm") as caught:
            expand(argument, EXPANSION)
        assert str(caught.value) == (
            f"The base model's type `stablelm` is of no family that hf_era knows. Known: {KNOWN}. `hf-era eval` and "
            "`hf-era relearn` work for it anyway. To expand it, say where its MLPs are: `ExpansionConfig(mlp=..., "
            'down_projection=...)`, for instance "mlp" and "down_proj". A family with tests is one file in '
            "`hf_era/models/families/`."
        )
    loaded = load_causal_lm(tmp_path)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, base.eval()(ids).logits)


def test_an_encoder_is_no_causal_lm(tmp_path: Path) -> None:
    base = BertLMHeadModel(BertConfig(**SIZES, is_decoder=True))
    base.config.is_decoder = False
    base.save_pretrained(tmp_path)
    message = (
        "The model's type `bert` is an encoder, no causal LM. hf_era trains and measures models that predict the next "
        f"token; of these families it can expand them: {KNOWN}."
    )
    for argument in (tmp_path, base):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            expand_base(argument, EXPANSION)
    with pytest.raises(ValueError, match=rf"^`model\.base`: {re.escape(message)}$"):
        load_causal_lm(tmp_path)


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("t5", "an encoder with a decoder"),
        ("modernbert", "an encoder"),
        ("vit", "no language model"),
        ("clip", "no lang"),
    ],
)
def test_other_models_that_are_no_causal_lm(model_type: str, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"^The model's type `{model_type}` is {reason}.*, no causal LM\."):
        get_family(model_type)


def test_models_that_somebody_registered_may_be_causal_lms() -> None:
    assert [why_no_causal_lm(name) for name in ("expanded_llama", "llama", "nobody_knows_it", "gemma3")] == [None] * 4


@pytest.mark.parametrize("model_type", ["mistral3", "llava", "nobody_knows_it", "opt"])
def test_a_message_for_every_type(model_type: str) -> None:
    kind = "multimodal" if model_type in ("mistral3", "llava") else "of no family that hf_era knows"
    with pytest.raises(ValueError, match=rf"^The base model's type `{model_type}` is {kind}\..* Known: {KNOWN}\."):
        get_family(model_type)


def test_a_multimodal_model_is_to_pass_its_text_model(tmp_path: Path) -> None:
    """And the way out works as it is written."""
    text_config = Gemma3TextConfig(**SIZES, num_key_value_heads=1, head_dim=8)
    vision = SiglipVisionConfig(**{**SIZES, "image_size": 28, "patch_size": 14})
    tokens = {"image_token_index": 52, "boi_token_index": 51, "eoi_token_index": 50, "mm_tokens_per_image": 4}
    config = Gemma3Config(text_config=text_config, vision_config=vision, **tokens)
    whole = Gemma3ForConditionalGeneration(config).eval()
    with pytest.raises(
        ValueError, match=r"`gemma3` is multimodal\. Pass its text model as a model of its own: `text"
    ) as caught:
        expand_base(whole, EXPANSION)
    space = {"whole": whole, "Gemma3ForCausalLM": Gemma3ForCausalLM}
    way_out = re.findall("`(text.*?)`", str(caught.value))
    assert len(way_out) == 3
    exec("\n".join(way_out), space)
    text: Any = space["text"]
    text.eval().save_pretrained(tmp_path)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        expected = whole(ids).logits
        for base in (text, tmp_path):
            model = expand_base(base, EXPANSION).eval()
            with model.ablated():
                assert torch.equal(model(ids).logits, expected)
        assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, expected)
