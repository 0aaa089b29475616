"""The fast paths as training settings: the switches reach the model, and on or off the training is the same."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

import hf_era.training.causal_lm_trainer as trainer_module
from hf_era import FastGPTNeoForCausalLM, GradientRoutingConfig, GradientRoutingTrainer
from hf_era.models.fast.causal_lm import ALL_FAST, ALL_SLOW, FastPaths
from hf_era.training import CausalLMTrainer, NonFiniteLossError
from hf_era.training.causal_lm_trainer import EMULATED_BF16_MESSAGE

SLOW = {"fused_activation": False, "chunked_loss": False, "attn_implementation": "eager"}


def logged_losses(trainer: Any) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_all_fast_paths_are_on_by_default(make_trainer: Callable[..., Any]) -> None:
    model = make_trainer().model
    assert model.fast_paths == ALL_FAST
    assert model.config._attn_implementation == "sdpa"


def test_the_switches_reach_the_model(make_trainer: Callable[..., Any]) -> None:
    assert make_trainer(fused_activation=False).model.fast_paths == FastPaths(fused_activation=False)
    assert make_trainer(chunked_loss=False).model.fast_paths == FastPaths(chunked_loss=False)
    model = make_trainer(**SLOW).model
    assert model.fast_paths == ALL_SLOW
    assert model.config._attn_implementation == "eager"


def test_the_attention_that_the_model_was_loaded_with_stays(
    make_trainer: Callable[..., Any], make_expanded: Callable[..., Any]
) -> None:
    model = make_expanded([0, 1])
    model.set_attn_implementation("eager")
    assert make_trainer(model=model).model.config._attn_implementation == "eager"


def test_model_init_gets_the_switches_too(make_trainer: Callable[..., Any], make_expanded: Callable[..., Any]) -> None:
    trainer = make_trainer(chunked_loss=False)
    trainer.model_init = lambda: make_expanded([0, 1])
    assert trainer.call_model_init().fast_paths == FastPaths(chunked_loss=False)


# Dynamo instantiates an autograd function while it traces one.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_batches_padded_to_a_multiple_are_of_few_shapes_and_teach_the_same(
    compiled: bool, make_expanded: Callable[..., Any], make_stories: Callable[..., Dataset], tmp_path: Path
) -> None:
    """What a compiler has to compile: with lengths of 5 to 12 tokens one or two shapes."""
    curves, shapes = [], []
    for multiple in (None, 8):
        model, seen = make_expanded([0, 1]), set[int]()
        model.base_model.register_forward_pre_hook(
            lambda _, args, kwargs, seen=seen: seen.add(kwargs["input_ids"].shape[1]), with_kwargs=True
        )
        settings: dict[str, Any] = {
            "max_steps": 8,
            "per_device_train_batch_size": 2,
            "logging_steps": 1,
            "use_cpu": True,
        }
        if compiled and multiple:
            settings |= {"torch_compile": True, "torch_compile_backend": "eager"}
        config = GradientRoutingConfig(
            str(tmp_path), pad_to_multiple_of=multiple, save_strategy="no", disable_tqdm=True, **settings
        )
        trainer = GradientRoutingTrainer(model, config, train_dataset=make_stories())
        curves.append(logged_losses(trainer))
        shapes.append(seen)
    assert len(shapes[0]) > 2
    assert shapes[1] <= {8, 16}
    assert curves[1] == pytest.approx(curves[0], abs=1e-5)


class LookAtPadding(TrainerCallback):
    """Notes what the model was told of the padding, within a forward pass and after it."""

    def __init__(self, model: Any) -> None:
        self.within: list[bool] = []
        self.after: list[bool] = []
        model.base_model.register_forward_hook(lambda *_: self.within.append(model.fast_paths.right_padding))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.after.append(kwargs["model"].fast_paths.right_padding)


@pytest.mark.parametrize("has_masks", [False, True], ids=["collated", "masks of the user"])
def test_the_model_is_told_of_padding_on_the_right(
    make_trainer: Callable[..., Any],
    make_expanded: Callable[..., Any],
    make_stories: Callable[..., Dataset],
    has_masks: bool,
) -> None:
    """While it trains on what `RoutingCollator` padded; a mask of the user's may hide what it likes."""
    model, stories = make_expanded([0, 1]), make_stories(8, seed=3)
    if has_masks:
        stories = stories.map(lambda row: {"attention_mask": [0] + [1] * (len(row["input_ids"]) - 1)})
    look = LookAtPadding(model)
    make_trainer(model=model, stories=stories, callbacks=[look], max_steps=2).train()
    assert set(look.within) == {not has_masks}
    assert look.after == [False, False]


