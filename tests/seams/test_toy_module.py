"""A kind of auxiliary module that is registered in this file alone, beside an ordinary one: two named modules in a model.

The toy is a linear branch of low rank, without an activation function. `forest` is a toy in two layers, `sea` an MLP in all
three. Each can be on, off or dialled, for the whole model and for each example of a batch.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPTNeoForCausalLM

from hf_era import ExpandedGPTNeoConfig, ExpandedGPTNeoForCausalLM, ExpansionConfig, GradientMultipliers
from hf_era.evaluation import AuxiliaryActivationMeter, gradient_audit
from hf_era.models import AuxiliaryModule, ModuleConfig, register_module_kind
from hf_era.models.fast.causal_lm import ALL_SLOW
from hf_era.models.layers import MODULE_KINDS, apply_linear
from hf_era.models.running_call import LayerCall

# ---- The toy ----


class ToyModule(AuxiliaryModule):
    """`down(up(x))`: what it adds is linear in what the MLP reads."""

    kind = "toy"

    def __init__(self, hidden_size: int, width: int, *arguments: Any, **options: Any) -> None:
        super().__init__(hidden_size, width, *arguments, **options)
        self.up_projection = nn.Linear(hidden_size, width, bias=False)
        self.down_projection: nn.Linear = nn.Linear(width, hidden_size, bias=False)

    def forward(self, hidden_states: Tensor, call: LayerCall | None = None) -> Tensor:
        part = None if call is None else call.part(self.name)
        factor = None if part is None else part.parameter_multiplier
        activation = apply_linear(self.up_projection, hidden_states, factor)
        if call is not None:
            activation = call.route(activation, self.name)
        return apply_linear(self.down_projection, activation, factor)

    def initialize(self) -> None:
        for projection in (self.up_projection, self.down_projection):
            nn.init.normal_(projection.weight, std=self.initialization_std)


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """The toy is known while this file runs."""
    register_module_kind(ToyModule)
    yield
    del MODULE_KINDS[ToyModule.kind]


# ---- Models, and what is done with them ----

FOREST = {"name": "forest", "kind": "toy", "width": 3, "target_layers": [0, 2], "initialization_scale": 2.0}
SEA = {"name": "sea", "width": 4}
LAYERS = {"forest": [0, 2], "sea": [0, 1, 2]}

Batch = dict[str, Tensor]
Gradients = dict[str, Tensor | None]


@pytest.fixture(params=["fast", "slow"])
def make_model(
    request: pytest.FixtureRequest, make_config: Callable[..., Any], randomize_constants: Callable[..., None]
) -> Callable[..., ExpandedGPTNeoForCausalLM]:
    """A GPT-Neo with both modules, random weights, in training mode; on its fast path and off it."""

    def make(**overrides: Any) -> ExpandedGPTNeoForCausalLM:
        torch.manual_seed(0)
        expansion = ExpansionConfig(modules=[dict(FOREST), dict(SEA)])
        model = ExpandedGPTNeoForCausalLM(ExpandedGPTNeoConfig.from_base_config(make_config(**overrides), expansion))
        randomize_constants(model)
        if request.param == "slow":
            model.set_fast_paths(ALL_SLOW)
            model.set_attn_implementation("eager")
        return model.train()

    return make


@pytest.fixture
def batch(make_batch: Callable[..., Batch]) -> Batch:
    """Routing weights in 64ths, which are exact in fp32."""
    batch = make_batch(seed=3)
    return {**batch, "routing_weight": (batch["routing_weight"] * 64).round() / 64}


def inputs_of(batch: Batch, row: int | None = None) -> Batch:
    rows = slice(None) if row is None else slice(row, row + 1)
    return {name: batch[name][rows] for name in ("input_ids", "attention_mask")}


def activity_of(dials: dict[str, Tensor]) -> Tensor:
    """(batch, modules), in the model's order."""
    return torch.stack([dials[name] for name in ("forest", "sea")], dim=1)


