"""Modules of the kind `heads`: attention heads beside a layer's own, against a formula that is written out here.

Three layers. `sea` has heads in the first two, `river` in the second, and `forest` is an MLP in the second: so the first
layer has heads alone, the second has three modules of two kinds, and the third is no target layer.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from hf_era import ExpansionConfig, GradientMultipliers, attach_module
from hf_era.evaluation import AuxiliaryActivationMeter, gradient_audit
from hf_era.models import FAMILIES, AttentionHeads, expand_base
from hf_era.models.adapters import without_adapters
from hf_era.models.fast.causal_lm import ALL_SLOW
from hf_era.models.measured import measure_activations
from hf_era.routing import PartRouting, Router, RoutingBatch, TokenRouting

FAMILIES_WITH_HEADS = ["llama", "mistral", "qwen2", "smollm3"]
SEA = {"name": "sea", "kind": "heads", "width": 16, "target_layers": [0, 1]}
FOREST = {"name": "forest", "width": 6, "target_layers": [1]}
RIVER = {"name": "river", "kind": "heads", "width": 8, "target_layers": [1], "initialization_scale": 2.0}
HEAD_SIZE, HEADS, TOLERANCE = 4, 4, 1e-11

Batch = dict[str, Tensor]
Gradients = dict[str, Tensor | None]


def config_of(model_type: str, keys: int = 2, **overrides: Any) -> Any:
    """4 query heads of 4 units; with 2 keys two of them share one."""
    values = {
        "vocab_size": 53, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3, "head_dim": HEAD_SIZE,
        "num_attention_heads": HEADS, "num_key_value_heads": keys, "max_position_embeddings": 32,
        "initializer_range": 0.3, "bos_token_id": 52, "eos_token_id": 52, "pad_token_id": 52,
    }  # fmt: skip
    return AutoConfig.for_model(model_type, **{**values, **overrides})


@pytest.fixture(scope="module")
def make_stock(randomize_constants: Callable[..., None]) -> Callable[..., Any]:
    def make(model_type: str = "llama", **overrides: Any) -> Any:
        torch.manual_seed(0)
        model = FAMILIES[model_type].model_class.stock_class(config_of(model_type, **overrides))
        randomize_constants(model)
        return model

    return make


@pytest.fixture(scope="module")
def make_model(make_stock: Callable[..., Any], randomize_constants: Callable[..., None]) -> Callable[..., Any]:
    def make(model_type: str = "llama", modules: Any = (SEA, FOREST, RIVER), **overrides: Any) -> Any:
        stock = make_stock(model_type, **overrides)
        model = expand_base(stock, ExpansionConfig(modules=[dict(module) for module in modules]))
        for name, value in model.named_parameters():
            if "auxiliary" in name and name.endswith("bias"):
                nn.init.normal_(value, std=0.3)
        return model.train()

    return make


@pytest.fixture
def batch(make_batch: Callable[..., Batch]) -> Batch:
    """Routing weights in 64ths, which are exact in fp32."""
    batch = make_batch(seed=3)
    return {**batch, "routing_weight": (batch["routing_weight"] * 64).round() / 64}


def inputs_of(batch: Batch, rows: Any = slice(None)) -> Batch:
    return {name: batch[name][rows] for name in ("input_ids", "attention_mask")}


def logits(model: Any, batch: Batch, **options: Any) -> Tensor:
    with torch.no_grad():
        return model(**inputs_of(batch), **options).logits


def total_loss(outputs: Any, batch: Batch) -> Tensor:
    """Summed over labels, in the logits' dtype, with the L1 term if it was measured."""
    loss = F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")
    return loss if outputs.activation_l1 is None else loss + 0.01 * outputs.activation_l1


def gradients_after(model: nn.Module, loss: Callable[[], Tensor]) -> Gradients:
    model.zero_grad(set_to_none=True)
    loss().backward()
    return {name: None if value.grad is None else value.grad.clone() for name, value in model.named_parameters()}


def routed_gradients(model: Any, batch: Batch, **options: Any) -> Gradients:
    options = {"routing_weight": batch["routing_weight"], **options}
    return gradients_after(model, lambda: total_loss(model(**inputs_of(batch), **options), batch))


# ---- The formula ----


