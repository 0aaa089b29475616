"""Families that nobody registered, opened by the names of their parts, and what is tried out before one is taken."""

import copy
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import PartialState
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.starcoder2.modeling_starcoder2 import Starcoder2MLP

from hf_era import ExpansionConfig, attach_module, expand_base
from hf_era.methods import gradient_routing
from hf_era.models import (
    FAMILIES,
    AuxiliaryMLP,
    ModuleConfig,
    UntestedFamilyWarning,
    family_for,
    load_expanded,
    self_check,
)
from hf_era.models.adapters import adapters_kept
from hf_era.models.loading import expanded_from_config, load_causal_lm
from hf_era.routing import ActivationRouter
from hf_era.run.push import _check_has_no_module
from hf_era.training.coherence import CoherenceConfig
from hf_era.training.raw_examples import expanded_model

VALUES = {
    "vocab_size": 53, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 32, "initializer_range": 0.2, "bos_token_id": 52,
    "eos_token_id": 52, "pad_token_id": 0,
}  # fmt: skip
OWN_VALUES: dict[str, dict[str, Any]] = {
    "deepseek_v3": {"first_k_dense_replace": 1, "n_routed_experts": 2, "n_group": 1, "topk_group": 1},
    "bloom": {"n_head": 4},
}
# down projection, gated, config's field for the activation function
OPENED = {
    "phi": ("fc2", False, "hidden_act"),
    "phi3": ("down_proj", True, "hidden_act"),  # gate and up projection are one
    "glm4": ("down_proj", True, "hidden_act"),
    "cohere": ("down_proj", True, "hidden_act"),  # attention and MLP side by side
    "starcoder2": ("c_proj", False, "hidden_act"),
    "stablelm": ("down_proj", True, "hidden_act"),
    "falcon": ("dense_4h_to_h", False, "activation"),
    "granite": ("down_proj", True, "hidden_act"),  # what a block adds is scaled, and so are the logits
    "nemotron": ("down_proj", False, "hidden_act"),
    "exaone4": ("down_proj", True, "hidden_act"),  # norms behind the MLP
    "gpt_bigcode": ("c_proj", False, "activation_function"),
}


def config_of(model_type: str, **values: Any) -> Any:
    return AutoConfig.for_model(model_type, **{**VALUES, **OWN_VALUES.get(model_type, {}), **values})


def base_of(model_type: str, **values: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config_of(model_type, **values)).eval()


def expansion_of(model_type: str, **values: Any) -> ExpansionConfig:
    return ExpansionConfig(**{"width": 4, "mlp": "mlp", "down_projection": OPENED[model_type][0], **values})


@pytest.fixture(autouse=True)
def told_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "_told", set())


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, 52, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def starcoder2() -> Any:
    """Stock, not to be changed."""
    return base_of("starcoder2")


NOT_EACH_TIME = ("glm4", "stablelm", "granite", "nemotron", "exaone4")
EACH = [pytest.param(name, marks=pytest.mark.slow if name in NOT_EACH_TIME else ()) for name in OPENED]


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # gpt_bigcode's own
@pytest.mark.parametrize("model_type", EACH)
def test_a_family_is_opened_by_the_names_of_its_parts(model_type: str, tokens: Tensor) -> None:
    down, gated, activation = OPENED[model_type]
    assert model_type not in FAMILIES
    base = base_of(model_type)
    with pytest.warns(UntestedFamilyWarning, match=rf"`{model_type}` is no family .* `{down}`.*{activation}"):
        model = expand_base(base, expansion_of(model_type))
    family = model.family
    assert (family.gated, family.activation, family.fast_path) == (gated, activation, None)
    assert all((part.gate_projection is not None) is gated for part in model.auxiliary_modules()[1].values())
    with torch.no_grad(), model.ablated():
        assert torch.equal(model(tokens).logits, base(tokens).logits)
    stock = model.contract()
    assert type(stock) is type(base)
    assert all(torch.equal(value, stock.state_dict()[name]) for name, value in base.state_dict().items())
    assert model_type not in FAMILIES  # and the Auto classes do not know it
    with pytest.raises(ValueError, match=f"expanded_{model_type}"):
        AutoConfig.for_model(f"expanded_{model_type}")


