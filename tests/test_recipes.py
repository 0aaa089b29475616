"""The recipes as a user launches them: their own YAML, another scale over it, overrides, several processes."""

import os
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hf_era.evaluation import RunResult

RECIPES = ("scratch_fullseq", "posttrain_fullseq", "scratch_concept", "posttrain_concept")
# The demo on stories, cut to seconds.
TINY = shlex.split("""
    --model.architecture.hidden_size 16 --model.architecture.num_heads 2 --model.vocabulary_size 300
    --data.generator_stories 160 --data.max_tokens 48 --data.forget_validation_stories 6
    --data.retain_validation_stories 6 --data.attack_stories 4 --relearn.stories 2 --relearn.steps 4
    --relearn.sweep_learning_rates 0.001 --generation.new_tokens 4 --eval_steps 4 --warmup_steps 1
    --per_device_train_batch_size 4 --disable_tqdm true --coherence.steps 1 --coherence.stories 4
    --expansion.width 4
""")
STEPS = ("--max_steps", "4")


def launch(
    command: list[str], folder: Path, root: Path, *options: str, length: tuple[str, str] = STEPS
) -> tuple[RunResult, str]:
    """Runs a recipe of the checkout over the scale of the demo on stories; returns its result and its output."""
    where = ["--output_dir", str(folder / "run"), "--model.base_dir", str(folder / "base")]
    done = subprocess.run(
        [*command, "--config", "recipes/configs/demo_stories.yaml", *TINY, *length, *where, *options],
        cwd=root,
        env={**os.environ, "HF_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return RunResult.load(folder / "run" / "result.json"), done.stdout + done.stderr


def accelerate(*options: str) -> list[str]:
    return [sys.executable, "-m", "accelerate.commands.launch", *options]


def check(recipe: str, result: RunResult, output: str, folder: Path) -> None:
    assert result.name == recipe
    assert result.config["routing"]["rule"] == ("full_seq" if recipe.endswith("fullseq") else "concept")
    assert result.before_kind == ("base_control" if recipe.startswith("scratch") else "pretrained")
    assert "After ablation" in output
    assert (folder / "run" / "model" / "README.md").is_file()


@pytest.mark.slow
def test_accelerate_launch(tmp_path: Path, repository_root: Path) -> None:
    command = accelerate("--config_file", "recipes/accelerate/cpu.yaml", "recipes/scratch_fullseq.py")
    check("scratch_fullseq", *launch(command, tmp_path, repository_root), tmp_path)


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path: Path, repository_root: Path) -> None:
    two = accelerate("--config_file", "recipes/accelerate/cpu_ddp.yaml", "recipes/posttrain_concept.py")
    # In sequence both cut the same order of stories into batches of four in all.
    order = ("--train_sampling_strategy", "sequential")
    (tmp_path / "two").mkdir()
    (tmp_path / "one").mkdir()
    result, output = launch(two, tmp_path / "two", repository_root, *order, "--per_device_train_batch_size", "2")
    check("posttrain_concept", result, output, tmp_path / "two")
    single, _ = launch([sys.executable, "recipes/posttrain_concept.py"], tmp_path / "one", repository_root, *order)
    assert result.training["steps"] == single.training["steps"] == 4
    for stage, kinds in single.losses.items():
        for kind, estimate in kinds.items():
            assert result.losses[stage][kind]["loss"] == pytest.approx(estimate["loss"], abs=1e-4), (stage, kind)


@pytest.mark.slow
def test_noise_and_route_in_two_processes(tmp_path: Path, repository_root: Path) -> None:
    """Each finds the same weights to noise, and so does the leak audit, which one process makes by itself."""
    two = accelerate("--config_file", "recipes/accelerate/cpu_ddp.yaml", "recipes/posttrain_robust.py")
    attack = (
        "--relearn.preset",
        "quick",
        "--relearn.lora",
        "false",
        "--relearn.mixtures",
        "forget",
        "--relearn.widen_sweep",
        "0",
    )
    half = (*attack, "--pretraining.max_steps", "8")
    result, output = launch(two, tmp_path, repository_root, *half, length=("--budget", "0.5"))
    assert (result.name, result.method, result.before_kind) == ("posttrain_robust", "noise_and_route", "pretrained")
    assert result.training["steps"] == 4
    assert result.leak_audit
    assert "`budget` 0.5 of a pretraining of 8 steps of 8 examples: 4 steps, " in output


@pytest.mark.parametrize("recipe", [*RECIPES, "scratch_robust", "posttrain_robust"])
def test_help(
    recipe: str, repository_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = str(repository_root / "recipes" / f"{recipe}.py")
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(script, run_name="__main__")
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert f"Runs recipes/configs/{recipe}.yaml" in said
    assert "--config" in said