@dataclass
class ByHand:
    """A Llama, or a Qwen2, with modules, in plain tensor arithmetic, one head at a time; it uses nothing of hf_era.

    Attributes:
        weights: state dict, fp64. keys: key-value heads. multipliers: part -> (batch, seq, 1), at the activation.
        factors: part -> (batch, seq, 1), at the parameters. dials: module -> (batch,).
    """

    weights: dict[str, Tensor]
    keys: int
    multipliers: dict[str, Tensor]
    factors: dict[str, Tensor]
    dials: dict[str, Tensor]

    def logits(self, input_ids: Tensor) -> Tensor:
        self.l1 = torch.zeros((), dtype=torch.float64)
        hidden = self.weights["model.embed_tokens.weight"][input_ids]
        for layer in range(3):
            block, is_target = f"model.layers.{layer}", layer < 2
            normed = self.norm(f"{block}.input_layernorm", hidden)
            hidden = hidden + self.attention(f"{block}.self_attn", normed, is_target)
            normed = self.norm(f"{block}.post_attention_layernorm", hidden)
            hidden = hidden + self.mlp(f"{block}.mlp", normed, is_target)
        return self.norm("model.norm", hidden) @ self.weights["lm_head.weight"].T

    def norm(self, name: str, hidden: Tensor) -> Tensor:
        return hidden / (hidden.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.weights[f"{name}.weight"]

    def linear(self, name: str, inputs: Tensor, part: str | None) -> Tensor:
        """A product whose weights learn `factors[part]` of each token, and whose input gets the whole gradient."""
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        if part not in self.factors:
            return F.linear(inputs, weight, bias)
        learning = self.factors[part] * F.linear(inputs.detach(), weight, bias)
        passing = F.linear(inputs, weight.detach(), None if bias is None else bias.detach())
        return passing + learning - learning.detach()

    def route(self, activation: Tensor, part: str, is_target: bool) -> Tensor:
        if not is_target:
            return activation
        self.l1 = self.l1 + activation.abs().sum()
        m = self.multipliers.get(part, torch.ones(1, 1, 1, dtype=torch.float64))
        return m * activation + (1 - m) * activation.detach()

    def modules(self, place: str) -> list[str]:
        return [
            name
            for name in ("sea", "forest", "river")
            if any(f"{place}.auxiliary.{name}." in key for key in self.weights)
        ]

    def attention(self, name: str, hidden: Tensor, is_target: bool) -> Tensor:
        own = [f"{name}.{one}_proj" for one in "qkvo"]
        total = self.heads(own, hidden, "original" if is_target else None, HEADS, is_target)
        for module in self.modules(name):
            prefix = f"{name}.auxiliary.{module}"
            parts = [f"{prefix}.{one}_projection" for one in ("query", "key", "value", "down")]
            count = self.weights[f"{parts[0]}.weight"].shape[0] // HEAD_SIZE
            total = total + self.dialled(module, self.heads(parts, hidden, module, count, is_target))
        return total

    def heads(self, names: list[str], hidden: Tensor, part: str | None, count: int, is_target: bool) -> Tensor:
        query, key, value = (self.linear(name, hidden, part) for name in names[:3])
        found, shared = [], HEADS // self.keys
        for head in range(count):
            mine = slice(head * HEAD_SIZE, (head + 1) * HEAD_SIZE)
            its = slice(head // shared * HEAD_SIZE, (head // shared + 1) * HEAD_SIZE)
            scores = rotated(query[..., mine]) @ rotated(key[..., its]).transpose(1, 2) / HEAD_SIZE**0.5
            past = torch.ones(scores.shape[-2:]).tril().bool()
            found.append(scores.masked_fill(~past, -torch.inf).softmax(-1) @ value[..., its])
        return self.linear(names[3], self.route(torch.cat(found, -1), part or "", is_target), part)

    def mlp(self, name: str, hidden: Tensor, is_target: bool) -> Tensor:
        total = self.gated([f"{name}.{one}_proj" for one in ("gate", "up", "down")], hidden, "original", is_target)
        for module in self.modules(name):
            parts = [f"{name}.auxiliary.{module}.{one}_projection" for one in ("gate", "up", "down")]
            total = total + self.dialled(module, self.gated(parts, hidden, module, is_target))
        return total

    def gated(self, names: list[str], hidden: Tensor, part: str, is_target: bool) -> Tensor:
        own = part if is_target else None
        gate, up = (self.linear(name, hidden, own) for name in names[:2])
        return self.linear(names[2], self.route(F.silu(gate) * up, part, is_target), own)

    def dialled(self, module: str, output: Tensor) -> Tensor:
        return output * self.dials[module][:, None, None] if module in self.dials else output


def rotated(states: Tensor) -> Tensor:
    """(batch, seq, head size): pairs of units turned by an angle that grows with the position; angles in fp32, as stock."""
    length, half = states.shape[1], HEAD_SIZE // 2
    frequencies = 1 / 10000 ** (torch.arange(half).float() / half)
    angles = torch.arange(length).float()[:, None] * frequencies
    cosine, sine = angles.cos().double(), angles.sin().double()
    first, second = states[..., :half], states[..., half:]
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)


def in_double(model: Any) -> Any:
    """The stock norms compute in fp32 whatever the model is in; here they do not."""
    model = model.double()
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer).__name__.endswith("RMSNorm"):
                norm = nn.RMSNorm(12, eps=layer.variance_epsilon, dtype=torch.float64)
                norm.weight = layer.weight
                setattr(parent, name, norm)
    return model


