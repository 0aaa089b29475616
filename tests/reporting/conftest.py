"""A run's result with figures of a realistic size, and variants of it."""

from collections.abc import Callable
from typing import Any

import pytest

from hf_era.evaluation.relearn.result import RelearnCurve, RelearnPoint, RelearnResult, RelearnTrial
from hf_era.evaluation.results import RunResult

from .samples import made_of


def estimate(loss: float, half_width: float = 0.025, tokens: int = 15_212, stories: int = 100) -> dict[str, Any]:
    return {"loss": loss, "low": loss - half_width, "high": loss + half_width, "tokens": tokens, "stories": stories}


def stage(forget: float, retain: float, forget_words: float) -> dict[str, dict[str, Any]]:
    return {
        "forget": estimate(forget),
        "retain": estimate(retain, 0.031, 14_870),
        "forget_words": estimate(forget_words, 0.1, 412),
    }


def run_config() -> dict[str, Any]:
    """A recipe's settings, with paths and a token that no card may show."""
    return {
        "name": "posttrain_fullseq",
        "output_dir": "/home/somebody/runs/{name}-seed{seed}",
        "model": {
            "start": "pretrained",
            "base": None,
            "architecture": {"hidden_size": 96, "num_layers": 4, "num_heads": 4},
            "base_dir": "/home/somebody/runs/base",
        },
        "expansion": {"module_name": "forget", "width": 32, "target_layers": [0, 1, 2]},
        "routing": {
            "rule": "full_seq",
            "weighting": "frequency",
            "frequency_scale": 1.0,
            "frequency_bias": -4.0,
        },
        "data": {
            "train": "/home/somebody/data/stories.jsonl",
            "forget_words": ["tree", "forest"],
            "labelled_fraction": 0.5,
            "max_characters": 1029,
            "max_tokens": 192,
        },
        "training": {
            "max_steps": 300,
            "learning_rate": 2e-3,
            "per_device_train_batch_size": 16,
            "multipliers": {"original_forget": -0.75, "original_retain": 1.0},
            "hub_token": "hf_secret",
        },
        "coherence": {"enabled": True, "steps": 20, "stories": 32, "learning_rate": 5e-5, "patience": None},
    }


def data_figures() -> dict[str, Any]:
    """What the data layer counts."""
    return {
        "source": "/home/somebody/data/stories.jsonl",
        "validation_source": None,
        "forget_words": ["tree", "forest"],
        "train_stories": 3_700,
        "train_tokens": 561_204,
        "train_forget_labelled": 370,
        "train_forget_without_routed_token": 9,
        "train_forget_unlabelled": 371,
        "train_retain": 2_959,
        "train_forget_word_tokens": 1_482,
        "train_tokens_routed_as_forget": 5_123,
        "duplicates_dropped": 4,
        "validation_forget_stories": 100,
        "validation_forget_tokens": 15_312,
        "validation_retain_stories": 100,
        "validation_retain_tokens": 14_970,
        "attack_forget_stories": 64,
        "attack_forget_tokens": 9_801,
    }


def attack() -> RelearnResult:
    """Two trials with 4 stories, one with LoRA; the model before the method had a forget loss of 1.2."""

    def trial(kind: str, number: int, forget_losses: list[float]) -> RelearnTrial:
        points = [RelearnPoint(5 * step, loss, 1.3 + 0.01 * step) for step, loss in enumerate(forget_losses)]
        return RelearnTrial(kind, 4, 5e-5 if kind == "full" else 1e-3, number, number, RelearnCurve(points))

    return RelearnResult(
        trials=[
            trial("full", 0, [1.8, 1.5, 1.3, 1.24]),
            trial("full", 1, [1.8, 1.6, 1.4, 1.44]),
            trial("lora", 0, [1.8, 1.7, 1.6]),
        ],
        before={"forget": 1.2, "retain": 1.27},
        settings={"steps": 15, "patience": 3, "evaluate_every": 5},
        measured={"forget_stories": 64, "forget_tokens": 9_000, "retain_stories": 64, "retain_tokens": 8_000},
        pool_stories=64,
        notes=["One trial was left out."],
    )


def result_values() -> dict[str, Any]:
    """Every attribute of the result."""
    return {
        "name": "posttrain_fullseq",
        "seed": 0,
        "created": "2026-11-22T14:05:00+00:00",
        "config": run_config(),
        "versions": {"python": "3.11.7", "hf-era": "0.1.0", "torch": "2.11.0"},
        "machine": {"system": "Linux x86_64", "cpu_cores": 2, "device": "cpu", "hostname": "secret-host"},
        "git_revision": "9f56621a-dirty",
        "data": data_figures(),
        "routing_table": [
            {"token": " bird", "token_id": 9, "weight": 0.586, "forget_per_10k": 73.1, "retain_per_10k": 18.7},
            {"token": " tree", "token_id": 7, "weight": 0.0, "forget_per_10k": 99.4, "retain_per_10k": 0.0},
        ],
        "before_kind": "pretrained",
        "losses": {
            "before": stage(1.201, 1.273, 2.104),
            "before_ablation": stage(1.086, 1.079, 1.85),
            "after_ablation": stage(1.846, 1.305, 6.21),
            "after_coherence": stage(1.802, 1.291, 6.03),
        },
        "selectivity": {
            "0": {"value": 1.834, "low": 1.71, "high": 1.95},
            "1": {"value": 1.44, "low": None, "high": None},
            "2": {"value": None, "low": None, "high": None},
        },
        "differences": {
            "ablation_gap": {"value": 0.76, "low": 0.72, "high": 0.8},
            "unlearning": {"value": 0.601, "low": 0.55, "high": 0.65},
        },
        "leak_audit": {
            "gradient": {},
            "ablation": {
                "all": {"forget": {"value": 0.76, "low": 0.72, "high": 0.8}, "retain": {"value": 0.226}},
                "10": {"forget": {"value": 0.2}, "retain": {"value": 0.1}},
                "2": {"forget": {"value": 0.5}, "retain": {"value": 0.0}},
            },
        },
        "attack": attack().to_dict(),
        "coherence": {"enabled": True, "best_step": 7, "best_loss": 1.291, "first_loss": 1.305, "seconds": 12.0},
        "training": {"steps": 300, "minimum_ablation_gap": 0.05, "log_history": [], "seconds": 151.2},
        "seconds": {"base": 120.4, "route": 151.2, "evaluation": 9.8},
    }


@pytest.fixture
def make_result() -> Callable[..., RunResult]:
    """Makes the result; keyword arguments replace its attributes."""

    def make(**overrides: Any) -> RunResult:
        return made_of({**result_values(), **overrides})

    return make
