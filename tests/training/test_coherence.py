"""Coherence fine-tuning: the best weights are kept, and "no change" is the first candidate."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_era import GradientRoutingConfig
from hf_era.data import train_tokenizer
from hf_era.training.coherence import (
    CoherenceConfig,
    coherence_settings,
    damage_of_best,
    fine_tune_for_coherence,
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(["a story about nothing"], vocab_size=260)


def run(
    make_base: Callable[..., Any], make_stories: Callable[..., Any], tokenizer: Any, folder: Path, **settings: Any
) -> tuple[Any, Path, dict[str, Any]]:
    config = CoherenceConfig(**{"steps": 4, "stories": 8, **settings})
    changes = coherence_settings(config, per_device_batch_size=4, processes=1)
    routing = {"metric_for_best_model": "eval_ablation_gap"}  # that no stock model has
    arguments = GradientRoutingConfig(
        str(folder / "coherence"), use_cpu=True, disable_tqdm=True, save_steps=2, **{**routing, **changes}
    )
    model = make_base()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    stories = make_stories(8, routed=False)
    best, report = fine_tune_for_coherence(model, arguments, config, stories, stories, tokenizer)
    return start, best, report


def test_an_improvement_is_kept(
    make_base: Callable[..., Any], make_stories: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    _, best, report = run(make_base, make_stories, tokenizer, tmp_path, learning_rate=1e-3)
    assert report["best_step"] == 4
    assert report["best_loss"] < report["first_loss"]
    assert [entry["step"] for entry in report["history"]] == [0, 1, 2, 3, 4]
    assert type(AutoModelForCausalLM.from_pretrained(best)).__name__ == "GPTNeoForCausalLM"


def test_no_change_is_kept_if_every_step_is_worse(
    make_base: Callable[..., Any], make_stories: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    start, best, report = run(make_base, make_stories, tokenizer, tmp_path, learning_rate=5.0)
    assert report["best_step"] == 0
    assert report["best_loss"] == report["first_loss"]
    kept = AutoModelForCausalLM.from_pretrained(best).state_dict()
    assert all(torch.equal(value, start[name]) for name, value in kept.items())


def test_patience_stops_early(
    make_base: Callable[..., Any], make_stories: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    _, _, report = run(make_base, make_stories, tokenizer, tmp_path, learning_rate=5.0, steps=10, patience=2)
    assert report["history"][-1]["step"] == 2


def test_a_phase_that_gave_up_makes_no_other_step_when_it_is_run_again(
    make_base: Callable[..., Any], make_stories: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    """As after a kill between its last step and the record that it is done."""
    settings = {"learning_rate": 5.0, "steps": 10, "patience": 2}
    _, best, report = run(make_base, make_stories, tokenizer, tmp_path, **settings)
    content = (best / "model.safetensors").read_bytes()
    _, again, same = run(make_base, make_stories, tokenizer, tmp_path, **settings)
    assert same == report
    assert (again / "model.safetensors").read_bytes() == content


def test_damage_of_the_best_weights_is_seen(
    make_base: Callable[..., Any], make_stories: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    assert damage_of_best(tmp_path / "coherence") is None  # nothing is there yet
    _, best, _ = run(make_base, make_stories, tokenizer, tmp_path, learning_rate=1e-3)
    assert damage_of_best(best.parent) is None
    with (best / "model.safetensors").open("r+b") as file:
        file.seek(-5, 2)
        file.write(b"\x7f")
    assert damage_of_best(best.parent) == "model.safetensors is not as it was written (its SHA-256 differs)"


def test_all_stories_are_the_batch_of_every_step() -> None:
    for batch_size, processes in ((16, 1), (16, 2), (80, 1)):
        changes = coherence_settings(CoherenceConfig(stories=64), batch_size, processes)
        assert changes["per_device_train_batch_size"] * changes["gradient_accumulation_steps"] * processes == 64
    assert changes["lr_scheduler_type"] == "constant"
    assert changes["learning_rate"] == 5e-5


@pytest.mark.parametrize(("field", "value"), [("steps", 0), ("stories", 0), ("patience", 0), ("learning_rate", 0.0)])
def test_bad_settings_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"`coherence.{field}`"):
        CoherenceConfig(**{field: value})