def formula_of(model: Any, **parts: dict[str, Tensor]) -> ByHand:
    weights = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    given = {name: parts.get(name, {}) for name in ("multipliers", "factors", "dials")}
    return ByHand(weights, model.config.num_key_value_heads, **given)


def assert_equals_formula(model: Any, formula: ByHand, batch: Batch, **options: Any) -> None:
    """Logits, L1 norm and every gradient."""
    outputs = model(input_ids=batch["input_ids"], output_activation_l1=True, **options)
    expected = formula.logits(batch["input_ids"])
    torch.testing.assert_close(outputs.logits, expected, rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(outputs.activation_l1, formula.l1, rtol=TOLERANCE, atol=0)
    found = gradients_after(model, lambda: total_loss(outputs, batch))
    own_loss = F.cross_entropy(expected[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")
    (own_loss + 0.01 * formula.l1).backward()
    for name, value in formula.weights.items():
        assert value.grad is not None
        gradient, largest = found[name], value.grad.abs().max()
        assert largest > 0, f"{name}: a gradient of zero compares nothing"
        assert gradient is not None
        assert (gradient - value.grad).abs().max() <= TOLERANCE * largest, name


@pytest.mark.parametrize(("model_type", "keys"), [("llama", 2), ("llama", 4), ("qwen2", 2)])
def test_logits_and_gradients_equal_the_formula(
    model_type: str, keys: int, make_model: Callable[..., Any], batch: Batch
) -> None:
    """Two queries to a key, and one; Qwen2 has biases."""
    model = in_double(make_model(model_type, keys=keys))
    numbers = {"original_forget": -0.75, "original_retain": 0.5, "auxiliary_forget": 1.25, "auxiliary_retain": 0.25}
    model.gradient_multipliers = GradientMultipliers(**numbers)
    weight = batch["routing_weight"].double()[..., None]
    original, auxiliary = (
        weight * numbers[f"{part}_retain"] + (1 - weight) * numbers[f"{part}_forget"]
        for part in ("original", "auxiliary")
    )
    multipliers = {"original": original, "sea": auxiliary, "river": auxiliary, "forest": auxiliary}
    assert_equals_formula(
        model, formula_of(model, multipliers=multipliers), batch, routing_weight=batch["routing_weight"]
    )


@dataclass(frozen=True)
class AtTheParameters(Router):
    """Retain tokens teach the weights of the original dims, forget tokens three times those of `sea`; the rest as always."""

    name: ClassVar[str] = "at_the_parameters"

    def route(self, batch: RoutingBatch) -> TokenRouting:
        weight = batch.routing_weight
        sea = PartRouting(parameter_multiplier=3 * (1 - weight))
        return TokenRouting(PartRouting(parameter_multiplier=weight), {"sea": sea})


def test_gradients_scaled_at_the_parameters_equal_the_formula(make_model: Callable[..., Any], batch: Batch) -> None:
    """In all four projections, of the layer's own heads and of a module's; with dials per example."""
    model = in_double(make_model())
    model.router = AtTheParameters()
    weight, activity = (
        batch["routing_weight"].double()[..., None],
        torch.tensor([[1.0, 1, 1], [0.25, 0, 1], [0.5, 1, 0.75]]),
    )
    formula = formula_of(
        model,
        factors={"original": weight, "sea": 3 * (1 - weight)},
        dials=dict(zip(model.module_names, activity.double().unbind(1), strict=True)),
    )
    outputs = model(input_ids=batch["input_ids"], routing_weight=batch["routing_weight"], module_activity=activity)
    found = gradients_after(model, lambda: total_loss(outputs, batch))
    total_loss(SimpleNamespace(logits=formula.logits(batch["input_ids"]), activation_l1=None), batch).backward()
    for name, value in formula.weights.items():
        assert value.grad is not None
        assert (found[name] - value.grad).abs().max() <= TOLERANCE * value.grad.abs().max(), name  # type: ignore[operator]


# ---- Which parameters learn ----

OWN = ("q_proj", "k_proj", "v_proj")
TABLES: dict[str, tuple[tuple[float, float], dict[str, str]]] = {
    "forget stops the original dims": (
        (0, 1),
        {
            "own": "zero",
            "own output": "other",
            "heads": "other",
            "mlp": "zero",
            "before": "other",
            "norm": "other",
            "mlp norm": "zero",
        },
    ),
    "forget stops the module": (
        (1, 0),
        {
            "own": "same",
            "own output": "same",
            "heads": "zero",
            "mlp": "same",
            "before": "other",
            "norm": "other",
            "mlp norm": "same",
        },
    ),
    "forget stops both": (
        (0, 0),
        {
            "own": "zero",
            "own output": "other",
            "heads": "zero",
            "mlp": "zero",
            "before": "other",
            "norm": "zero",
            "mlp norm": "zero",
        },
    ),
    "nothing is routed": (
        (1, 1),
        {
            "own": "same",
            "own output": "same",
            "heads": "same",
            "mlp": "same",
            "before": "same",
            "norm": "same",
            "mlp norm": "same",
        },
    ),
}


def group_of(name: str) -> str:
    """In the second layer, which has heads alone; what is behind its MLP's scaling point is never touched."""
    if ".layers.1." not in name:
        return "after" if ".layers.2." in name or name in ("model.norm.weight", "lm_head.weight") else "before"
    groups = {
        "auxiliary.sea.down_projection": "own output",  # as the layer's own: behind the point, in front of the MLP
        "auxiliary.sea": "heads", "o_proj": "own output", "self_attn": "own", "mlp.down_proj": "after", "mlp": "mlp",
        "post_attention_layernorm": "mlp norm", "input_layernorm": "norm",
    }  # fmt: skip
    return next(group for part, group in groups.items() if part in name)


@pytest.mark.parametrize("mode", TABLES)
def test_which_parameters_learn_from_forget_tokens(mode: str, make_model: Callable[..., Any], batch: Batch) -> None:
    """`zero`, `same` (bit for bit as without routing) or `other`. The MLP of a layer with heads alone is routed."""
    (original, auxiliary), table = TABLES[mode]
    model = make_model(modules=[{**SEA, "target_layers": [1]}])
    model.gradient_multipliers = GradientMultipliers(original_forget=original, auxiliary_forget=auxiliary)
    vanilla = routed_gradients(model, batch, routing_weight=None)
    found = routed_gradients(model, batch, routing_weight=torch.zeros(3, 12))
    measured: dict[str, set[str]] = {}
    for name, gradient in found.items():
        reference = vanilla[name]
        assert gradient is not None
        assert reference is not None
        assert torch.count_nonzero(reference) > 0
        same = "same" if torch.equal(gradient, reference) else "other"
        kind = same if torch.count_nonzero(gradient) else "zero"
        measured.setdefault(group_of(name), set()).add(kind)
    assert measured == {group: {kind} for group, kind in {**table, "after": "same"}.items()}


def test_data_of_one_module_teaches_the_heads_of_another_nothing(make_model: Callable[..., Any], batch: Batch) -> None:
    model = make_model()
    index = torch.tensor([model.module_names.index("river")] * 2 + [model.module_names.index("forest")])
    found = routed_gradients(model, batch, module_index=index)
    first = {name: value[:2] for name, value in batch.items()}
    alone = routed_gradients(model, first, module_index=index[:2])
    for name, gradient in found.items():
        if ".sea." in name:
            assert gradient is not None
            assert torch.count_nonzero(gradient) == 0, name
        elif ".river." in name:  # from the first two rows alone
            torch.testing.assert_close(gradient, alone[name], rtol=1e-4, atol=1e-5)
            assert torch.count_nonzero(gradient) > 0  # type: ignore[arg-type]


# ---- On, off, dialled ----


@pytest.mark.parametrize(
    ("model_type", "attention"), [*((name, "sdpa") for name in FAMILIES_WITH_HEADS), ("llama", "eager")]
)
def test_ablated_it_is_the_stock_model_bit_for_bit(
    model_type: str,
    attention: str,
    make_model: Callable[..., Any],
    make_stock: Callable[..., Any],
    make_batch: Callable[..., Batch],
) -> None:
    """Logits and gradients; and contracted, in its class."""
    batch = make_batch(padded=False)  # the fast path gives other values than stock at padded positions
    model, stock = make_model(model_type), make_stock(model_type).train()
    for one in (model, stock):
        one.set_attn_implementation(attention)
    model.set_fast_paths(ALL_SLOW)
    on = logits(model, batch)
    with model.ablated():
        assert torch.equal(logits(model, batch), logits(stock, batch))
        found = gradients_after(model, lambda: total_loss(model(**inputs_of(batch)), batch))
    assert not torch.allclose(on, logits(stock, batch), atol=1e-2)
    assert torch.equal(logits(model, batch), on)
    expected = gradients_after(stock, lambda: stock_loss(stock, batch))
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())  # type: ignore[arg-type]
    contracted = model.contract()
    assert type(contracted) is type(stock)
    assert all(map(torch.equal, contracted.state_dict().values(), stock.state_dict().values()))
    assert contracted.state_dict().keys() == stock.state_dict().keys()


def stock_loss(stock: Any, batch: Batch) -> Tensor:
    outputs = stock(**inputs_of(batch))
    return total_loss(SimpleNamespace(logits=outputs.logits, activation_l1=None), batch)


def test_the_activity_of_each_example(make_model: Callable[..., Any], batch: Batch) -> None:
    """A mixed batch is row by row the batch with those dials; a dial of zero in all rows is as ablated."""
    model = in_double(make_model())
    activity = torch.tensor([[0.0, 1, 0.5], [1, 0, 0], [0.25, 1, 1]])
    mixed = logits(model, batch, module_activity=activity)
    for row in range(3):
        for name, dial in zip(model.module_names, activity[row].tolist(), strict=True):
            for named in model.auxiliary_modules().values():
                if name in named:
                    named[name].dial = dial
        torch.testing.assert_close(logits(model, batch)[row], mixed[row], rtol=TOLERANCE, atol=TOLERANCE)
    for named in model.auxiliary_modules().values():
        for module in named.values():
            module.dial = 1.0
    with model.ablated():
        off = logits(model, batch)
    torch.testing.assert_close(
        logits(model, batch, module_activity=torch.zeros(3, 3)), off, rtol=TOLERANCE, atol=TOLERANCE
    )


# ---- As any causal LM ----


@pytest.mark.parametrize(("model_type", "cache"), [("llama", "dynamic"), ("llama", "static"), ("smollm3", "dynamic")])
def test_generation_with_a_cache_and_padding_on_the_left(
    model_type: str, cache: str, make_model: Callable[..., Any]
) -> None:
    """As each row alone without a cache."""
    model = make_model(model_type).eval()
    rows = [torch.tensor([[7, 3, 11, 20, 5]]), torch.tensor([[9, 4, 30]])]
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 52}
    ids = torch.cat([rows[0], F.pad(rows[1], (2, 0), value=52)])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    kind = {} if cache == "dynamic" else {"cache_implementation": "static", "disable_compile": True}
    found = model.generate(ids, attention_mask=mask, **options, **kind)
    for row, prompt in enumerate(rows):
        alone = model.generate(prompt, attention_mask=torch.ones_like(prompt), use_cache=False, **options)
        assert found[row, 5:].tolist() == alone[0, prompt.shape[1] :].tolist()
    with model.ablated():
        assert not torch.equal(model.generate(ids, attention_mask=mask, **options, **kind), found)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointed_gradients_are_routed(use_reentrant: bool, make_model: Callable[..., Any], batch: Batch) -> None:
    model = make_model()
    activity = torch.tensor([[1.0, 1, 1], [0.25, 0, 1], [1, 1, 0.5]])
    options = {"module_activity": activity, "output_activation_l1": True}
    expected = routed_gradients(model, batch, **options)
    # The name since transformers 5.23, and before.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": use_reentrant})
    calls: list[int] = []
    handle = model.model.layers[0].self_attn.register_forward_pre_hook(lambda *_: calls.append(1))
    found = routed_gradients(model, batch, **options)
    handle.remove()
    assert len(calls) == 2
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_it_routes(make_model: Callable[..., Any], batch: Batch) -> None:
    model = make_model(num_hidden_layers=2)
    expected = routed_gradients(model, batch)
    torch.compiler.reset()
    try:
        compiled = torch.compile(model, backend="aot_eager")
        options = {**inputs_of(batch), "routing_weight": batch["routing_weight"]}
        found = gradients_after(model, lambda: total_loss(compiled(**options), batch))
    finally:
        torch.compiler.reset()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


def test_saved_loaded_and_copied(make_model: Callable[..., Any], batch: Batch, tmp_path: Path) -> None:
    model = make_model("qwen2")
    names = {name for name, _ in model.named_parameters() if model.is_auxiliary_parameter(name)}
    projections = [f"{part}_projection" for part in ("query", "key", "value")]
    heads = [f"{part}.{kind}" for part in projections for kind in ("weight", "bias")] + ["down_projection.weight"]
    assert {name for name in names if ".self_attn." in name} == {
        f"model.layers.{layer}.self_attn.auxiliary.{module}.{part}"
        for module, layers in {"sea": [0, 1], "river": [1]}.items()
        for layer in layers
        for part in heads
    }
    assert {layer: list(named) for layer, named in model.auxiliary_modules().items()} == {
        0: ["sea"],
        1: ["sea", "forest", "river"],
    }
    expected = logits(model, batch)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).train()
    assert isinstance(loaded.auxiliary_modules()[0]["sea"], AttentionHeads)
    twin = copy.deepcopy(model)
    torch.save(model, tmp_path / "model.pt")
    unpickled = torch.load(tmp_path / "model.pt", weights_only=False)
    for other in (loaded, twin, unpickled):
        assert torch.equal(logits(other, batch), expected)
        other.set_active(None, False)
        assert not torch.equal(logits(other, batch), expected)
    assert torch.equal(logits(model, batch), expected)


