"""A tokenizer whose padding token the model has no embedding for, as after `add_special_tokens({"pad_token": "[PAD]"})`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import GPTNeoForCausalLM

from hf_era import ExpansionConfig, GradientRoutingConfig, GradientRoutingTrainer, expand_base
from hf_era.data import train_tokenizer
from hf_era.data.collator import padding_token_id

TEXTS = [f"number {row}, {'chemistry' if row % 2 else 'music'} and so on" for row in range(40)]


@pytest.fixture
def tokenizer() -> Any:
    tokenizer = train_tokenizer(TEXTS, 270)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    return tokenizer


def make(tokenizer: Any, model: Any, folder: Path) -> GradientRoutingTrainer:
    options = {"label_column": "topic", "forget_labels": ["1"], "use_cpu": True, "report_to": [], "max_steps": 1}
    rows = Dataset.from_dict({"text": TEXTS, "topic": [row % 2 for row in range(40)]})
    return GradientRoutingTrainer(
        model, GradientRoutingConfig(str(folder), **options), train_dataset=rows, processing_class=tokenizer
    )


def test_is_refused_before_anything_is_trained(tokenizer: Any, make_config: Callable[..., Any], tmp_path: Path) -> None:
    known = len(tokenizer) - 1
    model = expand_base(GPTNeoForCausalLM(make_config(vocab_size=known)), ExpansionConfig(width=4))
    message = (
        rf"`processing_class`: its `pad_token` '\[PAD\]' has the id {known}, but the model has embeddings for {known} ids "
        rf"\(0 to {known - 1}\)\. .*`tokenizer\.pad_token = tokenizer\.eos_token`.*`resize_token_embeddings\({known + 1}\)`"
    )
    with pytest.raises(ValueError, match=message):
        make(tokenizer, model, tmp_path)
    make(tokenizer, expand_base(GPTNeoForCausalLM(make_config(vocab_size=known + 1))), tmp_path)


def test_evaluation_pads_with_an_id_that_the_model_has(tokenizer: Any) -> None:
    pad = tokenizer.pad_token_id
    assert [padding_token_id(tokenizer, size) for size in (None, pad + 1, pad)] == [pad, pad, tokenizer.eos_token_id]
    assert padding_token_id(tokenizer, 1) == 0
