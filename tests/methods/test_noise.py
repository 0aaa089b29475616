"""Noise: its formula for either kind, and which weights get it."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_era import RunConfig
from hf_era.methods import get_method, noise
from hf_era.methods.noise import NoiseSettings, add_noise, importance, largest_share, noise_seed, norm_parameters
from hf_era.models.loading import causal_lm_from_config, load_causal_lm


def noised(base: Any, **settings: Any) -> dict[str, Any]:
    add_noise(base, NoiseSettings(**settings), seed=3)
    return dict(base.named_parameters())


def test_the_noise_has_the_formula_s_mean_and_bounds(make_base: Callable[..., Any]) -> None:
    before = {name: value.detach().clone() for name, value in make_base().named_parameters()}
    after = noised(make_base(), alpha=0.4, beta=0.5)
    assert sum("wte" in name for name in after) == 1  # the tied head is damaged once
    for name, value in before.items():
        left = (after[name] - 0.6 * value) / (0.4 * 0.5)
        if value.dim() == 1:
            torch.testing.assert_close(after[name], 0.6 * value)
            continue
        bound = math.sqrt(6 / sum(value.shape))
        assert 0.95 * bound < left.abs().max() <= bound * 1.0001, name
        # Uniform: a mean of 0 and a standard deviation of bound / sqrt(3), within 5 standard errors.
        assert left.mean().abs() < 5 * bound / math.sqrt(3 * value.numel()), name
        assert left.std().item() == pytest.approx(bound / math.sqrt(3), rel=5 / math.sqrt(value.numel())), name


def test_noise_that_is_none_and_noise_that_is_all(make_base: Callable[..., Any]) -> None:
    before = dict(make_base().named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in noised(make_base(), alpha=0.0).items())
    one, other = (noised(make_base(seed=seed), alpha=1.0) for seed in (0, 1))
    assert all(torch.equal(value, other[name]) for name, value in one.items())  # nothing of the weights is left
    spared = noised(make_base(), alpha=1.0, spare_norms=True)
    kept = {name for name, value in spared.items() if torch.equal(value, before[name])}
    assert kept == norm_parameters(make_base())
    assert {"transformer.ln_f.weight", "transformer.h.0.ln_1.bias"} <= kept


def test_noise_of_a_fresh_model(make_base: Callable[..., Any]) -> None:
    base, state = make_base(), torch.get_rng_state()
    fresh = dict(causal_lm_from_config(base.config, 3).named_parameters())
    torch.set_rng_state(state)
    before = {name: value.detach().clone() for name, value in base.named_parameters()}
    after = noised(base, alpha=0.25, noise="initial")
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in before.items():
        torch.testing.assert_close(after[name], 0.75 * value + 0.25 * fresh[name])
    anew = noised(make_base(), alpha=1.0, noise="initial")
    assert all(torch.equal(value, fresh[name]) for name, value in anew.items())  # nothing is left but a fresh model


def test_what_is_not_chosen_is_left(make_base: Callable[..., Any]) -> None:
    base = make_base()
    before = {name: value.detach().clone() for name, value in base.named_parameters()}
    name = "transformer.h.1.mlp.c_fc.weight"
    mask = torch.zeros_like(before[name], dtype=torch.bool)
    mask[2] = True
    add_noise(base, NoiseSettings(alpha=0.5), 3, {name: mask})
    whole = dict(noised(make_base(), alpha=0.5))
    for other, value in base.named_parameters():
        expected = torch.where(mask, whole[other], before[other]) if other == name else before[other]
        assert torch.equal(value, expected), other  # what is drawn does not depend on what is chosen


def test_importance_is_the_mean_of_squared_gradients_of_single_examples() -> None:
    class Square(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor([2.0, -1.0]))

        def forward(self, x: torch.Tensor) -> Any:
            return type("Output", (), {"loss": (self.weight * x).pow(2).sum() / 2})()

    found = importance(Square(), [{"x": torch.tensor([1.0, 3.0])}, {"x": torch.tensor([2.0, 0.0])}])
    # Gradients w x^2: (2, -9) and (8, 0).
    assert found["weight"].tolist() == [(4 + 64) / 2, 81 / 2]


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.01, [0, 0, 0, 1]), (0.5, [0, 1, 0, 1]), (0.75, [1, 1, 0, 1]), (1.0, [1, 1, 1, 1])],
)
def test_the_largest_share(share: float, expected: list[int]) -> None:
    assert largest_share(torch.tensor([2.0, 5.0, 1.0, 9.0]), share).int().tolist() == expected


def test_what_no_example_moves_is_in_no_share() -> None:
    assert largest_share(torch.tensor([0.0, 0.0, 0.0, 1.0]), 0.75).tolist() == [False, False, False, True]


def test_a_run_may_begin_from_a_mixture_with_a_fresh_model(make_models: Callable[..., Any], tmp_path: Path) -> None:
    own = {"alpha": 0.5, "noise": "initial", "teacher": "none", "retain_tolerance": None}
    run, _ = make_models(tmp_path, method="undo", method_settings=own, coherence={"enabled": False})
    before = dict(load_causal_lm(run.before_model).named_parameters())
    fresh = dict(causal_lm_from_config(run.base_config, noise_seed(run.seed)).named_parameters())
    for name, value in get_method("undo").start_weights(run).named_parameters():
        torch.testing.assert_close(value, 0.5 * before[name] + 0.5 * fresh[name])


@pytest.mark.parametrize("noise", ["initial", "xavier_uniform"])
def test_noise_has_nothing_of_the_weights_that_a_base_trained_here_began_from(
    noise: str, make_models: Callable[..., Any], tmp_path: Path
) -> None:
    own = {"alpha": 1.0, "noise": noise, "teacher": "none", "retain_tolerance": None}
    run, _ = make_models(tmp_path, method="undo", method_settings=own, coherence={"enabled": False})
    began = dict(causal_lm_from_config(run.base_config, run.seed).named_parameters())
    start = get_method("undo").start_weights(run).named_parameters()
    alike = [
        abs(float(torch.corrcoef(torch.stack([value, began[name]]).detach().flatten(1))[0, 1]))
        for name, value in start
        if value.dim() == 2
    ]
    assert max(alike) < 0.5


SELECTIVE = {"alpha": 1.0, "noised": "selective", "selective_share": 0.1, "selective_examples": 8}


@pytest.mark.parametrize("settings", [SELECTIVE, {"alpha": 1.0, "noised": "blocks"}], ids=["selective", "blocks"])
def test_a_run_noises_what_its_settings_say(
    settings: dict[str, Any], make_models: Callable[..., Any], tmp_path: Path
) -> None:
    method = {"method": "undo", "method_settings": {**settings, "teacher": "none", "retain_tolerance": None}}
    run, _ = make_models(tmp_path, **method, coherence={"enabled": False})
    before = dict(load_causal_lm(run.before_model).named_parameters())
    start = dict(get_method("undo").start_weights(run).named_parameters())
    changed = {name: int((value != before[name]).sum()) for name, value in start.items()}
    if settings["noised"] == "blocks":
        assert {name for name, number in changed.items() if number} == {name for name in changed if ".h." in name}
        return
    weights = {name: number for name, number in changed.items() if "bias" not in name}  # biases begin at 0
    too_many = {name for name, number in weights.items() if not 0 < number <= max(round(0.1 * start[name].numel()), 1)}
    assert not too_many
    rows = (start["transformer.wte.weight"] != before["transformer.wte.weight"]).float().mean(1)
    counts = {label: torch.zeros(len(rows)) for label in (0, 1)}
    for example in run.data.train:
        counts[example["label"]].index_add_(
            0, torch.tensor(example["input_ids"]), torch.ones(len(example["input_ids"]))
        )
    shares = [(counts[label] / counts[label].sum()) for label in (0, 1)]
    more = shares[0] > 2 * shares[1]
    assert rows[more].mean() > 2 * rows[~more].mean()  # entries that forget examples have more of


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1.5}, r"`method_settings.alpha` should be in \[0, 1\], got 1.5"),
        ({"beta": -1.0}, "`method_settings.beta` should be a finite number >= 0, got -1.0"),
        ({"noise": "normal"}, "Unknown value for `method_settings.noise`: 'normal'"),
        ({"noised": "head"}, "Unknown value for `method_settings.noised`: 'head'"),
        ({"selective_share": 0.0}, "`method_settings.selective_share` should be above 0 and at most 1, got 0.0"),
        ({"selective_examples": 0}, "`method_settings.selective_examples`"),
    ],
)
def test_bad_noise_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoiseSettings(**settings)


@pytest.mark.parametrize("method", ["undo", "noise_and_route"])
def test_importance_needs_retain_examples(
    method: str, tmp_path: Path, make_run_config: Callable[..., RunConfig]
) -> None:
    config = make_run_config(tmp_path, method=method, method_settings=SELECTIVE, coherence={"enabled": False})
    with pytest.raises(ValueError, match=r"no training example is labelled retain\. Label some, or set"):
        get_method(method).check_data(config, retain_stories=0, unlabelled_stories=100)


def test_the_size_of_noise_has_a_default_of_its_kind() -> None:
    assert [NoiseSettings(noise=noise).beta for noise in ("xavier_uniform", "initial")] == [0.1, 1.0]


def test_importance_that_is_no_number_chooses_nothing(
    make_models: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SELECTIVE, "teacher": "none", "retain_tolerance": None}
    run, _ = make_models(tmp_path, method="undo", method_settings=settings, coherence={"enabled": False})

    def broken(path: Any) -> Any:
        model = load_causal_lm(path)
        with torch.no_grad():
            model.get_input_embeddings().weight.fill_(float("inf"))
        return model

    monkeypatch.setattr(noise, "load_causal_lm", broken)
    with pytest.raises(ValueError, match=r"`method_settings.noised` is 'selective'.*not finite.*noised: all"):
        get_method("undo").start_weights(run)