def test_a_module_of_heads_is_a_file(
    make_model: Callable[..., Any], make_stock: Callable[..., Any], batch: Batch, tmp_path: Path
) -> None:
    """Saved, attached to the contracted model in the same order, and taken out again, which leaves the stock layers."""
    model = make_model("qwen2")
    expected, ablated = logits(model, batch), logits(model.contract(), batch)
    for name in model.module_names:
        model.save_module(name, tmp_path / name)
    model.contract().save_pretrained(tmp_path / "base")
    again = attach_module(tmp_path / "base", *(tmp_path / name for name in model.module_names)).train()
    assert torch.equal(logits(again, batch), expected)
    again.detach_module("sea")
    with model.ablated("sea"):
        assert torch.equal(logits(again, batch), logits(model, batch))
    again.detach_module("forest")
    assert list(again.auxiliary_modules()) == [1]
    again.detach_module("river")
    stock = make_stock("qwen2")
    assert [type(part) for part in again.model.modules()] == [type(part) for part in stock.model.modules()]
    again.set_fast_paths(ALL_SLOW)
    assert torch.equal(logits(again, batch), ablated)
    again.attach_module(tmp_path / "river")
    with model.ablated("sea", "forest"):
        torch.testing.assert_close(logits(again, batch)[0], logits(model, batch)[0])
    with pytest.raises(ValueError, match=r"the module `river` is of the kind `heads`, and only `mlp`"):
        again.contract(keep=["river"])


