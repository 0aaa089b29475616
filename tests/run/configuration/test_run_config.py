"""What a loaded config gives the run: its paths, its training arguments, and the list of its fields."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from hf_era.data import DataConfig
from hf_era.data.config import TREE_WORDS
from hf_era.evaluation import EvaluationConfig, RelearnConfig, SamplingConfig
from hf_era.methods import METHODS
from hf_era.models.config import ExpansionConfig
from hf_era.routing import RoutingRuleConfig
from hf_era.routing.router import ROUTERS
from hf_era.run.config import ModelConfig, RunConfig
from hf_era.run.reference import describe_fields
from hf_era.training.coherence import CoherenceConfig
from hf_era.training.config import CausalLMTrainingConfig, GradientRoutingConfig

SECTIONS = {
    "model": ModelConfig, "expansion": ExpansionConfig, "routing": RoutingRuleConfig, "data": DataConfig,
    "training": GradientRoutingConfig, "pretraining": GradientRoutingConfig, "coherence": CoherenceConfig,
    "evaluation": EvaluationConfig, "generation": SamplingConfig, "relearn": RelearnConfig,
}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "trains"),
    [
        ({}, True),
        ({"base": "x"}, False),
        ({"start": "scratch"}, True),
        ({"start": "scratch", "base_control": False}, False),
        ({"base_control": False}, True),
    ],
)
def test_whether_a_base_is_trained_here(options: dict[str, Any], trains: bool) -> None:
    assert ModelConfig(**options).trains_base is trains


def test_name_and_seed_are_filled_into_paths() -> None:
    config = RunConfig(
        name="mine", seed=4, output_dir="a/{name}/{seed}-{name}", model=ModelConfig(base_dir="b/{seed}/{name}")
    )
    assert config.output_path == Path("a/mine/4-mine")
    assert config.base_path == Path("b/4/mine")
    assert RunConfig(model=ModelConfig(start="scratch", base_dir="b/{start}")).base_path == Path("b/scratch")
    assert RunConfig(name="mine", seed=4).output_path == Path("runs/mine-seed4")
    assert RunConfig(name="mine", seed=4).base_path == Path("runs/mine-seed4/base")
    assert RunConfig(output_dir="{other} {}").output_path == Path("{other} {}")


def test_training_arguments_come_from_the_config_and_the_phase(tmp_path: Path) -> None:
    config = RunConfig(
        seed=5, training={"learning_rate": 1e-2, "max_steps": 3, "multipliers": {"original_forget": 0.0}}
    )
    arguments = config.training_arguments(tmp_path, max_steps=9)
    assert (arguments.seed, arguments.learning_rate, arguments.max_steps) == (5, 1e-2, 9)
    assert arguments.output_dir == str(tmp_path)
    assert arguments.token_router.multipliers.original_forget == 0.0
    assert arguments.token_router.multipliers.original_retain == 1.0


def test_a_stock_model_is_trained_without_the_settings_of_routing(tmp_path: Path) -> None:
    config = RunConfig(seed=5, training={"learning_rate": 1e-2, "l1_coefficient": 0.5, "auxiliary_weight_decay": 0.1})
    arguments = config.stock_training_arguments(tmp_path, max_steps=9, auxiliary_learning_rate_factor=0.5)
    assert type(arguments) is CausalLMTrainingConfig
    assert (arguments.seed, arguments.learning_rate, arguments.max_steps) == (5, 1e-2, 9)
    assert not hasattr(arguments, "l1_coefficient")


def test_every_field_is_described() -> None:
    lines = describe_fields().splitlines()
    described = {line.split(" ")[0].removeprefix("--"): lines[number + 1].strip()
                 for number, line in enumerate(lines) if line.startswith("--")}  # fmt: skip
    expected = {field.name for field in dataclasses.fields(RunConfig) if field.name not in SECTIONS}
    for section, kind in SECTIONS.items():
        expected |= {f"{section}.{field.name}" for field in dataclasses.fields(kind) if field.init}
    expected |= {f"router.{field.name}" for kind in ROUTERS.values() for field in dataclasses.fields(kind)}
    own = {name: method.settings_class for name, method in METHODS.items() if method.settings_class is not None}
    expected |= {f"method_settings.{field.name}" for kind in own.values() for field in dataclasses.fields(kind)}
    assert set(described) == expected
    ours = {name for name in described if not name.startswith(("training.", "pretraining."))}
    for kind in (CausalLMTrainingConfig, GradientRoutingConfig):
        ours |= {f"training.{name}" for name in kind.__annotations__}
    assert [name for name in ours if len(described[name]) < 8] == []
    text = "\n".join(lines)
    assert "%%" not in text
    assert "--routing.rule (text; default: 'full_seq')" in lines
    # In words, whatever transformers' type hints are.
    types = {line.split(" (")[1].split("; default")[0] for line in lines if line.startswith("--")}
    assert [kind for kind in types if re.search(r"typing|class|[<\[]", kind)] == []
    assert "--training.neftune_noise_alpha (a number or null; default: None)" in lines
    assert "--router.multipliers (of `activation`: a mapping; default: GradientMultipliers(" in text
    assert "--method_settings.beta (of `npo`: a number; default: 0.1)" in describe_fields("method_settings")


def test_every_described_default_is_the_default() -> None:
    config = RunConfig()
    assert config.data.forget_words == list(TREE_WORDS)
    config.data.forget_words = []  # the built-in source named them, in place of nobody
    for line in describe_fields().splitlines():
        if line.startswith("--") and not line.startswith(
            ("--training", "--pretraining", "--router.", "--method_settings.")
        ):
            name, _, default = line.removeprefix("--").partition(" (")
            default = default.partition("; default: ")[2]
            if name == "data.forget_words":  # those of the built-in source that is the default
                assert default == "[])"
                continue
            section, _, field = name.rpartition(".")
            assert default == f"{getattr(getattr(config, section) if section else config, field)!r})", name
