"""LoRA beside a frozen base: every gradient against an independent dense formula in float64, and what it merges to.

The formula is written with matrices: the MLP of a target layer becomes `(W + s B A) x` in each projection, and a dense mask
(batch, seq, width) stands before the down projection, `m a + (1 - m) a.detach()`. It uses nothing of `hf_era`, nor of peft.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from hf_era import ExpansionConfig, GradientMultipliers
from hf_era.models.fast.causal_lm import ALL_SLOW
from hf_era.models.loading import expanded_from_config
from hf_era.models.trainable import LoraSettings, choose_trainable

TOLERANCE = 1e-12
LAYERS = [0, 2]
NUMBERS = {"original_forget": -0.75, "original_retain": 0.5, "auxiliary_forget": 1.5, "auxiliary_retain": -0.25}
# Of each family: the projections that are not the down projection, that one, and whether weights are (in, out).
PROJECTIONS = {
    "llama": (("gate_proj", "up_proj"), "down_proj", False),
    "gpt_neo": (("c_fc",), "c_proj", False),
    "gpt2": (("c_fc",), "c_proj", True),
}
ATTENTION = {"llama": "sdpa", "gpt2": "sdpa", "gpt_neo": "eager"}
SIZES: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24},
    "gpt_neo": {"num_layers": 3, "num_heads": 4, "attention_types": [[["global"], 3]], "intermediate_size": 24},
    "gpt2": {"n_layer": 3, "n_head": 4, "n_inner": 24, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}


def make(family: str, lora: LoraSettings | None = None, trainable: str | None = None, layers: Any = None) -> Any:
    """An expanded model in float64 whose adapters are no longer at their start, where B is 0 and A learns nothing."""
    shape = {"n_embd": 16, "n_positions": 32} if family == "gpt2" else {"hidden_size": 16}
    special = {"vocab_size": 53, "initializer_range": 0.2, "bos_token_id": 52, "eos_token_id": 52, "use_cache": False}
    config = AutoConfig.for_model(family, **shape, **special, **SIZES[family])
    expansion = ExpansionConfig(width=8, target_layers=LAYERS if layers is None else layers)
    model = expanded_from_config(config, expansion, 0)
    choose_trainable(model, trainable, lora)
    model = model.double().train()
    model.set_fast_paths(ALL_SLOW)
    model.set_attn_implementation(ATTENTION[family])
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name or value.dim() == 1:
                value.add_(0.1 * torch.randn(value.shape, dtype=torch.float64))
    return model


@pytest.fixture(scope="module")
def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, 52, (3, 12), generator=generator)
    weight = (torch.rand((3, 12), generator=generator) * 256).round() / 256  # fp32 holds these exactly
    weight[0, :4], weight[1] = 0.0, 1.0
    return {"input_ids": ids, "routing_weight": weight.double()}


@pytest.fixture(autouse=True)
def _float64_throughout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama's norms and GPT-Neo's attention go through fp32, where a last bit of difference becomes 1e-7."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    def attend(self: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, None]:
        length = query.shape[-2]
        scores = (query @ key.transpose(-1, -2)).masked_fill(
            ~torch.ones(length, length, dtype=torch.bool).tril(), -1e300
        )
        return scores.softmax(dim=-1) @ value, None

    monkeypatch.setattr(LlamaRMSNorm, "forward", forward)
    monkeypatch.setattr(GPTNeoSelfAttention, "_attn", attend)


class DenseMLP(nn.Module):
    """The formula. Its leaves have the names of the expanded model's parameters."""

    def __init__(
        self, family: str, state: dict[str, Tensor], prefix: str, weight: Tensor, scale: float, act: Any
    ) -> None:
        super().__init__()
        self.before, self.down, self.transposed = PROJECTIONS[family]
        self.leaves, self.prefix, self.scale, self.act = state, prefix, scale, act
        retain, forget = weight[..., None], 1 - weight[..., None]
        self.mask = retain * NUMBERS["original_retain"] + forget * NUMBERS["original_forget"]
        self.auxiliary_mask = retain * NUMBERS["auxiliary_retain"] + forget * NUMBERS["auxiliary_forget"]

    def project(self, name: str, x: Tensor) -> Tensor:
        leaf = {part: self.leaves.get(f"{self.prefix}.{name}.{part}") for part in (
            "base_layer.weight", "base_layer.bias", "lora_A.default.weight", "lora_B.default.weight")}  # fmt: skip
        own, bias, a, b = leaf.values()
        assert own is not None
        assert a is not None
        assert b is not None
        return x @ ((own if self.transposed else own.T) + self.scale * (b @ a).T) + (0 if bias is None else bias)

    def side(self, name: str, x: Tensor) -> Tensor:
        weight = self.leaves[f"{self.prefix}.auxiliary.forget.{name}.weight"]
        return F.linear(x, weight, self.leaves.get(f"{self.prefix}.auxiliary.forget.{name}.bias"))

    def forward(self, x: Tensor) -> Tensor:
        inner = [self.project(name, x) for name in self.before]
        a = self.act(inner[0]) if len(inner) == 1 else self.act(inner[0]) * inner[1]
        gated = len(inner) == 2
        side = self.act(self.side("gate_projection", x)) * self.side("up_projection", x) if gated else None
        side = self.act(self.side("up_projection", x)) if side is None else side
        a = self.mask * a + (1 - self.mask) * a.detach()
        side = self.auxiliary_mask * side + (1 - self.auxiliary_mask) * side.detach()
        return self.project(self.down, a) + self.side("down_projection", side)


