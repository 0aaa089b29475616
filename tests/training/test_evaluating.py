"""What the trainers measure: on every story, weighted by tokens, beside the user's own metrics, and never on nothing."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import EarlyStoppingCallback, TrainerCallback

from hf_era import ExpandedGPTNeoConfig, ExpandedGPTNeoForCausalLM, ExpansionConfig
from hf_era.data import RoutingCollator
from hf_era.training import EvaluationSetWarning, LocalizationWarning


@pytest.fixture
def sets(make_stories: Callable[..., Dataset]) -> dict[str, Dataset]:
    return {name: make_stories(5, seed=seed, routed=False) for seed, name in enumerate(("forget", "retain"), 1)}


def masked(stories: Dataset) -> Dataset:
    return stories.map(lambda row: {"labels": [-100] * len(row["input_ids"])})


# ---- Nothing measured is no figure ----


@pytest.mark.parametrize("kind", ["empty", "masked", "one token", "a list"])
def test_a_set_with_nothing_to_predict_is_refused_before_the_first_step(
    make_trainer: Callable[..., Any], sets: dict[str, Dataset], kind: str
) -> None:
    sets["forget"] = {
        "empty": sets["forget"].select([]),
        "masked": masked(sets["forget"]),
        "one token": Dataset.from_dict({"input_ids": [[1], [2]], "length": [1, 1]}),
        "a list": [{"input_ids": [1]}],
    }[kind]
    trainer = make_trainer(evaluation=sets, eval_strategy="steps")
    with pytest.raises(ValueError, match=r"`eval_dataset\['forget'\]` has no token to predict: .* -100"):
        trainer.train()
    assert trainer.state.global_step == 0
    with pytest.raises(ValueError, match=r"No token to measure `eval_forget_loss` on: .* -100"):
        trainer.evaluate()


def test_a_single_set_with_nothing_to_predict_is_refused(
    make_trainer: Callable[..., Any], make_stories: Callable[..., Dataset]
) -> None:
    trainer = make_trainer(evaluation=masked(make_stories(4)), eval_strategy="steps")
    with pytest.raises(ValueError, match="`eval_dataset` has no token to predict"):
        trainer.train()
    with pytest.raises(ValueError, match="No token to measure `eval_loss` on"):
        trainer.evaluate()


def test_a_stream_with_nothing_to_predict_gives_no_figure_and_a_warning(
    make_trainer: Callable[..., Any], make_stories: Callable[..., Dataset]
) -> None:
    trainer = make_trainer(evaluation=masked(make_stories(4)).to_iterable_dataset())
    with pytest.warns(EvaluationSetWarning, match="No token to measure `eval_loss` on"):
        metrics = trainer.evaluate()
    assert not [name for name in metrics if "loss" in name]
    assert not any("eval_loss" in entry for entry in trainer.state.log_history)


def test_sets_are_looked_at_in_batches_as_they_are_evaluated(
    make_trainer: Callable[..., Any], make_stories: Callable[..., Dataset]
) -> None:
    def in_pairs(examples: list[dict[str, Any]]) -> dict[str, Any]:
        assert len(examples) == 2
        return RoutingCollator(0)(examples)

    trainer = make_trainer(
        evaluation=make_stories(4, routed=False),
        per_device_eval_batch_size=2,
        per_device_train_batch_size=2,
        max_steps=1,
    )
    trainer.data_collator = in_pairs
    assert trainer.train().global_step == 1


def test_predictions_without_labels_have_no_loss(
    make_trainer: Callable[..., Any], make_stories: Callable[..., Dataset]
) -> None:
    stories = make_stories(4, routed=False)
    found = make_trainer().predict(masked(stories))
    assert "test_loss" not in found.metrics
    assert len(found.predictions) == 4


@pytest.mark.parametrize("metrics", [None, lambda prediction: {"rows": len(prediction.label_ids)}])
def test_drop_last_leaves_no_evaluation_story_out(
    make_trainer: Callable[..., Any], make_stories: Callable[..., Dataset], metrics: Any
) -> None:
    stories = make_stories(3, routed=False)
    expected = make_trainer(evaluation=stories).evaluate()["eval_loss"]
    trainer = make_trainer(evaluation=stories, dataloader_drop_last=True, per_device_eval_batch_size=2)
    trainer.compute_metrics = metrics
    found = trainer.evaluate()
    assert found["eval_loss"] == pytest.approx(expected, abs=1e-6)
    assert found.get("eval_rows", 3) == 3
    assert trainer.args.dataloader_drop_last
    assert len(trainer.get_train_dataloader()) == 16 // 4


# ---- The user's metrics beside ours ----


def test_the_users_metrics_stand_beside_ours_with_the_module_on_and_ablated(
    make_trainer: Callable[..., Any], sets: dict[str, Dataset]
) -> None:
    expected = make_trainer(evaluation=sets, per_device_eval_batch_size=2).evaluate()
    trainer = make_trainer(evaluation=sets, per_device_eval_batch_size=2)
    trainer.compute_metrics = lambda prediction: {"logit": float(prediction.predictions.max())}
    found = trainer.evaluate()
    ours = [name for name in expected if "loss" in name or "gap" in name or "selectivity" in name]
    assert {name: found[name] for name in ours} == pytest.approx({name: expected[name] for name in ours}, abs=1e-6)
    assert found["eval_forget_logit"] != found["eval_forget_logit_ablated"]
    trainer.model.set_active(None, False)
    assert trainer.evaluate()["eval_forget_logit"] == found["eval_forget_logit_ablated"]
    assert json.dumps(found)


def test_what_the_trainer_knows_of_metrics_is_respected(
    make_trainer: Callable[..., Any], make_stories: Callable[..., Dataset]
) -> None:
    stories, seen = make_stories(5, routed=False), []

    def rows(prediction: Any, compute_result: bool = True) -> dict[str, Any]:
        seen.append((tuple(prediction.predictions.shape), prediction.inputs is not None, compute_result))
        return {"rows": len(prediction.label_ids)}

    settings = {"per_device_eval_batch_size": 4, "include_for_metrics": ["inputs"]}
    for batched, ends in ((False, [True]), (True, [False, True])):
        trainer = make_trainer(evaluation=stories, batch_eval_metrics=batched, **settings)
        trainer.compute_metrics, trainer.preprocess_logits_for_metrics = rows, lambda logits, labels: logits.argmax(-1)
        seen.clear()
        assert {"eval_loss", "eval_loss_ablated", "eval_rows", "eval_rows_ablated"} <= set(trainer.evaluate())
        assert [end for _, _, end in seen] == ends * 2
        assert all(len(shape) == 2 and inputs for shape, inputs, _ in seen)
    trainer = make_trainer(evaluation=stories, prediction_loss_only=True)
    trainer.compute_metrics = rows
    assert "eval_rows" not in (metrics := trainer.evaluate())
    assert "eval_loss_ablated" in metrics


def test_predictions_and_metrics_have_the_token_weighted_loss(
    make_trainer: Callable[..., Any], make_stories: Callable[..., Dataset]
) -> None:
    stories = make_stories(5, routed=False)  # of different lengths
    trainer = make_trainer(per_device_eval_batch_size=2)
    expected = trainer.evaluate(stories)["eval_loss"]
    found = trainer.predict(stories)
    assert found.metrics["test_loss"] == pytest.approx(expected, abs=1e-6)
    assert found.predictions.shape[0] == found.label_ids.shape[0] == 5
    assert "test_loss_ablated" in found.metrics
    trainer.compute_metrics = lambda prediction: {"rows": len(prediction.label_ids)}
    assert trainer.evaluate(stories)["eval_loss"] == pytest.approx(expected, abs=1e-6)
    assert trainer.predict(stories).metrics["test_rows"] == 5


# ---- Names of the sets ----


def test_sets_can_have_names_of_their_own(make_trainer: Callable[..., Any], sets: dict[str, Dataset]) -> None:
    expected = make_trainer(evaluation=sets).evaluate()
    named = {"chemistry": sets["forget"], "cooking": sets["retain"]}
    settings = {"forget_dataset_name": "chemistry", "retain_dataset_name": "cooking", "minimum_ablation_gap": 100.0}
    trainer = make_trainer(evaluation=named, **settings)
    found = trainer.evaluate()
    derived = [name for name in expected if "gap" in name or "selectivity" in name]
    assert len(derived) == 4
    assert {name: found[name] for name in derived} == pytest.approx({name: expected[name] for name in derived})
    assert trainer.last_ablation_gap == found["eval_ablation_gap"]
    trainer.args.max_steps = 1
    with pytest.warns(LocalizationWarning):
        trainer.train()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {},
            r"'chemistry' and 'cooking'.*no ablation gap, .*selectivity.*`forget_dataset_name`.*`retain_dataset_name`",
        ),
        ({"forget_dataset_name": "chemistry"}, r"no retain ablation gap.*selectivity.*`retain_dataset_name`"),
        ({"retain_dataset_name": "cooking"}, r"no ablation gap, .*selectivity.*`forget_dataset_name`"),
    ],
)
def test_sets_without_these_names_are_told_what_is_lost(
    make_trainer: Callable[..., Any], sets: dict[str, Dataset], settings: dict[str, str], message: str
) -> None:
    with pytest.warns(EvaluationSetWarning, match=message):
        trainer = make_trainer(evaluation={"chemistry": sets["forget"], "cooking": sets["retain"]}, **settings)
    assert ("eval_ablation_gap" in trainer.evaluate()) == ("forget_dataset_name" in settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"forget_dataset_name": "chemstry"}, r"`training.forget_dataset_name` is 'chemstry', .*'forget' and 'retain'"),
        (
            {"retain_dataset_name": "forget"},
            r"`training.retain_dataset_name` and `.*forget_dataset_name` are both 'forget'",
        ),
    ],
)
def test_a_name_of_no_set_is_refused(
    make_trainer: Callable[..., Any], sets: dict[str, Dataset], settings: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(evaluation=sets, **settings)


# ---- What callbacks see ----


class Seen(TrainerCallback):
    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.metrics.append(kwargs["metrics"])


def test_callbacks_see_all_sets_and_what_follows_from_them_once(
    make_trainer: Callable[..., Any], sets: dict[str, Dataset]
) -> None:
    seen = Seen()
    found = make_trainer(evaluation=sets, callbacks=[seen]).evaluate()
    assert seen.metrics == [found]
    assert {"eval_forget_loss", "eval_retain_loss", "eval_ablation_gap"} <= set(found)
    seen.metrics.clear()
    make_trainer(evaluation=sets["forget"], callbacks=[seen]).evaluate()
    assert len(seen.metrics) == 1


def test_early_stopping_on_the_gap(make_trainer: Callable[..., Any], sets: dict[str, Dataset]) -> None:
    settings = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "ablation_gap", "max_steps": 6}
    # Nothing is ever better by so much: the second evaluation is the last.
    stopping = EarlyStoppingCallback(1, early_stopping_threshold=100.0)
    trainer = make_trainer(evaluation=sets, callbacks=[stopping], minimum_ablation_gap=-100.0, **settings)
    trainer.train()
    assert trainer.state.global_step == 2


def test_the_last_gap_is_that_of_the_weights_that_were_loaded(
    make_trainer: Callable[..., Any], sets: dict[str, Dataset]
) -> None:
    settings = {
        "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 2,
        "load_best_model_at_end": True, "metric_for_best_model": "eval_ablation_gap", "greater_is_better": True,
    }  # fmt: skip
    trainer = make_trainer(evaluation=sets, minimum_ablation_gap=-100.0, **settings)
    trainer.train()
    gaps = [entry["eval_ablation_gap"] for entry in trainer.state.log_history if "eval_ablation_gap" in entry]
    assert trainer.last_ablation_gap == max(gaps) != gaps[-1]
    assert trainer.last_ablation_gap == trainer.evaluate()["eval_ablation_gap"]


# ---- Sets of one of several modules ----


def test_a_set_called_after_a_module_is_measured_with_that_one_alone_ablated(
    make_trainer: Callable[..., Any],
    make_config: Callable[..., Any],
    make_stories: Callable[..., Dataset],
    sets: dict[str, Dataset],
) -> None:
    torch.manual_seed(0)
    expansion = ExpansionConfig(modules=[{"name": "biology", "width": 4}, {"name": "forget", "width": 4}])
    model = ExpandedGPTNeoForCausalLM(ExpandedGPTNeoConfig.from_base_config(make_config(), expansion))
    trainer = make_trainer(model=model, evaluation={**sets, "biology": make_stories(4, seed=7, routed=False)})
    trainer.compute_metrics = lambda prediction: {"logit": float(prediction.predictions.max())}
    found = trainer.evaluate(metric_key_prefix="mine")
    trainer.model.set_active("biology", False)
    alone = trainer.evaluate(metric_key_prefix="mine")
    trainer.model.set_active("forget", False)
    both = trainer.evaluate(metric_key_prefix="mine")
    assert found["mine_biology_loss_ablated"] == pytest.approx(alone["mine_biology_loss"], abs=1e-6)
    assert found["mine_biology_logit_ablated"] == pytest.approx(alone["mine_biology_logit"], abs=1e-6)
    gap = alone["mine_biology_loss"] - found["mine_biology_loss"]
    assert found["mine_biology_ablation_gap"] == pytest.approx(gap, abs=1e-6)
    assert abs(gap) > 1e-4
    # The forget set is that of all modules, whatever one of them is called.
    assert found["mine_forget_loss_ablated"] == pytest.approx(both["mine_forget_loss"], abs=1e-6)
    assert "mine_forget_ablation_gap" not in found
    assert found["mine_ablation_gap"] == pytest.approx(both["mine_forget_loss"] - found["mine_forget_loss"], abs=1e-6)