def sea_at(*dials: float) -> Tensor:
    """(batch, modules): `sea` at these dials, one per example, and `forest` on."""
    return activity_of({"forest": torch.ones(len(dials)), "sea": torch.tensor(dials)})


def logits(model: Any, batch: Batch, **options: Any) -> Tensor:
    """At all positions; padding is compared too, as the same kernels see it in both."""
    with torch.no_grad():
        return model(**inputs_of(batch), **options).logits


def without(model: Any, name: str) -> Any:
    """The same model whose module of that name adds nothing: its last layer is zero."""
    with torch.no_grad():
        for named in model.auxiliary_modules().values():
            if name in named:
                named[name].down_projection.weight.zero_()
    return model


def gradients_after(model: nn.Module, loss: Callable[[], Tensor]) -> Gradients:
    model.zero_grad(set_to_none=True)
    loss().backward()
    return {name: None if value.grad is None else value.grad.clone() for name, value in model.named_parameters()}


def summed_loss(model: Any, batch: Batch, **options: Any) -> Tensor:
    """Summed over labels, so that a batch is the sum of its rows; in the logits' dtype."""
    outputs = model(**inputs_of(batch), **options)
    loss = F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")
    return loss if outputs.activation_l1 is None else loss + 0.01 * outputs.activation_l1


# ---- Names, forms, start ----


def test_parameters_carry_the_modules_names(make_model: Callable[..., Any]) -> None:
    model = make_model()
    parts = {
        "forest": ("up_projection.weight", "down_projection.weight"),
        "sea": ("up_projection.weight", "up_projection.bias", "down_projection.weight"),
    }
    names = {name for name, _ in model.named_parameters() if model.is_auxiliary_parameter(name)}
    assert names == {
        f"transformer.h.{layer}.mlp.auxiliary.{module}.{part}"
        for module, layers in LAYERS.items()
        for layer in layers
        for part in parts[module]
    }
    assert model.module_names == ["forest", "sea"]
    assert {layer: list(named) for layer, named in model.auxiliary_modules().items()} == {
        0: ["forest", "sea"],
        1: ["sea"],
        2: ["forest", "sea"],
    }


def test_each_module_starts_at_its_own_scale(make_base: Callable[..., Any]) -> None:
    expansion = ExpansionConfig(modules=[{**FOREST, "width": 64}, {**SEA, "width": 64}])
    model = ExpandedGPTNeoForCausalLM.from_base(make_base(), expansion)
    for named in model.auxiliary_modules().values():
        for name, module in named.items():
            expected = 0.2 * (2 if name == "forest" else 1)
            assert module.down_projection.weight.std().item() == pytest.approx(expected, rel=0.15)


def test_saved_loaded_and_contracted(
    make_model: Callable[..., Any], make_batch: Callable[..., Batch], tmp_path: Path
) -> None:
    model, batch = make_model().eval(), make_batch(padded=False)
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())["expansion"]
    # A ratio that is not given is left out: a checkpoint reads as it always did.
    expected = [
        {key: value for key, value in vars(ModuleConfig(**one)).items() if key != "width_ratio"}
        for one in (FOREST, SEA)
    ]
    assert written == {"modules": expected}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    loaded.set_fast_paths(model.fast_paths)
    loaded.set_attn_implementation(model.config._attn_implementation)
    assert loaded.config.expansion_config == model.config.expansion_config
    assert [type(module) for module in loaded.auxiliary_modules()[0].values()] == [
        type(module) for module in model.auxiliary_modules()[0].values()
    ]
    assert torch.equal(logits(loaded, batch), logits(model, batch))
    contracted = loaded.contract()
    assert type(contracted) is GPTNeoForCausalLM
    assert not [name for name in contracted.state_dict() if "auxiliary" in name]
    with model.ablated():
        torch.testing.assert_close(logits(contracted, batch), logits(model, batch), rtol=1e-5, atol=1e-5)


