"""Runs of a family that nobody registered: every phase knows it by the names of its parts."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, Starcoder2Config, Starcoder2ForCausalLM

from hf_era import ExpansionConfig, RunConfig, run_pipeline
from hf_era.methods import gradient_routing
from hf_era.models.trainable import LoraSettings

SIZES: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0, "vocab_size": 53,
}  # fmt: skip
PARTS: dict[str, Any] = {"width": 4, "target_layers": [1], "mlp": "mlp", "down_projection": "c_proj"}


@pytest.mark.parametrize(
    ("trainable", "lora"), [("routed", None), (None, LoraSettings(rank=2))], ids=["routed", "lora"]
)
def test_coherence_trains_what_the_routing_trained(trainable: str | None, lora: LoraSettings | None) -> None:
    config = Starcoder2Config(**SIZES)
    run: Any = SimpleNamespace(seed=0, base_config=config, expansion=ExpansionConfig(**PARTS))
    arguments: Any = SimpleNamespace(trainable=trainable, lora_settings=lora)
    model = Starcoder2ForCausalLM(config)
    gradient_routing.train_what_routing_trains(run, model, arguments)
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    assert trained
    assert all(name.startswith("model.layers.1.mlp.") and ("lora_" in name) == (lora is not None) for name in trained)


@pytest.mark.slow
@pytest.mark.usefixtures("_no_localisation_warning")
@pytest.mark.filterwarnings("ignore::hf_era.models.UntestedFamilyWarning")
def test_a_run_from_its_config_to_its_report(make_run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    sizes = {name: value for name, value in SIZES.items() if name != "vocab_size"}
    model = {"architecture": {"model_type": "starcoder2", **sizes}, "vocabulary_size": 300}
    config = make_run_config(tmp_path, model=model, expansion=PARTS)
    assert list(run_pipeline(config).losses) == ["before", "before_ablation", "after_ablation", "after_coherence"]
    assert type(AutoModelForCausalLM.from_pretrained(config.output_path / "model")) is Starcoder2ForCausalLM
