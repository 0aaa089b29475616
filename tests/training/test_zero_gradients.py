"""Parameters without any gradient: what moves them, and what does not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from hf_era import GradientRoutingConfig, GradientRoutingTrainer
from hf_era.training.zero_gradients import largest_of_each

SGTM = {"name": "sgtm", "module_off_on_retain": 1.0, "core": "all"}


def rows(weights: list[float]) -> Dataset:
    """Examples of one label each: weight 0 forget, 1 retain."""
    examples = [{"input_ids": [5 + i, 6, 7, 8 + i], "routing_weight": [w] * 4} for i, w in enumerate(weights)]
    return Dataset.from_list(examples)


def moved(model: Any, data: Dataset, folder: Path, **settings: Any) -> dict[str, bool]:
    """Name -> whether the parameter is another after the last of two steps, of one example each, in order."""
    args = GradientRoutingConfig(
        str(folder), max_steps=2, per_device_train_batch_size=1, train_sampling_strategy="sequential", save_strategy="no",
        report_to="none", disable_tqdm=True, warmup_steps=0, l1_coefficient=0.0, router=SGTM, **settings,
    )  # fmt: skip
    trainer = GradientRoutingTrainer(model, args, train_dataset=data)
    seen: list[dict[str, torch.Tensor]] = []
    step = trainer.training_step

    def watched(*given: Any, **kwargs: Any) -> Any:
        seen.append({name: value.detach().clone() for name, value in model.named_parameters()})
        return step(*given, **kwargs)

    trainer.training_step = watched  # type: ignore[method-assign]
    trainer.train()
    return {name: not torch.equal(value, seen[-1][name]) for name, value in model.named_parameters()}


@pytest.mark.parametrize(("second", "skips"), [(0.0, True), (0.0, False), (1.0, True), (1.0, False)])
def test_a_step_that_teaches_a_part_nothing_moves_it_by_momentum_and_decay_only_if_it_may(
    second: float, skips: bool, make_expanded: Callable[..., Any], tmp_path: Path
) -> None:
    model = make_expanded([0, 1])
    found = moved(model, rows([1.0 - second, second]), tmp_path, skip_zero_gradients=skips)
    for name, has_moved in found.items():
        is_taught = model.is_auxiliary_parameter(name) == (second == 0.0)
        assert has_moved == (is_taught or not skips), name


def test_gram_asks_for_it_and_the_setting_wins(tmp_path: Path) -> None:
    assert GradientRoutingConfig(str(tmp_path), router="gram").leaves_zero_gradients_out
    assert not GradientRoutingConfig(str(tmp_path), router="gram", skip_zero_gradients=False).leaves_zero_gradients_out
    assert not GradientRoutingConfig(str(tmp_path), router="sgtm").leaves_zero_gradients_out


def test_the_largest_of_each() -> None:
    parts = [torch.zeros(3), torch.tensor([[1.0, -5.0]]), torch.zeros(0), torch.tensor([2.0], dtype=torch.bfloat16)]
    assert largest_of_each(parts) == [0, 5, 0, 2]
    assert largest_of_each([]) == []
