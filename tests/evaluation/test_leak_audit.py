"""The leak audit against gradients scaled by hand, known multipliers, and modules cut out by hand."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_era import GradientMultipliers
from hf_era.evaluation import StoryLosses, ablation_audit, gradient_audit, story_losses
from hf_era.evaluation.leak_audit import ablated_layers

KINDS = ("forget", "retain")
DROPOUT = {"embed_dropout": 0.5, "attention_dropout": 0.5, "resid_dropout": 0.5}


def uniform(batch: dict[str, Tensor], weight: float) -> dict[str, Tensor]:
    return {**batch, "routing_weight": torch.full_like(batch["routing_weight"], weight)}


def activity(model: Any) -> dict[int, bool]:
    return {layer: modules["forget"].active for layer, modules in model.auxiliary_modules().items()}


# ---- Gradients ----


@contextmanager
def scaled_by_hand(model: Any, layers: list[int], original: Tensor, auxiliary: Tensor) -> Iterator[None]:
    """Scales the gradient of the down projections' inputs by (batch, seq) factors, as the paper writes it."""

    def scaling(factor: Tensor) -> Callable[..., tuple[Tensor]]:
        m = factor.double().unsqueeze(-1)
        return lambda _module, inputs: (m * inputs[0] + (1 - m) * inputs[0].detach(),)

    handles = []
    for layer in layers:
        mlp = model.transformer.h[layer].mlp
        handles.append(mlp.c_proj.register_forward_pre_hook(scaling(original)))
        handles.append(mlp.auxiliary["forget"].down_projection.register_forward_pre_hook(scaling(auxiliary)))
    yield
    for handle in handles:
        handle.remove()


def gradients_by_hand(
    model: Any, batches: list[dict[str, Tensor]], multipliers: tuple[float, ...] | None, layers: list[int]
) -> dict[str, Tensor]:
    """Of the mean loss over all labels, from the stock logits and torch's own cross entropy, all in fp64."""
    original_forget, original_retain, auxiliary_forget, auxiliary_retain = multipliers or (1, 1, 1, 1)
    labels = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
    model.zero_grad()
    for batch in batches:
        weight = batch["routing_weight"].double()
        original = weight * original_retain + (1 - weight) * original_forget
        auxiliary = weight * auxiliary_retain + (1 - weight) * auxiliary_forget
        with scaled_by_hand(model, layers, original, auxiliary):
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")
            (loss / labels).backward()
    found = {name: value.grad.clone() for name, value in model.named_parameters()}
    model.zero_grad()
    return found


def squares(gradients: dict[str, Tensor], *starts: str) -> float:
    return sum(float((value**2).sum()) for name, value in gradients.items() if name.startswith(starts))


def test_against_gradients_scaled_by_hand(
    make_expanded: Callable[..., Any], make_batch: Callable[..., dict[str, Tensor]]
) -> None:
    layers, numbers = [0, 2], (-0.75, 0.875, 1.5, 0.25)
    model = make_expanded(layers, **DROPOUT).double()  # in training mode
    model.gradient_multipliers = GradientMultipliers(*numbers)
    batches = [make_batch(seed=1), {name: value[1:2] for name, value in make_batch(seed=2).items()}]
    for batch in batches:  # eighths, so that the model's fp32 factors are those of the fp64 computation by hand
        batch["routing_weight"] = (8 * batch["routing_weight"]).round() / 8
    audit = gradient_audit(model, batches)
    assert model.training
    model.eval()
    assert (audit["stories"], audit["tokens"]) == (4, 11 + 6 + 8 + 6)
    found = {
        "routed": gradients_by_hand(model, batches, numbers, layers),
        "unrouted": gradients_by_hand(model, batches, None, layers),
    }
    for kind, gradients in found.items():
        part, total = audit[kind], squares(gradients, "")
        mlps = ("transformer.h.0.mlp", "transformer.h.2.mlp")
        assert part["total_norm"] == pytest.approx(total**0.5, rel=1e-9)
        assert list(part["layers"]) == ["0", "2"]
        for layer, values in part["layers"].items():
            mlp = f"transformer.h.{layer}.mlp."
            up, down = squares(gradients, mlp + "c_fc"), squares(gradients, mlp + "c_proj")
            auxiliary = squares(gradients, mlp + "auxiliary")
            expected = {
                "original_norm": (up + down) ** 0.5,
                "original_share": (up + down) / total,
                "original_up_share": up / total,
                "original_down_share": down / total,
                "auxiliary_norm": auxiliary**0.5,
                "auxiliary_share": auxiliary / total,
            }
            assert values == pytest.approx(expected, rel=1e-9)
        for name in ("original", "auxiliary"):
            per_layer = sum(values[f"{name}_share"] for values in part["layers"].values())
            assert part[f"{name}_share"] == pytest.approx(per_layer)
        assert part["original_share"] + part["auxiliary_share"] + part["rest_share"] == pytest.approx(1, rel=1e-12)
        rest = squares({name: value for name, value in gradients.items() if not name.startswith(mlps)}, "")
        assert part["rest_share"] == pytest.approx(rest / total, rel=1e-9)
    for layer, alignment in audit["alignment"].items():
        for name, path in (("original", "c_fc"), ("auxiliary", "auxiliary.forget.up_projection")):
            on, off = (
                torch.cat([value.flatten() for key, value in gradients.items() if f"h.{layer}.mlp.{path}" in key])
                for gradients in found.values()
            )
            assert alignment[name] == pytest.approx(float(on @ off / (off @ off)), rel=1e-9)


