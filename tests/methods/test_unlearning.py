"""Losses of the methods that unlearn, and their gradients, against formulas in float64, example by example."""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback

from hf_era import FastGPTNeoForCausalLM
from hf_era.data import FORGET, RETAIN, UNLABELLED
from hf_era.methods.era_rmu import ERARMUSettings
from hf_era.methods.gradient_difference import GradientDifferenceSettings, GradientDifferenceTrainer
from hf_era.methods.npo import NPOSettings, NPOTrainer
from hf_era.methods.rmu import RMUSettings, RMUTrainer, choose_updated, control_vector
from hf_era.training.config import CausalLMTrainingConfig

LABELS = [FORGET, RETAIN, UNLABELLED, FORGET, RETAIN, RETAIN, FORGET, UNLABELLED]


class Catch(TrainerCallback):
    gradients: dict[str, Tensor]

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = kwargs["model"].named_parameters()
        self.gradients = {name: value.grad.clone().double() for name, value in named if value.grad is not None}


@pytest.fixture(scope="module")
def examples() -> Dataset:
    """Eight of unlike length, one of whose prompt is no label."""
    generator = torch.Generator().manual_seed(3)
    ids = [torch.randint(0, 52, (length,), generator=generator).tolist() for length in (9, 12, 5, 11, 7, 4, 6, 10)]
    labels = [[-100] * 3 + row[3:] if place == 3 else row for place, row in enumerate(ids)]
    return Dataset.from_dict({"input_ids": ids, "labels": labels, "label": LABELS})


@pytest.fixture(scope="module")
def models(make_base: Callable[..., Any]) -> tuple[Any, Any]:
    """The model before, and one that has moved away from it; both in float64."""
    before, now = make_base(0).double().eval(), make_base(0).double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in now.parameters():
            value.add_(0.03 * torch.randn(value.shape, generator=generator, dtype=torch.float64))
    return before, now


@pytest.fixture
def train(tmp_path: Path, examples: Dataset, models: tuple[Any, Any]) -> Callable[..., tuple[Any, dict[str, Tensor]]]:
    """One step in float32 on all examples; returns the trainer and the gradients that reached the optimizer."""

    def run(trainer_class: Any, batch_size: int = 8, freeze: Any = None, **options: Any) -> Any:
        before, now = (FastGPTNeoForCausalLM.from_stock(model).float() for model in map(deepcopy, models))
        catch = Catch()
        if freeze is not None:
            choose_updated(now, now.family, freeze)
        reference = {} if trainer_class is GradientDifferenceTrainer else {"reference": before}
        args = CausalLMTrainingConfig(
            output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=batch_size, logging_steps=1, seed=7,
            gradient_accumulation_steps=8 // batch_size, train_sampling_strategy="sequential", save_strategy="no",
            disable_tqdm=True, use_cpu=True, report_to="none",
        )  # fmt: skip
        trainer = trainer_class(now, args, train_dataset=examples, callbacks=[catch], **reference, **options)
        trainer.train()
        return trainer, catch.gradients

    return run


def nll(model: Any, example: dict[str, Any]) -> Tensor:
    """Of each label of an example, from the whole logits of the stock class."""
    ids, labels = torch.tensor([example["input_ids"]]), torch.tensor(example["labels"])[1:]
    log_probabilities = model(ids).logits[0, :-1].log_softmax(-1)
    return -log_probabilities[torch.arange(len(labels)), labels.clamp(min=0)][labels >= 0]