def test_it_is_said_once_that_a_family_is_untested(starcoder2: Any) -> None:
    with pytest.warns(UntestedFamilyWarning, match="Not tried out: generation"):
        first = expand_base(starcoder2, expansion_of("starcoder2"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = expand_base(starcoder2, expansion_of("starcoder2", width=2))
    assert type(first) is type(second)


@pytest.mark.filterwarnings("ignore::hf_era.models.UntestedFamilyWarning")
def test_it_is_a_model_like_others(starcoder2: Any, tokens: Tensor, tmp_path: Path) -> None:
    """Copied, pickled, generated with, checkpointed; from a folder as from memory; in half precision."""
    model = expand_base(copy.deepcopy(starcoder2), expansion_of("starcoder2", target_layers=[1, 2]))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert type(other) is type(model)
        assert type(other.config) is type(model.config)
        assert torch.equal(other.eval()(tokens).logits, model.eval()(tokens).logits)
    assert model.generate(tokens[:1], max_new_tokens=2, do_sample=False).shape == (1, 11)
    weight = torch.tensor([[0.0, 1, 1, 0, 0.5, 1, 0, 1, 1]]).expand(2, -1)
    gradients = []
    for checkpointing in (False, True):
        model.train()
        if checkpointing:
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()  # the older name
        model.zero_grad()
        model(tokens, labels=tokens, routing_weight=weight, output_activation_l1=True).loss.backward()
        gradients.append(model.model.layers[1].mlp.c_fc.weight.grad)
    assert torch.equal(*gradients)
    starcoder2.save_pretrained(tmp_path)
    loaded = expand_base(tmp_path, expansion_of("starcoder2"), dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore::hf_era.models.UntestedFamilyWarning")
def test_random_weights_are_those_of_the_stock_model(starcoder2: Any) -> None:
    model = expanded_from_config(starcoder2.config, expansion_of("starcoder2"), seed=0)
    weights = starcoder2.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in model.contract().state_dict().items())


# ---- What is refused ----


def opt_values() -> dict[str, Any]:
    return {"word_embed_proj_dim": 16, "ffn_dim": 24}


@pytest.mark.parametrize(
    ("model_type", "names", "message"),
    [
        ("phi", ("mpl", "fc2"), r"`expansion\.mlp` is 'mpl', but .*Did you mean `mlp`\? They have: `self_attn`, `mlp`"),
        ("stablelm", ("mlp", "c_proj"), r"which is not there .*\. Did you mean `down_proj`\? Its linear layers: `gate"),
        ("phi", ("mlp", "fc3"), r"`expansion\.down_projection` is 'fc3', which is not there .*`fc2`.*layers: `fc1`"),
        ("phi", ("mlp", "activation_fn"), r"'activation_fn', which is a NewGELUActivation, no linear layer"),
        ("phi", ("mlp", "fc1"), r"width of the residual stream of `phi` is 24, and none of the fields .*`hidden_size`"),
        ("phi", ("self_attn", "dense"), r"no form that is known.*`q_proj` 16 -> 16, .*Is another one the last\?"),
        ("opt", ("mlp", "fc2"), r"layers of their MLP in the block itself: `fc1`, `fc2`.*`hf-era eval` and"),
        ("mixtral", ("mlp", "down_proj"), r"MixtralSparseMoeBlock\) is a mixture of experts .*`hf-era eval` and"),
        ("qwen2_moe", ("mlp", "shared_expert.down_proj"), r"is a mixture of experts"),
        ("deepseek_v3", ("mlp", "down_proj"), r"Layers without experts: \[0\]; name them with `expansion\.target_layers`"),
        ("mamba", ("mlp", "out_proj"), r"the blocks of `mamba` .* have no such part\. They have: `norm`, `mixer`"),
        ("bloom", ("mlp", "dense_4h_to_h"), r"does not name the activation function.*`base\.config\.hidden_act = "),
    ],
)  # fmt: skip
def test_what_has_no_such_parts_is_refused(model_type: str, names: tuple[str, str], message: str) -> None:
    extra = opt_values() if model_type == "opt" else {}
    with pytest.raises(ValueError, match=message):
        family_for(config_of(model_type, **extra), ExpansionConfig(mlp=names[0], down_projection=names[1]))


@pytest.mark.filterwarnings("ignore::hf_era.models.UntestedFamilyWarning")
def test_a_config_that_names_no_activation_function_is_helped(tokens: Tensor) -> None:
    base = base_of("bloom")
    base.config.hidden_act = "gelu_pytorch_tanh"
    model = expand_base(base, ExpansionConfig(width=4, mlp="mlp", down_projection="dense_4h_to_h"))
    with torch.no_grad(), model.ablated():
        assert torch.equal(model(tokens).logits, base(tokens).logits)


def test_layers_without_experts_can_be_chosen() -> None:
    expansion = ExpansionConfig(mlp="mlp", down_projection="down_proj", target_layers=[0])
    assert family_for(config_of("deepseek_v3"), expansion).gated


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mlp": "mlp"}, r"open a family together, and `expansion\.down_projection` is not given"),
        ({"down_projection": "c_proj"}, r"open a family together, and `expansion\.mlp` is not given"),
        ({"mlp": "a.b", "down_projection": "c"}, r"`expansion\.mlp` should be the name of an attribute, got 'a\.b'"),
        ({"mlp": "mlp", "down_projection": ""}, r"`expansion\.down_projection` should be a path such as .*, got ''"),
        ({"mlp": 3, "down_projection": "c"}, r"`expansion\.mlp` should be the name of an attribute, got 3"),
    ],
)
def test_names_that_are_none_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExpansionConfig(**values)