@pytest.mark.parametrize("original_forget", [-0.75, 0.0, 1.0])
@pytest.mark.parametrize("auxiliary_forget", [1.0, 0.5])
def test_uniform_forget_gives_the_multipliers_back(
    original_forget: float,
    auxiliary_forget: float,
    make_expanded: Callable[..., Any],
    make_batch: Callable[..., dict[str, Tensor]],
) -> None:
    model = make_expanded([1])
    model.gradient_multipliers = GradientMultipliers(original_forget=original_forget, auxiliary_forget=auxiliary_forget)
    audit = gradient_audit(model, uniform(make_batch(), 0.0))
    assert audit["alignment"] == {
        "1": {
            "original": pytest.approx(original_forget, rel=1e-6, abs=1e-12),
            "auxiliary": pytest.approx(auxiliary_forget, rel=1e-6),
        }
    }
    routed, unrouted = (audit[name]["layers"]["1"] for name in ("routed", "unrouted"))
    assert unrouted["original_up_share"] > 0.01
    assert (routed["original_up_share"] == 0) == (original_forget == 0)
    assert routed["original_down_share"] > 0.01  # not scaled in its own layer


def test_uniform_retain_is_no_routing(
    make_expanded: Callable[..., Any], make_batch: Callable[..., dict[str, Tensor]]
) -> None:
    audit = gradient_audit(make_expanded([0, 2]), uniform(make_batch(), 1.0))
    for values in audit["alignment"].values():
        assert values == {"original": pytest.approx(1.0, rel=1e-6), "auxiliary": pytest.approx(1.0, rel=1e-6)}
    assert audit["routed"]["total_norm"] == pytest.approx(audit["unrouted"]["total_norm"], rel=1e-6)


def test_the_model_is_left_as_it_was(
    make_expanded: Callable[..., Any], make_batch: Callable[..., dict[str, Tensor]]
) -> None:
    model, batch = make_expanded([0, 1], **DROPOUT), make_batch()
    plain = gradient_audit(model, batch)
    parameters, gradient = dict(model.named_parameters()), torch.ones(16)
    model.transformer.h[1].eval()  # one block in another mode
    model.auxiliary_modules()[1]["forget"].active = False
    model.transformer.h[0].mlp.c_fc.weight.requires_grad_(False)
    model.transformer.ln_f.weight.grad = gradient

    def state() -> list[Any]:
        flags = [(value.requires_grad, id(value.grad)) for value in parameters.values()]
        return [flags, activity(model), [module.training for module in model.modules()], gradient.tolist()]

    before, multipliers = state(), model.gradient_multipliers
    # Nothing of that changes what is found: frozen parameters and ablated modules are measured too.
    assert gradient_audit(model, [batch]) == plain
    assert state() == before
    assert model.gradient_multipliers is multipliers
    nn.init.constant_(model.transformer.ln_f.weight, float("nan"))
    with pytest.raises(ValueError, match=r"the gradient of `transformer.*` is not finite"):
        gradient_audit(model, batch)
    assert state() == before


def test_wrong_input_is_refused(
    make_base: Callable[..., Any], make_expanded: Callable[..., Any], make_batch: Callable[..., dict[str, Tensor]]
) -> None:
    model, batch = make_expanded([0]), make_batch()
    with pytest.raises(ValueError, match="`model` should be an expanded model, got GPTNeoForCausalLM"):
        gradient_audit(make_base(), batch)
    with pytest.raises(ValueError, match="a batch has no `routing_weight`"):
        gradient_audit(model, [batch, {name: value for name, value in batch.items() if name != "routing_weight"}])
    with pytest.raises(ValueError, match="no label to predict"):
        gradient_audit(model, {**batch, "labels": torch.full_like(batch["labels"], -100)})
    with pytest.raises(ValueError, match="no label to predict"):
        gradient_audit(model, [])