def test_one_module_still_writes_the_four_keys_it_always_did() -> None:
    assert list(ExpansionConfig(module_name="sea", width=4).to_dict()) == [
        "module_name",
        "width",
        "target_layers",
        "initialization_scale",
    ]
    several = ExpansionConfig(modules=[ModuleConfig(**FOREST), dict(SEA)])
    assert several == ExpansionConfig.from_dict(json.loads(json.dumps(several.to_dict())))
    assert several.resolve_layers(3) == [0, 1, 2]


# ---- On, off, dialled: the whole model ----


@pytest.mark.parametrize("name", ["forest", "sea"])
def test_a_module_is_switched_off_alone(name: str, make_model: Callable[..., Any], batch: Batch) -> None:
    model, other = make_model(), {"forest": "sea", "sea": "forest"}[name]
    on, expected = logits(model, batch), logits(without(make_model(), name), batch)
    model.set_active(name, False)
    off = logits(model, batch)
    torch.testing.assert_close(off, expected, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(off, on, atol=1e-3)
    with model.ablated():
        none = logits(model, batch)
    assert torch.equal(logits(model, batch), off)  # as it was before, the other one on
    with model.ablated(other):
        assert torch.equal(logits(model, batch), none)
    with model.ablated(other, name):
        assert torch.equal(logits(model, batch), none)
    model.set_active(name, True)
    assert torch.equal(logits(model, batch), on)


def test_dials_of_a_module(make_model: Callable[..., Any], batch: Batch) -> None:
    """0 is as ablated and 1 as on, bit for bit; in between it is the output that is scaled."""
    model, halved = make_model(), make_model()
    on = logits(model, batch)
    with model.ablated("sea"):
        off = logits(model, batch)
    for named in halved.auxiliary_modules().values():
        named["sea"].down_projection.weight.data.mul_(0.5)
    for dial, expected in ((0, off), (1.0, on), (0.5, logits(halved, batch))):
        with model.dialled("sea", dial):
            assert torch.equal(logits(model, batch), expected)
    assert torch.equal(logits(model, batch), on)
    model.set_dial("sea", 0.5)
    with model.dialled(None, 0.0), model.dialled("forest", 1.0):
        torch.testing.assert_close(logits(model, batch), off, rtol=0, atol=0)
    assert {module.dial for named in model.auxiliary_modules().values() for module in named.values()} == {1.0, 0.5}
    assert torch.equal(logits(model, batch), logits(halved, batch))


# ---- On, off, dialled: each example ----


def test_one_batch_holds_every_subset_of_the_modules(make_model: Callable[..., Any], batch: Batch) -> None:
    """2^N rows of the same tokens, each with other modules on: each row is the model with these modules on."""
    model = make_model().eval()
    subsets = [[], ["forest"], ["sea"], ["forest", "sea"]]
    activity = torch.tensor([[float(name in subset) for name in model.module_names] for subset in subsets])
    rows = {name: value[:1].expand(4, -1) for name, value in batch.items()}
    together = logits(model, rows, module_activity=activity)
    for row, subset in enumerate(subsets):
        model.set_active(None, False)
        for name in subset:
            model.set_active(name, True)
        assert torch.equal(together[row], logits(model, rows)[row])
    assert len({row.sum().item() for row in together}) == 4


@pytest.mark.parametrize("training", [True, False])
def test_a_mixed_batch_is_row_by_row_the_batch_with_that_dial(
    training: bool, make_model: Callable[..., Any], batch: Batch
) -> None:
    model = make_model().train(training)
    dials = {"forest": torch.tensor([1, 0, 0.25]), "sea": torch.tensor([0.0, 1.0, 0.5])}
    mixed = model(**inputs_of(batch), module_activity=activity_of(dials), output_activation_l1=True)
    for row in range(3):
        model.set_dial("sea", dials["sea"][row].item())
        model.set_dial("forest", dials["forest"][row].item())
        assert torch.equal(mixed.logits[row].detach(), logits(model, batch)[row])
    model.set_dial(None, 1.0)
    norms = []
    for row in range(3):
        for name, dial in dials.items():
            model.set_dial(name, dial[row].item())
        norms.append(model(**inputs_of(batch, row), output_activation_l1=True).activation_l1)
    torch.testing.assert_close(mixed.activation_l1, torch.stack(norms).sum(), rtol=1e-5, atol=0)


def test_dials_of_the_model_and_of_an_example_are_multiplied(make_model: Callable[..., Any], batch: Batch) -> None:
    model = make_model()
    with model.dialled("sea", 0.5):
        both = logits(model, batch, module_activity=sea_at(0.5, 0.5, 0.5))
    with model.dialled("sea", 0.25):
        assert torch.equal(both, logits(model, batch))
    with model.ablated("sea"):
        off = logits(model, batch)
        assert torch.equal(logits(model, batch, module_activity=sea_at(1.0, 1.0, 1.0)), off)


@pytest.mark.parametrize("routed", [True, False])
def test_a_dial_of_zero_for_every_example_is_ablation(
    routed: bool, make_model: Callable[..., Any], batch: Batch
) -> None:
    """Values, L1 norm, and the gradient of all other parameters, bit for bit; its own parameters get none, or zero."""
    model = make_model()
    options: dict[str, Any] = {"output_activation_l1": True}
    if routed:
        options["routing_weight"] = batch["routing_weight"]
    zero = sea_at(0.0, 0.0, 0.0)
    dialled = model(**inputs_of(batch), **options, module_activity=zero)
    found = gradients_after(model, lambda: summed_loss(model, batch, **options, module_activity=zero))
    with model.ablated("sea"):
        ablated = model(**inputs_of(batch), **options)
        expected = gradients_after(model, lambda: summed_loss(model, batch, **options))
    assert torch.equal(dialled.logits, ablated.logits)
    assert torch.equal(dialled.activation_l1, ablated.activation_l1)
    for name, gradient in expected.items():
        if ".sea." in name:
            assert gradient is None
            assert found[name] is None or torch.count_nonzero(found[name]) == 0
        else:
            assert torch.equal(found[name], gradient), name  # type: ignore[arg-type]


@pytest.mark.parametrize("with_l1", [False, True])
def test_an_example_teaches_nothing_to_a_module_that_is_off_for_it(
    with_l1: bool, make_model: Callable[..., Any], batch: Batch
) -> None:
    """`sea` is on in the first row alone: it learns what that row by itself would teach it, in float64 (the slow path, and
    the stock class, compute attention in fp32, which rounds otherwise in a batch of another size)."""
    model = make_model().double()
    tolerance = 1e-10 if model.fast_paths.fused_activation else 1e-5
    options = {"output_activation_l1": with_l1, "routing_weight": batch["routing_weight"].double()}
    activity = sea_at(1.0, 0.0, 0.0)
    found = gradients_after(model, lambda: summed_loss(model, batch, **options, module_activity=activity))
    first = {name: value[:1] for name, value in batch.items()}
    own = {**options, "routing_weight": options["routing_weight"][:1]}
    alone = gradients_after(model, lambda: summed_loss(model, first, **own))
    whole = gradients_after(model, lambda: summed_loss(model, batch, **options))
    for name, gradient in found.items():
        assert gradient is not None
        if ".sea." in name:
            largest = alone[name].abs().max()  # type: ignore[union-attr]
            assert largest > 0
            assert (gradient - alone[name]).abs().max() <= tolerance * largest  # type: ignore[operator]
            assert not torch.allclose(gradient, whole[name], rtol=1e-3)  # type: ignore[arg-type]


# ---- Gradients, against a formula ----


def by_hand(model: Any, batch: Batch, dials: dict[str, Tensor], multipliers: GradientMultipliers) -> Gradients:
    """Gradients of a stock GPT-Neo whose MLPs are written out here: plain matrix products, `m*a + (1-m)*a.detach()`."""
    state = model.state_dict()
    stock = GPTNeoForCausalLM(model.config.to_base_config()).double().train()
    stock.load_state_dict({name: value.clone() for name, value in state.items() if "auxiliary" not in name})
    stock.tie_weights()
    added = {name: value.clone().requires_grad_() for name, value in state.items() if "auxiliary" in name}
    weight = batch["routing_weight"].double()[..., None]
    numbers = multipliers.to_dict()

    def routed(activation: Tensor, kind: str) -> Tensor:
        m = weight * numbers[f"{kind}_retain"] + (1 - weight) * numbers[f"{kind}_forget"]
        return m * activation + (1 - m) * activation.detach()

    def mlp_of(layer: int, mlp: Any) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            a = F.gelu(x @ mlp.c_fc.weight.T + mlp.c_fc.bias, approximate="tanh")
            output = routed(a, "original") @ mlp.c_proj.weight.T + mlp.c_proj.bias
            for module, layers in LAYERS.items():
                if layer not in layers:
                    continue
                up, down = (
                    added[f"transformer.h.{layer}.mlp.auxiliary.{module}.{part}_projection.weight"]
                    for part in ("up", "down")
                )
                a = x @ up.T
                if module == "sea":
                    bias = added[f"transformer.h.{layer}.mlp.auxiliary.{module}.up_projection.bias"]
                    a = F.gelu(a + bias, approximate="tanh")
                output = output + dials[module].double()[:, None, None] * (routed(a, "auxiliary") @ down.T)
            return output

        return forward

    for layer, block in enumerate(stock.transformer.h):
        block.mlp.forward = mlp_of(layer, block.mlp)
    summed_loss_of_stock(stock, batch).backward()
    return {name: value.grad for name, value in [*stock.named_parameters(), *added.items()]}


def summed_loss_of_stock(stock: Any, batch: Batch) -> Tensor:
    found = stock(**inputs_of(batch)).logits
    return F.cross_entropy(found[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")


def test_gradients_equal_a_formula(make_model: Callable[..., Any], batch: Batch) -> None:
    """Two kinds of module, dials per example and routing at once. The stock attention is computed in fp32 in part, so that
    only the slow path is the same function to the last digits."""
    model = make_model().double()
    slow = not model.fast_paths.fused_activation
    model.gradient_multipliers = GradientMultipliers(-1.75, 0.625, 2.25, -0.375)
    dials = {"forest": torch.tensor([1.0, 0.25, 0.0]), "sea": torch.tensor([0.0, 1.0, 0.5])}
    expected = by_hand(model, batch, dials, model.gradient_multipliers)
    options = {"routing_weight": batch["routing_weight"], "module_activity": activity_of(dials)}
    found = gradients_after(model, lambda: summed_loss(model, batch, **options))
    assert sorted(found) == sorted(expected)
    for name, gradient in expected.items():
        largest = gradient.abs().max()  # type: ignore[union-attr]
        assert largest > 0, name
        assert (found[name] - gradient).abs().max() <= (1e-10 if slow else 1e-5) * largest, name  # type: ignore[operator]


# ---- What else looks at modules ----


def test_generation_with_dials(make_model: Callable[..., Any]) -> None:
    model = make_model().eval()
    prompt = torch.tensor([[1, 2, 3], [4, 5, 6]])
    options = {
        "attention_mask": torch.ones_like(prompt),
        "max_new_tokens": 8,
        "do_sample": False,
        "use_cache": True,
        "pad_token_id": 52,
    }
    mixed = model.generate(prompt, **options, module_activity=sea_at(0.0, 1.0))
    on = model.generate(prompt, **options)
    with model.ablated("sea"):
        off = model.generate(prompt, **options)
    for row, whole in ((0, off), (1, on)):
        length = min(mixed.shape[1], whole.shape[1])
        assert torch.equal(mixed[row, :length], whole[row, :length])
    assert not torch.equal(on[0, 3:6], off[0, 3:6])


def test_the_selectivity_meter_adds_up_the_modules_of_a_layer(make_model: Callable[..., Any], batch: Batch) -> None:
    model = make_model().eval()
    found: dict[str | None, Any] = {}
    for off in (None, "forest", "sea"):
        model.set_active(None, True)
        if off is not None:
            model.set_active(off, False)
        with AuxiliaryActivationMeter(model) as meter:
            meter.set_mask(batch["attention_mask"])
            logits(model, batch)
        found[off] = meter
    tokens = int(batch["attention_mask"].sum())
    assert found[None].counts == {0: 7 * tokens, 1: 4 * tokens, 2: 7 * tokens}
    assert found["sea"].counts == {0: 3 * tokens, 1: 0, 2: 3 * tokens}
    # The first layer's input does not depend on any module.
    assert found[None].sums[0] == pytest.approx(found["sea"].sums[0] + found["forest"].sums[0], rel=1e-6)
    # `forest` is linear and without a bias, so that its activation can be computed from the layer norm's output.
    seen: list[Tensor] = []
    block = model.transformer.h[0]
    block.ln_2.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    logits(model, batch)
    activation = seen[0] @ block.mlp.auxiliary["forest"].up_projection.weight.T
    by_hand = (activation.abs() * batch["attention_mask"][..., None]).sum().item()
    assert found["sea"].sums[0] == pytest.approx(by_hand, rel=1e-5)


def test_the_leak_audit_takes_all_modules_of_a_layer_together(make_model: Callable[..., Any], batch: Batch) -> None:
    model = make_model()
    model.gradient_multipliers = GradientMultipliers(original_forget=0.0, auxiliary_forget=0.5)
    forget = {**batch, "routing_weight": torch.zeros(3, 12)}
    audit = gradient_audit(model, forget)
    assert list(audit["routed"]["layers"]) == ["0", "1", "2"]
    assert audit["alignment"]["2"] == {"original": pytest.approx(0.0), "auxiliary": pytest.approx(0.5, rel=1e-5)}
    labels = int((batch["labels"][:, 1:] != -100).sum())
    gradients = gradients_after(model, lambda: summed_loss(model, batch) / labels)
    for layer, values in audit["unrouted"]["layers"].items():
        parts = [value for name, value in gradients.items() if f"h.{layer}.mlp.auxiliary." in name]
        norm = sum(part.square().sum().item() for part in parts if part is not None) ** 0.5
        assert values["auxiliary_norm"] == pytest.approx(norm, rel=1e-4)
    shares = [audit["unrouted"][f"{part}_share"] for part in ("original", "auxiliary", "rest")]
    assert sum(shares) == pytest.approx(1.0)


# ---- Errors ----


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (
            [SEA, {"name": "sea", "kind": "toy"}],
            "`expansion.modules`: two modules are called 'sea'. Give each a name of its own.",
        ),
        (
            [{"name": "sea", "kind": "tay"}],
            "`expansion.modules[0]`: Unknown value for `expansion.modules.kind`: 'tay'. Did you mean `toy`? "
            "Known: heads, mlp, toy.",
        ),
        (
            [SEA, {"name": "forest", "kind": ["toy"]}],
            "`expansion.modules[1]`: Unknown value for `expansion.modules.kind`: ['toy'].",
        ),
        (
            [SEA, {"nam": "forest"}],
            "Unknown key `nam` in `expansion.modules[1]`. Did you mean `name`? "
            "Known: name, width, target_layers, initialization_scale, kind, width_ratio.",
        ),
        (
            [{"name": "sea", "width": 0}],
            "`expansion.modules[0]`: `expansion.width` should be an integer of at least 1, got 0.",
        ),
        (
            ["sea"],
            "`expansion.modules[0]` should be a mapping such as `{name: forget, width: 64}`, got 'sea'.",
        ),
        (
            {"name": "sea"},
            "`expansion.modules` should be a list of mappings, one per module, got {'name': 'sea'}.",
        ),
    ],
)  # fmt: skip
def test_wrong_modules_are_refused(modules: Any, message: str) -> None:
    with pytest.raises(ValueError, match="expansion") as caught:
        ExpansionConfig(modules=modules)
    assert str(caught.value).startswith(message)


def test_both_ways_of_describing_modules_at_once_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`expansion.modules` and `expansion.module_name` .* are both given\."):
        ExpansionConfig(width=3, modules=[dict(SEA)])


def test_a_kind_is_registered_once() -> None:
    class Other(ToyModule):
        """Another of the same kind."""

    assert register_module_kind(ToyModule) is ToyModule
    with pytest.raises(ValueError, match=r"There is a module kind `toy` already: ToyModule\. Choose another\."):
        register_module_kind(Other)


@pytest.mark.parametrize("call", ["set_active", "set_dial", "ablated", "dialled"])
def test_an_unknown_module_is_refused(call: str, make_model: Callable[..., Any]) -> None:
    model = make_model()
    arguments = {
        "set_active": ("see", True),
        "set_dial": ("see", 0.5),
        "ablated": ("sea", "see"),
        "dialled": ("see", 0.5),
    }
    with pytest.raises(ValueError, match="Unknown key") as caught:
        getattr(model, call)(*arguments[call]).__enter__()
    assert str(caught.value) == "Unknown key `see` in the model's modules. Did you mean `sea`? Known: forest, sea."
    assert all(module.active for named in model.auxiliary_modules().values() for module in named.values())


@pytest.mark.parametrize(
    ("call", "arguments", "message"),
    [
        (
            "set_dial",
            (0.5, "sea"),
            "`set_dial` takes the name of a module first, then the value, got 0.5 as the name. Write "
            "`set_dial('forest', 0.5)`, or None as the name for all modules.",
        ),
        (
            "set_active",
            (True, "sea"),
            "`set_active` takes the name of a module first, then the value, got True as the name. Write "
            "`set_active('forest', True)`, or None as the name for all modules.",
        ),
        ("set_active", ("sea", 0.5), "`active` should be True (on) or False (off), got 0.5."),
        ("set_dial", ("sea", "half"), "`dial` should be in [0, 1], got 'half'. 0 is off, 1 is on."),
        ("set_dial", ("sea", None), "`dial` should be in [0, 1], got None. 0 is off, 1 is on."),
    ],
)
def test_arguments_in_another_order_are_refused(
    call: str, arguments: Any, message: str, make_model: Callable[..., Any]
) -> None:
    with pytest.raises(ValueError, match="got") as caught:
        getattr(make_model(), call)(*arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize("dial", [-0.1, 1.5, float("nan")])
def test_a_dial_out_of_range_is_refused(dial: float, make_model: Callable[..., Any], batch: Batch) -> None:
    model = make_model()
    with pytest.raises(ValueError, match=rf"^`dial` should be in \[0, 1\], got {dial}\. 0 is off, 1 is on\.$"):
        model.set_dial("sea", dial)
    with pytest.raises(ValueError, match=r"^`module_activity` should be in \[0, 1\] \(0 is off, 1 is on\), got"):
        model(**inputs_of(batch), module_activity=sea_at(1.0, dial, 0.0))


@pytest.mark.parametrize(
    ("activity", "got"),
    [
        (torch.ones(3), "the shape (3,)"),
        (torch.ones(2, 2), "the shape (2, 2)"),
        (torch.ones(3, 1), "the shape (3, 1)"),
        ({"sea": torch.ones(3)}, "{'sea': tensor([1., 1., 1.])}"),
        (0.5, "0.5"),
    ],
)
def test_an_activity_that_is_not_one_number_per_example_and_module_is_refused(
    activity: Any, got: str, make_model: Callable[..., Any], batch: Batch
) -> None:
    model = make_model()
    with pytest.raises(ValueError, match="module_activity") as caught:
        model(**inputs_of(batch), module_activity=activity)
    assert str(caught.value) == (
        "`module_activity` should be a tensor (3, 2): a number in [0, 1] for each example and module (forest, sea), got "
        f"{got}."
    )
    assert model.routing_channel.routing is None
