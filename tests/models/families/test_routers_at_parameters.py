"""Routers at the parameters: against a dense formula for every family, which parameters learn nothing, a share or all, and
SGTM's way of doing it, which is to zero gradients after an ordinary backward pass."""

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from hf_era.models import FAMILIES
from hf_era.routing import make_router

Batch = dict[str, Tensor]
Gradients = dict[str, Tensor]

TARGETS = [0, 2]
NUMBERS = {"original_forget": -1.75, "original_retain": 0.625, "auxiliary_forget": 2.25, "auxiliary_retain": -0.375}
DENSE = [pytest.param(name, True, id=f"{name}-fast") for name in sorted(FAMILIES)] + [
    pytest.param(name, False, id=f"{name}-slow", marks=() if name in ("gpt_neo", "llama") else pytest.mark.slow)
    for name in sorted(FAMILIES)
]
THREE = pytest.mark.parametrize("model_type", ["gpt_neo", "llama", "gpt2"], indirect=True)
ALL_BUT_TWO_SLOW = pytest.mark.parametrize(
    "model_type",
    [pytest.param(name, marks=() if name in ("gpt_neo", "llama") else pytest.mark.slow) for name in sorted(FAMILIES)],
    indirect=True,
)

# ---- The dense formula ----


def learns(layer: Any, m: Tensor) -> None:
    """Mixes the output of a layer from two, of which only the one with share `m`, (batch, seq), lets its weights learn. What
    flows on is whole: dx = m W^T d + (1 - m) W^T d."""
    plain = copy.copy(layer)
    fixed = {name: value.detach() for name, value in layer.named_parameters(recurse=False)}

    def forward(*inputs: Any) -> Tensor:
        free, held = plain.forward(*inputs), functional_call(plain, fixed, inputs)
        # (batch, seq, ...), or (batch, heads, seq, ...); positions are looked up once, (1, seq, ...).
        places = m.shape if free.shape[1] == m.shape[1] else (m.shape[0], 1, m.shape[1])
        share = m.reshape(*places, *[1] * (free.dim() - len(places)))
        return share * free + (1 - share) * held

    layer.forward = forward


def formula(model: Any, batch: Batch, check: Any, paths: Any) -> Gradients:
    """The gradients of an expanded model without routing whose layers learn so much of each token."""
    model = paths(False).set(model)
    w = batch["routing_weight"].double()
    shares = {
        part: w * NUMBERS[f"{part}_retain"] + (1 - w) * NUMBERS[f"{part}_forget"] for part in ("original", "auxiliary")
    }
    for name, layer in list(model.named_modules()):
        if any(True for _ in layer.parameters(recurse=False)):
            learns(layer, shares["auxiliary" if ".auxiliary." in name else "original"])
    return check.gradients_after(model, lambda: check.total_loss(model, batch, routed=False, with_l1=False))


@pytest.mark.parametrize(("model_type", "fast"), DENSE, indirect=["model_type"])
def test_gradients_equal_the_dense_formula(
    fast: bool, model_type: str, paths_of: Any, check: Any, make_expanded: Callable[..., Any], batch: Batch
) -> None:
    expected = formula(make_expanded(TARGETS).double(), batch, check, paths_of)
    model = paths_of(fast).set(make_expanded(TARGETS).double())
    model.router = make_router({"name": "parameter", "multipliers": NUMBERS})
    found = check.gradients_after(model, lambda: check.total_loss(model, batch, with_l1=False))
    assert len(found) == len(list(model.parameters()))
    assert check.largest_deviation(found, expected) <= tolerance(model_type, fast)


def tolerance(model_type: str, fast: bool) -> float:
    """RMS norms round to fp32 within, and the formula rounds other numbers there; GPT-Neo's own attention is computed in
    fp32, and that of its fast path is not."""
    return 1e-11 if model_type in ("gpt2", "gpt_neox") or (model_type, fast) == ("gpt_neo", False) else 5e-6


@THREE
@pytest.mark.parametrize("mistake", ["multiplier", "shift", "head"])
def test_the_formula_notices_a_small_mistake(
    mistake: str, model_type: str, paths_of: Any, check: Any, make_expanded: Callable[..., Any], batch: Batch
) -> None:
    """Planted: a multiplier off by 1e-4, the weights of the neighbouring tokens, or a head that learns all."""
    expected = formula(make_expanded(TARGETS).double(), batch, check, paths_of)
    model, numbers = make_expanded(TARGETS).double(), dict(NUMBERS)
    if mistake == "multiplier":
        numbers["auxiliary_retain"] += 1e-4
    if mistake == "shift":
        batch = {**batch, "routing_weight": batch["routing_weight"].roll(1, dims=1)}
    model.router = make_router({"name": "parameter", "multipliers": numbers})
    if mistake == "head":
        model.get_output_embeddings().call = type(model.routing_channel)()
    found = check.gradients_after(model, lambda: check.total_loss(model, batch, with_l1=False))
    assert check.largest_deviation(found, expected) > 5 * tolerance("llama", True)


