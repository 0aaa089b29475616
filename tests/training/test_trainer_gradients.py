"""What reaches the optimizer: accumulation, the L1 term's denominator, routing weights, parameter groups."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import GPTNeoForCausalLM, TrainerCallback

from hf_era import FastGPTNeoForCausalLM, GradientMultipliers, GradientRoutingConfig, GradientRoutingTrainer
from hf_era.data import RoutingCollator
from hf_era.training import CausalLMTrainer
from hf_era.training.config import CausalLMTrainingConfig


class CatchGradients(TrainerCallback):
    """Copies all gradients just before each optimizer step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []
        self.learning_rates: list[list[float]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        self.steps.append({name: value.grad.clone() for name, value in model.named_parameters()})
        self.learning_rates.append([group["lr"] for group in optimizer.param_groups])


def manual_gradients(model: Any, stories: Any, multipliers: GradientMultipliers, l1: float) -> dict[str, Tensor]:
    """The gradients of one batch of all stories, by a plain forward and backward pass."""
    batch = RoutingCollator(pad_token_id=0)([stories[index] for index in range(len(stories))])
    model.zero_grad()
    model.gradient_multipliers = multipliers
    outputs = model(**batch, output_activation_l1=True)
    (outputs.loss + l1 * outputs.activation_l1 / batch["attention_mask"].sum()).backward()
    return {name: value.grad.clone() for name, value in model.named_parameters()}


def largest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    return max(
        float((first[name] - second[name]).abs().max() / second[name].abs().max().clamp(min=1e-3)) for name in second
    )


@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 1), (1, 8), (2, 4), (3, 3)])
@pytest.mark.parametrize("chunked_loss", [True, False], ids=["chunked loss", "whole logits"])
@pytest.mark.parametrize("l1_coefficient", [0.0, 1e-2])
def test_gradients_do_not_depend_on_accumulation(
    make_trainer: Callable[..., Any],
    make_expanded: Callable[..., Any],
    make_stories: Callable[..., Any],
    batch_size: int,
    accumulation: int,
    l1_coefficient: float,
    chunked_loss: bool,
) -> None:
    stories = make_stories(8)
    expected = manual_gradients(make_expanded([0, 1]), stories, GradientMultipliers(), l1_coefficient)
    catch = CatchGradients()
    trainer = make_trainer(
        stories=stories,
        callbacks=[catch],
        max_steps=1,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        l1_coefficient=l1_coefficient,
        chunked_loss=chunked_loss,
        train_sampling_strategy="sequential",
    )
    trainer.train()
    assert largest_difference(catch.steps[0], expected) < 2e-6


def test_routing_weights_and_multipliers_reach_the_model(
    make_trainer: Callable[..., Any], make_expanded: Callable[..., Any], make_stories: Callable[..., Any]
) -> None:
    stories = make_stories(4)
    multipliers = GradientMultipliers(original_forget=-2.0, auxiliary_retain=0.0)
    catch = CatchGradients()
    trainer = make_trainer(
        stories=stories,
        callbacks=[catch],
        max_steps=1,
        l1_coefficient=0.0,
        multipliers=multipliers.to_dict(),
        train_sampling_strategy="sequential",
    )
    trainer.train()
    expected = manual_gradients(make_expanded([0, 1]), stories, multipliers, 0.0)
    assert largest_difference(catch.steps[0], expected) < 2e-6
    # The check can fail: without the column the gradients are others.
    unrouted = manual_gradients(make_expanded([0, 1]), stories.remove_columns("routing_weight"), multipliers, 0.0)
    assert largest_difference(catch.steps[0], unrouted) > 0.1


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(
    make_trainer: Callable[..., Any], make_stories: Callable[..., Any], use_reentrant: bool
) -> None:
    # transformers 5.2x renamed the arguments.
    known = {field.name for field in dataclasses.fields(GradientRoutingConfig)}
    word = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    caught = []
    for settings in ({}, {word: True, f"{word}_kwargs": {"use_reentrant": use_reentrant}}):
        catch = CatchGradients()
        make_trainer(callbacks=[catch], max_steps=1, **settings).train()
        caught.append(catch.steps[0])
    assert largest_difference(caught[1], caught[0]) < 1e-6


