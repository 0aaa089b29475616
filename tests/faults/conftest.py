"""A tiny life cycle in a process of its own, run once without a fault: what every continued run has to end with."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

WORKER = Path(__file__).with_name("worker.py")
ROOT = WORKER.parents[2]
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


class Server:
    """Starts runs in processes that need not import everything again: they are forked from one that has."""

    def __init__(self, environment: dict[str, str], stderr: Path) -> None:
        self.environment, self.stderr = environment, stderr
        self.process: subprocess.Popen[str] | None = None

    def start(self, arguments: list[str]) -> tuple[int, str]:
        if self.process is None:
            command, pipe = [sys.executable, str(WORKER), "serve"], subprocess.PIPE
            self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=self.environment, cwd=ROOT)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([arguments, str(self.stderr)]), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline()), self.stderr.read_text()

    def close(self) -> None:
        if self.process is not None:
            self.process.communicate()


class FaultyRun:
    """A tiny run in a folder, started as often as needed, with a signal at a chosen event or without.

    Attributes:
        output (`Path`): its output directory. stderr (`str`): what the last start said.
    """

    def __init__(self, folder: Path, environment: dict[str, str], server: Server | None, **sections: Any) -> None:
        self.folder, self.environment, self.server = folder, environment, server
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
        arguments = [str(self.config), str(self.trace), *map(str, plan)]
        if self.server and not command:
            code, self.stderr = self.server.start(arguments)
            return code
        done = subprocess.run(
            [sys.executable, *command, str(worker), *arguments],
            env={**self.environment, "HF_ERA_TEST_SIGNAL_RANK": str(rank)},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            cwd=ROOT,
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
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of all runs; they share the caches."""
    cache = str(tmp_path_factory.mktemp("cache"))
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HOME": cache, "PYTHONWARNINGS": "default"}
    return {**os.environ, **own}


@pytest.fixture(scope="session")
def server(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(environment, tmp_path_factory.mktemp("server") / "stderr.txt")
    yield server
    server.close()


@pytest.fixture(scope="session")
def faulty_run(environment: dict[str, str], server: Server) -> Callable[..., FaultyRun]:
    return lambda folder, **sections: FaultyRun(folder, environment, server, **sections)


@pytest.fixture(scope="session")
def undisturbed(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> FaultyRun:
    """The run that nothing happened to. To be read only. In an interpreter of its own, which orders the strings of a set in
    another way than that which the others are forked from."""
    run = FaultyRun(tmp_path_factory.mktemp("undisturbed"), environment, server=None)
    assert run.start() == 0, run.stderr
    return run
