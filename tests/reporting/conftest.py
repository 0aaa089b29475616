"""A run's result with figures of a realistic size, and variants of it."""

from collections.abc import Callable
from typing import Any

import pytest

from hf_era.evaluation.result import RunResult


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
        "selectivity": {"0": 1.834, "1": 1.44, "2": None},
        "coherence": {"enabled": True, "best_step": 7, "best_loss": 1.291, "first_loss": 1.305, "seconds": 12.0},
        "training": {"steps": 300, "minimum_ablation_gap": 0.05, "log_history": [], "seconds": 151.2},
        "seconds": {"base": 120.4, "route": 151.2, "evaluation": 9.8},
    }


@pytest.fixture
def make_result() -> Callable[..., RunResult]:
    """Makes the result; keyword arguments replace its attributes."""

    def make(**overrides: Any) -> RunResult:
        return RunResult(**{**result_values(), **overrides})

    return make
