"""What makes a run another one stands on each field, and nowhere else."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from hf_era import GradientRoutingConfig, RunConfig
from hf_era.run.config import SECTIONS
from hf_era.run.context import identity_settings
from hf_era.utils.fields import UNLESS_DEFAULT, about, identity_values

CONFIGS = SECTIONS


def without_identity(config_class: type) -> list[str]:
    """Fields of a config that do not say whether they identify a run; those of transformers cannot."""
    inherited = {item.name: item for item in dataclasses.fields(TrainingArguments)}
    return [
        item.name
        for item in dataclasses.fields(config_class)
        if item.metadata.get("identity") not in (True, False, UNLESS_DEFAULT) and inherited.get(item.name) is not item
    ]


@pytest.mark.parametrize("section", CONFIGS)
def test_every_field_declares_itself(section: str) -> None:
    assert without_identity(CONFIGS[section]) == []


def test_a_field_that_says_nothing_is_noticed() -> None:
    """Planted: a section, and a config over the Trainer's, each with a field that declares nothing."""

    @dataclasses.dataclass
    class Section:
        declared: int = dataclasses.field(default=0, metadata=about("A number.", identity=True))
        silent: int = dataclasses.field(default=0, metadata={"help": "Another."})

    @dataclasses.dataclass
    class Arguments(GradientRoutingConfig):
        silent: int = 0

    assert without_identity(Section) == ["silent"]
    assert without_identity(Arguments) == ["silent"]


def test_defaults_that_are_newer_than_a_run_go_without_saying() -> None:
    @dataclasses.dataclass
    class Section:
        old: int = dataclasses.field(default=1, metadata=about("", identity=True))
        new: list[int] = dataclasses.field(default_factory=list, metadata=about("", identity=UNLESS_DEFAULT))
        shown: int = dataclasses.field(default=2, metadata=about("", identity=False))

    assert identity_values(Section, {"old": 1, "new": [], "shown": 3, "unknown": 4}) == {"old": 1}
    assert identity_values(Section, {"old": 1, "new": [5]}) == {"old": 1, "new": [5]}


def test_the_settings_of_an_ordinary_run_are_those_that_earlier_versions_wrote_down(
    tmp_path: Path, make_run_config: Callable[..., RunConfig]
) -> None:
    config = make_run_config(tmp_path)
    found = identity_settings(config, config.training_arguments(tmp_path))
    assert sorted(found) == ["expansion", "launch", "model", "pretraining", "routing", "seed", "training"]
    assert sorted(found["expansion"]) == ["initialization_scale", "module_name", "target_layers", "width"]
    assert sorted(found["model"]) == ["architecture", "base", "start", "tokenizer"]
    assert sorted(found["training"]) == ["max_steps", "per_device_train_batch_size", "warmup_steps"]
    assert found["launch"] == {"processes": 1, "mixed_precision": "no"}


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"seed": 1}, "seed"),
        ({"router": {"name": "activation", "multipliers": {"original_forget": 0.0}}}, "router"),
        ({"routing": {"rule": "concept"}}, "routing"),
        ({"expansion": {"width": 8}}, "expansion"),
        ({"training": {"dataloader_drop_last": True}}, "training"),
        ({"model": {"start": "scratch"}}, "model"),
        ({"model": {"start": "scratch"}, "method": "data_filtering"}, "method"),
        ({"coherence": {"steps": 5}}, None),
        ({"relearn": {"steps": 5}}, None),
        ({"training": {"dataloader_num_workers": 2, "logging_steps": 7, "minimum_ablation_gap": 1.0}}, None),
        ({"model": {"base_dir": "elsewhere"}}, None),
        ({"router": "activation"}, None),
    ],
)
def test_what_makes_another_run(
    changes: dict[str, Any], where: str | None, tmp_path: Path, make_run_config: Callable[..., RunConfig]
) -> None:
    first = make_run_config(tmp_path)
    values = first.to_dict()
    for section, fields in changes.items():
        values[section] = {**values[section], **fields} if isinstance(values.get(section), dict) else fields
    changed = RunConfig.from_dict(values)
    before, after = (identity_settings(config, config.training_arguments(tmp_path)) for config in (first, changed))
    assert (before == after) == (where is None)
    if where is not None:
        assert before.get(where) != after.get(where)
