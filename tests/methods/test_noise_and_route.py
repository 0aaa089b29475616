"""Noise, distil, route: noise in the core alone, forget examples that teach the module alone, and the leak guard."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from datasets import Dataset

from hf_era import RunConfig, attach_module
from hf_era.methods import get_method
from hf_era.methods.noise_and_route import RoutedDistillationTrainer, forget_entries
from hf_era.models.loading import load_causal_lm
from hf_era.routing import RoutingRuleConfig
from hf_era.training import GradientRoutingConfig

SETTINGS: dict[str, Any] = {
    "method": "noise_and_route",
    "router": {"name": "gram", "p_as": 0.0, "p_cr": 0.0},
    "routing": {"rule": "full_seq", "weighting": "uniform"},
    "coherence": {"enabled": False},
}


def test_a_run_noises_the_core_alone(make_models: Callable[..., Any], tmp_path: Path) -> None:
    settings = {"alpha": 1.0, "beta": 0.0, "noised": "all", "kl_weight": 0.5}
    run, reports = make_models(tmp_path, **SETTINGS, method_settings=settings)
    log = [entry for entry in reports["route"]["log_history"] if "kl_divergence" in entry]
    assert log[0]["kl_divergence"] > 0
    start = get_method("noise_and_route").start_model(run)
    for name, value in start.named_parameters():
        if start.is_auxiliary_parameter(name):
            assert value.any() or value.dim() == 1, name  # biases start at 0
        else:
            assert not value.any(), name
    assert load_causal_lm(run.folder("model")).num_parameters() == load_causal_lm(run.folder("base")).num_parameters()


def test_the_module_as_a_file_gives_back_what_it_learnt(make_models: Callable[..., Any], tmp_path: Path) -> None:
    """Attached to the checkpoint that it was cut out of, which is the core as it was trained."""
    training = {"eval_strategy": "no", "save_strategy": "no", "minimum_ablation_gap": -1.0}
    run, _ = make_models(tmp_path, **SETTINGS, training=training)
    expanded = load_causal_lm(run.folder("expanded")).eval()
    (name,) = expanded.module_names
    expanded.save_module(name, tmp_path / "module")
    core = load_causal_lm(run.folder("model")).eval()
    again = attach_module(core, tmp_path / "module").eval()
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, expanded(input_ids=ids).logits)
        assert not torch.equal(again(input_ids=ids).logits, core(input_ids=ids).logits)


def test_forget_entries_are_those_that_forget_examples_have_far_more_of() -> None:
    examples = {"input_ids": [[5, 1, 5] * 100, [1, 2, 3] * 100, [5, 1, 2] * 20], "label": [0, 1, 1]}
    values = {"base_config.vocab_size": 8, "data.train": Dataset.from_dict(examples), "routing": RoutingRuleConfig()}
    run: Any = Mock(**values)
    assert forget_entries(run).nonzero().flatten().tolist() == [5]


@pytest.fixture
def make_trainer(
    make_expanded: Callable[..., Any], make_base: Callable[..., Any], tmp_path: Path
) -> Callable[..., Any]:
    def make(p_cr: float = 0.0, **options: Any) -> RoutedDistillationTrainer:
        router = {"name": "gram", "p_as": 0.0, "p_cr": p_cr}
        arguments = GradientRoutingConfig(str(tmp_path), router=router, l1_coefficient=0.0, save_strategy="no")
        rows = [{"input_ids": [1, 2, 3], "routing_weight": [0.0, 0.0, 0.0]}]
        return RoutedDistillationTrainer(
            make_expanded(), arguments, train_dataset=rows, teacher=make_base(seed=5), **options
        )

    return make


def one_example(weight: float, unlabelled: bool = False) -> dict[str, torch.Tensor]:
    """A batch of an example that is all forget (0) or all retain (1), or without a label."""
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    batch = {"input_ids": ids, "labels": ids, "routing_weight": torch.full((1, 5), weight)}
    return {**batch, "is_unassigned": torch.ones(1, 5, dtype=torch.bool)} if unlabelled else batch


def gradients(trainer: Any, weight: float, unlabelled: bool = False) -> tuple[float, float]:
    """The largest gradient in the core, and in the module, of `one_example`."""
    model, batch = trainer.model, one_example(weight, unlabelled)
    model.zero_grad()
    trainer.compute_loss(model, batch, num_items_in_batch=torch.tensor(4)).backward()
    sizes = {True: [0.0], False: [0.0]}
    for name, value in model.named_parameters():
        if value.grad is not None:
            sizes[model.is_auxiliary_parameter(name)].append(float(value.grad.abs().max()))
    return max(sizes[False]), max(sizes[True])


@pytest.mark.parametrize("kl_weight", [0.0, 0.5])
def test_forget_examples_teach_the_module_alone_and_retain_examples_the_core(
    kl_weight: float, make_trainer: Callable[..., Any]
) -> None:
    trainer = make_trainer(kl_weight=kl_weight)
    core, module = gradients(trainer, 0.0)
    assert core == 0
    assert module > 0
    core, module = gradients(trainer, 1.0)
    assert core > 0
    assert module == 0


def test_a_retain_example_with_the_module_and_one_without_a_label_teach_both(make_trainer: Callable[..., Any]) -> None:
    assert all(size > 0 for size in gradients(make_trainer(p_cr=1.0, kl_weight=0.0), 1.0))
    assert all(size > 0 for size in gradients(make_trainer(kl_weight=0.0), 1.0, unlabelled=True))


def test_the_leak_guard_changes_what_retain_examples_are_taught_alone(make_trainer: Callable[..., Any]) -> None:
    entries = torch.zeros(53, dtype=torch.bool)
    entries[[2, 7]] = True
    trainers = [make_trainer(kl_weight=1.0, forget_entries=of) for of in (entries, None)]
    for weight, changes in ((1.0, True), (0.0, False)):
        guarded, open_to_all = (
            one.compute_loss(one.model, one_example(weight), num_items_in_batch=torch.tensor(4)).item()
            for one in trainers
        )
        assert (guarded != open_to_all) == changes


def test_the_teacher_says_nothing_of_forget_entries_on_retain_tokens_alone(make_trainer: Callable[..., Any]) -> None:
    entries = torch.zeros(53, dtype=torch.bool)
    entries[[2, 7]] = True
    trainer = make_trainer(kl_weight=1.0, forget_entries=entries)
    tokens, said_nothing_of = trainer.excluded_entries({"routing_weight": torch.tensor([[1.0, 0.0, 0.7]])})
    assert tokens.tolist() == [[True, False, True]]
    assert said_nothing_of.equal(entries)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"start": "scratch"}}, "`method: noise_and_route` noises a model that exists"),
        (
            {"training": {"trainable": "modules"}},
            "`training.trainable` is 'modules', but `method: noise_and_route` trains every weight",
        ),
        ({"method_settings": {"kl_weight": 2.0}}, r"`method_settings.kl_weight` should be in \[0, 1\], got 2.0"),
    ],
)
def test_what_does_not_fit_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path, make_run_config: Callable[..., RunConfig]
) -> None:
    with pytest.raises(ValueError, match=message):
        make_run_config(tmp_path, **{**SETTINGS, **changes})
