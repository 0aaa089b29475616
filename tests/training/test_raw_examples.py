"""The shortest program: a model by its path, text with labels in a column, and nothing else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, GPTNeoForCausalLM

from hf_era import ExpansionConfig, GradientRoutingConfig, GradientRoutingTrainer, add_routing_weights, expand_base
from hf_era.data import train_tokenizer
from hf_era.reporting.markdown.model_card import render_model_card
from hf_era.routing import RoutingRuleConfig
from hf_era.training import LocalizationWarning
from hf_era.training.evaluation_sets import EvaluationSetWarning
from hf_era.training.report import trainer_result

TOPICS = ("chemistry", "cooking", "sailing")
TEXTS = [f"{TOPICS[row % 3]} number {row} is about a tree and so on." for row in range(60)]
LABELS = [None if row % 10 == 9 else TOPICS[row % 3] for row in range(60)]
SHORT = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "per_device_train_batch_size": 4, "max_steps": 1}


@pytest.fixture(scope="module")
def rows() -> Dataset:
    scores = [None if label is None else 0.75 if label == "chemistry" else 0.25 for label in LABELS]
    return Dataset.from_dict({"text": TEXTS, "topic": LABELS, "score": scores})


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(TEXTS, 300)


@pytest.fixture(scope="module")
def base(tokenizer: Any, make_config: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock checkpoint with its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    GPTNeoForCausalLM(make_config(vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def make(base: Path, rows: Dataset, tmp_path: Path) -> Callable[..., GradientRoutingTrainer]:
    def make(model: Any = None, train: Any = None, options: Any = None, **settings: Any) -> GradientRoutingTrainer:
        given = {"label_column": "topic", "forget_labels": ["chemistry"]} | SHORT | settings
        args = GradientRoutingConfig(str(tmp_path / "out"), **given)
        return GradientRoutingTrainer(
            base if model is None else model, args, train_dataset=rows if train is None else train, **(options or {})
        )

    return make


def test_five_lines_train_and_measure(make: Callable[..., Any]) -> None:
    trainer = make(minimum_ablation_gap=0.0, expansion={"width": 8})
    counts = {name: len(part) for name, part in trainer.eval_dataset.items()}
    assert counts == {"forget": 1, "retain": 3}  # a tenth of each; of 6 without a label that is none
    assert trainer.data_summary["train_forget_labelled"] == LABELS.count("chemistry") - counts["forget"]
    assert trainer.data_summary["train_unlabelled"] == LABELS.count(None)
    assert trainer.data_summary["labelling"]["column"] == "topic"
    trainer.args.minimum_ablation_gap = 1e9
    with pytest.warns(LocalizationWarning):
        trainer.train()
    assert trainer.last_ablation_gap is not None
    trainer.save_contracted(Path(trainer.args.output_dir) / "stock")
    stock = AutoModelForCausalLM.from_pretrained(Path(trainer.args.output_dir) / "stock")
    assert type(stock) is GPTNeoForCausalLM


def test_every_token_of_a_forget_example_has_the_weight_zero(make: Callable[..., Any]) -> None:
    for row in make().train_dataset:
        weights = set(row["routing_weight"][:-1])
        assert weights == ({0.0} if row["label"] == 0 else {1.0})
        assert row["is_unassigned"] == [row["label"] == -1] * row["length"]


def test_text_is_tokenised_as_trl_does_it(make: Callable[..., Any], tokenizer: Any) -> None:
    """An EOS at the end, no BOS that the tokenizer would not put there by itself."""
    row = make().train_dataset[0]
    assert row["input_ids"] == [*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id]
    assert max(make(max_length=5).train_dataset["length"]) == 5


def test_words_route_their_own_tokens_alone(make: Callable[..., Any]) -> None:
    trainer = make(label_column=None, forget_labels=None, forget_words=["chemistry"])
    row = next(row for row in trainer.train_dataset if row["label"] == 0)
    assert [weight == 0 for weight in row["routing_weight"][:-1]] == row["is_forget_word"][1:]


def test_the_helper_makes_the_same_training_set(make: Callable[..., Any], rows: Dataset, tokenizer: Any) -> None:
    made = add_routing_weights(rows, tokenizer, label_column="topic", forget_labels=["chemistry"], max_length=64)
    by_text = {row["text"]: row for row in made}
    assert len(made) == len(rows)
    for row in make().train_dataset:
        same = by_text[row["text"]]
        assert [row[name] for name in ("input_ids", "routing_weight", "label")] == [
            same[name] for name in ("input_ids", "routing_weight", "label")
        ]


def test_the_helper_takes_scores_and_a_rule(rows: Dataset, base: Path) -> None:
    made = add_routing_weights(rows, str(base), score_column="score")
    weights = {(row["label"], *set(row["routing_weight"][:-1])) for row in made}
    assert weights == {(0, 0.25), (1, 0.75), (-1, 1.0)}
    nothing = add_routing_weights(rows, str(base), score_column="score", routing=RoutingRuleConfig(rule="none"))
    assert {weight for row in nothing for weight in row["routing_weight"]} == {1.0}


def test_a_data_set_that_is_tokenised_is_left_as_it_is(
    make: Callable[..., Any], rows: Dataset, tokenizer: Any, base: Path
) -> None:
    made = add_routing_weights(rows, tokenizer, label_column="topic", forget_labels=["chemistry"])
    model = expand_base(str(base), ExpansionConfig(width=8))
    trainer = make(model, made, {"processing_class": tokenizer}, label_column=None, forget_labels=None)
    assert trainer.train_dataset is made
    assert trainer.eval_dataset is None
    card = render_model_card(trainer_result(trainer, "x"))
    assert "| Labels | not recorded |" in card
    assert "Labels are words" not in card


def test_evaluation_sets_that_are_given(make: Callable[..., Any], rows: Dataset) -> None:
    """They are measured whole, whatever `validation_examples` says of sets that are taken out."""
    others = rows.map(lambda row: {"text": f"Also: {row['text']}"})
    one = make(options={"eval_dataset": others}, validation_examples=1).eval_dataset
    numbers = {"forget": LABELS.count("chemistry"), "unlabelled": LABELS.count(None)}
    assert {name: len(part) for name, part in one.items()} == {**numbers, "retain": 60 - sum(numbers.values())}
    parts = {"forget": rows.select([0, 3]), "retain": others.select([1, 2, 4])}
    with pytest.warns(
        EvaluationSetWarning, match=r"Of the 2 examples of `eval_dataset\['forget'\]` 2 are in `train_dataset`"
    ):
        named = make(options={"eval_dataset": parts})
    assert {name: len(part) for name, part in named.eval_dataset.items()} == {"forget": 2, "retain": 3}
    assert len(named.train_dataset) == len(rows)


def test_evaluation_sets_are_tokenised_as_the_training_set_is(
    make: Callable[..., Any], rows: Dataset, tokenizer: Any
) -> None:
    made = add_routing_weights(rows, tokenizer, label_column="topic", forget_labels=["chemistry"])
    assert make(options={"eval_dataset": made}).eval_dataset is made
    with pytest.raises(
        ValueError, match=r"`eval_dataset\['forget'\]` is text, but `train_dataset` is tokenised already"
    ):
        make(train=made, options={"eval_dataset": {"forget": rows}})


def test_one_forget_example_cannot_be_trained_and_measured_on(make: Callable[..., Any], rows: Dataset) -> None:
    with pytest.raises(ValueError, match=r"`train_dataset` has 1 distinct forget example, but one has to be taken out"):
        make(train=rows.select([0, 1, 2]))


def test_the_seed_is_that_of_the_auxiliary_modules_too(make: Callable[..., Any]) -> None:
    def weights(seed: int) -> torch.Tensor:
        named = make(seed=seed).model.named_parameters()
        return torch.cat([value.detach().flatten() for name, value in named if "auxiliary" in name])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_the_card_is_of_the_weights_beside_it(make: Callable[..., Any], tmp_path: Path) -> None:
    """A card of an earlier training is replaced, what somebody wrote is not."""
    metrics = {"eval_forget_loss": 2.0, "eval_selectivity_layer_0": 1.5}
    card = tmp_path / "stock" / "README.md"
    for label in ("chemistry", "cooking"):
        trainer = make(forget_labels=[label])
        trainer.state.log_history.append({"step": 0, **metrics})
        trainer.save_contracted(card.parent)
        text = card.read_text()
        assert f'"{label}" in the column "topic"' in text
    examples = trainer.eval_dataset["forget"]
    assert f"forget examples: {sum(examples['length']) - len(examples)} tokens in {len(examples)} examples" in text
    assert "| 0 | 1.50 |" in text
    assert "Mask rule | not recorded" not in text
    assert "| Training data | a data set that a program handed over |" in text
    assert "`result.json`" not in text  # only a run writes one
    card.write_text(f"Mine. {text}")
    make().save_contracted(card.parent)
    assert card.read_text() == f"Mine. {text}"


def test_an_expanded_model_goes_on(make: Callable[..., Any], base: Path, tmp_path: Path, tokenizer: Any) -> None:
    expand_base(str(base), ExpansionConfig(width=3)).save_pretrained(tmp_path / "expanded")
    tokenizer.save_pretrained(tmp_path / "expanded")
    trainer = make(tmp_path / "expanded")
    assert json.loads(trainer.model.config.to_json_string())["model_type"] == "expanded_gpt_neo"
    with pytest.raises(ValueError, match=r"`expansion` is given, but `model` is expanded already\. Drop one"):
        make(tmp_path / "expanded", options={"expansion": ExpansionConfig(width=3)})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"forget_labels": ["chemstry"]},
            r"`forget_labels`: none of the 60 training examples has chemstry .*'chemistry'\?",
        ),
        (
            {"label_column": "topc"},
            r"`label_column`: `train_dataset`, the data set, has no column 'topc'\. Did you mean `topic`\?",
        ),
        ({"forget_labels": list(TOPICS)}, r"`train_dataset`: there is no retain example"),
        ({"label_column": None, "forget_labels": None}, r"Nothing says which examples are to be forgotten"),
        ({"forget_words": ["tree"]}, r"`forget_words` and `label_column` are both given"),
        ({"max_length": 100_000}, r"`max_length` is 100000, but the model has \d+ positions"),
        ({"expansion": {"widht": 3}}, r"Unknown key `widht` in `expansion`\. Did you mean `width`\?"),
        ({"routing": {"rul": "none"}}, r"Unknown key `rul` in `training\.routing`\. Did you mean `rule`\?"),
        ({"routing": "[1]"}, r"`training\.routing` should be a dict or JSON, got \[1\]"),
        (
            {"routing": {"rule": "concept"}},
            r"the rule 'concept', .* but no `forget_words` are given: nothing would be routed",
        ),
        ({"validation_examples": 0}, r"`training\.validation_examples` should be at least 1, got 0"),
    ],
)
def test_bad_settings(make: Callable[..., Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_a_folder_without_a_model_is_told_as_that(make: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"`model`: the directory .*run holds no config\.json.* pass .*model\."):
        make(tmp_path / "run")


def test_text_for_a_model_that_is_made_later(base: Path, rows: Dataset, tokenizer: Any, tmp_path: Path) -> None:
    args = GradientRoutingConfig(str(tmp_path), label_column="topic", forget_labels=["chemistry"], **SHORT)
    options = {"train_dataset": rows, "processing_class": tokenizer, "model_init": lambda: expand_base(str(base))}
    with pytest.raises(ValueError, match=r"a model that `model_init` has not made yet\. Tokenise it first"):
        GradientRoutingTrainer(None, args, **options)


def test_a_stream_of_text_and_a_transform_are_refused(make: Callable[..., Any], rows: Dataset) -> None:
    with pytest.raises(ValueError, match=r"`train_dataset` has a transform \(`set_transform`\), which is not applied"):
        make(train=rows.with_transform(lambda batch: batch))
    with pytest.raises(ValueError, match=r"`train_dataset` is a stream of text.*`streaming=False`"):
        make(train=rows.to_iterable_dataset())


def test_a_model_without_tokenizer(make: Callable[..., Any], base: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no tokenizer\. Pass `processing_class`"):
        make(expand_base(str(base), ExpansionConfig(width=3)))
