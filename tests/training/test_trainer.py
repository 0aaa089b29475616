"""`GradientRoutingTrainer` as a drop-in `Trainer`: logs, evaluation, warnings, checkpoints, resuming, pushing."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, GPTNeoForCausalLM, Trainer, TrainerCallback

from hf_era import GradientRoutingConfig, GradientRoutingTrainer
from hf_era.data import RoutingCollator
from hf_era.models.fast.causal_lm import ALL_SLOW
from hf_era.models.generation_config import GenerationConfigWarning
from hf_era.models.stock_forward import CACHE_NAME
from hf_era.training import CausalLMTrainer, CausalLMTrainingConfig, LocalizationWarning, NonFiniteLossError, publishing
from hf_era.training.checkpoints import last_whole_checkpoint


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_language_model_and_l1_losses_are_logged_apart(make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(max_steps=4, logging_steps=2, l1_coefficient=1e-2, gradient_accumulation_steps=2)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 2
    for entry in entries:
        assert entry["l1_loss"] > 0
        assert entry["language_model_loss"] + entry["l1_loss"] == pytest.approx(entry["loss"], rel=1e-4)


def test_the_norm_that_is_logged_is_the_trainers_own_and_changes_no_gradient(
    make_trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained() -> tuple[dict[str, torch.Tensor], list[float]]:
        trainer = make_trainer(max_steps=4, logging_steps=1, max_grad_norm=0.0)
        trainer.train()
        return weights(trainer.model), [
            entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry
        ]

    multiplied: list[int] = []
    clip = torch.nn.utils.clip_grad_norm_
    counted = lambda *args, **kwargs: multiplied.append(1) or clip(*args, **kwargs)  # noqa: E731
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", counted)
    own, norms = trained()
    assert not multiplied
    monkeypatch.delattr(CausalLMTrainer, "_get_grad_norm")
    stock, expected = trained()
    assert len(multiplied) == len(norms) == 4
    assert norms == pytest.approx(expected, rel=1e-6)
    assert all(torch.equal(value, stock[name]) for name, value in own.items())


def test_without_l1_there_is_no_l1_loss(make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(l1_coefficient=0.0)
    trainer.train()
    assert not any("l1_loss" in entry for entry in trainer.state.log_history)


def test_evaluation_is_token_weighted_with_the_module_on_and_ablated(
    make_trainer: Callable[..., Any], make_stories: Callable[..., Any]
) -> None:
    sets = {name: make_stories(6, seed=seed, routed=False) for seed, name in enumerate(("forget", "retain"), 1)}
    metrics = make_trainer(evaluation=sets, per_device_eval_batch_size=4).evaluate()
    model = make_trainer().model  # the same weights
    for name, stories in sets.items():
        total, tokens = 0.0, 0
        for story in stories:  # one by one: no padding, no batches
            ids = torch.tensor([story["input_ids"]])
            with torch.no_grad(), model.ablated():
                total += float(model.eval()(ids, labels=ids).loss) * (ids.shape[1] - 1)
            tokens += ids.shape[1] - 1
        assert metrics[f"eval_{name}_loss_ablated"] == pytest.approx(total / tokens, abs=2e-6)
        assert metrics[f"eval_{name}_loss"] != metrics[f"eval_{name}_loss_ablated"]
    gap = metrics["eval_forget_loss_ablated"] - metrics["eval_forget_loss"]
    assert metrics["eval_ablation_gap"] == pytest.approx(gap)
    assert metrics["eval_retain_ablation_gap"] == pytest.approx(
        metrics["eval_retain_loss_ablated"] - metrics["eval_retain_loss"]
    )
    assert all(metrics[f"eval_selectivity_layer_{layer}"] > 0 for layer in (0, 1))
    assert "eval_selectivity_layer_2" not in metrics


def test_evaluation_while_training_is_logged_and_leaves_the_module_on(
    make_trainer: Callable[..., Any], make_stories: Callable[..., Any]
) -> None:
    sets = {"forget": make_stories(4, seed=1), "retain": make_stories(4, seed=2)}
    trainer = make_trainer(evaluation=sets, max_steps=4, eval_strategy="steps", eval_steps=2, minimum_ablation_gap=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LocalizationWarning)
        trainer.train()
    logged = [entry["step"] for entry in trainer.state.log_history if "eval_ablation_gap" in entry]
    assert logged == [2, 4]
    assert all(module.active for named in trainer.model.auxiliary_modules().values() for module in named.values())


def test_a_plain_evaluation_set_works_too(make_trainer: Callable[..., Any], make_stories: Callable[..., Any]) -> None:
    metrics = make_trainer(evaluation=make_stories(4)).evaluate()
    assert {"eval_loss", "eval_loss_ablated"} <= set(metrics)


def test_it_warns_loudly_when_nothing_was_localised(
    make_trainer: Callable[..., Any], make_stories: Callable[..., Any]
) -> None:
    sets = {"forget": make_stories(4, seed=1), "retain": make_stories(4, seed=2)}
    settings = {"evaluation": sets, "eval_strategy": "steps", "eval_steps": 2}
    with pytest.warns(LocalizationWarning, match=r"NOTHING WAS LOCALISED.*minimum_ablation_gap` = 100"):
        make_trainer(**settings, minimum_ablation_gap=100.0).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error", LocalizationWarning)
        make_trainer(**settings, minimum_ablation_gap=0.0, multipliers={"original_forget": 1.0}, max_steps=30).train()


class PoisonWeights(TrainerCallback):
    """Makes the loss NaN from a step on, as a diverged run would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            with torch.no_grad():
                kwargs["model"].transformer.ln_f.weight.fill_(float("nan"))