def test_weights_start_at_their_own_scale(make_stock: Callable[..., Any]) -> None:
    model = expand_base(make_stock("qwen2"), ExpansionConfig(modules=[{**RIVER, "width": 800}]))
    module = model.auxiliary_modules()[1]["river"]
    assert isinstance(module, AttentionHeads)
    for projection in (module.query_projection, module.key_projection, module.value_projection, module.down_projection):
        assert projection.weight.std().item() == pytest.approx(0.6, rel=0.05)
        assert projection.bias is None or not projection.bias.any()
    assert module.down_projection.bias is None
    assert module.key_projection.weight.shape == (400, 12)


def test_attentions_hold_all_heads_that_are_on(make_model: Callable[..., Any], batch: Batch) -> None:
    """What is off costs nothing."""
    model = make_model()
    model.set_attn_implementation("eager")

    def heads() -> list[int]:
        return [found.shape[1] for found in model(**inputs_of(batch), output_attentions=True).attentions]

    assert heads() == [HEADS + 4, HEADS + 4 + 2, HEADS]
    with model.ablated("sea"):
        assert heads() == [HEADS, HEADS + 2, HEADS]
    with model.dialled("river", 0.0):
        assert heads() == [HEADS + 4, HEADS + 4, HEADS]
    with model.ablated():
        assert heads() == [HEADS] * 3


