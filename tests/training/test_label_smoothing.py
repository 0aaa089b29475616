"""`label_smoothing_factor`: the loss of the *next* token, smoothed, whatever the model's class is called."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_era import GradientRoutingConfig
from hf_era.data import RoutingCollator
from hf_era.training import CausalLMTrainer

SMOOTHING = 0.1


def smoothed(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum over labelled positions of (1 - e) * nll + e * (mean over the vocabulary of -log p), written out."""
    total = torch.zeros(())
    for row, targets in zip(logits.log_softmax(-1), labels, strict=True):
        for position, target in enumerate(targets[1:]):
            if target != -100:
                log_probabilities = row[position]
                total = total - (1 - SMOOTHING) * log_probabilities[target] - SMOOTHING * log_probabilities.mean()
    return total


@pytest.fixture
def stories(make_stories: Callable[..., Any]) -> Any:
    """Eight stories, the first tokens of which are no labels."""
    chosen = make_stories(8)
    return chosen.map(lambda row: {"labels": [-100, -100, *row["input_ids"][2:]]})


@pytest.mark.parametrize(("batch_size", "accumulation", "chunked_loss"), [(8, 1, True), (3, 3, True), (3, 3, False)])
def test_loss_and_gradients_are_those_of_the_shifted_formula(
    make_trainer: Callable[..., Any],
    make_expanded: Callable[..., Any],
    stories: Any,
    batch_size: int,
    accumulation: int,
    chunked_loss: bool,
) -> None:
    batch = RoutingCollator(0)(list(stories))
    expected = make_expanded([0, 1])
    outputs = expected(**{**batch, "labels": None}, output_activation_l1=True)
    loss = smoothed(outputs.logits, batch["labels"]) / (batch["labels"][:, 1:] != -100).sum()
    l1 = 1e-2 * outputs.activation_l1 / batch["attention_mask"].sum()
    (loss + l1).backward()
    trainer = make_trainer(
        stories=stories,
        l1_coefficient=1e-2,
        label_smoothing_factor=SMOOTHING,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        chunked_loss=chunked_loss,
    )
    batches, count = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), accumulation, trainer.args.device)
    found = sum(float(trainer.training_step(trainer.model, batch, count)) for batch in batches)
    assert found == pytest.approx(float(loss.detach() + l1.detach()), rel=1e-5)
    for name, value in trainer.model.named_parameters():
        torch.testing.assert_close(value.grad, expected.get_parameter(name).grad, rtol=2e-4, atol=2e-6)


def test_cyclic_rows_teach_the_next_token(make_trainer: Callable[..., Any]) -> None:
    rows = [[(start + index) % 16 for index in range(12)] for start in range(16)]
    stories = [{"input_ids": row, "routing_weight": [1.0] * 12} for row in rows]
    trainer = make_trainer(stories=stories, label_smoothing_factor=SMOOTHING, per_device_train_batch_size=16)
    optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=3e-2)
    trainer.current_gradient_accumulation_steps = 1
    for batch in [*trainer.get_train_dataloader()] * 20:
        optimizer.zero_grad()
        trainer.training_step(trainer.model, batch)
        optimizer.step()
    with torch.no_grad():
        found = trainer.model.eval()(torch.tensor([[5, 6, 7, 8, 9, 10]])).logits.argmax(-1)
    assert found.tolist() == [[6, 7, 8, 9, 10, 11]]


@pytest.mark.parametrize("name", ["GPTNeoForCausalLM", "Renamed"])
def test_the_name_of_the_class_decides_nothing(
    make_base: Callable[..., Any], make_trainer: Callable[..., Any], make_batch: Callable[..., Any], name: str
) -> None:
    """transformers takes from it whether labels are shifted, in the smoothed loss and in the count of labels."""
    stock = type(make_base())
    model = type(name, (stock,), {})(make_base().config).eval()
    plain = make_trainer(label_smoothing_factor=SMOOTHING)
    trainer = CausalLMTrainer(model, plain.args, train_dataset=plain.train_dataset, data_collator=RoutingCollator(0))
    batch = make_batch()
    del batch["routing_weight"]
    _, count = trainer.get_batch_samples(iter([batch]), 1, trainer.args.device)
    assert int(count) == int((batch["labels"][:, 1:] != -100).sum())
    with torch.no_grad():
        expected = smoothed(model(input_ids=batch["input_ids"]).logits, batch["labels"]) / count
        assert float(trainer.compute_loss(model, batch, num_items_in_batch=count)) == pytest.approx(float(expected))


@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_a_factor_that_is_no_share_is_refused(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match=rf"`training.label_smoothing_factor` should be in \[0, 1[\])], got {value}"):
        GradientRoutingConfig(str(tmp_path), use_cpu=True, label_smoothing_factor=value)


def test_an_evaluation_is_not_smoothed(make_trainer: Callable[..., Any], make_stories: Callable[..., Any]) -> None:
    sets = {"evaluation": make_stories(4)}
    plain, other = make_trainer(**sets).evaluate(), make_trainer(**sets, label_smoothing_factor=SMOOTHING).evaluate()
    assert other["eval_loss"] == plain["eval_loss"]
