"""A module as a file: what is in it, what it is attached to, and what it is not attached to."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPTNeoForCausalLM, LlamaConfig, LlamaForCausalLM

from hf_era import (
    ExpandedGPTNeoForCausalLM,
    ExpansionConfig,
    GradientRoutingConfig,
    GradientRoutingTrainer,
    __version__,
    attach_module,
    expand_base,
)
from hf_era.models import module_files
from hf_era.models.module_files import hash_of_base
from hf_era.utils.files import digest_of_file

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers by an old name

BIOLOGY = {"name": "biology", "width": 4, "target_layers": [0, 2]}
CHEMISTRY = {"name": "chemistry", "width": 3, "target_layers": [0]}


@pytest.fixture(scope="module")
def model(make_base: Callable[..., GPTNeoForCausalLM]) -> ExpandedGPTNeoForCausalLM:
    """With both modules; not changed by any test."""
    return expand_base(make_base().eval(), ExpansionConfig(modules=[BIOLOGY, CHEMISTRY]))


@pytest.fixture(scope="module")
def saved(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders `biology`, at dial 0.5, and `chemistry`; not changed by any test."""
    folder = tmp_path_factory.mktemp("modules")
    with model.dialled("biology", 0.5):
        model.save_module("biology", folder / "biology")
    model.save_module("chemistry", folder / "chemistry")
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    """A copy of the folder of `biology`, to damage."""
    return Path(shutil.copytree(saved / "biology", tmp_path / "biology"))


@pytest.fixture
def bare(model: Any) -> ExpandedGPTNeoForCausalLM:
    """The model without a module."""
    return expand_base(model.contract(), ExpansionConfig(modules=[]))


def logits(model: Any, batch: dict[str, Tensor], **options: Any) -> Tensor:
    with torch.no_grad():
        return model(batch["input_ids"], **options).logits