# ---- What learns nothing, a share, all ----

# Router, routing weight of every token, and what is left of the gradients of (module, MLPs, attention, the rest). Modules
# that are off: the gradients are those of the ablated model, and the modules have none.
OFF = None
TABLE: dict[str, tuple[dict[str, Any], float, tuple[float | None, float, float, float]]] = {
    "parameter, forget": ({"name": "parameter"}, 0.0, (1, 0, 0, 0)),
    "parameter, half": ({"name": "parameter"}, 0.5, (1, 0.5, 0.5, 0.5)),
    "parameter, retain": ({"name": "parameter"}, 1.0, (1, 1, 1, 1)),
    "parameter, un-teaches": (
        {"name": "parameter", "multipliers": {"original_forget": -0.5, "auxiliary_forget": 2.0}}, 0.0,
        (2, -0.5, -0.5, -0.5),
    ),
    "parameter, core mlp": ({"name": "parameter", "core": "mlp"}, 0.0, (1, 0, 1, 1)),
    "parameter, core mlp+attention": ({"name": "parameter", "core": "mlp+attention"}, 0.0, (1, 0, 0, 1)),
    "sgtm, forget": ({"name": "sgtm", "module_off_on_retain": 1.0}, 0.0, (1, 0, 0, 1)),
    "sgtm, retain with modules": ({"name": "sgtm", "module_off_on_retain": 0.0}, 1.0, (1, 1, 1, 1)),
    "sgtm, retain without": ({"name": "sgtm", "module_off_on_retain": 1.0}, 1.0, (OFF, 1, 1, 1)),
    "gram, forget": ({"name": "gram", "p_as": 0.0}, 0.0, (1, 0, 0, 0)),
    "gram, forget that spreads": ({"name": "gram", "p_as": 1.0}, 0.0, (1, 1, 1, 1)),
    "gram, retain with a module": ({"name": "gram", "p_cr": 1.0}, 1.0, (1, 1, 1, 1)),
    "gram, retain without": ({"name": "gram", "p_cr": 0.0}, 1.0, (OFF, 1, 1, 1)),
    "demix, retain": ({"name": "demix"}, 1.0, (OFF, 1, 1, 1)),
}  # fmt: skip


def place_of(name: str) -> int:
    """Of (module, MLPs, attention, the rest)."""
    if ".auxiliary." in name:
        return 0
    if ".mlp." in name:
        return 1
    return 2 if re.search(r"\.(self_attn|attn|attention)\.", name) and "_norm" not in name else 3


def plain_gradients(check: Any, model: Any, batch: Batch) -> Gradients:
    return check.gradients_after(model, lambda: check.total_loss(model, batch, routed=False, with_l1=False))


@THREE
def test_table(model_type: str, paths: Any, check: Any, make_expanded: Callable[..., Any], batch: Batch) -> None:
    model = paths.set(make_expanded([1], tie_word_embeddings=False).double())
    close = 1e-6 if model_type == "llama" else 1e-9  # RMS norms round to fp32 within
    whole = plain_gradients(check, model, batch)
    with model.ablated():
        ablated = plain_gradients(check, model, batch)
        ablated_logits = model.eval()(**check.inputs(batch)).logits
    logits = model(**check.inputs(batch)).logits
    model.train()
    assert {place_of(name) for name in whole} == {0, 1, 2, 3}
    for mode, (router, weight, shares) in TABLE.items():
        model.router = make_router(router)
        routed = {**batch, "routing_weight": torch.full((3, 12), weight)}
        found = check.gradients_after(model, lambda routed=routed: check.total_loss(model, routed, with_l1=False))
        for name, gradient in found.items():
            share = shares[place_of(name)]
            if not share:
                assert torch.count_nonzero(gradient) == 0, f"{mode}: {name}"
                continue
            expected = share * (whole if shares[0] is not OFF else ablated)[name]
            torch.testing.assert_close(
                gradient, expected, rtol=close, atol=close * float(expected.abs().max()), msg=f"{mode}: {name}"
            )
        with torch.no_grad():  # what the routing does not switch off is bit for bit what it is without routing
            values = model(**check.inputs(batch), routing_weight=routed["routing_weight"], skip_logits=False).logits
        assert torch.equal(values, ablated_logits if shares[0] is OFF else logits), mode


