"""Three processes add up in an order that depends on where a gradient lies: a continued run must have the same one.

Of two processes every order gives the same sum, so two cannot tell.
"""

from collections.abc import Callable
from typing import Any

import pytest

ADAM = {"adam_epsilon": 1e-4}  # see with_batch in test_two_processes.py
SAVED = {"max_steps": 8, "logging_steps": 3, "save_strategy": "steps", "save_steps": 4, **ADAM}
CASES: dict[str, dict[str, Any]] = {
    "ddp": {"way": "ddp", "settings": {"per_device_train_batch_size": 1}},
    "ddp-accumulated": {
        "way": "ddp",
        "dropout": 0.1,  # the pass that is thrown away must draw nothing
        "settings": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
    },
    "fsdp2": {"way": "fsdp2", "settings": {"per_device_train_batch_size": 1}},
}


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def three(run_several: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    cases = [
        {"name": name, "stories": 10, "resume": "checkpoint-4", **case, "settings": {**SAVED, **case["settings"]}}
        for name, case in CASES.items()
    ]
    return run_several(tmp_path_factory.mktemp("three"), cases, processes=3)


@pytest.mark.parametrize("name", list(CASES))
def test_a_continued_run_ends_bit_for_bit(name: str, three: dict[str, Any]) -> None:
    result = three[name]
    assert result["processes"] == 3
    assert result["resumed"].keys() == result["weights"].keys()
    assert [key for key, value in result["resumed"].items() if not value.equal(result["weights"][key])] == []
    figures = ("loss", "l1_loss", "language_model_loss", "grad_norm", "learning_rate")
    logged, again = (
        [[entry[key] for key in figures if key in entry] for entry in result[logs]] for logs in ("logs", "resumed_logs")
    )
    assert logged == again


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_three_processes_train_like_one(name: str, three: dict[str, Any], run_one: Callable[..., Any]) -> None:
    settings = {**SAVED, "save_strategy": "no", "per_device_train_batch_size": 3}
    expected, actual = run_one(stories=10, settings=settings)["weights"], three[name]["weights"]
    for key, value in expected.items():
        assert float((actual[key] - value).abs().max() / value.abs().max().clamp(min=1e-3)) < 1e-5, key