def loss_of(model: Any, batch: dict[str, Tensor], **options: Any) -> Tensor:
    logits = model(input_ids=batch["input_ids"], **options).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten())


def dense_gradients(
    family: str, model: Any, batch: dict[str, Tensor], scale: float
) -> tuple[Tensor, dict[str, Tensor]]:
    stock = model.stock_class(model.config.to_base_config()).double().train()
    stock.set_attn_implementation(ATTENTION[family])
    stock.load_state_dict({k.replace(".base_layer", ""): v for k, v in model.state_dict().items()
        if "lora_" not in k and ".auxiliary." not in k})  # fmt: skip
    blocks = stock.model.layers if family == "llama" else stock.transformer.h
    path = "model.layers" if family == "llama" else "transformer.h"
    leaves = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    for layer in LAYERS:
        act = blocks[layer].mlp.act_fn if family == "llama" else blocks[layer].mlp.act
        blocks[layer].mlp = DenseMLP(family, leaves, f"{path}.{layer}.mlp", batch["routing_weight"], scale, act)
    loss = loss_of(stock, batch)
    loss.backward()
    return loss, {name: value.grad for name, value in leaves.items() if value.grad is not None}


@pytest.mark.parametrize("family", PROJECTIONS)
def test_adapters_and_modules_learn_what_the_dense_formula_says(family: str, batch: dict[str, Tensor]) -> None:
    model = make(family, LoraSettings(rank=2, alpha=3.0))
    model.gradient_multipliers = GradientMultipliers(**NUMBERS)
    loss = loss_of(model, batch, routing_weight=batch["routing_weight"])
    loss.backward()
    expected_loss, expected = dense_gradients(family, model, batch, scale=1.5)
    torch.testing.assert_close(loss, expected_loss, rtol=TOLERANCE, atol=0)
    learning = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    projections = len(PROJECTIONS[family][0]) + 1
    assert sum("lora_" in name for name in learning) == 2 * projections * len(LAYERS)
    assert all("lora_" in name or ".auxiliary." in name for name in learning)
    for name, gradient in learning.items():
        of_formula = expected[name]
        assert of_formula.abs().max() > 0, name
        assert ((gradient - of_formula).abs().max() / of_formula.abs().max()).item() < TOLERANCE, name