# ---- Adapters ----


@pytest.fixture
def with_lora() -> Callable[..., Any]:
    def add(model: Any, targets: Any) -> Any:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=2, target_modules=targets)).get_base_model()
        for name, value in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(value, std=0.3)
        return model

    return add


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers by an old name
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj"], ["v_proj", "o_proj"]], ids=str)
def test_adapters_around_projections_with_heads_beside_them(
    targets: Any, make_model: Callable[..., Any], with_lora: Callable[..., Any], batch: Batch
) -> None:
    """Merged, the model is the same; and what stops the original dims stops their adapters too."""
    model = with_lora(make_model(modules=[{**SEA, "target_layers": [2]}, {**RIVER, "target_layers": [2]}]), targets)
    merged = without_adapters(model)
    torch.testing.assert_close(logits(model, batch), logits(merged, batch), rtol=1e-4, atol=1e-4)
    for value in model.parameters():
        value.requires_grad_(True)
    model.gradient_multipliers = GradientMultipliers(original_forget=0)
    found = routed_gradients(model, batch, routing_weight=torch.zeros(3, 12), output_activation_l1=False)
    plain = routed_gradients(model, batch, routing_weight=None)
    adapters = [name for name in found if "layers.2.self_attn" in name and "lora_" in name and "auxiliary" not in name]
    assert len(adapters) == 2 * (4 if targets == "all-linear" else len(targets))
    for name in adapters:
        gradient = found[name]
        assert gradient is not None
        assert plain[name].any()  # type: ignore[union-attr]
        assert gradient.any() == ("o_proj" in name), name  # behind the scaling point
    assert all(gradient.any() for name, gradient in found.items() if "layers.2" in name and ".sea." in name)  # type: ignore


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_router_at_the_parameters_does_not_reach_an_adapter(
    make_model: Callable[..., Any], with_lora: Callable[..., Any], batch: Batch
) -> None:
    model = with_lora(make_model(), ["q_proj"])
    model.router = AtTheParameters()
    with pytest.raises(
        ValueError, match=r"A router that scales gradients at the parameters does not reach those of peft"
    ):
        model(**inputs_of(batch), routing_weight=batch["routing_weight"])


