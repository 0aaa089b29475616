"""`recipes/slurm/era.sbatch` with a stand-in for SLURM: what it starts, and when it puts the job back into the queue."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# One process per task, as srun would start it, all with the same command.
SRUN = """#!/bin/bash
shift  # --kill-on-bad-exit=1
for task in $(seq 0 $((SLURM_NTASKS - 1))); do SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & done
status=0
for task in $(jobs -p); do wait "$task" || status=$?; done
exit $status
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo node7; else echo "$@" >> "$SCONTROL_LOG"; fi
"""
# Says what it was given, and ends with the status that it was told to.
RECIPE = """
import os, sys
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "ACCELERATE_MIXED_PRECISION")
said = [*(os.environ[name] for name in names), str(os.environ.get("ACCELERATE_USE_FSDP")), *sys.argv[1:]]
os.write(1, (" ".join(said) + "\\n").encode())  # in one go: the tasks share the pipe
sys.exit(int(sys.argv[1]))
"""
# Takes its time to save.
SAVING = """
import os, sys, time
if os.environ["RANK"] == "0":
    print("up", flush=True)
time.sleep(2)
sys.exit(75)
"""


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """The environment of a batch script."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    activate = tmp_path / "venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.write_text(f'export PATH="{tmp_path}:{Path(sys.executable).parent}:$PATH"\n')
    (tmp_path / "recipe.py").write_text(RECIPE)
    return {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "HF_ERA_VENV": str(tmp_path / "venv"),
        "SCONTROL_LOG": str(tmp_path / "scontrol.log"),
        "SLURM_JOB_ID": "1234",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_NTASKS": "2",
        "SLURM_CPUS_PER_TASK": "1",
    }


def submit(root: Path, tmp_path: Path, job: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    script = [str(root / "recipes" / "slurm" / "era.sbatch"), str(tmp_path / "recipe.py"), *options]
    return subprocess.run(["bash", *script], env=job, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (1, False), (2, False), (74, False), (75, True)])
def test_only_a_run_that_saved_is_requeued(
    status: int, requeued: bool, repository_root: Path, tmp_path: Path, job: dict[str, str]
) -> None:
    done = submit(repository_root, tmp_path, job, str(status))
    assert done.returncode == status, done.stderr
    log = tmp_path / "scontrol.log"
    assert (log.read_text() if log.exists() else "") == ("requeue 1234\n" if requeued else "")


def test_every_task_knows_its_place(repository_root: Path, tmp_path: Path, job: dict[str, str]) -> None:
    done = submit(repository_root, tmp_path, {**job, "HF_ERA_FSDP2": "1"}, "0", "--learning_rate", "1e-3")
    assert sorted(done.stdout.splitlines()) == [
        "0 0 2 node7 21234 bf16 true 0 --learning_rate 1e-3",
        "1 1 2 node7 21234 bf16 true 0 --learning_rate 1e-3",
    ]
    assert "None" in submit(repository_root, tmp_path, job, "0").stdout  # no FSDP unless it is asked for


def test_the_script_outlives_the_signal_that_its_tasks_get(
    repository_root: Path, tmp_path: Path, job: dict[str, str]
) -> None:
    # On preemption the script gets SIGTERM too; it has to be there to requeue when the tasks have saved.
    (tmp_path / "recipe.py").write_text(SAVING)
    script = [str(repository_root / "recipes" / "slurm" / "era.sbatch"), str(tmp_path / "recipe.py")]
    with subprocess.Popen(["bash", *script], env=job, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 75
    assert (tmp_path / "scontrol.log").read_text() == "requeue 1234\n"


def test_a_missing_recipe_is_said(repository_root: Path, job: dict[str, str]) -> None:
    script = str(repository_root / "recipes" / "slurm" / "era.sbatch")
    done = subprocess.run(["bash", script], env=job, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "usage: sbatch recipes/slurm/era.sbatch RECIPE" in done.stderr
