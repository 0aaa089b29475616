"""Two processes measure what one does: evaluation, leak audit, generations, attack; and an error in one is one in both."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from accelerate import PartialState

from hf_era import RunConfig

pytestmark = pytest.mark.slow  # CI runs it all the same
WORKER = Path(__file__).with_name("measuring_worker.py")
CONFIG: dict[str, Any] = {
    "name": "tiny",
    "model": {
        "vocabulary_size": 300,
        "architecture": {
            "hidden_size": 16, "num_layers": 3, "num_heads": 2, "attention_types": [[["global", "local", "global"], 1]],
            "max_position_embeddings": 64, "window_size": 8,
        },
    },
    "expansion": {"width": 4, "target_layers": [0, 2]},
    "data": {
        "generator_stories": 120, "max_tokens": 48, "forget_validation_stories": 7, "retain_validation_stories": 9,
        "attack_stories": 6,
    },
    "training": {"use_cpu": True, "disable_tqdm": True},
    "coherence": {"enabled": False},
    "evaluation": {"bootstrap_samples": 20, "batch_size": 2},
    "generation": {"new_tokens": 6, "prompts": ["One day", "The tree", "A", "Lily saw a", "Tom", "The big dog", "Once"]},
    "relearn": {
        "stories": [1, 3], "trials": 2, "steps": 2, "sweep_learning_rates": [1e-3], "evaluation_stories": 6,
        "batch_size": 2, "lora_learning_rates": [1e-3],
    },
}  # fmt: skip


def worker() -> Any:
    spec = importlib.util.spec_from_file_location("measuring_worker", WORKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def launched(
    repository_root: Path, tmp_path_factory: pytest.TempPathFactory, randomize_constants: Callable[..., None]
) -> tuple[Any, list[Any], subprocess.CompletedProcess[str]]:
    """What one process found, what each of two found, and how their launch ended."""
    folder = tmp_path_factory.mktemp("measuring")
    values = {**CONFIG, "output_dir": str(folder / "run")}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        module = worker()
        measuring = module.make_phases(RunConfig.from_dict(values), PartialState(cpu=True))
        make_models(measuring, randomize_constants)
        alone = module.measured(measuring)
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(WORKER),
            str(folder / "config.json"), str(folder),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(folder / "cache"), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )  # fmt: skip
    files = [folder / f"{rank}.pt" for rank in (0, 1)]
    assert all(file.exists() for file in files), done.stderr[-6000:]
    return alone, [torch.load(file, weights_only=False) for file in files], done


def make_models(measuring: Any, randomize_constants: Callable[..., None]) -> None:
    """The folders of a run, as training would have left them."""
    from hf_era.models.loading import causal_lm_from_config

    run, method = measuring.run, measuring.method
    run.save(causal_lm_from_config(run.base_config, 0).save_pretrained, run.folder("base"))
    torch.manual_seed(1)
    expanded = method.start_model(run)
    randomize_constants(expanded)
    with torch.no_grad():
        for named in expanded.auxiliary_modules().values():
            for module in named.values():
                module.down_projection.weight.normal_(std=0.5)  # so that ablation does something
    run.save(expanded.save_pretrained, run.folder("expanded"))
    for phase in method.phases(run)[1:]:  # all but the training
        phase.work(phase.key)


def test_both_find_what_one_process_finds(launched: Any) -> None:
    alone, (first, second), _ = launched
    assert first["measured"] == second["measured"]
    assert first["measured"].keys() == alone.keys()
    for name, expected in alone.items():
        assert first["measured"][name] == expected, name  # bit for bit
    assert alone["differences"]["ablation_gap"]["value"] != 0
    assert len(alone["attack"]["trials"]) == 8
    assert len(alone["fewer stories than processes"]["forget"][0]) == 1


def test_memory_that_one_process_lacks_halves_the_batch_of_both(launched: Any) -> None:
    alone, (first, second), _ = launched
    expected = alone["stories"]["forget"][0]  # in batches of two, as they both ended up with
    for found in (first["out of memory"], second["out of memory"]):
        assert found["size"] == 2
        assert found["nll"] == expected
    assert second["out of memory"]["warnings"] == []  # the main process speaks for both
    assert [text.partition(". ")[0] for text in first["out of memory"]["warnings"]] == [
        "Evaluating forget examples: memory did not suffice for batches of 4, going on with 2"
    ]
    assert first["out of memory"]["warnings"][0].endswith("Lower `evaluation.batch_size` to 2 to avoid the failed try.")


def test_a_stopped_attack_goes_on_with_the_trials_of_all(launched: Any) -> None:
    alone, found, _ = launched
    first, second = (part["stopped"] for part in found)
    assert first["error"] == second["error"] == ["ValueError", "planted in a trial"]
    # Four for each: the main process made its own, the other one only its first.
    assert [len(trials) for trials in first["kept"]] == [1, 4]
    # Three that were not kept, and the two on the model before the method.
    assert first["made again"] + second["made again"] == 3 + len(alone["attack"]["before_trials"])
    assert len(alone["attack"]["before_trials"]) == 2
    assert first["report"]["attack"] == second["report"]["attack"] == alone["attack"]
    assert first["left"] == []


def test_an_error_in_one_process_is_raised_in_both(launched: Any) -> None:
    _, found, _ = launched
    first, second = (part["errors"] for part in found)
    assert first["known"] == second["known"] == ["ValueError", "`field` is wrong"]
    assert first["unsendable"] == ["RuntimeError", "UnsendableError: one and other"]
    assert second["unsendable"] == ["UnsendableError", "one and other"]  # where it happened
    assert first["other tasks"] == second["other tasks"]
    assert first["other tasks"][1].startswith("The processes have [4, 5] tasks.")
    assert first["main first"] == second["main first"]
    assert first["main first"][0] == "ZeroDivisionError"
    assert first["goes on"] == second["goes on"] == [0, 1, 4, 9, 16]
    assert first["nothing"] == second["nothing"] == []


def test_a_launch_ends_with_the_error_of_one_process(launched: Any) -> None:
    _, _, done = launched
    assert done.returncode != 0
    assert done.stderr.count("ZeroDivisionError: integer") >= 2
    assert "In process 1:" in done.stderr
