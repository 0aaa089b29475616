"""Checkpoints of unknown origin: no code is run, no pickle is read, and what is broken is named."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPTNeoForCausalLM

from hf_era import ExpansionConfig, expand_base
from hf_era.data.tokenizer import train_tokenizer
from hf_era.models.loading import load_causal_lm, load_tokenizer

Loader = Callable[..., Any]
LOADERS = [
    pytest.param(lambda folder, **options: load_causal_lm(folder, "model", **options), id="causal_lm"),
    pytest.param(lambda folder, **options: expand_base(folder, ExpansionConfig(width=4), **options), id="expand"),
]


@pytest.fixture
def folder(make_base: Callable[..., GPTNeoForCausalLM], tmp_path: Path) -> Path:
    make_base().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


class Marker:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def plant_pickle(file: Path, marker: Path) -> None:
    file.write_bytes(pickle.dumps(Marker(marker)))


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


# ---- Pickles ----


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.ckpt", "pytorch_model-00001-of-00002.bin"])
def test_a_directory_with_a_pickle_alone_is_refused(load: Loader, name: str, folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    plant_pickle(folder / name, tmp_path / "marker")
    with pytest.raises(ValueError, match=rf"holds its weights as {name}, which can run code.*`save_pretrained`"):
        load(folder)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("load", LOADERS)
def test_a_pickle_beside_the_safetensors_is_not_read(load: Loader, folder: Path, tmp_path: Path) -> None:
    plant_pickle(folder / "pytorch_model.bin", tmp_path / "marker")
    plant_pickle(folder / "training_args.bin", tmp_path / "marker")
    load(folder)
    assert not (tmp_path / "marker").exists()
    pickle.loads((folder / "pytorch_model.bin").read_bytes())  # the trap works
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("option", [{"use_safetensors": False}, {"trust_remote_code": True}])
def test_the_safe_options_cannot_be_switched_off(load: Loader, option: dict[str, bool], folder: Path) -> None:
    with pytest.raises(ValueError, match=rf"`{next(iter(option))}=.*` is not supported: hf_era reads safetensors only"):
        load(folder, **option)


@pytest.mark.parametrize("load", LOADERS)
def test_an_adapter_is_refused(load: Loader, folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/else"}))
    with pytest.raises(ValueError, match=r"holds an adapter \(adapter_config\.json\), which names another model"):
        load(folder)


# ---- Code of their own ----


@pytest.fixture
def remote_code(folder: Path, tmp_path: Path) -> Path:
    """The model's folder, with modules that leave a mark when they are imported; a prompt would find no answer."""
    code = f"import os\nos.mkdir({str(tmp_path / 'marker')!r})\nclass Custom: pass\n"
    for name in ("configuration_custom.py", "modeling_custom.py", "tokenization_custom.py"):
        (folder / name).write_text(code)
    names = {"AutoConfig": "configuration_custom.Custom", "AutoModelForCausalLM": "modeling_custom.Custom"}
    change_config(folder, auto_map=names)
    return folder


@pytest.fixture(autouse=True)
def _no_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *arguments: pytest.fail("a question was asked"))


@pytest.mark.parametrize("load", LOADERS)
def test_code_of_an_unknown_model_type_is_not_run(load: Loader, remote_code: Path, tmp_path: Path) -> None:
    change_config(remote_code, model_type="custom")
    with pytest.raises(
        ValueError, match=r"names code of its own \(`auto_map`\), and its model type 'custom' is not one"
    ):
        load(remote_code)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("load", LOADERS)
def test_of_a_known_model_type_transformers_own_code_is_run(load: Loader, remote_code: Path, tmp_path: Path) -> None:
    load(remote_code)
    assert not (tmp_path / "marker").exists()


def test_code_of_a_tokenizer_is_not_run(remote_code: Path, tmp_path: Path) -> None:
    train_tokenizer(["one story"], 300).save_pretrained(remote_code)
    file = remote_code / "tokenizer_config.json"
    values = {**json.loads(file.read_text()), "tokenizer_class": "Custom"}
    file.write_text(json.dumps({**values, "auto_map": {"AutoTokenizer": ["tokenization_custom.Custom", None]}}))
    load_tokenizer(remote_code)  # transformers has a tokenizer of its own for this model type
    (remote_code / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"^`model\.tokenizer`: the (tokenizer of|directory) "):
        load_tokenizer(remote_code)
    assert not (tmp_path / "marker").exists()