def test_a_registered_family_has_its_own_names(make_base: Callable[..., Any]) -> None:
    base = make_base()
    with pytest.raises(
        ValueError, match=r"`expansion\.down_projection` is 'c_fc', but that of the family `gpt_neo` is 'c_proj'"
    ):
        expand_base(base, ExpansionConfig(mlp="mlp", down_projection="c_fc"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = expand_base(base, ExpansionConfig(mlp="mlp", down_projection="c_proj"))
    assert model.config.expansion == ExpansionConfig().to_dict()  # saved as ever


def test_without_names_a_family_is_unknown(starcoder2: Any) -> None:
    with pytest.raises(ValueError, match=r"`starcoder2` is of no family .*`ExpansionConfig\(mlp=\.\.\., "):
        expand_base(starcoder2)


# ---- What is tried out ----


def _computes_beside_the_layer(self: Any, hidden: Tensor) -> Tensor:
    return F.linear(self.act(self.c_fc(hidden)), self.c_proj.weight, self.c_proj.bias)


def _computes_it_twice(self: Any, hidden: Tensor) -> Tensor:
    return self.c_proj(self.act(self.c_fc(hidden))) + 0.5 * self.c_proj(2 * self.act(self.c_fc(hidden)))


def _computes_the_other_way(self: Any, hidden: Tensor) -> Tensor:
    return self.c_fc(self.act(self.c_proj(hidden)))


def _depends_on_the_class(self: Any, hidden: Tensor) -> Tensor:
    return self.c_proj(self.act(self.c_fc(hidden))) * (1.0 if type(self) is Starcoder2MLP else 1.5)


def _looks_ahead(self: Any, hidden: Tensor) -> Tensor:
    return self.c_proj(self.act(self.c_fc(hidden.flip(1))))


@pytest.mark.parametrize(
    ("forward", "values", "message"),
    [
        (_computes_beside_the_layer, {}, "the module changes no logits, so what it adds gets lost"),
        (_computes_it_twice, {}, r"`c_proj` of layer 2 is called 2 times in a forward pass"),
        (_computes_the_other_way, {"intermediate_size": 16}, r"`c_fc` of layer 2 has no gradient"),
        (_depends_on_the_class, {}, r"ablated, its logits differ from those of the base by up to \d.*bit for bit"),
        (_looks_ahead, {}, "it is no causal language model"),
    ],
)
def test_a_model_that_computes_something_else_is_refused(
    forward: Callable[..., Tensor], values: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Starcoder2MLP, "forward", forward)
    base = base_of("starcoder2", **values)
    before = copy.deepcopy(base.state_dict())
    with pytest.raises(ValueError, match=rf"'mlp' and .*'c_proj' do not make .*{message}.*The base was not changed"):
        expand_base(base, expansion_of("starcoder2"))
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert type(base.model.layers[0].mlp) is Starcoder2MLP


@pytest.mark.parametrize("fault", ["not routed", "other tokens", "down projection too"])
def test_gradients_that_are_routed_wrongly_are_refused(
    fault: str, starcoder2: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hf_era.models import running_call

    def scale(activation: Tensor, factor: Tensor | None) -> Tensor:
        if factor is None or fault == "not routed":
            return activation
        if fault == "other tokens":
            return own_scale(activation, factor.roll(1, dims=1))
        return activation * 1.0 if activation.shape[-1] == 4 else activation

    def route(self: Any, activation: Tensor, module: str | None) -> Tensor:
        routed = own_route(self, activation, module)
        if fault != "down projection too" or self.routing is None or module is not None:
            return routed
        return routed + (activation - activation.detach()) * 0.5

    own_scale, own_route = running_call.scale_gradient, running_call.LayerCall.route
    if fault == "down projection too":
        monkeypatch.setattr(running_call.LayerCall, "route", route)
    else:
        monkeypatch.setattr(running_call, "scale_gradient", scale)
    with pytest.raises(
        ValueError, match=r"gradient of `c_fc` of layer 2, which is routed, differs .* by \d\.\de.*at most"
    ):
        expand_base(starcoder2, expansion_of("starcoder2"))


def test_on_the_meta_device_nothing_is_tried_out(starcoder2: Any) -> None:
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(starcoder2.config)
    family = family_for(starcoder2.config, expansion_of("starcoder2"))
    with torch.device("meta"):
        model = family.model_class(
            family.model_class.config_class.from_base_config(base.config, expansion_of("starcoder2"))
        )
    with pytest.warns(UntestedFamilyWarning, match="NOTHING WAS TRIED OUT, because its weights are on the meta device"):
        self_check.check_opened(model)


@pytest.mark.filterwarnings("ignore::hf_era.models.UntestedFamilyWarning")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_it_is_tried_out_in_the_dtype_of_the_model(dtype: torch.dtype, starcoder2: Any) -> None:
    assert expand_base(starcoder2, expansion_of("starcoder2"), dtype=dtype).dtype == dtype


@pytest.mark.filterwarnings("ignore::hf_era.models.UntestedFamilyWarning")
def test_trying_out_leaves_no_trace(starcoder2: Any) -> None:
    base = copy.deepcopy(starcoder2).train()
    base.model.embed_tokens.requires_grad_(False)
    torch.manual_seed(3)
    model = expand_base(base, expansion_of("starcoder2"))
    modes, learning = {part.training for part in model.modules()}, dict(model.named_parameters())
    assert modes == {True}
    assert not learning["model.embed_tokens.weight"].requires_grad
    assert learning["model.layers.0.mlp.c_fc.weight"].requires_grad
    assert all(value.grad is None for value in learning.values())
    assert model.router == ActivationRouter()


# ---- Saved in parts ----


@pytest.fixture(scope="module")
def opened(starcoder2: Any) -> Any:
    """Expanded, two modules, not to be changed."""
    modules = [{"name": "forget", "width": 4, "target_layers": [0, 2]}, {"name": "biology", "width": 3}]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return expand_base(starcoder2, ExpansionConfig(modules=modules, mlp="mlp", down_projection="c_proj"))


@pytest.fixture(scope="module")
def saved(opened: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    opened.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore::hf_era.models.UntestedFamilyWarning")
def test_it_is_saved_as_its_base_and_a_file_for_each_module(
    opened: Any, saved: Path, starcoder2: Any, tokens: Tensor
) -> None:
    stock = AutoModelForCausalLM.from_pretrained(saved)
    assert type(stock) is type(starcoder2)
    assert torch.equal(stock(tokens).logits, starcoder2(tokens).logits)
    config = (saved / "config.json").read_text()
    assert "expan" not in config
    assert "hf_era" not in config
    assert sorted(path.name for path in (saved / "modules").iterdir()) == ["biology", "forget", "modules.json"]
    for load in (load_expanded, load_causal_lm):
        loaded = load(saved)
        assert type(loaded) is type(opened)
        assert loaded.module_names == ["forget", "biology"]
        assert torch.equal(loaded(tokens).logits, opened(tokens).logits)
    assert "load_expanded" in (saved / "README.md").read_text()
    assert load_causal_lm(saved, dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore::hf_era.models.UntestedFamilyWarning")
def test_a_module_file_opens_the_family_of_its_base(opened: Any, saved: Path, starcoder2: Any, tokens: Tensor) -> None:
    model = attach_module(starcoder2, saved / "modules" / "biology")
    with opened.ablated("forget"):
        assert torch.equal(model(tokens).logits, opened(tokens).logits)
    model.detach_module("biology")
    assert torch.equal(model(tokens).logits, starcoder2(tokens).logits)
    model.attach_module(saved / "modules" / "forget")
    assert model.config.expansion_config.down_projection == "c_proj"


@pytest.mark.filterwarnings("ignore::hf_era.models.UntestedFamilyWarning")
def test_saved_again_what_was_taken_out_is_gone(saved: Path, tmp_path: Path) -> None:
    model = load_expanded(saved)
    model.save_pretrained(tmp_path)
    model.detach_module("forget")
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in (tmp_path / "modules").iterdir()) == ["biology", "modules.json"]
    assert load_expanded(tmp_path).module_names == ["biology"]
    model.detach_module("biology")
    model.save_pretrained(tmp_path)
    assert load_expanded(tmp_path).module_names == []


@pytest.mark.filterwarnings("ignore::hf_era.models.UntestedFamilyWarning")
def test_weights_that_are_given_are_saved(opened: Any, tmp_path: Path) -> None:
    """As under FSDP, where the model's own are not whole."""
    weights = {name: value.detach() + 1 for name, value in opened.state_dict().items()}
    opened.save_pretrained(tmp_path, state_dict=weights)
    state = load_expanded(tmp_path).state_dict()
    assert all(torch.equal(state[name], value) for name, value in weights.items())


def test_a_module_is_not_folded_into_an_mlp_that_nobody_knows(opened: Any) -> None:
    with pytest.raises(ValueError, match=r"`keep`: the family `starcoder2` was opened by the names .*`save_module`"):
        opened.contract(keep=["forget"])


@pytest.mark.filterwarnings("ignore::hf_era.models.UntestedFamilyWarning")
def test_a_checkpoint_of_a_training_is_whole(opened: Any, tmp_path: Path, tokens: Tensor) -> None:
    with adapters_kept():
        opened.save_pretrained(tmp_path)
    assert not (tmp_path / "modules").exists()
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(opened.state_dict()) - {"lm_head.weight"}  # tied
    loaded = load_causal_lm(tmp_path)
    assert type(loaded) is type(opened)
    assert torch.equal(loaded(tokens).logits, opened(tokens).logits)


def test_what_is_not_in_parts_is_not_loaded_as_such(saved: Path, starcoder2: Any, tmp_path: Path) -> None:
    starcoder2.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds no modules/modules\.json.*`hf_era\.attach_module`"):
        load_expanded(tmp_path)
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "modules.json").write_text('{"modules": ["../x"]}')
    with pytest.raises(ValueError, match=r"should list names of modules, got \['\.\./x'\]"):
        load_expanded(tmp_path)


def test_a_model_in_parts_is_not_pushed(opened: Any, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"only the base would be pushed\. Push `model\.contract\(\)`; or"):
        opened.save_pretrained(tmp_path, push_to_hub=True, repo_id="me/model")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"biology is the file of a module: what was to be removed"):
        _check_has_no_module(saved)


@pytest.mark.filterwarnings("ignore::hf_era.models.UntestedFamilyWarning")
def test_the_trainer_takes_a_folder_in_parts(opened: Any, saved: Path, tmp_path: Path) -> None:
    model = expanded_model(str(saved), None)
    assert type(model) is type(opened)
    with pytest.raises(ValueError, match="`expansion` is given, but `model` is expanded already"):
        expanded_model(str(saved), {"width": 3})


def test_the_final_model_of_a_run_is_fine_tuned_where_the_run_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """The contracted model is a stock one of a family that nobody registered: what the expansion names has to be known."""
    base, tuned = base_of("starcoder2"), []
    expansion = expansion_of("starcoder2", target_layers=[1])
    run = SimpleNamespace(
        seed=0, base_config=base.config, expansion=expansion, coherence=CoherenceConfig(), tokenizer=None, progress=None,
        folder=Path, checkpoints=lambda *names: Path("nowhere"), state=PartialState(), save=lambda *_: None,
        data=SimpleNamespace(coherence_validation=[None]),
        arguments=SimpleNamespace(per_device_train_batch_size=1, world_size=1),
        training_arguments=lambda *_, **changes: SimpleNamespace(trainable="routed", lora_settings=None),
    )  # fmt: skip
    monkeypatch.setattr(gradient_routing, "load_causal_lm", lambda _: base)
    monkeypatch.setattr(gradient_routing, "stories_labelled", lambda *_, **options: None)
    monkeypatch.setattr(
        gradient_routing, "fine_tune_for_coherence", lambda model, *_: tuned.append(model) or (Path("best"), {})
    )
    gradient_routing._coherence(run, Path("contracted"), "key")
    trained = {name for name, value in tuned[0].named_parameters() if value.requires_grad}
    assert trained
    assert all(name.startswith("model.layers.1.mlp.") for name in trained)


def test_a_config_may_say_nothing_of_how_weights_start() -> None:
    family = SimpleNamespace(hidden_size="hidden_size", activation="hidden_act", gated=True)
    model = SimpleNamespace(family=family, config=SimpleNamespace(hidden_size=16, hidden_act="silu"))
    module = AuxiliaryMLP.for_model(ModuleConfig(width=4, initialization_scale=3.0), model)
    assert module.initialization_std == pytest.approx(3 * 0.02)  # what transformers takes then
