"""Bad input gets an error that names the field, the value and the way out."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import GPTNeoForCausalLM

from hf_era import ExpandedGPTNeoForCausalLM, ExpansionConfig, expand_base
from hf_era.models.loading import load_base_config, load_causal_lm

EXPANSION = ExpansionConfig(width=8, target_layers=[0, 2])

MakeExpanded = Callable[..., ExpandedGPTNeoForCausalLM]


def test_an_expanded_model_is_no_base(make_expanded: MakeExpanded, tmp_path: Path) -> None:
    model = make_expanded([0])
    model.save_pretrained(tmp_path)
    for argument in (tmp_path, model):
        for expand in (ExpandedGPTNeoForCausalLM.from_base, expand_base):
            with pytest.raises(ValueError, match=r"it is expanded already\. Load it with `from_pretrained`") as caught:
                expand(argument, EXPANSION)
            assert "or pass its contracted checkpoint as the base" in str(caught.value)


@pytest.mark.parametrize("expand", [ExpandedGPTNeoForCausalLM.from_base, expand_base])
def test_an_expansion_of_another_type(expand: Callable, base_folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"`expansion` should be an `ExpansionConfig`.* got \{'width': 8\}\. Write `Exp"
    ):
        expand(base_folder, {"width": 8})
    with pytest.raises(ValueError, match=r"`expansion` should be an `ExpansionConfig`.* got 8\. Leave it out"):
        expand(base_folder, 8)


@pytest.mark.parametrize("expand", [ExpandedGPTNeoForCausalLM.from_base, expand_base])
def test_what_is_no_base(expand: Callable, base: GPTNeoForCausalLM) -> None:
    for value, message in (
        (None, "got None. Pass one of the three"),
        (GPTNeoForCausalLM, "got the class GPTNeoForCausalLM. Make one of it"),
        (base.config, r"got a GPTNeoConfig, which has no weights\. .*`AutoModelForCausalLM\.from_config\(config\)`"),
        (torch.nn.DataParallel(base), r"got a DataParallel without a config\. .*unwrapped"),
    ):
        with pytest.raises(
            ValueError, match=f"^`base` should be a local directory, a hub id or a causal LM.* {message}"
        ):
            expand(value, EXPANSION)
    with pytest.raises(
        ValueError, match=r"`base` should be a GPTNeoForCausalLM, got a GPTNeoModel, .*language-model head"
    ):
        expand(base.transformer, EXPANSION)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers by an old name
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_base_with_adapters(wrapped: bool, base: GPTNeoForCausalLM) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(base, LoraConfig(target_modules=["c_fc"]))
    model = model if wrapped else model.get_base_model()
    for expand in (ExpandedGPTNeoForCausalLM.from_base, expand_base):
        with pytest.raises(ValueError, match=r"`base` has adapters \(peft\).*`base = base\.merge_and_unload\(\)`"):
            expand(model, EXPANSION)


def test_a_quantised_base(base: GPTNeoForCausalLM, base_folder: Path) -> None:
    settings = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    base.config.quantization_config = settings
    file = base_folder / "config.json"
    plain = file.read_text()
    file.write_text(json.dumps({**json.loads(plain), "quantization_config": settings}))
    for argument in (base, base_folder):
        with pytest.raises(
            ValueError, match=r"base model is quantised \(`quantization_config`\).*without quantisation"
        ):
            expand_base(argument, EXPANSION)
    file.write_text(plain)
    for option in ({"quantization_config": settings}, {"load_in_4bit": True}):
        with pytest.raises(ValueError, match="base model is quantised"):
            expand_base(base_folder, EXPANSION, **option)


def test_a_base_in_memory_that_is_spread_over_devices(base: GPTNeoForCausalLM) -> None:
    base.transformer.h[1].to("meta")  # as what a `device_map` offloads
    for expand in (ExpandedGPTNeoForCausalLM.from_base, expand_base):
        with pytest.raises(ValueError, match=r"`base` is spread over devices .*: cpu, meta, .*or pass its folder"):
            expand(base, EXPANSION)


def test_the_directory_of_an_adapter(tmp_path: Path) -> None:
    """As peft saves it, without a config.json; `hf-era eval` and the base of a run load it by the same way."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/else"}))
    for load in (expand_base, load_causal_lm, load_base_config):
        with pytest.raises(ValueError, match=r"holds an adapter \(adapter_config\.json\).*`merge_and_unload`"):
            load(tmp_path)