# ---- Measured ----


def test_a_control_has_the_same_l1_term(
    make_model: Callable[..., Any], make_stock: Callable[..., Any], batch: Batch
) -> None:
    """Over the MLPs of target layers, and the attention of those with heads."""
    model = make_model(modules=[SEA, {**FOREST, "target_layers": [1, 2]}])
    resolve = model.config.expansion_config.resolve_layers
    assert (resolve(3), resolve(3, "attention"), resolve(3, "mlp")) == ([0, 1, 2], [0, 1], [1, 2])
    stock = FAMILIES["llama"].fast_class.from_stock(make_stock().train())
    control = measure_activations(stock, resolve(3), resolve(3, "attention"))
    with model.ablated():
        expected = routed_gradients(model, batch, routing_weight=None, output_activation_l1=True)
    loss = total_loss(control(**inputs_of(batch), output_activation_l1=True), batch)
    found = gradients_after(control, lambda: loss)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6)


def test_selectivity_and_leak_audit(make_model: Callable[..., Any], batch: Batch) -> None:
    model = make_model(modules=[{**SEA, "target_layers": [2]}])
    module, seen = model.auxiliary_modules()[2]["sea"], []
    handle = module.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with AuxiliaryActivationMeter(model) as meter:
        meter.set_mask(batch["attention_mask"])
        logits(model, batch)
    handle.remove()
    by_hand = (seen[0].abs() * batch["attention_mask"][..., None]).sum().item()
    assert meter.sums == {2: pytest.approx(by_hand, rel=1e-5)}
    assert meter.counts == {2: batch["attention_mask"].sum().item() * SEA["width"]}
    model.gradient_multipliers = GradientMultipliers(original_forget=0.0, auxiliary_forget=0.5)
    audit = gradient_audit(model, {**batch, "routing_weight": torch.zeros(3, 12)})
    assert audit["routed"]["layers"]["2"]["original_up_share"] == 0
    assert audit["unrouted"]["layers"]["2"]["original_up_share"] > 0
    gradients = gradients_after(model, lambda: model.eval()(**{**batch, "routing_weight": None}).loss)
    own = [f"model.layers.2.{name}.weight" for name in ("self_attn.o_proj", "mlp.down_proj")]
    own += [f"model.layers.2.self_attn.{name}.weight" for name in OWN]
    own += [f"model.layers.2.mlp.{name}.weight" for name in ("gate_proj", "up_proj")]
    norm = sum(gradients[name].square().sum().item() for name in own) ** 0.5  # type: ignore[union-attr]
    assert audit["unrouted"]["layers"]["2"]["original_norm"] == pytest.approx(norm, rel=1e-4)
    assert audit["alignment"]["2"]["original"] == 0


