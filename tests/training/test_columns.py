"""Which columns reach the model: one that is needed or given, and would be lost on the way, is refused by name."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from torch import Tensor, nn
from transformers import DataCollatorForLanguageModeling, DataCollatorWithFlattening, PreTrainedTokenizerFast

from hf_era import GradientRoutingTrainer
from hf_era.data import RoutingCollator
from hf_era.training import CausalLMTrainer, CausalLMTrainingConfig

ROWS = [{"input_ids": [1, 2, 3, 4]}] * 8


class Dropping:
    """A collator that makes a batch without routing weights."""

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = RoutingCollator(0)(examples)
        return {name: batch[name] for name in ("input_ids", "labels")}


class Rows(torch.utils.data.Dataset):
    """A map-style data set without column names."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(ROWS)


def trainer_of(model: Any, plain: Any, collator: Any = None, **sets: Any) -> GradientRoutingTrainer:
    """A trainer with the settings of another and its own collator."""
    return GradientRoutingTrainer(
        model, plain.args, data_collator=RoutingCollator(0) if collator is None else collator, **sets
    )


def first_loss(trainer: Any, accumulated: int = 1) -> Tensor:
    """The loss of the first batch, without the rest of a training."""
    trainer.current_gradient_accumulation_steps = accumulated
    return trainer.training_step(trainer.model, next(iter(trainer.get_train_dataloader())))


# ---- Routing weights ----


@pytest.mark.parametrize("rows", [Rows(ROWS), Stream()], ids=["map style", "stream"])
def test_a_batch_without_routing_weights_is_refused(make_trainer: Callable[..., Any], rows: Any) -> None:
    trainer = make_trainer(stories=rows)
    with pytest.raises(ValueError, match=r"no `routing_weight`.*`RoutingCollator`.*`attention_mask`, `input_ids`"):
        trainer.train() if isinstance(rows, Stream) else first_loss(trainer)


def test_a_collator_that_drops_them_is_named(make_trainer: Callable[..., Any]) -> None:
    plain = make_trainer()
    trainer = trainer_of(plain.model, plain, Dropping(), train_dataset=plain.train_dataset)
    with pytest.raises(
        ValueError, match=r"no `routing_weight`.*`Dropping` gave `input_ids`, `labels`.*RoutingCollator"
    ):
        first_loss(trainer)


def test_whatever_wraps_the_model_does_not_hide_that_they_are_lost(
    make_trainer: Callable[..., Any], make_batch: Callable[..., dict[str, Tensor]]
) -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.module(*args, **kwargs)

    trainer, batch = make_trainer(), make_batch()
    wrapped = Wrapper(trainer.model)
    assert trainer.compute_loss(wrapped.train(), dict(batch)).isfinite()
    del batch["routing_weight"]
    with pytest.raises(ValueError, match="no `routing_weight`"):
        trainer.compute_loss(wrapped, dict(batch))
    assert trainer.compute_loss(wrapped.eval(), batch).isfinite()  # an evaluation needs none


def test_a_list_of_rows_is_refused_at_once(make_trainer: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"No column `routing_weight` in `train_dataset`.*Known: input_ids"):
        make_trainer(stories=ROWS)


def test_a_collator_may_make_them_itself(make_trainer: Callable[..., Any]) -> None:
    """Only our own collator is known not to."""

    def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        return RoutingCollator(0)([{**row, "routing_weight": [0.5] * 4} for row in examples])

    plain = make_trainer()
    assert first_loss(trainer_of(plain.model, plain, collate, train_dataset=Dataset.from_list(ROWS))) > 0


@pytest.mark.parametrize("kind", [CausalLMTrainer, GradientRoutingTrainer])
def test_a_dict_of_splits_is_no_training_set(make_trainer: Callable[..., Any], kind: Any) -> None:
    plain = make_trainer()
    splits = DatasetDict(train=plain.train_dataset, test=plain.train_dataset)
    message = r"`train_dataset` should be one data set, got a DatasetDict with `train`, `test`.*dataset\['train'\]"
    with pytest.raises(ValueError, match=message):
        kind(plain.model, plain.args, train_dataset=splits)