# ---- Ablation ----


def test_layers_are_switched_one_by_one(make_expanded: Callable[..., Any]) -> None:
    model = make_expanded([0, 2])
    model.auxiliary_modules()[2]["forget"].active = False
    with ablated_layers(model, [0]):
        assert activity(model) == {0: False, 2: True}
    assert activity(model) == {0: True, 2: False}
    with pytest.raises(ZeroDivisionError), ablated_layers(model, [0, 2]):
        _ = 1 / sum(activity(model).values())  # none is on
    assert activity(model) == {0: True, 2: False}
    with pytest.raises(ValueError, match=r"layer 1 has no auxiliary module. Layers that have one: 0, 2"):
        ablated_layers(model, [0, 1]).__enter__()


@pytest.fixture
def batches(make_batch: Callable[..., dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    names = ("input_ids", "attention_mask", "labels")
    return {kind: {name: make_batch(seed=seed)[name] for name in names} for seed, kind in enumerate(KINDS)}


def test_ablation_against_modules_cut_out_by_hand(
    make_expanded: Callable[..., Any], batches: dict[str, dict[str, Tensor]]
) -> None:
    model = make_expanded([0, 2])

    def measure(kind: str) -> StoryLosses:
        return story_losses(model, [batches[kind]])

    model.auxiliary_modules()[0]["forget"].active = False  # whatever it was before
    audit = ablation_audit(model, measure, samples=200)
    assert list(audit) == ["all", "0", "2"]
    assert activity(model) == {0: False, 2: True}
    model.set_active(None, True)
    whole = {name: measure(name) for name in KINDS}
    for key, layers in {"0": [0], "2": [2], "all": [0, 2]}.items():
        weights = [model.transformer.h[layer].mlp.auxiliary["forget"].down_projection.weight for layer in layers]
        kept = [weight.detach().clone() for weight in weights]
        for weight in weights:
            nn.init.zeros_(weight)
        for name in KINDS:
            added, estimate = measure(name).nll - whole[name].nll, audit[key][name]
            change, expected = added / whole[name].tokens, float(added.sum() / whole[name].tokens.sum())
            assert estimate["value"] == pytest.approx(expected, abs=1e-6)
            assert abs(expected) > 1e-3
            # In pairs, no resample leaves the range of the stories' own changes.
            assert float(change.min()) - 1e-6 <= estimate["low"] < estimate["value"] < estimate["high"]
            assert estimate["high"] <= float(change.max()) + 1e-6
        with torch.no_grad():
            for weight, values in zip(weights, kept, strict=True):
                weight.copy_(values)


def losses(nll: float, stories: int = 2) -> StoryLosses:
    ones = torch.ones(stories, dtype=torch.float64)
    return StoryLosses(nll * ones, ones, ones, ones)


def test_known_losses_are_not_measured_again(make_expanded: Callable[..., Any]) -> None:
    model = make_expanded([0, 2])
    seen: list[tuple[str, dict[int, bool]]] = []

    def measure(name: str) -> StoryLosses:
        seen.append((name, activity(model)))
        return losses(sum(0.5 for active in activity(model).values() if not active))

    known = {"forget": losses(0.25), "retain": losses(0.0)}
    audit = ablation_audit(model, measure, samples=0, all_on=known)
    assert {key: [part[name]["value"] for name in known] for key, part in audit.items()} == {
        "all": [0.75, 1.0], "0": [0.25, 0.5], "2": [0.25, 0.5],
    }  # fmt: skip
    assert audit["all"]["forget"]["low"] is None
    assert [off for name, off in seen if name == "forget"] == [
        {0: False, 2: False}, {0: False, 2: True}, {0: True, 2: False},
    ]  # fmt: skip


def test_a_single_layer_is_measured_once(make_expanded: Callable[..., Any]) -> None:
    model, names = make_expanded([1]), []

    def measure(name: str) -> StoryLosses:
        names.append(name)
        return losses(1.0 if activity(model)[1] else 1.5)

    audit = ablation_audit(model, measure)
    assert audit["all"] == audit["1"]
    assert audit["all"]["retain"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert names == ["forget", "retain"] * 2


def test_other_stories_are_refused_and_modules_come_back(make_expanded: Callable[..., Any]) -> None:
    model = make_expanded([0, 2])
    with pytest.raises(ValueError, match="`measure`: `forget` gave other examples"):
        ablation_audit(model, lambda name: losses(1.0, 2 if all(activity(model).values()) else 3))
    assert activity(model) == {0: True, 2: True}