# ---- Errors ----


@pytest.mark.parametrize("model_type", ["qwen3", "olmo2", "gpt2", "gpt_neox", "gemma2"])
def test_a_family_without_a_place_for_heads_says_which_have_one(model_type: str) -> None:
    family = FAMILIES[model_type]
    base_config = family.model_class.config_class.base_config_class()
    with pytest.raises(ValueError, match="kind `heads`") as caught:
        family.model_class.config_class.from_base_config(base_config, ExpansionConfig(modules=[SEA]))
    assert str(caught.value) == (
        f"`expansion.modules`: `sea` is of the kind `heads`, and models of type `{model_type}` have no place for heads "
        "beside their own. Those that have one: llama, mistral, qwen2, smollm3. Take `kind: mlp`, which all have."
    )


@pytest.mark.parametrize(("ratio", "width"), [(0.5, 8), (0.7, 8), (0.8, 16), (2, 32), (0.01, 8)])
def test_a_width_ratio_is_a_share_of_the_attentions_width(ratio: float, width: int) -> None:
    """Rounded to a whole number of keys with their two queries, and one at least."""
    expansion = ExpansionConfig(modules=[{"name": "sea", "kind": "heads", "width_ratio": ratio}])
    assert expansion.module_configs[0].width_text == f"{ratio:g} times the attention's width"
    config_class = FAMILIES["llama"].model_class.config_class
    config = config_class.from_base_config(config_of("llama"), expansion)
    assert [module.width for module in config.expansion_config.module_configs] == [width]


@pytest.mark.parametrize(("width", "nearest"), [(20, "16 and 24"), (3, "8")])
def test_a_width_that_is_no_number_of_groups_is_refused(
    width: int, nearest: str, make_stock: Callable[..., Any]
) -> None:
    with pytest.raises(ValueError, match="should be a multiple") as caught:
        expand_base(make_stock(), ExpansionConfig(modules=[{**SEA, "width": width}]))
    assert str(caught.value) == (
        f"`expansion.modules`: the width of `sea` should be a multiple of 8, got {width}. The model has 2 query heads of 4 "
        f"units to one key, and so have heads beside its own. Nearest: {nearest}."
    )