def split(examples: Dataset, value: Callable[[dict[str, Any]], Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Of forget examples, and of all others."""
    found = [(example["label"] == FORGET, value(example)) for example in examples]
    return [one for is_forget, one in found if is_forget], [one for is_forget, one in found if not is_forget]


def gradients_of(loss: Tensor, model: Any) -> dict[str, Tensor]:
    named = {name: value for name, value in model.named_parameters() if value.requires_grad}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True))


def check_equal(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 2e-5) -> None:
    largest = max(float(value.abs().max()) for value in expected.values() if value is not None)
    assert largest > 1e-3
    for name, value in found.items():
        assert (value - expected[name]).abs().max() < tolerance * largest, name


@pytest.mark.parametrize("batch_size", [8, 2])
def test_gradient_difference(train: Any, models: Any, examples: Dataset, batch_size: int) -> None:
    settings = GradientDifferenceSettings(forget_coefficient=0.7, largest_loss=4.0)
    trainer, found = train(GradientDifferenceTrainer, batch_size, settings=settings)
    forget, retain = map(torch.cat, split(examples, lambda example: nll(models[1], example)))
    bounded = torch.where(forget < 4.0, forget, 4.0)
    assert 0 < (forget > 4.0).sum() < len(forget)  # the bound matters
    check_equal(found, gradients_of(retain.mean() - 0.7 * bounded.mean(), models[1]))
    logged = trainer.state.log_history[0]
    assert logged["forget_loss"] == pytest.approx(bounded.mean().item(), rel=1e-4)
    assert logged["retain_loss"] == pytest.approx(retain.mean().item(), rel=1e-4)
    assert logged["loss"] == pytest.approx((retain.mean() - 0.7 * bounded.mean()).item(), rel=1e-4)


def test_the_bound_is_that_of_a_guess_if_not_given(train: Any) -> None:
    trainer, _ = train(GradientDifferenceTrainer, settings=GradientDifferenceSettings())
    assert trainer.largest == math.log(53)


def npo_loss(models: Any, examples: Dataset, beta: float, now: Any = None) -> tuple[Tensor, Tensor]:
    """2 / beta * log(1 + (p / p_before)^beta) over forget examples, by their tokens; and the retain loss."""
    forget, retain = split(examples, lambda example: nll(now or models[1], example))
    before, _ = split(examples, lambda example: nll(models[0], example).detach())
    terms = [
        2 / beta * torch.log1p(torch.exp(beta * (old.sum() - new.sum())))
        for new, old in zip(forget, before, strict=True)
    ]
    return torch.stack(terms).sum() / sum(map(len, forget)), torch.cat(retain).mean()


def test_npo(train: Any, models: Any, examples: Dataset) -> None:
    _, found = train(NPOTrainer, 2, settings=NPOSettings(beta=0.5, retain_coefficient=1.5))
    forget, retain = npo_loss(models, examples, 0.5)
    check_equal(found, gradients_of(forget + 1.5 * retain, models[1]))


def test_npo_with_a_small_beta_is_gradient_ascent(train: Any, models: Any, examples: Dataset) -> None:
    _, found = train(NPOTrainer, settings=NPOSettings(beta=1e-5))
    forget, retain = map(torch.cat, split(examples, lambda example: nll(models[1], example)))
    check_equal(found, gradients_of(retain.mean() - forget.mean(), models[1]), 1e-3)


def test_npo_with_sam_takes_the_forget_gradient_at_the_worst_point_nearby(
    train: Any, models: Any, examples: Dataset
) -> None:
    _, found = train(NPOTrainer, settings=NPOSettings(beta=0.5, sharpness_radius=0.5))
    forget, retain = npo_loss(models, examples, 0.5)
    steepest = gradients_of(forget, models[1])
    norm = math.sqrt(sum(float(part.square().sum()) for part in steepest.values()))
    moved = deepcopy(models[1])
    with torch.no_grad():
        for name, value in moved.named_parameters():
            value.add_(0.5 / norm * steepest[name])
    there = gradients_of(npo_loss(models, examples, 0.5, moved)[0], moved)
    here = gradients_of(retain, models[1])
    check_equal(found, {name: there[name] + here[name] for name in there}, 1e-4)
    assert max(float((there[name] - steepest[name]).abs().max()) for name in there) > 1e-2


def stream(model: Any, example: dict[str, Any], layer: int) -> Tensor:
    """What enters a layer at the positions that predict a label, (positions, hidden)."""
    found = []
    hook = model.transformer.h[layer].register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    model(torch.tensor([example["input_ids"]]))
    hook.remove()
    return found[0][0, :-1][torch.tensor(example["labels"])[1:] >= 0]


def test_rmu(train: Any, models: Any, examples: Dataset) -> None:
    settings = RMUSettings(layer=2, steering=3.0, retain_coefficient=5.0)
    _, found = train(RMUTrainer, 2, freeze=settings, settings=settings, layer=2)
    control = control_vector(16, 3.0, seed=7).double()
    now, _ = split(examples, lambda example: stream(models[1], example, 2))
    _, kept = split(examples, lambda example: stream(models[1], example, 2) - stream(models[0], example, 2).detach())
    loss = (torch.cat(now) - control).square().mean() + 5.0 * torch.cat(kept).square().mean()
    names = {f"transformer.h.{layer}.mlp.c_proj.{part}" for layer in (0, 1) for part in ("weight", "bias")}
    assert set(found) == names  # nothing else learns
    check_equal(found, gradients_of(loss, models[1]))


def test_the_control_vector_is_drawn_once(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = control_vector(64, 100.0, seed=7)
    assert drawn.norm() == pytest.approx(100.0)
    assert drawn.min() >= 0
    assert torch.equal(drawn, control_vector(64, 100.0, seed=7))
    assert not torch.equal(drawn, control_vector(64, 100.0, seed=8))
    asked = []
    monkeypatch.setattr(
        "hf_era.methods.rmu.control_vector", lambda *args: asked.append(args[3]) or control_vector(*args)
    )
    for redraw in (False, True):
        settings = RMUSettings(redraw=redraw)
        trainer, _ = train(RMUTrainer, 4, settings=settings, layer=1)
        trainer.state.global_step = 6
        batch = trainer.data_collator([trainer.train_dataset[place] for place in (0, 1)])
        trainer.compute_loss(trainer.model, batch)
    assert asked == [0, 0, 0, 0, 0, 6]


@pytest.mark.parametrize(
    ("depth", "layer", "updated"), [(2, 1, [0]), (4, 3, [0, 1, 2]), (8, 5, [2, 3, 4]), (32, 20, [17, 18, 19])]
)
def test_layers_by_depth(depth: int, layer: int, updated: list[int]) -> None:
    assert RMUSettings().layers_of(depth) == (layer, updated)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GradientDifferenceSettings(largest_loss=0), r"`method_settings.largest_loss` should be positive"),
        (lambda: NPOSettings(beta=0), r"`method_settings.beta` should be positive and finite, got 0"),
        (
            lambda: NPOSettings(sharpness_radius=-1),
            r"`method_settings.sharpness_radius` should be finite and at least 0",
        ),
        (lambda: RMUSettings(updated="c_proj"), "Unknown value for `method_settings.updated`: 'c_proj'"),
        (
            lambda: RMUSettings(updated_layers=[]),
            r"`method_settings.updated_layers` is \[\], so that nothing would learn",
        ),
        (
            lambda: RMUSettings(layer=4).layers_of(4),
            "`method_settings.layer` is 4, but the model has 4 layers: choose from",
        ),
        (lambda: RMUSettings(layer=2, updated_layers=[2]).layers_of(4), r"names 2, but only layers from 0 to 1 act on"),
        (lambda: RMUSettings().layers_of(1), "steers what enters a layer behind the first, and the model has 1"),
        (lambda: ERARMUSettings(steps=0), "`method_settings.steps` should be at least 1, got 0"),
    ],
)
def test_settings_that_make_no_sense(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_every_setting_says_whether_it_identifies_a_run() -> None:
    for kind in (GradientDifferenceSettings, NPOSettings, ERARMUSettings):
        assert all(item.metadata["identity"] is True and item.metadata["help"] for item in fields(kind))