@THREE
def test_demix_runs_a_forget_example_with_the_module_in_place_of_the_mlp(
    model_type: str, check: Any, make_expanded: Callable[..., Any], batch: Batch
) -> None:
    model = make_expanded([1], tie_word_embeddings=False)
    routed, family = {**batch, "routing_weight": torch.zeros(3, 12)}, FAMILIES[model_type]
    model.router = make_router("demix")
    found = check.gradients_after(model, lambda: check.total_loss(model, routed, with_l1=False))
    down = family.get_down_projection(family.get_mlp(family.get_blocks(model)[1]))
    with torch.no_grad():  # an MLP that gives nothing
        for value in down.parameters():
            value.zero_()
    expected = plain_gradients(check, model, batch)
    for name, gradient in found.items():
        if re.search(r"\.1\.mlp\.(?!auxiliary)", name):
            assert torch.count_nonzero(gradient) == 0, name
        else:
            torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6)


# ---- As SGTM does it ----


@THREE
@pytest.mark.parametrize("core", ["mlp", "mlp+attention", "all"])
@pytest.mark.parametrize("name", ["parameter", "sgtm"])
def test_zeroing_gradients_of_batches_of_one_label_is_the_same(
    name: str, core: str, model_type: str, check: Any, make_expanded: Callable[..., Any], batch: Batch
) -> None:
    """SGTM makes an ordinary backward pass on a forget batch, and then zeroes what the core got of it. Here forget and
    retain rows are in one batch. A label belongs to the token before it, which is why padding is left out of the mean."""
    model = make_expanded(TARGETS, tie_word_embeddings=False).double()
    rows, weights = {"forget": [0, 2], "retain": [1]}, torch.ones(3, 12)
    weights[rows["forget"]] = 0.0
    count = (batch["labels"][:, 1:] != -100).sum()
    core_places = {"mlp": {1}, "mlp+attention": {1, 2}, "all": {1, 2, 3}}[core]

    def gradients(values: Batch) -> Gradients:
        return check.gradients_after(model, lambda: model(**values, num_items_in_batch=count).loss)

    masked, ordinary = ({k: v[rows[label]] for k, v in batch.items() if k != "routing_weight"} for label in rows)
    masked, ordinary = gradients(masked), gradients(ordinary)
    expected = {n: g + (0 if place_of(n) in core_places else masked[n]) for n, g in ordinary.items()}
    settings = {"module_off_on_retain": 0.0} if name == "sgtm" else {}
    model.router = make_router({"name": name, "core": core, **settings})
    found = gradients({**batch, "routing_weight": weights})
    assert check.largest_deviation(found, expected) < 5e-6
    assert check.largest_deviation({n: g + masked[n] for n, g in ordinary.items()}, expected) > 0.1


# ---- Under wrappers ----


@ALL_BUT_TWO_SLOW
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_changes_nothing(
    use_reentrant: bool, family: Any, check: Any, make_expanded: Callable[..., Any], batch: Batch
) -> None:
    """Blocks that have no module are recomputed too, and scale what their weights learn as they did at first."""
    model, calls = make_expanded([1]), []
    model.router = make_router("parameter")
    expected = check.gradients_after(model, lambda: check.total_loss(model, batch))
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": use_reentrant})
    family.get_mlp(family.get_blocks(model)[0]).register_forward_pre_hook(lambda *arguments: calls.append(1))
    found = check.gradients_after(model, lambda: check.total_loss(model, batch))
    assert len(calls) == 2
    assert sorted(found) == sorted(expected)
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["llama"], indirect=True)
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled(model_type: str, check: Any, make_expanded: Callable[..., Any], batch: Batch) -> None:
    """As one graph; then with other weights: compiled code keeps none of the first."""
    model = make_expanded([0], num_hidden_layers=1, layer_types=["full_attention"], attention_types=[[["global"], 1]])
    model.router = make_router("parameter")
    batches = [batch, {**batch, "routing_weight": 1 - batch["routing_weight"]}]
    expected = [check.gradients_after(model, lambda v=values: check.total_loss(model, v)) for values in batches]
    torch.compiler.reset()
    try:
        compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
        for values, reference in zip(batches, expected, strict=True):
            found = check.gradients_after(model, lambda v=values: check.total_loss(compiled, v))
            torch.testing.assert_close(found, reference, rtol=1e-4, atol=1e-6)
    finally:
        torch.compiler.reset()