@pytest.mark.parametrize(
    "make_collator",
    [
        lambda tokenizer: DataCollatorForLanguageModeling(tokenizer, mlm=False),
        lambda tokenizer: type("Renamed", (DataCollatorForLanguageModeling,), {})(tokenizer, mlm=False),
        lambda _: DataCollatorWithFlattening(),
    ],
    ids=["language modeling", "renamed", "flattening"],
)
def test_collators_that_pad_no_routing_weights_are_refused(
    make_trainer: Callable[..., Any], make_collator: Callable[..., Any]
) -> None:
    from tokenizers import Tokenizer, models

    collator = make_collator(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), pad_token="x"))
    plain = make_trainer()
    message = rf"`data_collator` is a {type(collator).__name__}.*`routing_weight`.*`hf_era.data.RoutingCollator\("
    with pytest.raises(ValueError, match=message):
        trainer_of(plain.model, plain, collator, train_dataset=plain.train_dataset)
    trainer_of(plain.model, plain, collator, eval_dataset=plain.train_dataset)  # an evaluation needs none


# ---- Other inputs of the model ----


@pytest.mark.parametrize(
    ("of", "name"),
    [
        ("train_dataset", "position_ids"),
        ("train_dataset", "token_type_ids"),
        ("train_dataset", "seq_idx"),  # models take it by way of `**kwargs`
        ("train_dataset", "completion_mask"),  # no input of the model, but says what is to be learnt
        ("eval_dataset", "position_ids"),
    ],
)
def test_inputs_that_the_collator_would_drop_are_refused(make_trainer: Callable[..., Any], of: str, name: str) -> None:
    """Packed rows whose stories see each other train without an error."""
    plain = make_trainer()
    packed = plain.train_dataset.add_column(name, [[0] * length for length in plain.train_dataset["length"]])
    sets = {"train_dataset": plain.train_dataset, of: {"forget": packed} if of == "eval_dataset" else packed}
    where = r"eval_dataset\['forget'\]" if of == "eval_dataset" else of
    message = (
        rf"`{name}` of `{where}`.*`RoutingCollator` does not know.* Take the column out, .*`data_collator` of your own"
    )
    with pytest.raises(ValueError, match=message):
        trainer_of(plain.model, plain, **sets)


def test_they_are_refused_without_column_names_too(make_trainer: Callable[..., Any]) -> None:
    rows = [{"input_ids": [1, 2, 3], "routing_weight": [1.0] * 3, "position_ids": [0, 1, 0]}] * 4
    with pytest.raises(ValueError, match=r"`position_ids` .*`RoutingCollator` does not know"):
        first_loss(make_trainer(stories=Rows(rows)))


def test_a_collator_of_the_users_own_may_use_them(make_trainer: Callable[..., Any]) -> None:
    used = []

    class Packing:
        def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
            positions = [row.pop("position_ids") for row in examples]
            return {**RoutingCollator(0)(examples), "position_ids": torch.tensor(positions)}

    rows = Dataset.from_list([{"input_ids": [1, 2, 3], "routing_weight": [1.0] * 3, "position_ids": [0, 1, 0]}] * 4)
    plain = make_trainer(max_steps=1)
    plain.model.register_forward_pre_hook(lambda *given: used.append(given[2]["position_ids"]), with_kwargs=True)
    first_loss(trainer_of(plain.model, plain, Packing(), train_dataset=rows))
    assert used[0].tolist() == [[0, 1, 0]] * 4


def test_other_columns_are_left_alone(make_trainer: Callable[..., Any]) -> None:
    plain = make_trainer(max_steps=1, remove_unused_columns=False)
    texts = plain.train_dataset.add_column("text", ["a"] * 16).add_column("label", [0] * 16)
    assert first_loss(trainer_of(plain.model, plain, train_dataset=texts)) > 0


def test_a_model_that_takes_less_is_trained_as_the_trainer_does(make_base: Callable[..., Any], tmp_path: Any) -> None:
    """Columns that it does not take are left out; a loss that it cannot divide is divided by the batches accumulated."""

    class TakesLess(type(make_base())):  # type: ignore[misc]
        def forward(self, input_ids: Any = None, attention_mask: Any = None, labels: Any = None) -> Any:
            return super().forward(input_ids, attention_mask=attention_mask, labels=labels)

    rows = Dataset.from_list([{"input_ids": [1, 2, 3], "token_type_ids": [0, 0, 0]}] * 4)
    args = CausalLMTrainingConfig(
        str(tmp_path), max_steps=1, use_cpu=True, disable_tqdm=True, save_strategy="no", report_to=[]
    )
    model = TakesLess(make_base().config).eval()
    trainer = CausalLMTrainer(model, args, train_dataset=rows)
    ids = torch.tensor([[1, 2, 3]] * 4)
    assert float(first_loss(trainer, accumulated=2)) == pytest.approx(
        float(model(ids, labels=ids).loss.detach()) / 2, rel=1e-5
    )
