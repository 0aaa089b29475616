"""200 steps on real stories in fp32: the fast classes against the slow ones, same seed, same batches.

Measured on an AVX2 CPU: no loss of the 200 differs by more than 1.4e-6 nats a token, in either test.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from hf_era import (
    ExpandedGPTNeoConfig,
    ExpandedGPTNeoForCausalLM,
    ExpansionConfig,
    FastGPTNeoForCausalLM,
    GradientRoutingConfig,
    GradientRoutingTrainer,
    RoutingRuleConfig,
)
from hf_era.data import DataConfig, train_tokenizer
from hf_era.data.preparation import weigh_examples
from hf_era.data.tokenising import label_examples, tokenise_examples
from hf_era.training import CausalLMTrainer

pytestmark = pytest.mark.stories

STEPS, TOLERANCE = 200, 1e-3
SLOW = {"fused_activation": False, "chunked_loss": False, "attn_implementation": "eager"}


@pytest.fixture(scope="module")
def prepared(shared_folder: Path) -> tuple[Dataset, Any]:
    with (shared_folder / "data" / "tinystories" / "train.jsonl").open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line, _ in zip(lines, range(1_600), strict=False)]
    config = DataConfig(max_tokens=96)
    tokenizer = train_tokenizer(texts, 1_024)
    labelled = label_examples(Dataset.from_dict({"text": texts}), config, "stories")
    stories = tokenise_examples(labelled, tokenizer, config, "stories")
    return weigh_examples(stories, RoutingRuleConfig(rule="concept"), None), tokenizer


def small_config() -> GPTNeoConfig:
    return GPTNeoConfig(
        vocab_size=1_024,
        hidden_size=48,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=96,
        window_size=32,
        embed_dropout=0.0,
        attention_dropout=0.0,
        resid_dropout=0.0,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )


def curve(trainer_class: Any, model: Any, prepared: tuple[Dataset, Any], folder: Path, **settings: Any) -> list[float]:
    stories, tokenizer = prepared
    arguments = GradientRoutingConfig(
        str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=8,
        learning_rate=2e-3,
        warmup_steps=20,
        train_sampling_strategy="group_by_length",
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        report_to="none",
        **settings,
    )
    trainer = trainer_class(model, arguments, train_dataset=stories, processing_class=tokenizer)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def build(model_class: Any, config: Any) -> Any:
    torch.manual_seed(0)
    return model_class(config)


def assert_same_curve(one: list[float], other: list[float]) -> None:
    assert len(one) == len(other) == STEPS
    assert one[-1] < one[0] - 2.0  # it did learn: curves that stay where they are agree in any case
    assert max(abs(left - right) for left, right in zip(one, other, strict=True)) < TOLERANCE


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::hf_era.training.LocalizationWarning")
def test_fast_class_against_stock_class(prepared: tuple[Dataset, Any], tmp_path: Path) -> None:
    stock = curve(CausalLMTrainer, build(GPTNeoForCausalLM, small_config()), prepared, tmp_path)
    fast = curve(CausalLMTrainer, build(FastGPTNeoForCausalLM, small_config()), prepared, tmp_path)
    assert_same_curve(stock, fast)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::hf_era.training.LocalizationWarning")
def test_routed_with_fast_paths_against_routed_without(prepared: tuple[Dataset, Any], tmp_path: Path) -> None:
    config = ExpandedGPTNeoConfig.from_base_config(small_config(), ExpansionConfig(width=8))
    slow, fast = (
        curve(GradientRoutingTrainer, build(ExpandedGPTNeoForCausalLM, config), prepared, tmp_path, **settings)
        for settings in (SLOW, {})
    )
    assert_same_curve(slow, fast)
