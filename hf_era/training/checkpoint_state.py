"""What a checkpoint holds beside the Trainer's own record: weights, and each process's own state.

Tensors in safetensors files, everything else as JSON in their metadata: nothing that runs code when it is read. The state of
the optimizer, which may be anything, has a file of its own: `optimizer_state.py`.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from hf_era.utils.files import read_json

_JSON = "json"  # the key of the file's metadata that holds everything but tensors


def save_tensors(path: Path, tensors: dict[str, Tensor], values: Any) -> None:
    """Writes tensors and JSON-like values into one safetensors file."""
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, {_JSON: json.dumps(values)})


def load_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Reads what `save_tensors` wrote; tensors on the CPU."""
    with safe_open(path, framework="pt", device="cpu") as file:
        names = list(file.keys())  # a file is no mapping: it cannot be iterated over
        return {name: file.get_tensor(name) for name in names}, json.loads((file.metadata() or {})[_JSON])


def load_weights(folder: Path, model: Any) -> None:
    """Puts the weights of a checkpoint into a model, whole or sharded over processes that all call this."""
    index = read_json(folder / SAFE_WEIGHTS_INDEX_NAME)
    names = sorted({*index["weight_map"].values()}) if index else [SAFE_WEIGHTS_NAME]
    weights: dict[str, Any] = {key: value for name in names for key, value in load_file(folder / name).items()}
    # Not strict: tied weights are saved once.
    set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True, strict=False))


def process_file(rank: int) -> str:
    return f"process_{rank}.safetensors"


def save_process_state(path: Path, sums: dict[str, Tensor], numbers: dict[str, float]) -> None:
    """Writes the random states of this process, and what it has summed up for the next line of the log.

    Args:
        path (`Path`): the file.
        sums (`dict[str, Tensor]`): scalars. numbers (`dict[str, float]`): plain numbers.
    """
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # type: ignore[misc]
    tensors = {f"sum.{key}": value.detach().cpu() for key, value in sums.items()}
    tensors |= {
        "random.python": torch.tensor(words, dtype=torch.int64),
        "random.numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
        "random.cpu": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        tensors |= {f"random.cuda.{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    values = {"python": [version, gauss], "numpy": [name, position, has_gauss, cached], "numbers": numbers}
    save_tensors(path, tensors, values)


def load_process_state(path: Path, random_states: bool = True) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Returns the sums and numbers, and puts the random states back unless told not to; those of devices that are not there
    are left out."""
    tensors, values = load_tensors(path)
    if random_states:
        _set_random_states(tensors, values)
    sums = {key.removeprefix("sum."): value for key, value in tensors.items() if key.startswith("sum.")}
    return sums, values["numbers"]


def _set_random_states(tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    version, gauss = values["python"]
    random.setstate((version, tuple(tensors["random.python"].tolist()), gauss))
    name, position, has_gauss, cached = values["numpy"]
    np.random.set_state((name, tensors["random.numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(tensors["random.cpu"])
    for index in range(torch.cuda.device_count()):
        if f"random.cuda.{index}" in tensors:
            torch.cuda.set_rng_state(tensors[f"random.cuda.{index}"], index)
