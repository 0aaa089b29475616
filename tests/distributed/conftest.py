"""Launches several processes for many cases at once, and runs the same cases in this process alone."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).with_name("launched.py")


@pytest.fixture(scope="session")
def launched() -> ModuleType:
    """The launched script as a module."""
    spec: Any = importlib.util.spec_from_file_location("launched", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["launched"] = module  # dataclasses and pickles look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def run_several(repository_root: Path) -> Callable[..., dict[str, Any]]:
    """Runs cases on two processes or more, one launch for all; name -> result. Fails if a process fails, or hangs."""

    def run(folder: Path, cases: list[dict[str, Any]], processes: int = 2) -> dict[str, Any]:
        (folder / "cases.json").write_text(json.dumps(cases))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        done = subprocess.run(
            [*command, str(SCRIPT), str(folder), str(folder / "cases.json")],
            cwd=repository_root,
            env={**os.environ, "PYTHONPATH": str(repository_root), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
        return {case["name"]: torch.load(folder / f"{case['name']}.pt") for case in cases}

    return run


@pytest.fixture(scope="session")
def run_one(launched: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """Runs one case in this process."""

    def run(**case: Any) -> dict[str, Any]:
        folder = case.pop("folder", None) or tmp_path_factory.mktemp("one")
        return launched.run_case(folder, {"way": "one", "name": "one", **case})

    return run