def test_a_non_finite_loss_stops_names_the_step_and_keeps_the_checkpoint(make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(callbacks=[PoisonWeights(3)], max_steps=10, save_strategy="steps", save_steps=2)
    with pytest.raises(NonFiniteLossError, match=r"became nan at step 4 of 10.*checkpoints under .* were kept"):
        trainer.train()
    checkpoint = last_whole_checkpoint(trainer.args.output_dir)
    assert checkpoint is not None
    assert checkpoint.endswith("checkpoint-2")
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert all(torch.isfinite(value).all() for value in model.parameters())


def test_broken_weights_are_never_saved(make_trainer: Callable[..., Any]) -> None:
    # Poisoned at the end of step 2, just before its checkpoint: the loss was still finite.
    trainer = make_trainer(callbacks=[PoisonWeights(2)], max_steps=4, save_strategy="steps", save_steps=2)
    with pytest.raises(NonFiniteLossError, match=r"weight transformer\.ln_f\.weight became non-finite"):
        trainer.train()
    assert last_whole_checkpoint(trainer.args.output_dir) is None


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def test_training_leaves_the_config_as_it_was(
    make_trainer: Callable[..., Any], make_expanded: Callable[..., Any], tmp_path: Path
) -> None:
    """Keys and values are not kept while training, which is nobody's business but the trainer's."""
    caches = []
    model = make_expanded([0, 1], use_cache=True, pad_token_id=3)
    model.save_pretrained(tmp_path / "before")
    model.transformer.register_forward_hook(lambda module, args, outputs: caches.append(outputs.get(CACHE_NAME)))
    trainer = make_trainer(model=model, save_strategy="steps", save_steps=1)
    trainer.train()
    trainer.save_whole_model(tmp_path / "contracted")
    trainer.save_contracted(tmp_path / "contracted")
    assert "import hf_era" not in (tmp_path / "contracted" / "README.md").read_text()
    assert caches == [None, None]
    assert config_of(Path(trainer.args.output_dir) / "checkpoint-1") == config_of(tmp_path / "before")
    before = {
        name: value for name, value in config_of(tmp_path / "before").items() if name not in ("expansion", "load_with")
    }
    stock = {"model_type": "gpt_neo", "architectures": ["GPTNeoForCausalLM"]}
    assert config_of(tmp_path / "contracted") == {**before, **stock}
    caching = make_trainer(model=model, max_steps=1, use_cache=True)  # who asks for it gets it
    caching.train()
    assert caches[-1] is not None


def test_a_resumed_run_ends_with_the_same_weights(
    make_trainer: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "l1_coefficient": 1e-2, "seed": 5}
    whole = make_trainer(**settings, output_dir=str(tmp_path / "whole"))
    whole.train()
    resumed = make_trainer(**settings, output_dir=str(tmp_path / "resumed"))
    assert resumed.model.lm_head.weight is resumed.model.transformer.wte.weight  # and so saved once
    told: list[str] = []
    monkeypatch.setattr(transformers.trainer.logger, "warning", told.append)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert not [text for text in told if "keys" in text]
    expected = weights(whole.model)
    assert all(torch.equal(value, expected[name]) for name, value in weights(resumed.model).items())


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_resuming_in_a_later_epoch_sees_the_same_order(
    make_trainer: Callable[..., Any], tmp_path: Path, strategy: str
) -> None:
    settings = {"max_steps": 10, "save_strategy": "steps", "save_steps": 7, "train_sampling_strategy": strategy}
    whole = make_trainer(**settings, output_dir=str(tmp_path / "whole"))  # 16 stories, 4 a batch: 4 steps an epoch
    whole.train()
    torch.manual_seed(123)  # whatever the process did before
    resumed = make_trainer(**settings, output_dir=str(tmp_path / "resumed"))
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-7"))
    expected = weights(whole.model)
    assert all(torch.equal(value, expected[name]) for name, value in weights(resumed.model).items())


@pytest.mark.parametrize("length", [{"max_steps": 3}, {"max_steps": -1, "num_train_epochs": 0.75}])
def test_resuming_from_the_last_step_changes_nothing(
    make_trainer: Callable[..., Any], tmp_path: Path, length: dict[str, Any]
) -> None:
    settings = {**length, "save_strategy": "steps", "save_steps": 3}  # of the 4 steps of an epoch
    whole = make_trainer(**settings, output_dir=str(tmp_path / "whole"))
    whole.train()
    resumed = make_trainer(**settings, output_dir=str(tmp_path / "resumed"))
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert resumed.state.global_step == 3
    expected = weights(whole.model)
    assert all(torch.equal(value, expected[name]) for name, value in weights(resumed.model).items())


def test_length_groups_differ_from_epoch_to_epoch(make_trainer: Callable[..., Any]) -> None:
    sampler = make_trainer(train_sampling_strategy="group_by_length")._get_train_sampler()
    first = list(sampler)
    assert first == list(sampler)
    sampler.set_epoch(1)
    assert sorted(first) == sorted(sampler)
    assert first != list(sampler)


def test_model_init_keeps_the_multipliers(
    make_expanded: Callable[..., Any], make_stories: Callable[..., Any], tmp_path: Path
) -> None:
    args = GradientRoutingConfig(
        str(tmp_path),
        max_steps=1,
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        multipliers={"original_forget": 0.25},
    )
    trainer = GradientRoutingTrainer(
        args=args, model_init=lambda: make_expanded([0]), train_dataset=make_stories(), data_collator=RoutingCollator(0)
    )
    trainer.train()
    assert trainer.model.gradient_multipliers.original_forget == 0.25


def test_a_missing_routing_weight_column_is_refused(
    make_trainer: Callable[..., Any], make_stories: Callable[..., Any]
) -> None:
    stories = make_stories().rename_column("routing_weight", "routing_weights")
    with pytest.raises(
        ValueError, match=r"No column `routing_weight` in `train_dataset`. Did you mean `routing_weights`"
    ):
        make_trainer(stories=stories)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_are_warned_of(make_trainer: Callable[..., Any], dtype: torch.dtype) -> None:
    plain = make_trainer()
    kind = str(dtype).removeprefix("torch.")
    message = rf"weights are {kind}.*rounded away.*`dtype=torch.float32`.*`bf16=True`"
    model, rows = plain.model.to(dtype), plain.train_dataset
    with pytest.warns(UserWarning, match=message):
        GradientRoutingTrainer(model, plain.args, train_dataset=rows)
    with pytest.warns(UserWarning, match=message):
        CausalLMTrainer(model.contract(), plain.args, train_dataset=rows)
    GradientRoutingTrainer(model, plain.args, eval_dataset=rows)  # an evaluation changes nothing
    model.requires_grad_(False)
    model.transformer.ln_f.float().requires_grad_(True)
    GradientRoutingTrainer(model, plain.args, train_dataset=rows)  # nor is what is frozen changed


def test_ids_that_the_model_does_not_have_are_refused(
    make_trainer: Callable[..., Any], make_expanded: Callable[..., Any], make_stories: Callable[..., Any]
) -> None:
    stories = make_stories()
    beyond = stories.map(lambda row: {"input_ids": [*row["input_ids"][:-1], 53]})  # of another tokenizer
    settings = GradientRoutingConfig(**{**make_trainer().args.to_dict(), "max_steps": 1})
    trainer = GradientRoutingTrainer(make_expanded([0, 1]), settings, train_dataset=beyond)
    with pytest.raises(ValueError, match="`input_ids` should be from 0 to 52, got 53 in row 0"):
        trainer.train()


def test_a_push_uploads_the_stock_model_with_card_and_tags(
    make_trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads: list[dict[str, Any]] = []
    monkeypatch.setattr(publishing.huggingface_hub, "upload_folder", lambda **options: uploads.append(options))
    trainer = make_trainer()
    trainer.hub_model_id = "someone/forgetful"
    trainer.train()
    trainer.push_to_hub(commit_message="Done", token="secret")
    (upload,) = uploads
    assert upload["repo_id"] == "someone/forgetful"
    assert upload["commit_message"] == "Done"
    folder = Path(upload["folder_path"])
    assert {"config.json", "model.safetensors", "README.md"} <= {path.name for path in folder.iterdir()}
    assert {"hf_era", "gradient-routing"} <= set(ModelCard.load(folder / "README.md").data.tags)
    assert not [path for path in folder.iterdir() if path.suffix in {".bin", ".pt", ".pkl"}]
    assert all(b"auxiliary" not in path.read_bytes() for path in folder.iterdir() if path.suffix != ".md")
    pushed = AutoModelForCausalLM.from_pretrained(folder)
    assert type(pushed) is GPTNeoForCausalLM
    ids = torch.arange(6)[None]
    trainer.model.set_fast_paths(ALL_SLOW)  # the stock class has none: without them it is equal bit for bit
    trainer.model.set_attn_implementation("eager")
    with torch.no_grad(), trainer.model.eval().ablated():
        assert torch.equal(pushed.eval()(ids).logits, trainer.model(ids).logits)


@pytest.mark.parametrize(
    ("kind", "expected"), [(CausalLMTrainer, ["checkpoint-1", "checkpoint-2"]), (GradientRoutingTrainer, [])]
)
def test_checkpoints_with_an_auxiliary_module_are_never_pushed(
    make_trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, kind: type[CausalLMTrainer], expected: list[str]
) -> None:
    """Other checkpoints are, once each, when they have their final names."""
    pushed: list[Path] = []
    monkeypatch.setattr(Trainer, "init_hf_repo", lambda trainer: setattr(trainer, "push_in_progress", None))
    monkeypatch.setattr(Trainer, "_push_from_checkpoint", lambda trainer, folder: pushed.append(Path(folder)))
    plain = make_trainer(push_to_hub=True, save_strategy="steps", save_steps=1)
    trainer = kind(plain.model, plain.args, train_dataset=plain.train_dataset, data_collator=plain.data_collator)
    trainer.train()
    assert pushed == [Path(trainer.args.output_dir) / name for name in expected]
    assert len(list(Path(trainer.args.output_dir).glob("checkpoint-*"))) == 2


def test_an_l1_term_is_refused_where_nothing_is_measured(
    make_base: Callable[..., Any], make_stories: Callable[..., Any], tmp_path: Path
) -> None:
    args = CausalLMTrainingConfig(str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match=r"`l1_coefficient` is 0.1, but no layer of the GPTNeoForCausalLM measures"):
        CausalLMTrainer(make_base(), args, l1_coefficient=0.1, train_dataset=make_stories())


def test_a_stock_model_is_refused(make_base: Callable[..., Any], make_trainer: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"should be an expanded model, got GPTNeoForCausalLM. Expand it first"):
        make_trainer(model=make_base())


def test_compute_metrics_goes_the_trainers_own_way(
    make_expanded: Callable[..., Any], make_stories: Callable[..., Any], tmp_path: Path
) -> None:
    args = GradientRoutingConfig(str(tmp_path), use_cpu=True, disable_tqdm=True)
    trainer = GradientRoutingTrainer(
        make_expanded(),
        args,
        eval_dataset=make_stories(4, routed=False),
        data_collator=RoutingCollator(0),
        compute_metrics=lambda prediction: {"rows": len(prediction.label_ids)},
    )
    assert trainer.evaluate()["eval_rows"] == 4


def test_a_generation_config_that_cannot_be_saved_does_not_lose_the_training(
    make_trainer: Callable[..., Any], tmp_path: Path
) -> None:
    trainer = make_trainer(max_steps=1)
    trainer.model.generation_config.temperature = 0.7  # without `do_sample`
    trainer.model.config.max_length = 30
    with (
        pytest.warns(GenerationConfigWarning, match="`temperature` = 0.7"),
        pytest.warns(GenerationConfigWarning, match="`max_length`"),
    ):
        trainer.train()
    trainer.save_contracted(tmp_path / "stock")
    trainer.save_model(tmp_path / "expanded")
