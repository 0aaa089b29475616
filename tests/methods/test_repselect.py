"""RepSelect: the collapse by a dense formula, the bound on the KL, and which weights a run changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_era.methods import get_method, repselect
from hf_era.methods.post_training import batches_of
from hf_era.methods.repselect import RepSelectSettings, mean_kl, mlp_projections, soft_collapse, steps_within_kl
from hf_era.models import family_for
from hf_era.models.loading import load_causal_lm


@pytest.mark.parametrize("exact", [True, False])
def test_the_strongest_directions_become_weaker_than_the_last_of_them(
    exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repselect, "LARGEST_EXACT_SVD", 1_000 if exact else 0)
    torch.manual_seed(0)
    rotations = [torch.linalg.qr(torch.randn(size, 6, dtype=torch.float64))[0] for size in (9, 6)]
    values = torch.tensor([64.0, 16.0, 4.0, 0.5, 0.25, 0.125], dtype=torch.float64)
    gradient = rotations[0] * values @ rotations[1].T
    collapsed = torch.tensor([4**2 / 64, 4**2 / 16, 4.0, 0.5, 0.25, 0.125], dtype=torch.float64)
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if exact else {"rtol": 0.0, "atol": 0.05}
    torch.testing.assert_close(soft_collapse(gradient, 3), rotations[0] * collapsed @ rotations[1].T, **tolerance)
    torch.testing.assert_close(soft_collapse(gradient.T, 3), (rotations[1] * collapsed @ rotations[0].T), **tolerance)


def test_one_component_or_no_gradient_changes_nothing() -> None:
    gradient = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(soft_collapse(gradient, 1), gradient)
    assert (soft_collapse(torch.zeros(4, 3), 3) == 0).all()


@pytest.fixture
def batches() -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(0, 50, (3, 9), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}]


def test_steps_end_before_the_bound_and_the_last_valid_one_is_kept(
    make_base: Callable[..., Any], batches: list[dict[str, torch.Tensor]]
) -> None:
    model, original = make_base().eval(), make_base().eval()
    weights = mlp_projections(model, family_for(model.config))
    assert len(weights) == 6  # up and down, three layers
    torch.manual_seed(1)
    steps = {name: 0.003 * torch.randn_like(value) for name, value in weights.items()}
    found = list(steps_within_kl(model, original, steps, batches, max_kl=0.01, max_steps=1000))
    assert 1 < len(found) < 1000
    assert all(value <= 0.01 for value in found)
    for name, value in original.named_parameters():
        step = steps.get(name)
        expected = value if step is None else value - len(found) * step
        assert torch.equal(dict(model.named_parameters())[name], expected), name
    assert mean_kl(model, original, batches) == found[-1]
    with torch.no_grad():
        for name, step in steps.items():
            weights[name] -= step
    assert mean_kl(model, original, batches) > 0.01  # one more would have passed it


def test_a_first_step_too_far_leaves_the_model_as_it_was(
    make_base: Callable[..., Any], batches: list[dict[str, torch.Tensor]]
) -> None:
    model, original = make_base().eval(), make_base().eval()
    steps = {name: torch.ones_like(value) for name, value in mlp_projections(model, family_for(model.config)).items()}
    assert not list(steps_within_kl(model, original, steps, batches, max_kl=0.01, max_steps=5))
    weights = dict(model.named_parameters())
    assert all(torch.equal(value, weights[name]) for name, value in original.named_parameters())


def test_a_run_changes_mlp_projections_alone(make_models: Callable[..., Any], tmp_path: Path) -> None:
    settings = {"max_steps": 3, "max_kl": 1.0, "general_stories": 8, "forget_stories": 8}
    run, reports = make_models(tmp_path, method="repselect", method_settings=settings)
    assert reports["train"]["steps"] == 3
    base, elicited, final = (
        load_file(run.folder(name) / "model.safetensors") for name in ("base", "elicitor", "model")
    )
    projections = {f"transformer.h.{layer}.mlp.{name}.weight" for layer in (0, 1) for name in ("c_fc", "c_proj")}
    assert {name for name, value in base.items() if not torch.equal(value, elicited[name])} == projections
    assert {name for name, value in base.items() if not torch.equal(value, final[name])} == projections


@pytest.mark.parametrize("elicitor", ["adapters", "module"])
def test_the_elicitor_learns_the_forget_examples_and_the_steps_unteach_them(
    elicitor: str, make_models: Callable[..., Any], tmp_path: Path
) -> None:
    settings = {
        "elicitor": elicitor,
        "elicitation_learning_rate": 1.0,
        "max_steps": 3,
        "max_kl": 1.0,
        "general_stories": 8,
    }
    run, _ = make_models(tmp_path, method="repselect", method_settings=settings)
    method = get_method("repselect")
    if elicitor == "module":
        elicited = load_causal_lm(run.folder("elicitor"))
        weights = dict(load_causal_lm(run.folder("base")).named_parameters())
        assert all(torch.equal(value, dict(elicited.named_parameters())[name]) for name, value in weights.items())
    else:
        elicited = load_causal_lm(run.folder("elicitor"))
    base, final = (load_causal_lm(run.folder(name)) for name in ("base", "model"))
    batches = list(batches_of(run, method.stories(run)))
    losses = [sum(float(model(**batch).loss.detach()) for batch in batches) for model in (elicited, base, final)]
    assert losses[0] < losses[1] < losses[2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"elicitor": "lora"}, "`method_settings.elicitor`.*'lora'.*adapters, module"),
        ({"components": 0.0}, r"`method_settings.components` should be in \(0, 1\], got 0.0"),
        ({"max_kl": 0.0}, "`method_settings.max_kl` should be positive and finite, got 0.0"),
        ({"elicitation_epochs": -1.0}, "`method_settings.elicitation_epochs` should be a finite number >= 0, got -1.0"),
        ({"rank": 0}, "`method_settings.rank` should be at least 1, got 0"),
    ],
)
def test_what_is_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RepSelectSettings(**settings)