@pytest.mark.parametrize("multiplier", [0.0, -0.5])
@pytest.mark.parametrize("family", PROJECTIONS)
def test_the_table_of_what_adapters_learn(family: str, multiplier: float, batch: dict[str, Tensor]) -> None:
    """In one layer, so that there is one way back: of forget tokens adapters of up and gate learn nothing, or a share with
    its sign; those of the down projection learn whole, and so does every adapter of retain and of unlabelled tokens."""
    model = make(family, LoraSettings(rank=2, attention=True), layers=[2])

    def gradients(weight: float | None) -> dict[str, Tensor]:
        model.zero_grad()
        model.gradient_multipliers = GradientMultipliers(original_forget=multiplier)
        routing = None if weight is None else torch.full((3, 12), weight)
        loss_of(model, batch, routing_weight=routing).backward()
        return {name: value.grad for name, value in model.named_parameters() if "lora_" in name}

    unrouted, forget, retain = gradients(None), gradients(0.0), gradients(1.0)
    before, down, _ = PROJECTIONS[family]
    for name, whole in unrouted.items():
        assert whole.abs().max() > 0
        torch.testing.assert_close(retain[name], whole, rtol=1e-12, atol=1e-18)
        if any(f".mlp.{part}.lora_" in name for part in before):
            torch.testing.assert_close(forget[name], multiplier * whole, rtol=1e-10, atol=1e-18)
        elif f".mlp.{down}.lora_" in name:
            torch.testing.assert_close(forget[name], whole, rtol=1e-12, atol=1e-18)
        else:  # attention comes before the MLP, and goes around it too
            assert not torch.allclose(forget[name], whole)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_merged_contract_is_the_ablated_model(family: str, batch: dict[str, Tensor], tmp_path: Path) -> None:
    model = make(family, LoraSettings(rank=2, attention=True)).eval()
    model.contract().save_pretrained(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(stock) is model.stock_class
    with torch.no_grad(), model.ablated():
        ablated = model(input_ids=batch["input_ids"]).logits
        assert stock.dtype == torch.float64
        torch.testing.assert_close(stock(input_ids=batch["input_ids"]).logits, ablated, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "what", "untrained"),
    [
        ({"trainable": "routed"}, {"mlp.auxiliary", "mlp.down_proj", "mlp.gate_proj", "mlp.up_proj"}, "lora"),
        ({"trainable": "modules"}, {"mlp.auxiliary"}, "proj"),
        ({"lora": LoraSettings(target_modules=["q_proj"])}, {"mlp.auxiliary", "self_attn.q_proj"}, "base_layer"),
        ({"lora": LoraSettings(target_modules="all-linear")}, {"mlp.auxiliary", "mlp.down_proj", "mlp.gate_proj",
            "mlp.up_proj", "self_attn.k_proj", "self_attn.o_proj", "self_attn.q_proj", "self_attn.v_proj"}, "base_layer"),
    ],
)  # fmt: skip
def test_what_is_trained(settings: dict[str, Any], what: set[str], untrained: str) -> None:
    model = make("llama", **settings)
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    assert {".".join(name.split(".")[3:5]) for name in trained} == what
    assert not any(untrained in name.replace(".auxiliary.forget.", "") for name in trained if "auxiliary" not in name)
    if "target_modules" not in str(settings) or settings.get("trainable"):
        assert {int(name.split(".")[2]) for name in trained} == set(LAYERS)


def test_nothing_is_back_propagated_below_the_first_target_layer(batch: dict[str, Tensor]) -> None:
    model = make("llama", trainable="routed", layers=[1, 2])
    seen: list[bool] = []
    model.model.layers[1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].requires_grad))
    loss_of(model, batch, routing_weight=batch["routing_weight"]).backward()
    assert seen == [False]


def test_contradictions_are_refused(make_base: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"`training.lora` is given, but `model` has adapters"):
        choose_trainable(make("llama", LoraSettings()), None, LoraSettings())
    with pytest.raises(ValueError, match=r"`training.lora.target_modules` names 'q_porj'.*Known: .*`q_proj`"):
        make("llama", LoraSettings(target_modules=["q_porj"]))
    with pytest.raises(ValueError, match="no layer of the model has an auxiliary module"):
        choose_trainable(make_base(), "routed")