@pytest.mark.parametrize("accumulation", [1, 3])
def test_training_is_the_same_fast_and_slow(
    make_trainer: Callable[..., Any], make_expanded: Callable[..., Any], accumulation: int
) -> None:
    """Measured: the losses of 12 steps differ by less than 3e-7 relative."""
    settings = {"max_steps": 12, "learning_rate": 1e-3, "gradient_accumulation_steps": accumulation}
    fast = logged_losses(make_trainer(model=make_expanded([0, 2], seed=4), **settings))
    slow = logged_losses(make_trainer(model=make_expanded([0, 2], seed=4), **settings, **SLOW))
    assert len(fast) == 12
    assert fast == pytest.approx(slow, rel=2e-6)


def test_evaluation_is_the_same_fast_and_slow_and_in_any_order(
    make_trainer: Callable[..., Any], make_expanded: Callable[..., Any], make_stories: Callable[..., Dataset]
) -> None:
    stories = make_stories(10, seed=7, routed=False)
    sets = {
        "forget": {"forget": stories, "retain": stories.select(range(4))},
        # Without lengths the stories stay in their order.
        "unsorted": {
            "forget": stories.remove_columns("length"),
            "retain": stories.select(range(4)).remove_columns("length"),
        },
    }
    measured = [
        make_trainer(model=make_expanded([0, 1]), evaluation=evaluation, **settings).evaluate()
        for evaluation, settings in ((sets["forget"], {}), (sets["unsorted"], {}), (sets["forget"], SLOW))
    ]
    names = [name for name in measured[0] if "loss" in name or "gap" in name or "selectivity" in name]
    assert {"eval_forget_loss", "eval_forget_loss_ablated", "eval_ablation_gap"} <= set(names)
    for other in measured[1:]:
        assert {name: other[name] for name in names} == pytest.approx(
            {name: measured[0][name] for name in names}, rel=1e-5, abs=1e-6
        )


def test_the_longest_stories_are_evaluated_first(
    make_trainer: Callable[..., Any], make_stories: Callable[..., Dataset]
) -> None:
    stories = make_stories(10, seed=7, routed=False)
    loader = make_trainer(evaluation=stories, per_device_eval_batch_size=1).get_eval_dataloader()
    lengths = [batch["input_ids"].shape[1] for batch in loader]
    assert lengths == sorted(stories["length"], reverse=True)
    assert lengths != list(stories["length"])


def test_predictions_keep_the_order_of_the_data_set(
    make_trainer: Callable[..., Any], make_stories: Callable[..., Dataset]
) -> None:
    stories = make_stories(6, seed=7, routed=False)
    loader = make_trainer(per_device_eval_batch_size=1).get_test_dataloader(stories)
    assert [batch["input_ids"].shape[1] for batch in loader] == list(stories["length"])


@pytest.mark.parametrize(("has_units", "expected"), [(True, 0), (False, 1)])
def test_emulated_bf16_is_pointed_out(
    make_trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, has_units: bool, expected: int
) -> None:
    said: list[str] = []
    monkeypatch.setattr(trainer_module, "cpu_has_bf16_units", lambda: has_units)
    monkeypatch.setattr(trainer_module.logger, "warning_once", said.append)
    make_trainer(bf16=True)
    assert said.count(EMULATED_BF16_MESSAGE) == expected
    make_trainer(bf16=False)
    assert said.count(EMULATED_BF16_MESSAGE) == expected


def test_a_loss_that_is_looked_at_late_still_stops_the_training(make_trainer: Callable[..., Any]) -> None:
    """On a GPU the loss of a step is looked at one step later, so that the host need not wait for the device."""
    trainer = make_trainer()
    for step, loss in enumerate([1.0, math.nan, 2.0], 3):
        trainer._losses_to_check.add(torch.tensor(loss), step)
    trainer._check_losses(all_but=2)
    with pytest.raises(NonFiniteLossError, match=r"The loss became nan at step 4 of"):
        trainer._check_losses(all_but=1)
    trainer._check_losses()  # said once


def test_a_base_is_saved_as_a_stock_checkpoint(make_base: Callable[..., Any], tmp_path: Any) -> None:
    model = FastGPTNeoForCausalLM.from_stock(make_base())
    arguments = GradientRoutingConfig(str(tmp_path), fused_activation=False, use_cpu=True, report_to="none")
    trainer = CausalLMTrainer(model, arguments)
    assert model.fast_paths == FastPaths(fused_activation=False)
    trainer.save_model(str(tmp_path / "saved"))
    assert '"GPTNeoForCausalLM"' in (tmp_path / "saved" / "config.json").read_text()
