"""A run with two modules: what it says of them beforehand, and that every phase goes through."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset

from hf_era import ExpansionConfig, RunConfig, run_pipeline
from hf_era.run.config import load_run_config
from hf_era.run.dry_run import counts_by_label
from hf_era.run.inputs import _counts, input_notes, load_inputs

MODULES = {"acids": {"train_stories": 2, "validation_forget_stories": 1, "validation_forget_tokens": 6,
                     "attack_forget_stories": 0, "attack_forget_tokens": 0},
           "boats": {"train_stories": 1, "validation_forget_stories": 0, "validation_forget_tokens": 0,
                     "attack_forget_stories": 1, "attack_forget_tokens": 4}}  # fmt: skip


def test_a_dry_run_counts_by_module() -> None:
    train = Dataset.from_dict(
        {
            "label": [0, 1, 0, 0, -1],
            "module": ["acids", None, "boats", "acids", None],
            "routing_weight": [[0.0, 1.0], [1.0], [0.0, 0.0, 1.0], [0.4], [1.0]],
        }
    )
    parts = {
        name: Dataset.from_dict({"length": [4]}) for name in ("validation_forget", "validation_retain", "attack_forget")
    }
    data = SimpleNamespace(
        train=train, **parts, validation_unlabelled=Dataset.from_dict({}), summary={"modules": MODULES},
        coherence_validation=Dataset.from_dict({"length": [3, 4]}),
    )  # fmt: skip
    run: Any = SimpleNamespace(data=data)
    found = [tuple(row.get(name) for name in ("part", "label", "module", "examples", "tokens", "routed"))
             for row in counts_by_label(run)]  # fmt: skip
    assert found == [
        ("train", "forget", None, 3, 6, 4),
        ("train", "forget", "acids", 2, 3, 2),
        ("train", "forget", "boats", 1, 3, 2),
        ("train", "retain", None, 1, 1, 0),
        ("train", "unlabelled", None, 1, 1, 0),
        ("validation", "forget", None, 1, 4, None),
        ("validation", "forget", "acids", 1, 6, None),
        ("validation", "forget", "boats", 0, 0, None),
        ("validation", "retain", None, 1, 4, None),
        ("attack", "forget", None, 1, 4, None),
        ("attack", "forget", "acids", 0, 0, None),
        ("attack", "forget", "boats", 1, 4, None),
        ("coherence", "retain", None, 2, 7, None),
    ]


def test_a_run_says_how_many_examples_each_module_has(
    make_run_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    summary: dict[str, Any] = {
        "train_forget_labelled": 3, "train_retain": 4, "train_unlabelled": 0, "train_forget_unlabelled": 0,
        "train_forget_without_routed_token": 0, "modules": MODULES,
    }  # fmt: skip
    config = make_run_config(tmp_path, generation={"enabled": False})
    assert _counts(config, summary) == "To be trained on: 3 forget (acids 2, boats 1), 4 retain examples."
    lost = {"train_forget_unlabelled": 2, "label_errors": {"kind": "short"}}
    assert _counts(config, summary | lost).endswith(" Forget examples that lost their label: 2, the shortest.")
    lost = {"train_retain_labelled_forget": 1, "label_errors": {"kind": "score", "threshold": 0.5}}
    assert _counts(config, summary | lost).endswith(
        " A classifier labelled them: 0 forget examples are unlabelled, and 1 retain examples are labelled forget."
    )
    without = make_run_config(tmp_path, method="continue_retain")
    assert (
        _counts(without, summary | {"modules": {}}) == "To be trained on: 4 retain examples. Not trained on: 3 forget."
    )
    inputs: Any = SimpleNamespace(data=SimpleNamespace(summary=summary))
    assert "No example of the module 'boats' is among those to evaluate on" in input_notes(config, inputs)[1]


def test_modules_that_nothing_tells_apart_are_said(make_run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    summary = {"train_forget_labelled": 3, "train_forget_without_routed_token": 0}
    inputs: Any = SimpleNamespace(data=SimpleNamespace(summary=summary))
    config = make_run_config(tmp_path, generation={"enabled": False})
    assert input_notes(config, inputs) == []
    config.expansion = ExpansionConfig(modules=[{"name": "acids"}, {"name": "boats"}])
    assert input_notes(config, inputs) == [
        "The modules `acids`, `boats` all learn the same: nothing says whose examples are whose. Give each its labels, or "
        "words: `data.modules`."
    ]
    config.data.modules = {"acids": ["acid"], "boats": ["boat"]}
    assert input_notes(config, inputs) == []


def tiny(make_run_config: Callable[..., RunConfig], folder: Path, **changes: Any) -> RunConfig:
    packaged = load_run_config(["two_modules"])
    modules = [{**module, "width": 4, "target_layers": [0]} for module in packaged.expansion.modules]
    values = make_run_config(folder).to_dict() | {
        "expansion": {"modules": modules[:: changes.pop("step", 1)]},
        "data": {
            "train": "topics", "generator_stories": 60, "max_tokens": 32, "forget_validation_stories": 4,
            "retain_validation_stories": 5, "attack_stories": 4, "modules": packaged.data.modules, **changes,
        },
    }  # fmt: skip
    values["model"] |= {"start": "scratch", "vocabulary_size": 300}
    return RunConfig.from_dict(values)


def test_the_order_of_the_models_modules_counts(make_run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    """Not that of `data.modules`."""
    train = load_inputs(tiny(make_run_config, tmp_path, step=-1)).data.train
    found = set(zip(train["module"], train["module_index"], strict=True))
    assert found == {("chemistry", 1), ("sailing", 0), (None, -1)}


@pytest.mark.slow
@pytest.mark.usefixtures("_no_localisation_warning")
def test_a_run_with_two_modules(make_run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = tiny(make_run_config, tmp_path)
    result = run_pipeline(config)
    assert {name: own["validation_forget_stories"] for name, own in result.data["modules"].items()} == {
        "chemistry": 2, "sailing": 2,
    }  # fmt: skip
    assert result.data["labelling"]["modules"] == {"chemistry": ["chemistry"], "sailing": ["sailing"]}
    assert (config.output_path / "model" / "README.md").is_file()