# ---- Broken files ----


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_named(load: Loader, share: float, folder: Path) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or cut off .* again"):
        load(folder)


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


KEY = "transformer.h.1.mlp.c_fc.weight"


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop(KEY), rf"lacks {KEY}\. Save"),
        (lambda weights: weights.update({KEY: torch.zeros(3, 5)}), rf"the weight {KEY} .* has the shape \[3, 5\]"),
        (
            lambda weights: weights.update(extra=torch.zeros(3)),
            r"holds .*extra that its architecture",
        ),
        (lambda weights: weights.update({KEY: weights[KEY].int()}), rf"'{KEY}' in .* holds I32, not floating"),
        (lambda weights: weights.clear(), r"lacks .* more weights"),
    ],
    ids=["missing", "shape", "extra", "integers", "empty"],
)
def test_wrong_weights_are_named(load: Loader, change: Callable, message: str, folder: Path) -> None:
    change_weights(folder, change)
    with pytest.raises(ValueError, match=message):
        load(folder)


@pytest.mark.parametrize("load", LOADERS)
def test_constants_that_old_checkpoints_hold_are_no_other_weights(load: Loader, folder: Path) -> None:
    def add(weights: dict[str, torch.Tensor]) -> None:
        for layer in range(3):
            weights[f"transformer.h.{layer}.attn.attention.bias"] = torch.ones(1, 1, 32, 32, dtype=torch.bool)
            weights[f"transformer.h.{layer}.attn.attention.masked_bias"] = torch.tensor(-1e9)

    change_weights(folder, add)
    load(folder)


def test_missing_auxiliary_weights_are_not_drawn_at_random(make_expanded: Callable, tmp_path: Path) -> None:
    make_expanded([0]).save_pretrained(tmp_path / "expanded")
    load_causal_lm(tmp_path / "expanded")
    name = "transformer.h.0.mlp.auxiliary.forget.up_projection.weight"
    change_weights(tmp_path / "expanded", lambda weights: weights.pop(name))
    with pytest.raises(ValueError, match=rf"lacks {name}\. Save"):
        load_causal_lm(tmp_path / "expanded")


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"config\.json cannot be read as JSON"),
        ("{", r"config\.json cannot be read as JSON"),
        ("[" * 100_000, r"config\.json cannot be read as JSON"),
        ("[1]", r"config\.json should hold an object, got \[1\]"),
        ("{}", r"config\.json of .* describes no model that transformers knows"),
        ('{"model_type": "nonesuch"}', r"config\.json of .* describes no model .*`nonesuch`"),
        ('{"model_type": ["gpt_neo"]}', r"config\.json of .* describes no model that transformers knows"),
        ('{"model_type": "gpt_neo", "hidden_size": "wide"}', r"config\.json of .* describes no model .*hidden_size"),
        ('{"model_type": "gpt_neo", "dtype": 0.5}', r"config\.json of .* describes no model that transformers knows"),
        (
            '{"model_type": "gpt_neo", "dtype": "load"}',
            r"config\.json of .* describes no model that transformers knows",
        ),
        ('{"model_type": "gpt_neo", "num_layers": -1}', r"config\.json\.num_layers` should be at least 1, got -1"),
    ],
)
def test_a_broken_config_is_named(load: Loader, content: str, message: str, folder: Path) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=rf"(?s)^`model.*{message}"):
        load(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", r"index\.json cannot be read as JSON"),
        ("{}", r"has no `weight_map`"),
        ('{"weight_map": {"a": "../../outside.safetensors"}}', r"names '\.\./\.\./outside\.safetensors', which is no"),
        (
            '{"weight_map": {"a": "/outside.safetensors"}}',
            r"names '/outside\.safetensors', which is no safetensors file",
        ),
        ('{"weight_map": {"a": "x.bin"}}', r"names 'x\.bin', which is no safetensors file beside it"),
        ('{"weight_map": {"a": "gone.safetensors"}}', r"names 'gone\.safetensors', but .* holds no such file"),
    ],
)
def test_a_broken_index_is_named(index: str, message: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=message):
        load_causal_lm(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": "1.0"}', "[" * 100_000])
def test_a_broken_tokenizer_is_named(content: str, folder: Path) -> None:
    train_tokenizer(["one story"], 300).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"^`model\.tokenizer`: .*(tokenizer of|no tokenizer that can be read)"):
        load_tokenizer(folder)
