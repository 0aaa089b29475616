"""Per family and routing mode: which parameters get zero, scaled and whole gradient, bit for bit.

Three layers, the one in the middle is the target. A parameter's gradient is compared with that without routing: `zero`,
`whole`, `scaled` (SCALE times it, a power of two, so that scaling rounds nothing), or `partly`: an unscaled path around the
MLP and a scaled one through it. The table of the folder above says more of the last, for GPT-Neo.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hf_era import GradientMultipliers

SCALE = -0.5
TARGET = 1

# (original_forget, auxiliary_forget), routing weight of every token -> what is before the down projections (of the original
# dims, of the module), the norm that leads to the MLP alone, and what lies before that.
MODES: dict[str, tuple[tuple[float, float], float, tuple[str, str, str, str]]] = {
    "retain": ((SCALE, SCALE), 1.0, ("whole", "whole", "whole", "whole")),
    "forget stops the original dims": ((0, 1), 0.0, ("zero", "whole", "partly", "partly")),
    "forget un-teaches the original dims": ((SCALE, 1), 0.0, ("scaled", "whole", "partly", "partly")),
    "forget stops the module": ((1, 0), 0.0, ("whole", "zero", "partly", "partly")),
    "both scaled": ((SCALE, SCALE), 0.0, ("scaled", "scaled", "scaled", "partly")),
    "both stopped": ((0, 0), 0.0, ("zero", "zero", "zero", "partly")),
}

# What of a block comes before the MLP alone, and what comes after the MLP or beside it, which no routing reaches.
BEFORE_MLP = {"gpt2": "ln_2", "gpt_neo": "ln_2", "gemma2": "pre_feedforward_layernorm", "olmo2": "(?!)"}
BEFORE_MLP["gemma3_text"] = BEFORE_MLP["gemma2"]
BESIDE_MLP = {
    "gemma2": "post_feedforward_layernorm",
    "gemma3_text": "post_feedforward_layernorm",
    "olmo2": "post_feedforward_layernorm",
    "gpt_neox": r"(attention\.|input_layernorm)",  # parallel: neither leads to the MLP
}


def group_of(name: str, model_type: str) -> str:
    found = re.match(r"(?:model\.layers|transformer\.h|gpt_neox\.layers)\.(\d+)\.(.*)", name)
    if found is None:
        return "upstream" if re.search(r"\.(embed_tokens|embed_in|wte|wpe)\.", name) else "downstream"
    layer, rest = int(found.group(1)), found.group(2)
    if layer != TARGET:
        return "upstream" if layer < TARGET else "downstream"
    if rest.startswith("mlp."):
        if re.search(r"(down_proj|c_proj|dense_4h_to_h|down_projection)\.", rest):
            return "downstream"
        return "module" if ".auxiliary." in rest else "original"
    if re.match(BESIDE_MLP.get(model_type, "(?!)"), rest):
        return "downstream"
    return "norm" if re.match(BEFORE_MLP.get(model_type, "post_attention_layernorm"), rest) else "upstream"


def category(found: Tensor, whole: Tensor) -> str:
    if torch.count_nonzero(found) == 0:
        return "zero"
    if torch.equal(found, whole):
        return "whole"
    return "scaled" if torch.equal(found, SCALE * whole) else "partly"


def test_table(
    model_type: str, paths: Any, check: Any, make_expanded: Callable[..., Any], batch: dict[str, Tensor]
) -> None:
    model = paths.set(make_expanded([TARGET], tie_word_embeddings=False))
    whole = check.gradients_after(model, lambda: check.total_loss(model, batch, routed=False, with_l1=False))
    assert sorted(whole) == sorted(name for name, _ in model.named_parameters())
    groups = {name: group_of(name, model_type) for name in whole}
    assert set(groups.values()) >= {"original", "module", "upstream", "downstream"}
    for mode, (numbers, weight, expected) in MODES.items():
        model.gradient_multipliers = GradientMultipliers(original_forget=numbers[0], auxiliary_forget=numbers[1])
        routed = {**batch, "routing_weight": torch.full((3, 12), weight)}
        found = check.gradients_after(model, lambda routed=routed: check.total_loss(model, routed, with_l1=False))
        table = dict(zip(("original", "module", "norm", "upstream"), expected, strict=True), downstream="whole")
        for name, gradient in found.items():
            assert whole[name].abs().max() > 0, f"{name}: a gradient of zero compares nothing"
            assert category(gradient, whole[name]) == table[groups[name]], f"{mode}: {name}"


def test_an_ablated_module_learns_nothing_and_the_original_dims_are_routed(
    model_type: str, check: Any, make_expanded: Callable[..., Any], batch: dict[str, Tensor]
) -> None:
    model = make_expanded([TARGET], tie_word_embeddings=False)
    model.set_active(None, False)
    whole = check.gradients_after(model, lambda: check.total_loss(model, batch, routed=False))
    model.gradient_multipliers = GradientMultipliers(original_forget=SCALE)
    routed = {**batch, "routing_weight": torch.zeros(3, 12)}
    found = check.gradients_after(model, lambda: check.total_loss(model, routed, with_l1=False))
    plain = check.gradients_after(model, lambda: check.total_loss(model, routed, routed=False, with_l1=False))
    assert sorted(found) == sorted(whole)
    assert not any(model.is_auxiliary_parameter(name) for name in found)
    for name, gradient in found.items():
        if group_of(name, model_type) == "original":
            assert category(gradient, plain[name]) == "scaled", name
