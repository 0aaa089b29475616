"""Fingerprints: equal for equal contents, in every process, and different for all others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_era.utils import files
from hf_era.utils.files import fingerprint, model_fingerprint


def test_equal_values_have_equal_fingerprints_and_others_do_not() -> None:
    same = fingerprint({"a": 1, "b": [1, 2]}, "x")
    assert fingerprint({"b": (1, 2), "a": 1}, "x") == same
    others = [({"a": 1, "b": [2, 1]}, "x"), ({"a": 2, "b": [1, 2]}, "x"), ({"a": 1, "b": [1, 2]}, "y"), ({"a": 1}, "x")]
    nested = [({"a": 1, "b": [1, 2]}, ["x"]), ("x", {"a": 1, "b": [1, 2]}), ({"a": "1", "b": [1, 2]}, "x")]
    assert len({same, *(fingerprint(*parts) for parts in [*others, *nested])}) == 8


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_fingerprints_are_the_same_in_every_process(hash_seed: str, tmp_path: Path) -> None:
    program = (
        "import importlib.util, sys, types, pathlib\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "package = types.ModuleType('hf_era'); package.__path__ = [str(root)]; sys.modules['hf_era'] = package\n"
        "from hf_era.utils.files import fingerprint\n"
        "keys = {'seed', 'expansion', 'routing', 'model', 'training'}\n"  # a set: its order follows the hash seed
        "print(fingerprint({key: {'x': 1.5, 'y': None, 'z': ['ä']} for key in keys}, 'text', pathlib.Path('a')))\n"
    )
    folder = Path(files.__file__).parents[1]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    values = {"x": 1.5, "y": None, "z": ["ä"]}
    keys = ("model", "seed", "training", "routing", "expansion")
    assert done.stdout.strip() == fingerprint(dict.fromkeys(keys, values), "text", Path("a"))


def test_a_models_fingerprint_is_that_of_its_contents(tmp_path: Path) -> None:
    def save(name: str, weights: bytes = b"weights", config: str = "{}", **others: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(weights)
        (folder / "config.json").write_text(config)
        for file, text in others.items():
            (folder / file).write_text(text)
        return folder

    same = model_fingerprint(save("one"))
    assert model_fingerprint(save("two", README="a card changes nothing")) == same
    assert model_fingerprint(save("three", weights=b"weightz")) != same
    assert model_fingerprint(save("four", config='{"a": 1}')) != same
    more = save("five")
    (more / "model-2.safetensors").write_bytes(b"")
    assert model_fingerprint(more) != same
