"""Every family trains: with the L1 term, measured as a control, and under the Trainer, which goes on from checkpoints."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from hf_era import GradientRoutingConfig, GradientRoutingTrainer
from hf_era.data import RoutingCollator
from hf_era.models.measured import measure_activations
from hf_era.training import CausalLMTrainer, CausalLMTrainingConfig

Batch = dict[str, Tensor]
TARGETS = [0, 2]


def test_the_l1_term_is_the_sum_of_absolute_activations(
    family: Any, paths: Any, check: Any, make_expanded: Callable[..., Any], batch: Batch
) -> None:
    """Of the inputs of the down projections: at real tokens, of target layers, and of modules that are on."""
    model, seen = paths.set(make_expanded().double()), []

    def remember(_module: nn.Module, inputs: tuple[Tensor]) -> None:
        seen.append(inputs[0].detach())

    for layer in TARGETS:
        mlp = family.get_mlp(family.get_blocks(model)[layer])
        for projection in (family.get_down_projection(mlp), mlp.auxiliary["forget"].down_projection):
            projection.register_forward_pre_hook(remember)
    mask, inputs = batch["attention_mask"][..., None], check.inputs(batch)
    for ablated, widths in ((False, [8, 24]), (True, [24])):
        seen.clear()
        model.set_active(None, not ablated)
        found = model(**inputs, output_activation_l1=True).activation_l1
        assert [part.shape[-1] for part in seen] == widths * 2
        assert found.item() == pytest.approx(sum((part * mask).abs().sum().item() for part in seen), rel=1e-12)
        assert found.dtype == torch.float64
    assert torch.equal(model(**inputs, output_activation_l1=True, return_dict=False)[-1], found)


@pytest.mark.parametrize("fast", [True, False], ids=["fast class", "stock class"])
def test_a_control_has_the_l1_term_of_its_runs(
    fast: bool,
    paths_of: Any,
    check: Any,
    make_base: Callable[..., Any],
    make_expanded: Callable[..., Any],
    batch: Batch,
) -> None:
    """A stock model whose layers are measured is an expanded one whose modules are ablated."""
    expanded = paths_of(fast).set(make_expanded().double())
    expanded.set_active(None, False)
    base = make_base().double()
    base.load_state_dict(expanded.contract().state_dict())
    control = measure_activations(paths_of(fast).reference(base), TARGETS)

    def loss(model: Any) -> Tensor:
        outputs = model(**check.inputs(batch), output_activation_l1=True)
        return check.cross_entropy(outputs.logits, batch["labels"]) + check.l1_coefficient * outputs.activation_l1

    expected = check.gradients_after(expanded, lambda: loss(expanded))
    found = check.gradients_after(control, lambda: loss(control))
    assert check.largest_deviation(found, expected) < 1e-9


def stories_of(batch: Batch) -> Dataset:
    rows = [row[mask.bool()].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    return Dataset.from_dict(
        {"input_ids": rows, "routing_weight": [[index % 2.0] * len(row) for index, row in enumerate(rows)]}
    )


def settings_of(folder: Path, **values: Any) -> dict[str, Any]:
    common = {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "warmup_steps": 0}
    quiet = {"logging_steps": 1, "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "report_to": "none"}
    return {"output_dir": str(folder), **common, **quiet, **values}


@pytest.mark.parametrize("model_type", ["llama", "gpt2"], indirect=True)
def test_the_trainer_trains_it_and_saves_a_stock_checkpoint(
    family: Any, paths_of: Any, check: Any, make_expanded: Callable[..., Any], batch: Batch, tmp_path: Path
) -> None:
    model, stories = make_expanded(), stories_of(batch)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = GradientRoutingTrainer(
        model,
        GradientRoutingConfig(**settings_of(tmp_path / "out", l1_coefficient=1e-3, minimum_ablation_gap=-100.0)),
        train_dataset=stories,
        eval_dataset={"forget": stories, "retain": stories},
        data_collator=RoutingCollator(pad_token_id=0),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.train()
    assert all(not torch.equal(before[name], value) for name, value in model.state_dict().items())
    logged = {key for entry in trainer.state.log_history for key in entry}
    assert {"l1_loss", "eval_forget_loss_ablated", "eval_selectivity_layer_0", "eval_selectivity_layer_2"} <= logged
    loaded = AutoModelForCausalLM.from_pretrained(trainer.save_contracted(tmp_path / "contracted")).eval()
    assert type(loaded) is family.model_class.stock_class
    with torch.no_grad(), paths_of(False).set(model.eval()).ablated():
        found = loaded(**check.inputs(batch)).logits
        assert torch.equal(found, model(**check.inputs(batch)).logits)


@pytest.mark.parametrize("model_type", ["gpt_neox"], indirect=True)
@pytest.mark.parametrize("kind", ["expanded", "fast class"])
def test_a_training_goes_on_from_a_checkpoint_of_a_model_whose_files_have_other_names(
    kind: str,
    family: Any,
    make_base: Callable[..., Any],
    make_expanded: Callable[..., Any],
    batch: Batch,
    tmp_path: Path,
) -> None:
    """GPT-NeoX's `lm_head` is stored as `embed_out`; a checkpoint is put back by names, and what is not found is not."""
    stories = stories_of(batch)

    def make(folder: str) -> Any:
        values = settings_of(tmp_path / folder, save_strategy="steps", save_steps=1)
        if kind == "expanded":
            model, args = make_expanded(tie_word_embeddings=False), GradientRoutingConfig(**values)
            return GradientRoutingTrainer(
                model, args, train_dataset=stories, data_collator=RoutingCollator(pad_token_id=0)
            )
        model = family.fast_class.from_stock(make_base(tie_word_embeddings=False))
        return CausalLMTrainer(
            model, CausalLMTrainingConfig(**values), train_dataset=stories.remove_columns("routing_weight")
        )

    whole, again = make("whole"), make("again")
    whole.train()
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    state = again.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.model.state_dict().items())
    whole.save_model(str(tmp_path / "model"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded.lm_head.weight, state["lm_head.weight"])
