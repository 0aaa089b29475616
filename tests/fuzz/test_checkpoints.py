"""Checkpoints that were changed in every way: what loads is what was saved, or it is refused with a message of ours."""

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from hf_era import ExpansionConfig, expand_base
from hf_era.models.loading import load_causal_lm, without_weight_bars

from .strategies import junk, numbers

SIZES: dict[str, Any] = {
    "vocab_size": 11, "hidden_size": 4, "num_layers": 1, "num_heads": 1, "attention_types": [[["global"], 1]],
    "max_position_embeddings": 8, "window_size": 4, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    with without_weight_bars():
        yield


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    GPTNeoForCausalLM(GPTNeoConfig(**SIZES)).save_pretrained(folder)
    return folder


def load(folder: Path, expand: bool) -> Any:
    return expand_base(folder, ExpansionConfig(width=2)) if expand else load_causal_lm(folder)


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.state_dict().items() if ".auxiliary." not in name}


def reshaped(weights: dict[str, torch.Tensor], key: str, draw: int) -> None:
    weights[key] = torch.zeros(draw % 5, 3) if draw % 2 else weights[key].flatten()[:-1].clone()


def renamed(weights: dict[str, torch.Tensor], key: str, draw: int) -> None:
    weights[key[:-1] + "_" if draw % 2 else f"x.{key}"] = weights.pop(key)


CHANGES: dict[str, Callable[[dict[str, torch.Tensor], str, int], Any]] = {
    "missing": lambda weights, key, draw: weights.pop(key),
    "extra": lambda weights, key, draw: weights.update({f"{key}.{draw}": torch.zeros(2)}),
    "shape": reshaped,
    "renamed": renamed,
    "integers": lambda weights, key, draw: weights.update({key: weights[key].to(torch.int32)}),
    "half": lambda weights, key, draw: weights.update({key: weights[key].half()}),
}
DAMAGES = ("truncated", "header", "length", "appended", "none", *CHANGES)


def damage(file: Path, kind: str, position: float, byte: int, keys: list[str]) -> None:
    content = bytearray(file.read_bytes())
    header = struct.unpack("<Q", content[:8])[0]
    if kind == "truncated":
        file.write_bytes(content[: int(position * len(content))])
    elif kind == "header":
        content[8 + int(position * (header - 1))] ^= byte
        file.write_bytes(content)
    elif kind == "length":
        content[int(position * 7)] ^= byte
        file.write_bytes(content)
    elif kind == "appended":
        file.write_bytes(content + bytes([byte]))
    elif kind in CHANGES:
        weights = load_file(file)
        CHANGES[kind](weights, keys[int(position * (len(keys) - 1))], byte)
        save_file(weights, file, metadata={"format": "pt"})


def test_damaged_weights(fuzz: Callable, accepted: Callable, saved: Path, tmp_path: Path) -> None:
    original = weights_of(load_causal_lm(saved))
    keys = sorted(load_file(saved / "model.safetensors"))
    folder = tmp_path / "copy"
    loaded: set[str] = set()

    def check(kind: str, position: float, byte: int, expand: bool) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(saved, folder)
        damage(folder / "model.safetensors", kind, position, byte, keys)
        model, message = accepted(load, folder, expand)
        if model is None:
            assert "`model.base`" in message
            return
        loaded.add(kind)
        found = weights_of(model)
        assert set(found) == set(original)
        tolerance = 2e-3 if kind == "half" else 0
        for name, value in original.items():
            torch.testing.assert_close(found[name].float(), value, rtol=tolerance, atol=tolerance)

    fuzz(
        "checkpoints",
        check,
        kind=st.sampled_from(DAMAGES),
        position=st.floats(0, 1),
        byte=st.integers(1, 255),
        expand=st.booleans(),
    )
    # A flipped letter in the metadata of the header harms nothing; everything else that loads was meant to.
    assert loaded <= {"none", "half", "header", "truncated"}, loaded


def test_damaged_config_files(fuzz: Callable, accepted: Callable, saved: Path, tmp_path: Path) -> None:
    values = json.loads((saved / "config.json").read_text())
    original = weights_of(load_causal_lm(saved))
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    changes = st.one_of(
        st.dictionaries(st.sampled_from(sorted(values)), st.one_of(junk, numbers), min_size=1, max_size=2),
        st.dictionaries(st.text(max_size=8), junk, max_size=2),
    )
    raw = st.one_of(st.binary(max_size=30), st.integers(0, 400).map(lambda size: json.dumps(values).encode()[:size]))

    def check(content: Any, expand: bool) -> None:
        if isinstance(content, bytes):
            (folder / "config.json").write_bytes(content)
        else:
            (folder / "config.json").write_text(json.dumps({**values, **content}, default=str, skipkeys=True))
        model, _ = accepted(load, folder, expand)
        if model is not None and all(value.dtype == torch.float32 for value in model.state_dict().values()):
            found = weights_of(model)
            assert all(torch.equal(found[name], original[name]) for name in set(found) & set(original))
            assert len(found) >= len(original) - 1

    fuzz("config_files", check, content=st.one_of(changes, raw), expand=st.booleans())