@pytest.mark.parametrize("prefix", ["./", "", "absolute"])
def test_a_missing_directory(prefix: str, tmp_path: Path) -> None:
    name = str(tmp_path / "nowhere") if prefix == "absolute" else f"{prefix}no/such/folder"
    for argument in (name, Path(name)):
        with pytest.raises(
            ValueError, match=r"^`model.base`: the directory .* does not exist\. Check the path, or pass a hub id\.$"
        ):
            ExpandedGPTNeoForCausalLM.from_base(argument, EXPANSION)


def test_a_directory_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"the directory {re.escape(str(tmp_path))} holds no config.json"):
        ExpandedGPTNeoForCausalLM.from_base(tmp_path, EXPANSION)


def test_a_file_instead_of_a_directory(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="should be a directory with a saved model or a hub id, got the file"):
        ExpandedGPTNeoForCausalLM.from_base(file, EXPANSION)


def test_a_directory_without_weights(base_folder: Path) -> None:
    (base_folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"`model\.base`: .* holds no weights: there is no model\.safetensors"):
        ExpandedGPTNeoForCausalLM.from_base(base_folder, EXPANSION)


@pytest.mark.parametrize("expand", [ExpandedGPTNeoForCausalLM.from_base, expand_base])
def test_a_hub_id_while_offline_names_the_way_out(expand: Callable) -> None:
    with pytest.raises(ValueError, match="could not get the model `hf-era-tests/no-such-model` from the hub") as caught:
        expand("hf-era-tests/no-such-model", EXPANSION)
    assert "offline" in str(caught.value)
    assert "Pass the path of a local directory instead, for instance `--model.base ./my_model`." in str(caught.value)


def test_a_checkpoint_that_lacks_a_weight(base: GPTNeoForCausalLM, tmp_path: Path) -> None:
    state = {name: value for name, value in base.state_dict().items() if name != "transformer.h.1.ln_1.bias"}
    base.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"lacks transformer\.h\.1\.ln_1\.bias"):
        ExpandedGPTNeoForCausalLM.from_base(tmp_path, EXPANSION)


def test_a_target_layer_that_the_base_does_not_have(base: GPTNeoForCausalLM, base_folder: Path) -> None:
    for argument in (base, base_folder):
        with pytest.raises(ValueError, match="names layer 5, but the model has 3 layers"):
            ExpandedGPTNeoForCausalLM.from_base(argument, ExpansionConfig(target_layers=[5]))


@pytest.mark.parametrize("shape", [(3, 11), (2, 12), (12,), (3, 12, 16)])
def test_a_routing_weight_of_the_wrong_shape(
    shape: tuple[int, ...], make_expanded: MakeExpanded, make_batch: Callable
) -> None:
    with pytest.raises(ValueError, match="Pass a `routing_weight` of the same"):
        make_expanded([0])(**{**make_batch(), "routing_weight": torch.ones(shape)})


@pytest.mark.parametrize(
    ("value", "shown"), [(float("nan"), "nan"), (float("inf"), "inf"), (1.5, r"1\.5"), (-0.25, r"-0\.25")]
)
def test_a_routing_weight_out_of_range(
    value: float, shown: str, make_expanded: MakeExpanded, make_batch: Callable
) -> None:
    batch = make_batch()
    batch["routing_weight"][1, 5] = value
    with pytest.raises(ValueError, match=rf"`routing_weight` should be in \[0, 1\].* {shown}.*in row 1 of the batch"):
        make_expanded([0])(**batch)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_a_routing_weight_of_another_dtype(
    dtype: torch.dtype, make_expanded: MakeExpanded, make_batch: Callable
) -> None:
    batch = make_batch()
    with pytest.raises(ValueError, match=f"`routing_weight` should be a floating tensor, got {dtype}"):
        make_expanded([0])(**{**batch, "routing_weight": batch["routing_weight"].to(dtype)})
