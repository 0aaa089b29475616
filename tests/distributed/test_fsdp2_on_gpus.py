"""The FSDP2 recipe's own accelerate config on GPUs. `python -m pytest -m gpu tests/distributed`."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


def test_the_fsdp2_config_trains_like_one_process(
    run_one: Callable[..., Any], tmp_path: Path, repository_root: Path
) -> None:
    processes = min(torch.cuda.device_count(), 2)
    settings: dict[str, Any] = {"max_steps": 4, "adam_epsilon": 1e-4}
    case = {"stories": 9, "eval_stories": 5, "save": True}
    own = {**settings, "per_device_train_batch_size": 4 // processes, "use_cpu": False}
    launched = {**case, "way": "fsdp2_as_launched", "name": "gpu", "settings": own}
    (tmp_path / "cases.json").write_text(json.dumps([launched]))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "recipes/accelerate/fsdp2.yaml"]
    command += ["--num_processes", str(processes), "--mixed_precision", "no", "tests/distributed/launched.py"]
    done = subprocess.run(
        [*command, str(tmp_path), str(tmp_path / "cases.json")],
        cwd=repository_root,
        env={**os.environ, "PYTHONPATH": str(repository_root)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    result = torch.load(tmp_path / "gpu.pt", map_location="cpu")
    expected = run_one(**case, settings={**settings, "per_device_train_batch_size": 4})
    for name, value in expected["weights"].items():
        torch.testing.assert_close(result["weights"][name], value, rtol=1e-3, atol=1e-4)
