"""A tiny life cycle in a process of its own, run once without a fault: what every continued run has to end with."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

WORKER = Path(__file__).with_name("worker.py")
# Times, where a run was, and the checkout's revision, which a commit in the meantime changes. All else has to be the same.
TIMES = ("seconds", "created", "output_dir", "base_dir", "git_revision")
TIME_ENDINGS = ("_runtime", "_per_second")


def tiny_values(folder: Path) -> dict[str, Any]:
    return {
        "name": "tiny",
        "output_dir": str(folder / "run"),
        "model": {
            "architecture": {
                "hidden_size": 16,
                "num_layers": 2,
                "num_heads": 2,
                "attention_types": [[["global", "local"], 1]],
                "max_position_embeddings": 64,
                "window_size": 32,
                "resid_dropout": 0.1,  # random states have to be continued too
            },
            "vocabulary_size": 300,
        },
        "expansion": {"width": 4, "target_layers": [0]},
        "data": {
            "generator_stories": 120,
            "max_tokens": 48,
            "forget_validation_stories": 5,
            "retain_validation_stories": 6,
            "attack_stories": 3,
        },
        "training": {
            "max_steps": 8,
            "per_device_train_batch_size": 4,
            "warmup_steps": 1,
            "eval_strategy": "steps",
            "eval_steps": 4,
            "save_steps": 2,
            "logging_steps": 3,  # not where checkpoints are: a half-summed line of the log is continued
            "disable_tqdm": True,
            "minimum_ablation_gap": -100.0,
        },
        "pretraining": {"max_steps": 4},
        "coherence": {"steps": 4, "stories": 4, "learning_rate": 1e-3},
        "evaluation": {"bootstrap_samples": 50},
        "generation": {"prompts": ["One day", "The tree"], "new_tokens": 4},
        "relearn": {
            "stories": [1, 3],
            "trials": 1,
            "steps": 2,
            "sweep_learning_rates": [1e-3],
            "lora": False,
            "attack_before": False,
        },
    }


class FaultyRun:
    """A tiny run in a folder, started as often as needed, with a signal at a chosen event or without.

    Attributes:
        output (`Path`): its output directory. stderr (`str`): what the last start said.
    """

    def __init__(self, folder: Path, cache: Path, **sections: Any) -> None:
        self.folder, self.cache = folder, cache
        folder.mkdir(parents=True, exist_ok=True)
        values = tiny_values(folder)
        for section, fields in sections.items():
            values[section] = {**values.get(section, {}), **fields} if isinstance(fields, dict) else fields
        self.config = folder / "config.yaml"
        self.config.write_text(yaml.safe_dump(values))
        self.output, self.trace, self.stderr = Path(values["output_dir"]), folder / "trace.json", ""

    def start(
        self,
        *plan: Any,
        command: tuple[str, ...] = (),
        rank: int = 0,
        worker: Path = WORKER,
        timeout: float = 240,
    ) -> int:
        """Runs to the end or to the signal of the plan: (phase, "saving" or "any", number, name of the signal).

        `command` starts the worker in place of Python itself; of several processes, that of `rank` gets the signal.
        """
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(self.cache), "PYTHONWARNINGS": "default"}
        root = str(WORKER.parents[2])
        environment |= {"PYTHONPATH": root, "HF_ERA_TEST_SIGNAL_RANK": str(rank)}
        done = subprocess.run(
            [sys.executable, *command, str(worker), str(self.config), str(self.trace), *map(str, plan)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            cwd=root,
        )
        self.stderr = done.stderr
        return done.returncode

    def outcome(self) -> dict[str, Any]:
        """The final weights as bytes, and the result without times."""
        result = json.loads((self.output / "result.json").read_text())
        models = {name: (self.output / name / "model.safetensors").read_bytes() for name in ("expanded", "model")}
        return {"result": without_times(result), **models}

    def events(self, which: str, phase: str) -> int:
        """How many events a phase had in the last start that ended by itself, "saving" ones or "any"."""
        return int(json.loads(self.trace.read_text())[which][phase])


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: part for key, part in value.items() if key not in TIMES and not key.endswith(TIME_ENDINGS)}
        return {key: without_times(part) for key, part in kept.items()}
    return [without_times(part) for part in value] if isinstance(value, list) else value


@pytest.fixture(scope="session")
def faulty_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., FaultyRun]:
    cache = tmp_path_factory.mktemp("cache")
    return lambda folder, **sections: FaultyRun(folder, cache, **sections)


@pytest.fixture(scope="session")
def undisturbed(faulty_run: Callable[..., FaultyRun], tmp_path_factory: pytest.TempPathFactory) -> FaultyRun:
    """The run that nothing happened to. To be read only."""
    run = faulty_run(tmp_path_factory.mktemp("undisturbed"))
    assert run.start() == 0, run.stderr
    return run
