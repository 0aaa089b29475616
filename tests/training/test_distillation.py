"""Distillation: the loss and its gradient against a formula in fp64, and the same whatever the accumulation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor

from hf_era.models.fast.gpt_neo import FastGPTNeoForCausalLM
from hf_era.training import CausalLMTrainingConfig, distillation
from hf_era.training.distillation import DistillationTrainer, distillation_loss

LABELS = torch.tensor([[3, 1, 4, -100, 2], [0, -100, -100, 6, 5]])


def dense_loss(logits: Tensor, teacher: Tensor, weight: float, excluded: Tensor | None) -> tuple[Tensor, Tensor]:
    """Cross entropy and forward KL by their definitions, summed over predicted tokens."""
    counted = LABELS[:, 1:] != -100
    log_student = F.log_softmax(logits[:, :-1][counted], -1)
    said = teacher[:, :-1] if excluded is None else teacher.masked_fill(excluded, float("-inf"))[:, :-1]
    probability = F.softmax(said[counted], -1)
    of_labels = F.nll_loss(log_student, LABELS[:, 1:][counted], reduction="sum")
    return of_labels, (torch.xlogy(probability, probability) - probability * log_student).sum()


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("excludes", [False, True])
def test_it_is_the_formula_and_so_is_its_gradient(
    weight: float, excludes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distillation, "_rows_per_chunk", lambda logits: 2)  # several chunks
    generator = torch.Generator().manual_seed(0)
    logits, teacher = (torch.randn(2, 5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    logits.requires_grad_(True)
    excluded, dense = None, None
    if excludes:  # of the first example, but its second token
        excluded = torch.zeros(2, 5, dtype=torch.bool), torch.zeros(7, dtype=torch.bool)
        excluded[0][0, [0, 2, 3, 4]] = True
        excluded[1][2:5] = True
        dense = excluded[0][:, :, None] & excluded[1]
    of_labels, divergence = dense_loss(logits, teacher, weight, dense)
    expected = 0.25 * ((1 - weight) * of_labels + weight * divergence)
    (wanted,) = torch.autograd.grad(expected, logits)
    loss, found_labels, found_divergence = distillation_loss(logits, LABELS, teacher, weight, 0.25, excluded)
    (found,) = torch.autograd.grad(3 * loss, logits)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, 3 * wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close((found_labels, found_divergence), (0.25 * of_labels, 0.25 * divergence))
    assert (found[1, 0] == 0).all()  # where no label follows


def test_without_a_teacher_it_is_the_cross_entropy() -> None:
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(1))
    loss, _, divergence = distillation_loss(logits, LABELS, None, 0.0)
    expected = F.cross_entropy(logits[:, :-1].transpose(1, 2), LABELS[:, 1:], reduction="sum")
    torch.testing.assert_close(loss, expected)
    assert divergence == 0


def test_accumulated_batches_are_one_batch(make_base: Callable[..., Any], tmp_path: Path) -> None:
    examples = Dataset.from_dict({"input_ids": [[1, 2, 3, 4, 5], [6, 7], [8, 9, 1, 2], [3, 3, 3]]})
    found = []
    for batch in (1, 4):
        arguments = CausalLMTrainingConfig(
            str(tmp_path / str(batch)),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=4 // batch,
            max_steps=1,
            learning_rate=1.0,
            optim="sgd",
            warmup_steps=0,
            logging_steps=1,
            weight_decay=0.0,
            save_strategy="no",
            disable_tqdm=True,
        )
        student, teacher = (FastGPTNeoForCausalLM.from_stock(make_base(seed=seed)) for seed in (0, 1))
        trainer = DistillationTrainer(student, arguments, train_dataset=examples, teacher=teacher, kl_weight=0.5)
        trainer.train()
        found.append(([value.detach().clone() for value in student.parameters()], trainer.state.log_history[0]))
        assert not any(value.requires_grad for value in trainer.teacher.parameters())
    (one, _), (whole, log) = found
    for left, right in zip(one, whole, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)
    assert log["loss"] == pytest.approx(0.5 * log["cross_entropy"] + 0.5 * log["kl_divergence"], rel=1e-3)
