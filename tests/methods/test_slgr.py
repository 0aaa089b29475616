"""SLGR against the KL of whole logits in float64: what learns nothing, a share, all; accumulation; a run; bad input."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn

from hf_era import ExpansionConfig, GradientRoutingConfig, RunConfig, expand_base, run_pipeline
from hf_era.data import RoutingCollator
from hf_era.methods import slgr
from hf_era.methods.slgr import SplitLossTrainer
from hf_era.training import GradientRoutingTrainer

from ..run.conftest import _own_data_set_cache, make_run_config

__all__ = ["_own_data_set_cache", "make_run_config"]

Gradients = dict[str, Tensor]
LAST = "transformer.h.2.mlp"
WEIGHT = torch.rand(53, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def make_trainer(
    tmp_path: Path, make_base: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., SplitLossTrainer]:
    """Over a float64 model whose last layer is expanded, with another model as its teacher, and chunks of 4 positions."""
    monkeypatch.setattr(slgr, "rows_per_chunk", lambda weight: 4)

    def make(**multipliers: float) -> SplitLossTrainer:
        torch.manual_seed(0)
        model = expand_base(make_base(), ExpansionConfig(width=8, target_layers=[2], initialization_scale=1.0)).double()
        args = GradientRoutingConfig(str(tmp_path), use_cpu=True, multipliers=multipliers, save_strategy="no")
        return SplitLossTrainer(
            model.train(), args,
            train_dataset=Dataset.from_dict({"input_ids": [[1, 2]], "routing_weight": [[1.0, 1.0]]}),
            data_collator=RoutingCollator(0), teacher=make_base(seed=7).double(), vocabulary_weight=WEIGHT,
        )  # fmt: skip

    return make


@pytest.fixture
def batch(make_batch: Callable[..., dict[str, Tensor]]) -> dict[str, Tensor]:
    """Padded, and with positions without a label."""
    found = make_batch(seed=3)
    found["labels"][0, :5] = -100
    return found


def taken(model: nn.Module, loss: Tensor) -> Gradients:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def dense(trainer: SplitLossTrainer, batch: dict[str, Tensor], shares: Tensor) -> tuple[Tensor, Gradients]:
    """The KL of whole logits, each vocabulary entry with its share, a label; nothing is routed."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = torch.softmax(trainer.teacher(**inputs).logits, -1)
    kl = expected * (expected.log() - torch.softmax(trainer.model(**inputs).logits, -1).log()) * shares
    counted = batch["labels"][:, 1:] != -100
    loss = kl[:, :-1].sum(-1)[counted].sum() / counted.sum()
    return loss.detach(), taken(trainer.model, loss)


def split(trainer: SplitLossTrainer, batch: dict[str, Tensor], **kwargs: Any) -> tuple[Tensor, Gradients]:
    loss = trainer.compute_loss(trainer.model, dict(batch), **kwargs)
    return loss.detach(), taken(trainer.model, loss)


def assert_close(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-14)


def test_with_all_multipliers_1_it_is_the_plain_kl(
    make_trainer: Callable[..., SplitLossTrainer], batch: dict[str, Tensor]
) -> None:
    trainer = make_trainer(original_forget=1.0)
    loss, gradients = split(trainer, batch)
    wanted_loss, wanted = dense(trainer, batch, torch.ones(53))
    assert_close(loss, wanted_loss)
    assert_close(gradients, wanted)
    assert all(value.abs().max() > 0 for value in gradients.values())
    assert all(value.grad is None for value in trainer.teacher.parameters())


def test_forget_like_entries_have_the_forget_multipliers(
    make_trainer: Callable[..., SplitLossTrainer], batch: dict[str, Tensor]
) -> None:
    """Zero, scaled and whole: what lies before the routed activation, and what lies after it."""
    trainer = make_trainer(original_forget=0.0, original_retain=1.0, auxiliary_forget=-0.5, auxiliary_retain=2.0)
    _, gradients = split(trainer, batch)
    retain, forget = dense(trainer, batch, WEIGHT)[1], dense(trainer, batch, 1 - WEIGHT)[1]
    for part in ("weight", "bias"):
        name = f"{LAST}.c_fc.{part}"
        assert_close(gradients[name], retain[name])
        name = f"{LAST}.auxiliary.forget.up_projection.{part}"
        assert_close(gradients[name], 2 * retain[name] - 0.5 * forget[name])
        assert forget[name].abs().max() > 0.01 * retain[name].abs().max()
    after = (f"{LAST}.c_proj.weight", f"{LAST}.auxiliary.forget.down_projection.weight", "transformer.ln_f.weight")
    for name in after:
        assert_close(gradients[name], retain[name] + forget[name])


def test_accumulation_is_one_batch(make_trainer: Callable[..., SplitLossTrainer], batch: dict[str, Tensor]) -> None:
    trainer, count = make_trainer(), (batch["labels"][:, 1:] != -100).sum()
    _, wanted = split(trainer, batch)
    rows = [
        split(trainer, {k: v[row : row + 1] for k, v in batch.items()}, num_items_in_batch=count) for row in range(3)
    ]
    assert_close({name: sum(gradients[name] for _, gradients in rows) for name in wanted}, wanted)


def test_a_batch_without_a_label_teaches_nothing(
    make_trainer: Callable[..., SplitLossTrainer], batch: dict[str, Tensor]
) -> None:
    batch["labels"].fill_(-100)
    loss, gradients = split(make_trainer(), batch)
    assert loss == 0
    assert all(value.abs().max() == 0 for value in gradients.values())


@pytest.mark.slow
def test_a_run(tmp_path: Path, make_run_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GradientRoutingTrainer, "_warn_if_nothing_was_localised", lambda self: None)
    given: list[Tensor] = []
    split_of = slgr.split_divergences
    monkeypatch.setattr(slgr, "split_divergences", lambda *args: given.append(args[3]) or split_of(*args))
    config = make_run_config(tmp_path, method="slgr", model={"start": "pretrained"}, training={"logging_steps": 1})
    result = run_pipeline(config)
    assert [stage["name"] for stage in result.stages][-1] == "after_coherence"
    assert result.method_title == "split-loss gradient routing"
    assert result.training["arguments"]["l1_coefficient"] == 0
    log = next(entry for entry in result.training["log_history"] if "forget_divergence" in entry)
    assert log["loss"] == pytest.approx(log["forget_divergence"] + log["retain_divergence"], abs=1e-3)
    rows = {row["token_id"]: row["weight"] for row in result.routing_table}
    assert rows
    assert given[0][list(rows)].tolist() == pytest.approx(list(rows.values()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": {"start": "scratch"}},
            "`method: slgr` keeps close to a model that exists, but `model.start` is 'scr",
        ),
        (
            {"routing": {"weighting": "uniform"}},
            r"by the frequency rule, but `routing` is 'full_seq' \(uniform\)\. Set",
        ),
        (
            {"routing": {"rule": "concept"}},
            "by the frequency rule, but `routing` is 'concept'. Set `routing.rule: full",
        ),
        (
            {"router": "gram"},
            "computes its loss at the LM head, where the router 'gram' may have to act. Set `router: act",
        ),
        ({"training": {"l1_coefficient": 0.1}}, "has no such term, but `training.l1_coefficient` is 0.1. Set it to 0."),
    ],
)
def test_what_does_not_fit_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path, make_run_config: Callable[..., RunConfig]
) -> None:
    with pytest.raises(ValueError, match=message):
        make_run_config(tmp_path, **{"model": {"start": "pretrained"}, **changes, "method": "slgr"})
