"""Sizes that no machine holds are refused before memory is taken: a process with little room left says so, and lives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Imports first, then the room that is left is cut: whatever a check allocates beyond it ends in a MemoryError.
PRELUDE = """
import copy, json, resource, sys, warnings
warnings.simplefilter("ignore")
import torch
from transformers import AutoModelForCausalLM, GPTNeoConfig, GPTNeoForCausalLM
from hf_era import ExpandedGPTNeoConfig, ExpansionConfig, expand_base
from hf_era.run.config import RunConfig
from hf_era.models.loading import causal_lm_from_config, expanded_from_config, load_causal_lm
from hf_era.run.inputs import _base_config
from pathlib import Path

room = 200 * 1024 * 1024
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + room, used + room))

TINY = dict(vocab_size=53, hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]],
            max_position_embeddings=32, window_size=4)

def settings(section, values):
    return RunConfig.from_dict({section: values})

def architecture(values):
    return _base_config(settings("model", {"architecture": values}))

def tiny_folder():
    folder = Path(sys.argv[1])
    GPTNeoForCausalLM(GPTNeoConfig(**TINY)).save_pretrained(folder)
    return folder

def with_config(**changes):
    folder = tiny_folder()
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **changes}))
    return folder
"""
MILLION_LAYERS = "settings('expansion', {'target_layers': list(range(10**6))})"
# What is done, and what its message holds.
CASES = {
    "settings('expansion', {'width': 10**12})": "`expansion.width`: 1000000000000 needs at least 12,000.0 GB",
    "ExpandedGPTNeoConfig(**TINY, expansion={'width': 10**9})": "an auxiliary module of width 1,000,000,000 in 2 layers",
    f"{MILLION_LAYERS}.expansion.resolve_layers(4)": "names layer 4, but the model has 4 layers",
    MILLION_LAYERS.replace("6))", "6)) + [5]"): "names layer 5 more than once, got [0, 1, 2",
    "architecture({'num_layers': 10**9})": "at most 1,000, got 1000000000",
    "architecture({'attention_types': [[['global'], 10**9]]})":
        "attention_types (layers in all)` should be at most 1,000, got 1000000000",
    "architecture({'hidden_size': 10**9})": "at most 10,000,000, got",
    "architecture({'hidden_size': 10**6})": "GB of memory, and this machine has",
    "architecture({'max_position_embeddings': 10**7})": "GB of memory",
    "architecture({'vocab_size': 10**9})": "vocab_size` should be at most",
    "settings('model', {'vocabulary_size': 10**9})": "`model.vocabulary_size` should be at most 10,000,000",
    "settings('data', {'generator_stories': 10**12})": "`data.generator_stories` should be at most 200,000",
    "settings('evaluation', {'bootstrap_samples': 10**12})": "`evaluation.bootstrap_samples` should be at most",
    "settings('generation', {'new_tokens': 10**9})": "`generation.new_tokens` should be at most",
    "settings('evaluation', {'batch_size': 10**12})": "`evaluation.batch_size` should be at most",
    "settings('relearn', {'batch_size': 10**12})": "`relearn.batch_size` should be at most",
    "settings('relearn', {'lora_rank': 10**12})": "`relearn.lora_rank` should be at most",
    "settings('training', {'per_device_train_batch_size': 10**12})": "train_batch_size` should be at most",
    "settings('training', {'dataloader_num_workers': 10**6})": "`training.dataloader_num_workers` should be at most",
    "settings('data', {'num_proc': 10**6})": "`data.num_proc` should be at most 1,024",
    "settings('data', {'max_tokens': 10**12})": "`data.max_tokens` should be at most",
    "load_causal_lm(with_config(hidden_size=10**6))": "a model of 2 layers of width 1,000,000",
    "load_causal_lm(with_config(hidden_size=4096))": "has the shape [53, 16], its config.json says [53, 4096]",
    "load_causal_lm(with_config(num_layers=10**9))": "config.json.num_layers` should be at most 1,000",
    "load_causal_lm(with_config(attention_types=[[['global'], 10**9]]))": "(layers in all)` should be at most 1,000",
    "expand_base(with_config(vocab_size=10**7, hidden_size=10**5))": "needs at least",
    "expand_base(tiny_folder(), ExpansionConfig(width=10**9))": "an auxiliary module of width 1,000,000,000 in 2 layers",
    "causal_lm_from_config(GPTNeoConfig(**{**TINY, 'hidden_size': 10**6}), 0)": "a model of 2 layers of width 1,000,000",
}  # fmt: skip

RUNNER = """
for code, message in json.loads(sys.stdin.read()).items():
    try:
        eval(code)
    except ValueError as error:
        print("refused" if message in str(error) and len(str(error)) < 1_000 else f"said: {error}", "|", code, flush=True)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", "|", code, flush=True)
    else:
        print("accepted |", code, flush=True)
"""


def outcomes(cases: dict[str, str], folder: Path, root: Path) -> list[str]:
    """What became of each case, one line each; all in one process that has 200 MB left."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + RUNNER, str(folder / "model")],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    return done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the size of the process from /proc")
def test_nothing_large_is_allocated(tmp_path: Path, repository_root: Path) -> None:
    found = outcomes(CASES, tmp_path, repository_root)
    assert len(found) == len(CASES)
    assert [line for line in found if not line.startswith("refused")] == []


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the size of the process from /proc")
def test_the_room_is_really_little(tmp_path: Path, repository_root: Path) -> None:
    """What the checks keep away would be seen: the attention list of a GPT-Neo config, and a wide module."""
    cases = {
        "GPTNeoConfig(attention_types=[[['global'], 10**9]], num_layers=10**9)": "",
        "torch.nn.Linear(16, 10**8)": "",
        "GPTNeoConfig(**TINY)": "",
    }
    list_of_layers, module, harmless = outcomes(cases, tmp_path, repository_root)
    assert list_of_layers.startswith("MemoryError")
    assert module.startswith("RuntimeError")
    assert "memory" in module
    assert harmless.startswith("accepted")
