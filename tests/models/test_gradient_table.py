"""Per routing mode: which parameters get no, zero, unchanged, scaled and partly scaled gradient.

Three layers, one of them the target. Categories of a parameter's gradient, compared with the model without routing:

* `none`: the backward pass did not come by (the ablated auxiliary module);
* `zero`: exactly zero;
* `unchanged`: bit for bit that of the model without routing;
* `scaled`: bit for bit SCALE times it (SCALE is a power of two, so that scaling rounds nothing);
* `around`: bit for bit that of a model whose target MLP passes no gradient on to its input: what is left is the
  residual stream around it, which is never scaled;
* `partly`: none of these: the unscaled residual path plus a scaled path through the MLP. For these,
  `test_partly_scaled_gradients_are_affine_in_the_factors` gives the numbers.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_era import ExpandedGPTNeoForCausalLM, GradientMultipliers
from hf_era.models.fast.causal_lm import ALL_SLOW
from hf_era.models.layers import ExpandedMLPMixin
from hf_era.models.running_call import LayerCall
from hf_era.routing import scale_gradient

SCALE = -0.5
NUMBER_OF_LAYERS = 3
GROUPS = (
    "embeddings",
    "layers before",
    "target attention",
    "target ln_2",
    "target up projection",
    "target down projection",
    "auxiliary up projection",
    "auxiliary down projection",
    "layers after",
    "head",
)

Gradients = dict[str, Tensor | None]
Table = dict[str, str]


def multipliers(original_forget: float, auxiliary_forget: float) -> GradientMultipliers:
    return GradientMultipliers(original_forget=original_forget, auxiliary_forget=auxiliary_forget)


def row(upstream: str, ln_2: str, up: str, auxiliary_up: str, auxiliary_down: str = "unchanged") -> Table:
    """One mode of the table. The down projection, the layers after and the head are unchanged in every mode."""
    return {
        "embeddings": upstream,
        "layers before": upstream,
        "target attention": upstream,
        "target ln_2": ln_2,
        "target up projection": up,
        "target down projection": "unchanged",
        "auxiliary up projection": auxiliary_up,
        "auxiliary down projection": auxiliary_down,
        "layers after": "unchanged",
        "head": "unchanged",
    }


# mode: (multipliers, routing weight: a number for every token or "concept", table)
MODES: dict[str, tuple[GradientMultipliers, float | str, Table]] = {
    "none": (multipliers(-0.75, 1), 1.0, row("unchanged", "unchanged", "unchanged", "unchanged")),
    "uniform, forget stops the original dims": (multipliers(0, 1), 0.0, row("partly", "partly", "zero", "unchanged")),
    "uniform, forget un-teaches the original dims": (
        multipliers(SCALE, 1),
        0.0,
        row("partly", "partly", "scaled", "unchanged"),
    ),
    "uniform, the seed's -0.75": (multipliers(-0.75, 1), 0.0, row("partly", "partly", "partly", "unchanged")),
    "uniform, forget stops the auxiliary module": (
        multipliers(1, 0),
        0.0,
        row("partly", "partly", "unchanged", "zero"),
    ),
    "uniform, both scaled": (multipliers(SCALE, SCALE), 0.0, row("partly", "scaled", "scaled", "scaled")),
    "uniform, both stopped": (multipliers(0, 0), 0.0, row("around", "zero", "zero", "zero")),
    "concept, forget stops the original dims": (
        multipliers(0, 1),
        "concept",
        row("partly", "partly", "partly", "unchanged"),
    ),
    "concept, forget un-teaches the original dims": (
        multipliers(SCALE, 1),
        "concept",
        row("partly", "partly", "partly", "unchanged"),
    ),
}

# The same modes with the module ablated: it gets no gradient, and the original dims are alone on the MLP's path.
ABLATED = {"auxiliary_up": "none", "auxiliary_down": "none"}
ABLATED_TABLES: dict[str, Table] = {
    "none": row("unchanged", "unchanged", "unchanged", **ABLATED),
    "uniform, forget stops the original dims": row("around", "zero", "zero", **ABLATED),
    "uniform, forget un-teaches the original dims": row("partly", "scaled", "scaled", **ABLATED),
    "uniform, the seed's -0.75": row("partly", "partly", "partly", **ABLATED),
    "uniform, forget stops the auxiliary module": row("unchanged", "unchanged", "unchanged", **ABLATED),
    "uniform, both scaled": row("partly", "scaled", "scaled", **ABLATED),
    "uniform, both stopped": row("around", "zero", "zero", **ABLATED),
    "concept, forget stops the original dims": row("partly", "partly", "partly", **ABLATED),
    "concept, forget un-teaches the original dims": row("partly", "partly", "partly", **ABLATED),
}


def group_of(name: str, target: int) -> str:
    if name.startswith("transformer.h."):
        layer, rest = int(name.split(".")[2]), name.split(".", 3)[3]
        if layer != target:
            return "layers before" if layer < target else "layers after"
        for prefix, group in {
            "ln_1.": "target attention",
            "attn.": "target attention",
            "ln_2.": "target ln_2",
            "mlp.c_fc.": "target up projection",
            "mlp.c_proj.": "target down projection",
            "mlp.auxiliary.forget.up_projection.": "auxiliary up projection",
            "mlp.auxiliary.forget.down_projection.": "auxiliary down projection",
        }.items():
            if rest.startswith(prefix):
                return group
        raise AssertionError(f"{name} is in no group of the table")
    return "embeddings" if name.startswith(("transformer.wte", "transformer.wpe")) else "head"


def routing_weight_of(value: float | str, concept_weight: Tensor) -> Tensor:
    return concept_weight if isinstance(value, str) else torch.full((3, 12), value)


@pytest.fixture
def gradients_around(routed_gradients: Callable) -> Callable[[ExpandedGPTNeoForCausalLM, int], Gradients]:
    """Gradients when the target MLP reads a detached input: only the residual stream leads back from there."""

    def gradients(model: ExpandedGPTNeoForCausalLM, target: int) -> Gradients:
        mlp = model.transformer.h[target].mlp
        handle = mlp.register_forward_pre_hook(lambda module, inputs: (inputs[0].detach(),))
        try:
            return routed_gradients(model)
        finally:
            handle.remove()

    return gradients


def category(routed: Tensor | None, vanilla: Tensor | None, around: Tensor | None) -> str:
    if routed is None or vanilla is None:
        assert routed is None, "a gradient where the model without routing has none"
        assert vanilla is None, "no gradient where the model without routing has one"
        return "none"
    if torch.count_nonzero(routed) == 0:
        return "zero"
    if torch.equal(routed, vanilla):
        return "unchanged"
    if torch.equal(routed, SCALE * vanilla):
        return "scaled"
    if around is not None and torch.equal(routed, around):
        return "around"
    return "partly"


def measured_table(routed: Gradients, vanilla: Gradients, around: Gradients, target: int) -> Table:
    """The category of each group; the parameters of a group have to agree."""
    found: dict[str, set[str]] = {}
    for name, gradient in routed.items():
        reference = vanilla[name]
        assert reference is None or torch.count_nonzero(reference) > 0, f"{name} has no gradient to compare with"
        found.setdefault(group_of(name, target), set()).add(category(gradient, reference, around[name]))
    assert all(len(categories) == 1 for categories in found.values()), found
    return {group: categories.pop() for group, categories in found.items()}


def expected_table(table: Table, target: int) -> Table:
    absent = {
        group for group, layer in (("layers before", 0), ("layers after", NUMBER_OF_LAYERS - 1)) if layer == target
    }
    return {group: table[group] for group in GROUPS if group not in absent}


@pytest.mark.parametrize("ablated", [False, True], ids=["module on", "ablated"])
@pytest.mark.parametrize("target", [0, 1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_table(
    mode: str,
    target: int,
    ablated: bool,
    make_expanded: Callable[..., ExpandedGPTNeoForCausalLM],
    routed_gradients: Callable,
    gradients_around: Callable,
    concept_weight: Tensor,
    paths: Any,
) -> None:
    settings, weight, table = MODES[mode]
    model = paths.set(make_expanded([target], tie_word_embeddings=False))
    model.set_active(None, not ablated)
    vanilla, around = routed_gradients(model), gradients_around(model, target)
    routed = routed_gradients(model, settings, routing_weight_of(weight, concept_weight))
    expected = expected_table(ABLATED_TABLES[mode] if ablated else table, target)
    assert measured_table(routed, vanilla, around, target) == expected


def test_the_table_notices_a_scaling_point_behind_the_down_projection(
    make_expanded: Callable[..., ExpandedGPTNeoForCausalLM],
    routed_gradients: Callable,
    gradients_around: Callable,
    concept_weight: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Planted: scaling the MLP's output instead of the down projection's input scales the down projection too."""
    settings, weight, table = MODES["uniform, forget un-teaches the original dims"]
    model = make_expanded([1], tie_word_embeddings=False)
    model.set_fast_paths(ALL_SLOW)
    vanilla, around = routed_gradients(model), gradients_around(model, 1)
    original_forward, original_route = ExpandedMLPMixin.forward, LayerCall.route

    def forward_with_misplaced_scaling(self: Any, hidden_states: Tensor) -> Tensor:
        part = self.call.part(None)
        output = original_forward(self, hidden_states)
        return scale_gradient(output, None if part is None else part.activation_multiplier)

    monkeypatch.setattr(
        LayerCall,
        "route",
        lambda call, activation, module: original_route(call, activation, module) if module else activation,
    )
    monkeypatch.setattr(ExpandedMLPMixin, "forward", forward_with_misplaced_scaling)
    measured = measured_table(
        routed_gradients(model, settings, routing_weight_of(weight, concept_weight)), vanilla, around, 1
    )
    assert measured != expected_table(table, 1)
    assert measured["target down projection"] == "scaled"


@pytest.mark.parametrize("target", [0, 1, 2])
def test_partly_scaled_gradients_are_affine_in_the_factors(
    target: int, make_expanded: Callable[..., ExpandedGPTNeoForCausalLM], routed_gradients: Callable, paths: Any
) -> None:
    """With one target layer: gradient = residual path + original_factor * its path + auxiliary_factor * its path."""
    model = paths.set(make_expanded([target], tie_word_embeddings=False))
    everywhere = torch.zeros(3, 12)
    residual = routed_gradients(model, multipliers(0, 0), everywhere)
    with_original = routed_gradients(model, multipliers(1, 0), everywhere)
    with_auxiliary = routed_gradients(model, multipliers(0, 1), everywhere)
    routed = routed_gradients(model, multipliers(-0.75, 1.5), everywhere)
    for name, around in residual.items():
        if group_of(name, target) in ("target down projection", "auxiliary down projection", "layers after", "head"):
            continue
        original_path, auxiliary_path = with_original[name] - around, with_auxiliary[name] - around
        expected = around - 0.75 * original_path + 1.5 * auxiliary_path
        torch.testing.assert_close(routed[name], expected, rtol=1e-4, atol=1e-6)