def test_the_auxiliary_module_has_optimizer_groups_of_its_own(make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(auxiliary_learning_rate_factor=3.0, auxiliary_weight_decay=0.5, weight_decay=0.1)
    groups = trainer.create_optimizer().param_groups
    names = {id(value): name for name, value in trainer.model.named_parameters()}
    assert sum(len(group["params"]) for group in groups) == len(names)
    for group in groups:
        auxiliary = {trainer.model.is_auxiliary_parameter(names[id(value)]) for value in group["params"]}
        assert len(auxiliary) == 1
        is_auxiliary = auxiliary.pop()
        assert group["lr"] == pytest.approx(3e-2 if is_auxiliary else 1e-2)
        assert group["weight_decay"] == (0.5 if is_auxiliary else 0.1)
    assert len(groups) == 2


def test_usual_groups_spare_biases_and_norms_from_weight_decay(make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(weight_decay_on_all_parameters=False, weight_decay=0.1)
    names = {id(value): name for name, value in trainer.model.named_parameters()}
    for group in trainer.create_optimizer().param_groups:
        for value in group["params"]:
            spared = names[id(value)].endswith("bias") or ".ln_" in names[id(value)]
            assert group["weight_decay"] == (0.0 if spared else 0.1), names[id(value)]


def test_learning_rate_starts_above_zero_and_ends_at_its_minimum(make_trainer: Callable[..., Any]) -> None:
    catch = CatchGradients()
    trainer = make_trainer(
        callbacks=[catch],
        max_steps=12,
        warmup_steps=4,
        minimum_learning_rate_ratio=0.1,
        auxiliary_learning_rate_factor=2.0,
    )
    trainer.train()
    rates = [rates[0] for rates in catch.learning_rates]
    assert rates[0] == pytest.approx(1e-2 / 4)
    assert max(rates) == pytest.approx(1e-2)
    assert rates[-1] == pytest.approx(1e-3)
    assert all(auxiliary == pytest.approx(2 * original) for original, auxiliary in catch.learning_rates)


def test_every_parameter_is_trained(make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(max_steps=3)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    unchanged = [name for name, value in trainer.model.named_parameters() if torch.equal(before[name], value)]
    assert unchanged == []


def test_the_auxiliary_learning_rate_factor_scales_the_steps_of_the_auxiliary_weights_alone(
    make_trainer: Callable[..., Any],
) -> None:
    """Under plain SGD the change of a weight is its gradient times the learning rate."""

    def changes(factor: float) -> dict[str, Tensor]:
        trainer = make_trainer(
            max_steps=1, optim="sgd", weight_decay=0.0, learning_rate=0.1, auxiliary_learning_rate_factor=factor
        )
        before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
        trainer.train()
        return {name: value.detach() - before[name] for name, value in trainer.model.named_parameters()}

    whole, half, none = changes(1.0), changes(0.5), changes(0.0)
    auxiliary = {name for name in whole if ".auxiliary." in name}
    assert auxiliary
    assert auxiliary < set(whole)
    for name, change in whole.items():
        assert change.abs().max() > 1e-5, name
        if name in auxiliary:
            torch.testing.assert_close(half[name], change / 2, rtol=1e-3, atol=1e-7)
            assert not none[name].any(), name
        else:
            assert torch.equal(half[name], change), name
            assert torch.equal(none[name], change), name


@pytest.mark.parametrize("chunked_loss", [True, False], ids=["chunked loss", "whole logits"])
@pytest.mark.parametrize(
    "without_label",
    [{"input_ids": [7]}, {"input_ids": [7, 8, 9], "labels": [-100] * 3}, {"input_ids": [7, 8], "labels": [7, -100]}],
    ids=["one token", "all masked", "no predicted label"],
)
def test_a_batch_without_a_label_has_a_loss_of_zero(
    make_trainer: Callable[..., Any], without_label: dict[str, Any], chunked_loss: bool
) -> None:
    """And gradients of zero; the L1 term alone is as always."""
    length = len(without_label["input_ids"])
    stories = [{**without_label, "routing_weight": [0.5] * length}]
    trainer = make_trainer(stories=stories, l1_coefficient=0.0, chunked_loss=chunked_loss)
    batches, count = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, trainer.args.device)
    assert float(trainer.training_step(trainer.model, batches[0], count)) == 0.0
    for name, value in trainer.model.named_parameters():
        assert value.grad is not None, name
        assert not value.grad.any(), name  # NaN is not false
    trainer.l1_coefficient = 1.0
    assert float(trainer.training_step(trainer.model, batches[0], count)) > 0


@pytest.mark.parametrize("kind", ["takes less", "fast", "smoothed"])
@pytest.mark.parametrize("rows", [[{"input_ids": [7]}], [{"input_ids": [7, 8, 9], "labels": [-100] * 3}]])
def test_a_model_that_divides_its_loss_itself_has_one_of_zero_too(
    make_base: Callable[..., Any], tmp_path: Any, rows: Any, kind: str
) -> None:
    class TakesLess(FastGPTNeoForCausalLM if kind == "fast" else GPTNeoForCausalLM):  # type: ignore[misc]
        accepts_loss_kwargs = False

        def forward(self, input_ids: Any = None, attention_mask: Any = None, labels: Any = None) -> Any:
            return super().forward(input_ids, attention_mask=attention_mask, labels=labels)

    settings = {"max_steps": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 1, "logging_steps": 1}
    settings |= {"label_smoothing_factor": 0.1} if kind == "smoothed" else {}
    args = CausalLMTrainingConfig(str(tmp_path), use_cpu=True, disable_tqdm=True, save_strategy="no", **settings)
    stories = [*rows, *rows, *rows, {"input_ids": [1, 2, 3], "labels": [1, 2, 3]}]
    caught, model = CatchGradients(), TakesLess(make_base().config)
    trainer = CausalLMTrainer(model, args, train_dataset=stories, callbacks=[caught])
    trainer._get_train_sampler = lambda *given: SequentialSampler(stories)  # type: ignore[method-assign]
    trainer.train()
    assert [entry["loss"] == 0 for entry in trainer.state.log_history if "loss" in entry] == [True, False]
    assert not any(value.any() for value in caught.steps[0].values())  # NaN is not false
    assert any(value.any() for value in caught.steps[1].values())


def test_training_goes_on_after_batches_without_a_label(make_trainer: Callable[..., Any]) -> None:
    rows = [{"input_ids": [7]}, {"input_ids": [7]}, {"input_ids": [1, 2, 3]}, {"input_ids": [7]}]
    stories = [{**row, "routing_weight": [0.5] * len(row["input_ids"])} for row in rows]
    settings = {"per_device_train_batch_size": 1, "train_sampling_strategy": "sequential"}
    trainer = make_trainer(stories=stories, gradient_accumulation_steps=2, max_steps=2, l1_coefficient=0.0, **settings)
    trainer.train()
    assert [entry["loss"] == 0 for entry in trainer.state.log_history if "loss" in entry] == [True, False]
    assert all(value.isfinite().all() for value in trainer.model.parameters())


def test_a_process_with_padding_rows_alone_has_an_l1_term_of_zero(make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(l1_coefficient=1.0, average_tokens_across_devices=False)
    story = {"input_ids": torch.tensor([[1, 2]]), "labels": torch.full((1, 2), -100)}
    batch = {**story, "attention_mask": torch.zeros(1, 2, dtype=torch.int64), "routing_weight": torch.ones(1, 2)}
    batches, count = trainer.get_batch_samples(iter([batch]), 1, trainer.args.device)
    assert float(trainer.training_step(trainer.model, batches[0], count)) == 0.0


@pytest.mark.parametrize(
    "setting",
    [
        {"auxiliary_learning_rate_factor": 0.5},
        {"auxiliary_weight_decay": 0.5},
        {"weight_decay_on_all_parameters": False},
    ],
)
def test_settings_that_an_optimizer_of_the_users_own_makes_void_are_refused(
    make_trainer: Callable[..., Any], setting: dict[str, Any]
) -> None:
    plain = make_trainer(**setting)
    ((name, value),) = setting.items()
    optimizer = torch.optim.SGD(plain.model.parameters(), lr=0.1)
    message = rf"`training.{name}` is {value}, but has no effect on an optimizer of your own"
    with pytest.raises(ValueError, match=message):
        GradientRoutingTrainer(plain.model, plain.args, optimizers=(optimizer, None))
    later = GradientRoutingTrainer(plain.model, plain.args)
    later.optimizer = optimizer
    with pytest.raises(ValueError, match=message):
        later.create_optimizer()
    given = (torch.optim.SGD, {"lr": 0.1})
    trainer = GradientRoutingTrainer(plain.model, plain.args, optimizer_cls_and_kwargs=given)
    groups = trainer.create_optimizer().param_groups  # made by the trainer: they have an effect
    assert len({(group["lr"], group["weight_decay"]) for group in groups}) == 2


def test_a_schedule_of_the_users_own_makes_the_lowest_rate_void(make_trainer: Callable[..., Any]) -> None:
    plain = make_trainer(minimum_learning_rate_ratio=0.5)
    optimizer = torch.optim.SGD(plain.model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    with pytest.raises(
        ValueError, match=r"`training.minimum_learning_rate_ratio` is 0.5.*no effect on a learning-rate"
    ):
        GradientRoutingTrainer(plain.model, plain.args, optimizers=(optimizer, schedule))
    GradientRoutingTrainer(plain.model, plain.args, optimizers=(optimizer, None))
    GradientRoutingTrainer(plain.model, make_trainer().args, optimizers=(optimizer, schedule))
