"""What makes a run another one stands on each field, and nowhere else."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import PartialState
from datasets import Dataset
from transformers import TrainingArguments

from hf_era import ExpansionConfig, GradientRoutingConfig, RunConfig
from hf_era.data import FORGET, RETAIN, UNLABELLED
from hf_era.methods import get_method
from hf_era.methods.method import stories_labelled
from hf_era.run.config import SECTIONS
from hf_era.run.context import Run, identity_settings
from hf_era.run.inputs import RunInputs, load_inputs
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


def test_so_are_several_modules() -> None:
    """As revision 2ab1d4b wrote them down: a run that it began with several modules goes on."""
    modules = [{"name": "zeta", "width": 8}, {"name": "alpha", "width": 4, "target_layers": [1]}]
    found = identity_values(ExpansionConfig, ExpansionConfig(modules=modules).to_dict())
    common = {"initialization_scale": 1.0, "kind": "mlp"}
    assert found["modules"] == [
        {"name": "zeta", "width": 8, "target_layers": None, **common},
        {"name": "alpha", "width": 4, "target_layers": [1], **common},
    ]
    (by_ratio,) = ExpansionConfig(modules=[{"name": "zeta", "width_ratio": 0.5}]).modules or []
    assert by_ratio == {"name": "zeta", "width": None, "target_layers": None, **common, "width_ratio": 0.5}


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
        ({"evaluation": {"tasks": ["wmdp_bio"], "task_limit": 5}}, None),
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


# ---- Controls, and stories without a label ----


@pytest.fixture
def make_run(tmp_path: Path, make_run_config: Callable[..., RunConfig]) -> Callable[..., Run]:
    """A run with everything loaded and nothing trained, from random weights unless it is said otherwise."""

    inputs: dict[float, RunInputs] = {}

    def make(**changes: Any) -> Run:
        changes["model"] = {"start": "scratch", **changes.get("model", {})}
        config = make_run_config(tmp_path, **changes)
        fraction = config.data.labelled_fraction
        inputs[fraction] = inputs.get(fraction) or load_inputs(config)
        return Run(config, inputs[fraction], config.training_arguments(tmp_path), PartialState())

    return make


def test_a_control_with_another_l1_term_is_another_control(make_run: Callable[..., Run]) -> None:
    run, without = make_run(), make_run(model={"controls_share_l1": False})
    assert run.control_settings == {"l1_coefficient": 1e-4, "l1_layers": [0]}
    assert without.control_settings == make_run(training={"l1_coefficient": 0.0}).control_settings == {}
    assert make_run(model={"start": "pretrained"}).control_l1_coefficient == 0.0
    others = [{"training": {"l1_coefficient": 1e-3}}, {"expansion": {"target_layers": [1]}}]
    assert len({run.base_key, without.base_key, *(make_run(**changes).base_key for changes in others)}) == 4
    # The routed model is the same one; data filtering is such a control itself.
    assert run.identity == without.identity
    filtering = make_run(method="data_filtering")
    assert filtering.settings["control_l1_coefficient"] == 1e-4
    # As an earlier version wrote it down, which trained it without the term.
    earlier = make_run(method="data_filtering", model={"controls_share_l1": False})
    assert earlier.settings == identity_settings(earlier.config, earlier.arguments)


@pytest.mark.parametrize(("fraction", "unlabelled"), [(1.0, False), (0.5, True)])
def test_what_is_trained_on_stories_without_a_label_is_another_model(
    fraction: float, unlabelled: bool, make_run: Callable[..., Run]
) -> None:
    """Of an earlier version, which left them out of data filtering and of the coherence fine-tuning."""
    data = {"labelled_fraction": fraction}
    filtering = make_run(method="data_filtering", data=data)
    assert ("unlabelled_stories" in filtering.settings) == unlabelled
    keys = [
        get_method("gradient_routing").phases(make_run(data=data, coherence={"unlabelled": taken}))[-1].key
        for taken in (True, False)
    ]
    assert (keys[0] != keys[1]) == unlabelled


def test_of_a_pool_with_unlabelled_stories_so_many_are_drawn() -> None:
    """The first ones of a file that is sorted would be of one kind; without unlabelled ones it is the first, as ever."""
    labels = [*[FORGET] * 40, *[UNLABELLED] * 360, *[RETAIN] * 640]  # forget stories stand first
    data: Any = SimpleNamespace(train=Dataset.from_dict({"label": labels, "index": list(range(len(labels)))}))
    drawn = stories_labelled(data, RETAIN, UNLABELLED, most=100, seed=0)
    assert len(drawn) == 100
    assert 20 < drawn["label"][:].count(UNLABELLED) < 52  # 36 % of the pool
    again, other = (stories_labelled(data, RETAIN, UNLABELLED, most=100, seed=seed)["index"][:] for seed in (0, 1))
    assert drawn["index"][:] == again == sorted(again) != other
    assert len(stories_labelled(data, RETAIN, UNLABELLED, most=2_000, seed=0)) == 1_000
    first = stories_labelled(data, RETAIN, most=100, seed=0)["index"][:]
    assert first == list(range(400, 500))
