"""The trainer with two modules: labels to modules for text, an index for what is tokenised, and gradients through it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import GPTNeoForCausalLM, TrainerCallback

from hf_era import ExpansionConfig, GradientRoutingConfig, GradientRoutingTrainer, add_routing_weights, expand_base
from hf_era.data import RoutingCollator, train_tokenizer

TOPICS = ("chemistry", "music", "sailing", "music")
TEXTS = [f"{TOPICS[row % 4]} number {row}{' and so on' * (row % 5)}." for row in range(48)]
EXPANSION = {"modules": [{"name": "boats", "width": 4, "target_layers": [0]}, {"name": "acids", "width": 5}]}
MODULES = {"acids": ["chemistry"], "boats": ["sailing"]}
BY_LABEL = {"label_column": "topic", "modules": MODULES}


@pytest.fixture(scope="module")
def rows() -> Dataset:
    return Dataset.from_dict({"text": TEXTS, "topic": [TOPICS[row % 4] for row in range(48)]})


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(TEXTS, 280)


@pytest.fixture(scope="module")
def model(tokenizer: Any, make_config: Callable[..., Any]) -> Any:
    torch.manual_seed(0)
    return expand_base(GPTNeoForCausalLM(make_config(vocab_size=len(tokenizer))), ExpansionConfig(**EXPANSION))


class CatchGradients(TrainerCallback):
    def __init__(self) -> None:
        self.gradients: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.gradients = {name: value.grad.clone() for name, value in kwargs["model"].named_parameters()}


@pytest.fixture
def make(model: Any, rows: Dataset, tokenizer: Any, tmp_path: Path) -> Callable[..., GradientRoutingTrainer]:
    def make(
        train: Any = None, callbacks: Any = None, data_collator: Any = None, **settings: Any
    ) -> GradientRoutingTrainer:
        values = {
            "use_cpu": True, "report_to": [], "disable_tqdm": True, "max_steps": 1, "learning_rate": 1e-9,
            "per_device_train_batch_size": 4, "minimum_ablation_gap": 0.0, "save_strategy": "no",
        }  # fmt: skip
        return GradientRoutingTrainer(
            model,
            GradientRoutingConfig(str(tmp_path), **{**values, **(BY_LABEL if train is None else {}), **settings}),
            train_dataset=rows if train is None else train,
            processing_class=tokenizer,
            callbacks=callbacks,
            data_collator=data_collator,
        )

    return make


def test_labels_of_text_say_the_module(make: Callable[..., Any]) -> None:
    trainer = make()
    found = set(zip(trainer.train_dataset["module"], trainer.train_dataset["module_index"], strict=True))
    assert found == {("boats", 0), ("acids", 1), (None, -1)}  # in the model's order
    assert set(trainer.eval_dataset["forget"]["module"]) == {"boats", "acids"}
    assert trainer.data_summary["modules"]["acids"]["train_stories"] == 11
    batch = next(iter(trainer.get_train_dataloader()))
    assert (tuple(batch["module_index"].shape), batch["module_index"].dtype) == ((4,), torch.int64)


def test_words_and_json_say_it_too(make: Callable[..., Any]) -> None:
    trainer = make(label_column=None, modules='{"acids": ["chemistry"], "boats": ["sailing"]}')
    assert trainer.data_summary["labelling"]["modules"] == MODULES
    row = next(row for row in trainer.train_dataset if row["module"] == "boats")
    assert [weight == 0 for weight in row["routing_weight"][:-1]] == row["is_forget_word"][1:]  # the words' own tokens


def gradients(make: Callable[..., Any], train: Dataset, **settings: Any) -> dict[str, Tensor]:
    catch = CatchGradients()
    make(train, [catch], **settings).train()
    return catch.gradients


@pytest.fixture(scope="module")
def tokenised(rows: Dataset, tokenizer: Any) -> Dataset:
    modules = {"boats": ["sailing"], "acids": ["chemistry"]}
    return add_routing_weights(rows, tokenizer, label_column="topic", modules=modules, max_length=32)


@pytest.mark.parametrize(("module", "other"), [("boats", "acids"), ("acids", "boats")])
def test_data_of_one_module_does_not_teach_the_other(
    module: str, other: str, make: Callable[..., Any], tokenised: Dataset
) -> None:
    """With the L1 term, and examples grouped by their length."""
    own = tokenised.filter(lambda row: row["module"] == module)
    found = gradients(make, own, train_sampling_strategy="group_by_length", l1_coefficient=0.1)
    taught = {name: bool(torch.count_nonzero(value)) for name, value in found.items() if ".auxiliary." in name}
    assert {name for name, has in taught.items() if not has} == {name for name in taught if f".{other}." in name}
    assert any(taught.values())


@pytest.mark.parametrize(
    "settings",
    [
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
        {"per_device_train_batch_size": 8, "accelerator_config": {"split_batches": True}},
        {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 3},
    ],
)
def test_gradients_do_not_depend_on_how_a_batch_is_cut(
    settings: dict[str, Any], make: Callable[..., Any], tokenised: Dataset
) -> None:
    some = tokenised.select(range(8))
    order = {"train_sampling_strategy": "sequential"}
    expected = gradients(make, some, per_device_train_batch_size=8, **order)
    found = gradients(make, some, **order, **settings)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-7)
    unsaid = gradients(make, some.remove_columns(["module", "module_index"]), per_device_train_batch_size=8, **order)
    assert not all(torch.allclose(unsaid[name], value, rtol=1e-2) for name, value in expected.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modules": {"acid": ["chemistry"], "boats": ["sailing"]}},
         r"Unknown key `acid` in `modules` \(the model does not have it\)\. Did you mean `acids`\? "
         r"Known: boats, acids\. "
         r"Which modules there are, `expansion\.modules` says: \[\{name: acid\}, \.\.\.\]\."),
        ({"modules": {"acids": ["chemistry"]}}, r"`modules` names nothing for `boats` of the model, so no forget example"),
        ({"modules": {"acids": ["chemistri"], "boats": ["sailing"]}},
         r"`modules`: none of the 48 training examples has chemistri in the column `topic`\. Did you mean 'chemistry'\?"),
        ({"modules": "acids"}, r"`training\.modules` should be a dict or JSON, got 'acids'\."),
    ],
)  # fmt: skip
def test_modules_that_the_model_or_the_data_does_not_have(
    changes: dict[str, Any], message: str, make: Callable[..., Any]
) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_an_index_that_was_made_for_another_model(make: Callable[..., Any], rows: Dataset, tokenizer: Any) -> None:
    swapped = add_routing_weights(rows, tokenizer, **BY_LABEL)  # acids first
    message = (
        r"`train_dataset` has the `module_index` [01], for the module '(acids|boats)', but the model's modules are `boats`, "
        r"`acids`, from 0 to 1\. Make it with the modules of this model, in this order \(-1: none\)\."
    )
    with pytest.raises(ValueError, match=message):
        make(swapped)
    index = [2, *[-1] * 47]
    beyond = swapped.remove_columns(["module", "module_index"]).add_column("module_index", index)
    with pytest.raises(
        ValueError, match=r"`train_dataset` has the `module_index` 2, but the model's modules are `boats`"
    ):
        make(beyond)


def test_a_collator_that_loses_the_modules(make: Callable[..., Any], tokenised: Dataset) -> None:
    """As one that was written for a single module does: all would train to the end, and every example teach both."""

    def my_collator(rows: list[dict[str, Any]]) -> Any:
        batch = RoutingCollator(0)(rows)
        del batch["module_index"]
        return batch

    trainer = make(tokenised, data_collator=my_collator)
    message = (
        r"`train_dataset` has the column `module_index`, but the batch that `data_collator` `my_collator` gave has none, "
        r"and without it every example teaches all modules\. Make it a tensor of one integer per example"
    )
    with pytest.raises(ValueError, match=message):
        trainer.train()