def change_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "module_config.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """As somebody does it on purpose: the hash in the config follows."""
    path = folder / "module.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    change_config(folder, lambda values: values.update(weights_sha256=digest_of_file(path)))


# ---- The file ----


def test_the_folder_holds_the_module_and_nothing_else(model: Any, saved: Path) -> None:
    folder = saved / "biology"
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "module.safetensors", "module_config.json"]
    weights, modules = load_file(folder / "module.safetensors"), model.auxiliary_modules()
    assert sorted(weights) == sorted(
        f"layers.{layer}.{part}"
        for layer in (0, 2)
        for part in ("down_projection.weight", "up_projection.bias", "up_projection.weight")
    )
    assert torch.equal(weights["layers.2.down_projection.weight"], modules[2]["biology"].down_projection.weight)
    assert json.loads((folder / "module_config.json").read_text()) == {
        "format": 1,
        "hf_era_version": __version__,
        "module": {**BIOLOGY, "initialization_scale": 1.0, "kind": "mlp", "width_ratio": None},
        "dial": 0.5,
        "base": {
            "model_type": "gpt_neo",
            "hidden_size": 16,
            "number_of_layers": 3,
            "activation": "gelu_new",
            "dtype": "float32",
            "sha256": hash_of_base(model.contract()),
        },
        "weights_sha256": digest_of_file(folder / "module.safetensors"),
    }
    card = (folder / "README.md").read_text()
    assert "publishing this folder publishes the capability" in card
    assert "4 hidden units (kind `mlp`) in each of the layers 0, 2" in " ".join(card.split())


def test_the_bytes_are_the_modules_own(model: Any, saved: Path) -> None:
    content = (saved / "chemistry" / "module.safetensors").read_bytes()
    own = model.auxiliary_modules()[0]["chemistry"].up_projection.weight
    others = [value for name, value in model.named_parameters() if ".chemistry." not in name]
    assert own.detach().numpy().tobytes() in content
    assert not [value for value in others if value.detach().numpy().tobytes()[:32] in content]


def test_a_save_that_fails_leaves_what_was_there(model: Any, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in copied.iterdir()}

    def fail(*arguments: Any) -> None:
        raise RuntimeError("stop")

    monkeypatch.setattr(module_files, "write_text", fail)
    with pytest.raises(RuntimeError, match="stop"):
        model.save_module("biology", copied)
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before
    assert [path.name for path in copied.parent.iterdir()] == ["biology"]
    monkeypatch.undo()
    model.save_module("biology", copied)
    assert json.loads((copied / "module_config.json").read_text())["dial"] == 1.0


def test_a_process_that_is_not_the_main_one_writes_nothing(model: Any, tmp_path: Path) -> None:
    model.save_module("biology", tmp_path / "biology", is_main_process=False)
    assert not (tmp_path / "biology").exists()


def test_a_module_has_a_folder_of_its_own(model: Any, copied: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds the module 'biology' already\. Each module has a folder of its own"):
        model.save_module("chemistry", copied)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(
        ValueError, match=r"holds other files \(`biology`, `notes.txt`\)\. A module has a folder of its own"
    ):
        model.save_module("chemistry", tmp_path)
    with pytest.raises(ValueError, match=r"should be a directory, got the file .*notes\.txt\."):
        model.save_module("chemistry", tmp_path / "notes.txt")


@pytest.mark.parametrize("call", ["save_module", "detach_module"])
def test_an_unknown_name_has_a_suggestion(call: str, model: Any, tmp_path: Path) -> None:
    arguments = (tmp_path / "new",) if call == "save_module" else ()
    with pytest.raises(ValueError, match=r"`biologie` .* Did you mean `biology`\? Known: biology, chemistry\."):
        getattr(model, call)("biologie", *arguments)
    assert not (tmp_path / "new").exists()


def test_adapters_are_merged_into_what_is_saved(model: Any, tmp_path: Path) -> None:
    twin = pickle.loads(pickle.dumps(model))
    get_peft_model(twin, LoraConfig(target_modules=["c_fc", "up_projection"], init_lora_weights=False))
    twin.save_module("biology", tmp_path / "biology")
    merged = expand_base(twin.contract(), ExpansionConfig(modules=[]))
    merged.attach_module(tmp_path / "biology")
    weight = merged.auxiliary_modules()[0]["biology"].up_projection.weight
    assert not torch.allclose(weight, model.auxiliary_modules()[0]["biology"].up_projection.weight)


# ---- The hash ----


def test_the_hash_is_that_of_the_contracted_model(model: Any, tmp_path: Path) -> None:
    stock = model.contract()
    stock.save_pretrained(tmp_path)
    expected = hash_of_base(stock)
    assert len(expected) == 64
    assert hash_of_base(model) == hash_of_base(GPTNeoForCausalLM.from_pretrained(tmp_path)) == expected
    with torch.no_grad():
        stock.transformer.h[1].mlp.c_fc.bias[0] += 1e-6
    assert hash_of_base(stock) != expected
    assert hash_of_base(model.contract().bfloat16()) != expected


def test_tied_weights_count_once(make_base: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []
    monkeypatch.setattr(Tensor, "reshape", lambda self, *shape: hashed.append(self.numel()) or self.view(*shape))
    for tied in (True, False):
        hashed.clear()
        stock = make_base(tie_word_embeddings=tied)
        hashed.clear()
        hash_of_base(stock)
        assert sum(hashed) == sum(value.numel() for value in stock.parameters())
        assert hashed.count(53 * 16) == (1 if tied else 2)


# ---- Attached and detached ----


def test_attached_in_place_it_learns_as_the_expanded_model_does(
    model: Any, bare: Any, saved: Path, make_batch: Callable[..., dict[str, Tensor]]
) -> None:
    """Logits and gradients, routed, bit for bit; the layer without a module is a stock one."""
    batch = make_batch()
    for name in ("biology", "chemistry"):
        bare.attach_module(saved / name)
    assert bare.config.expansion_config == model.config.expansion_config
    assert bare.module_names == ["biology", "chemistry"]
    assert str(bare) == str(model)
    assert not [part for part in bare.modules() if part.training]
    assert {part.dial for part in bare._modules_named("biology")} == {0.5}
    with model.dialled("biology", 0.5):
        gradients = []
        for each in (model, bare):
            each.zero_grad()
            each(**batch, output_activation_l1=True).loss.backward()
            gradients.append({name: value.grad for name, value in each.named_parameters()})
            each.zero_grad()
    assert list(gradients[0]) == list(gradients[1])
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_detached_with_the_last_module_a_layer_is_a_stock_one(
    model: Any, bare: Any, saved: Path, make_batch: Callable[..., dict[str, Tensor]], tmp_path: Path
) -> None:
    batch, without = make_batch(), str(bare)
    for name in ("chemistry", "biology"):
        bare.attach_module(saved / name)
    bare.detach_module("chemistry")
    assert list(bare.auxiliary_modules()[0]) == ["biology"]
    bare.detach_module("biology")
    assert bare.auxiliary_modules() == {}
    assert bare.config.expansion == {"modules": []}
    assert str(bare) == without
    assert bare._no_split_modules == ["GPTNeoBlock"]
    with model.ablated():
        expected = logits(model, batch)
    routing = {"routing_weight": batch["routing_weight"]}
    assert torch.equal(logits(bare, batch, **routing), expected)
    bare.save_pretrained(tmp_path)
    assert "* none at present: they are attached from files" in (tmp_path / "README.md").read_text()
    for each in (ExpandedGPTNeoForCausalLM.from_pretrained(tmp_path), pickle.loads(pickle.dumps(bare))):
        assert each.module_names == []
        assert torch.equal(logits(each.eval(), batch), expected)
    bare.attach_module(saved / "chemistry")
    assert torch.equal(
        bare.auxiliary_modules()[0]["chemistry"].up_projection.weight,
        model.auxiliary_modules()[0]["chemistry"].up_projection.weight,
    )


def test_no_random_number_is_drawn_and_a_stock_model_is_copied(model: Any, bare: Any, saved: Path) -> None:
    state = torch.get_rng_state()
    bare.attach_module(saved / "biology")
    assert torch.equal(torch.get_rng_state(), state)
    stock = model.contract()
    assert attach_module(stock, saved / "biology") is not stock
    assert type(stock) is GPTNeoForCausalLM


def test_an_expanded_model_gets_the_module_beside_its_own(model: Any, saved: Path, tmp_path: Path) -> None:
    one = attach_module(model.contract(), saved / "biology")
    assert attach_module(one, saved / "chemistry") is one
    assert one.module_names == ["biology", "chemistry"]
    one.detach_module("chemistry")
    one.save_pretrained(tmp_path)
    loaded = attach_module(tmp_path, saved / "chemistry")
    assert loaded.module_names == ["biology", "chemistry"]


def test_a_base_that_was_fine_tuned_since_is_taken_when_that_is_said(model: Any, saved: Path) -> None:
    stock = model.contract().bfloat16()
    with pytest.raises(ValueError, match="belongs to another base"):
        attach_module(stock, saved / "biology")
    attached = attach_module(stock, saved / "biology", check_base=False)
    assert {value.dtype for value in attached.parameters()} == {torch.bfloat16}


# ---- Refused ----


def test_a_model_without_a_module_is_not_trained(bare: Any, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^`model` has no auxiliary module \(`modules: \[\]`\), so nothing is routed\."
    ):
        GradientRoutingTrainer(bare, GradientRoutingConfig(str(tmp_path), report_to="none"))


def fine_tuned(model: Any) -> Any:
    with torch.no_grad():
        model.transformer.wte.weight[0, 0] += 1
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda stock, make_base: fine_tuned(stock),
            r"belongs to another base: the hash of this model's weights is \w{16} \(float32\), its base's was \w{16} "
            r"\(float32\)\. Another dtype changes the hash, too: .* To attach it anyway, to a base that was fine-tuned "
            r"since, pass `check_base=False`\.$",
        ),
        (
            lambda stock, make_base: stock.bfloat16(),
            r"the hash of this model's weights is \w{16} \(bfloat16\), its base's was \w{16} \(float32\)\. Another dtype",
        ),
        (
            lambda stock, make_base: make_base(hidden_size=8),
            "`hidden_size` of its base is 16, of this model 8. Attach it to the base that it was saved from.",
        ),
        (
            lambda stock, make_base: make_base(num_layers=2, attention_types=[[["global"], 2]]),
            "`number_of_layers` of its base is 3, of this model 2.",
        ),
        (
            lambda stock, make_base: make_base(activation_function="relu"),
            "`activation` of its base is 'gelu_new', of this model 'relu'.",
        ),
        (
            lambda stock, make_base: LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=53,
                    hidden_size=16,
                    intermediate_size=8,
                    num_hidden_layers=3,
                    num_attention_heads=2,
                )
            ),
            "`model_type` of its base is 'gpt_neo', of this model 'llama'.",
        ),
    ],
    ids=["fine-tuned", "another dtype", "hidden size", "layers", "activation", "family"],
)
def test_another_base_is_refused(
    make: Callable[..., Any], message: str, model: Any, saved: Path, make_base: Callable[..., Any]
) -> None:
    expanded = expand_base(make(model.contract(), make_base), ExpansionConfig(modules=[]))
    with pytest.raises(ValueError, match=message):
        expanded.attach_module(saved / "biology")
    assert expanded.auxiliary_modules() == {}
    assert expanded.module_names == []


def cut(folder: Path) -> None:
    path = folder / "module.safetensors"
    path.write_bytes(path.read_bytes()[:-40])


def flip(folder: Path) -> None:
    path = folder / "module.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, r"there is no such directory\. Pass the folder of one\."),
        (lambda folder: (folder / "module.safetensors").unlink(), r"it holds no module\.safetensors\. Pass"),
        (lambda folder: (folder / "module_config.json").unlink(), r"it holds no module_config\.json\. Pass"),
        (lambda folder: (folder / "module_config.json").write_text("{"), r"module_config\.json cannot be read as JSON"),
        (cut, r"module\.safetensors is damaged or cut off: its SHA-256 is not the one in module_config\.json\."),
        (flip, r"module\.safetensors is damaged or cut off: its SHA-256 is not the one in module_config\.json\."),
        (
            lambda folder: change_config(folder, lambda values: values.update(format=2)),
            r"is of format 2, saved by hf_era .*; this version, .*, reads format 1\. Update hf_era, or save",
        ),
        (
            lambda folder: change_config(folder, lambda values: values.update(dial=float("nan"))),
            r"describes no module \(`dial` should be in \[0, 1\], got nan\)\. Save it again",
        ),
        (
            lambda folder: change_config(folder, lambda values: values.pop("base")),
            r"describes no module \(it lacks 'base'\)",
        ),
        (
            lambda folder: change_config(folder, lambda values: values["base"].update(hidden_size="16")),
            r"describes no module \(`base.hidden_size` should be of type int, got '16'\)",
        ),
        (
            lambda folder: change_config(folder, lambda values: values["module"].update(kind="mpl")),
            r"describes no module \(Unknown value for `expansion.modules.kind`: 'mpl'\. Did you mean `mlp`\?",
        ),
        (
            lambda folder: change_config(folder, lambda values: values["module"].update(width=5)),
            r"the weight 'layers.0.down_projection.weight' has the shape \[16, 4\] \(torch.float32\), and should have the "
            r"shape \[16, 5\]\.",
        ),
        (
            lambda folder: change_weights(folder, lambda weights: weights.pop("layers.2.up_projection.bias")),
            r"the weight 'layers.2.up_projection.bias' is missing, and should have the shape \[4\]\.",
        ),
        (
            lambda folder: change_weights(folder, lambda weights: weights.update(other=torch.ones(2))),
            r"the weight 'other' has the shape \[2\] \(torch.float32\), and should not be there\.",
        ),
        (
            lambda folder: change_config(folder, lambda values: values["module"].update(target_layers=[0, 7])),
            r"the module `biology` in .* cannot be attached: .* names layer 7, but the model has 3 layers",
        ),
        (
            lambda folder: change_config(folder, lambda values: values["module"].update(kind="heads")),
            r"the module `biology` in .* cannot be attached: .* `gpt_neo` have no place for heads .* Save it again",
        ),
    ],
)
def test_a_damaged_module_is_refused(damage: Callable[[Path], Any], message: str, bare: Any, copied: Path) -> None:
    damage(copied)
    with pytest.raises(ValueError, match=message):
        bare.attach_module(copied)
    assert bare.auxiliary_modules() == {}


def test_an_attachment_that_fails_changes_nothing(bare: Any, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(module_files._ModuleFile, "build_for", fail)
    with pytest.raises(MemoryError):
        bare.attach_module(saved / "biology")
    assert bare.config.expansion_config.module_configs == bare.module_names == []


def test_a_name_that_is_there_is_refused(model: Any, saved: Path) -> None:
    with pytest.raises(
        ValueError, match=r"has a module of that name\. Take it out first, with `detach_module\('biology'\)`"
    ):
        model.attach_module(saved / "biology")


def test_a_model_whose_layers_are_fixed_is_refused(bare: Any, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_hook_to_module(bare.transformer.h[0], ModelHook())
    with pytest.raises(
        ValueError, match=r"`attach_module`: the model is dispatched to several devices \(`device_map`\)"
    ):
        bare.attach_module(saved / "biology")
    monkeypatch.setattr(module_files, "is_sharded", lambda model: True)
    with pytest.raises(
        ValueError, match=r"sharded by FSDP2, and its layers are fixed\. Call it before `fully_shard`\."
    ):
        bare.attach_module(saved / "biology")
    get_peft_model(bare, LoraConfig(target_modules=["c_fc"]))
    with pytest.raises(ValueError, match=r"has adapters \(peft\), .* Merge them first, or put them on afterwards\."):
        bare.attach_module(saved / "biology")


def test_a_quantised_base_is_refused(model: Any, saved: Path) -> None:
    stock = model.contract()
    stock.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(ValueError, match=r"The base model is quantised \(`quantization_config`\)"):
        attach_module(stock, saved / "biology")
