"""Labels as data: by a column, a score, two sources or words; what has none is trained, counted and measured apart."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset
from transformers import PreTrainedTokenizerFast

from hf_era.data import (
    FORGET,
    RETAIN,
    UNLABELLED,
    DataConfig,
    Labels,
    examples_of,
    load_sources,
    load_splits,
    prepare_data,
)
from hf_era.data.config import TREE_WORDS
from hf_era.data.labelling import label_text
from hf_era.data.routing_weights import frequency_table, weigh_examples
from hf_era.data.tokenising import label_examples, tokenise_examples
from hf_era.routing import RoutingRuleConfig
from hf_era.run.config import load_run_config

NAMES = {FORGET: "f", RETAIN: "r", UNLABELLED: "u"}
COUNTS = {
    "forget_validation_stories": 2,
    "retain_validation_stories": 2,
    "attack_stories": 1,
    "coherence_validation_stories": 0,
}
UNIFORM = RoutingRuleConfig(rule="full_seq", weighting="uniform")
FREQUENCY = RoutingRuleConfig(rule="full_seq", weighting="frequency")


def labelled(rows: list[Any] | Dataset, **settings: Any) -> str:
    """The labels of rows, as letters; values that are no rows are those of the column `topic`."""
    if not isinstance(rows, Dataset):
        rows = Dataset.from_dict({"text": [f"Example {n}." for n in range(len(rows))], "topic": rows})
    config = DataConfig(train="rows.jsonl", **settings)
    options = {"field": "data.train", "source": "rows.jsonl", "text_column": config.text_column}
    examples, _ = examples_of(rows, config.labels, **options)
    return "".join(NAMES[label] for label in label_examples(examples, config, "examples")["label"])


# Each way to label


@pytest.mark.parametrize(
    ("values", "forget", "retain", "expected"),
    [
        (["a", "b", "c", None], ["a"], [], "frru"),
        (["a", "b", "c", None], ["a"], ["b"], "fruu"),
        (["a", "b", "c", " a "], ["a", "b"], ["c"], "ffrf"),
        (["A", "a", "None", ""], ["a"], [], "rfru"),
        ([1, 0, 2, None], ["1"], [], "frru"),
        ([1, 0, 2, None], ["1"], ["0"], "fruu"),
        ([1.0, 0.0, 0.5, float("nan")], ["1", "0.5"], [], "frfu"),
        ([True, False, None], ["true"], [], "fru"),
        ([True, False, None], ["True"], ["FALSE"], "fru"),
        (["true", "False", "TRUE"], ["True"], [], "frf"),
    ],
)
def test_a_column_labels(values: list[Any], forget: list[str], retain: list[str], expected: str) -> None:
    assert labelled(values, label_column="topic", forget_labels=forget, retain_labels=retain) == expected


def test_the_column_of_labels_is_not_taken_for_the_text() -> None:
    rows = Dataset.from_dict({"content": ["a", "b"], "sentence": ["One.", "Two."]})
    labels = Labels(label_column="content", forget_labels=["a"])
    examples, unused = examples_of(rows, labels, field="data.train", source="rows.jsonl")
    assert (examples["text"][:], unused) == (["One.", "Two."], [])


def test_class_labels_go_by_their_names() -> None:
    rows = Dataset.from_dict({"text": ["a", "b", "c", "d"], "topic": [1, 0, None, -1]})
    rows = rows.cast_column("topic", ClassLabel(names=["cooking", "chemistry"]))
    assert labelled(rows, label_column="topic", forget_labels=["chemistry"]) == "fruu"


def test_a_score_labels_from_a_half_on() -> None:
    scores = [0.0, 0.49, 0.5, 1.0, None, float("nan")]
    assert labelled(scores, score_column="topic") == "rrffuu"
    assert labelled([0, 1, 1], score_column="topic") == "rff"  # whole numbers are probabilities too


def test_words_label() -> None:
    rows = Dataset.from_dict({"text": ["A tree.", "A street.", "TREE"]})
    assert labelled(rows, forget_words=["tree"]) == "frf"


@pytest.mark.parametrize("with_third", [False, True])
def test_two_sources_label(write: Callable[..., Path], with_third: bool) -> None:
    rows = {name: [{"text": f"{name} {n}"} for n in range(size)] for name, size in (("f", 2), ("r", 6), ("u", 3))}
    paths = {name: str(write(f"{name}.jsonl", part)) for name, part in rows.items()}
    config = DataConfig(forget=paths["f"], retain=paths["r"], **({"train": paths["u"]} if with_third else {}))
    assert config.labels.kind == "sources"
    examples = label_examples(load_sources(config, seed=0).train, config, "examples")
    for text, label in zip(examples["text"], examples["label"], strict=True):
        assert text[0] == NAMES[label]
    order = "".join(text[0] for text in examples["text"])
    assert Counter(order) == {"f": 2, "r": 6} | ({"u": 3} if with_third else {})
    assert {"f", "r"} <= set(order[:4])  # in turn: the first few have some of each
    assert [text for text in examples["text"] if text[0] == "r"] == [row["text"] for row in rows["r"]]
    first = load_sources(replace(config, max_train_stories=4), seed=0).train
    assert set(first["label"]) >= {FORGET, RETAIN}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"),
        (1.0, "1"),
        (" 1 ", "1"),
        (True, "true"),
        ("True", "true"),
        (0.25, "0.25"),
        (None, None),
        ("nan", "nan"),
    ],
)
def test_a_label_has_one_spelling(value: Any, text: str | None) -> None:
    assert label_text(value) == text


# What is refused, before any long work

ROWS = {"text": ["a", "b", "c"], "topic": ["chemistry", "cooking", None], "score": [0.1, 0.2, 0.3]}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"Nothing says which examples are to be forgotten\. Name a column and its values \(`data\.label_column`, "
             r"`data\.forget_labels`\), .* \(`data\.score_column`\), .* \(`data\.forget_words`\), or two sources \("),
        ({"forget_words": ["tree"], "label_column": "topic", "forget_labels": ["a"]},
         r"`data\.forget_words` and `data\.label_column` are both given, but labels come from one of them\. Drop"),
        ({"score_column": "s", "label_column": "topic", "forget_labels": ["a"]},
         r"`data\.label_column` and `data\.score_column` are both given"),
        ({"forget": "a", "retain": "b", "score_column": "s"},
         r"`data\.score_column` and `data\.forget` and `data\.retain` are both given"),
        ({"label_column": "topic"},
         r"`data\.label_column` is 'topic', but no value of it is to be forgotten\. Name at least one: `data\.forget_la"),
        ({"forget_labels": ["a"]},
         r"`data\.forget_labels` is \['a'\], but no column is named that has such values\. Name it: `data\.label_column`\."),
        ({"retain_labels": ["a"], "forget_words": ["x"]}, r"`data\.retain_labels` is \['a'\], but no column is named"),
        ({"label_column": "topic", "forget_labels": ["a", "1"], "retain_labels": ["1 "]},
         r"`data\.retain_labels` and `data\.forget_labels` share `1`\. An example is one or the other\."),
        ({"label_column": "topic", "forget_labels": ["a", " "]}, r"`data\.forget_labels` should hold labels, got ' '\."),
        ({"label_column": "topic", "forget_labels": "chemistry"},  # whose letters would be the labels
         r"`data\.forget_labels` should be a list, got 'chemistry'\. Write `\['chemistry'\]`\."),
        ({"forget_words": "a tree"}, r"`data\.forget_words` should be a list, got 'a tree'"),
        ({"forget": "a.jsonl"}, r"`data\.forget` is 'a\.jsonl', but `data\.retain` is not given\. Give both, or one source"),
        ({"forget": "a", "retain": "b", "validation": "c"}, r"`data\.validation` is 'c', but with `data\.forget` and"),
    ],
)  # fmt: skip
def test_labels_that_are_not_said_in_one_way(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**{"train": "rows.jsonl", **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_column": "topci", "forget_labels": ["a"]},
         r"`data\.label_column`: `data\.train`, rows\.jsonl, has no column 'topci'\. Did you mean `topic`\? Its columns: "),
        ({"score_column": "scor"}, r"`data\.score_column`: .* has no column 'scor'\. Did you mean `score`\?"),
        ({"score_column": "text"}, r"`data\.score_column`: the column `text` of rows\.jsonl should hold numbers from 0 to"),
        ({"score_column": "low"}, r"the column `low` of .* should hold probabilities from 0 to 1 .*, got -0\.5\."),
        ({"score_column": "high"}, r"the column `high` of .* should hold probabilities from 0 to 1 .*, got 1\.5\."),
        ({"label_column": "tags", "forget_labels": ["a"]},
         r"the column `tags` of rows\.jsonl holds values of type List, but every value should be one label \(or null\)\."),
        ({"score_column": "tags"}, r"the column `tags` .* but every value should be one number \(or null\)\."),
        ({"label_column": "topic", "forget_labels": ["a"], "text_column": "topic"},
         r"`data\.text_column` and `data\.label_column` are both 'topic', but a text is not its own label\."),
    ],
)  # fmt: skip
def test_a_column_that_does_not_hold_labels(settings: dict[str, Any], message: str) -> None:
    more = {"low": [0.0, -0.5, None], "high": [1.5, 0.0, None], "tags": [["a"], ["b"], []]}
    with pytest.raises(ValueError, match=message):
        labelled(Dataset.from_dict(ROWS | more), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_column": "topic", "forget_labels": ["chemisty"]},
         r"`data\.forget_labels`: none of the 12 training examples has chemisty in the column `topic`\. Did you mean "
         r"'chemistry'\? It has: chemistry \(6\), cooking \(5\)\."),
        ({"label_column": "topic", "forget_labels": ["chemistry", "cooking"]},
         r"`data\.train`: there is no retain example: of the 12 training examples the column `topic` has no other value "
         r"beside those of `data\.forget_labels`\. It has: chemistry \(6\), cooking \(5\)\. Add other examples\."),
        ({"label_column": "topic", "forget_labels": ["chemistry"], "retain_labels": ["cook"]},
         r"`data\.retain_labels`: none of the 12 training examples has cook in the column `topic`\. Did you mean 'cooking'"),
        ({"label_column": "topic", "forget_labels": ["chemistry", "biology", "optics"]},  # one that is there hides no other
         r"`data\.forget_labels`: none of the 12 training examples has biology or optics in the column `topic`\. It has"),
        ({"label_column": "none", "forget_labels": ["a"]}, r"has a in the column `none`\. It has: nulls only\."),
        ({"score_column": "low"}, r"`data\.score_column`: none of the 12 training examples has a `low` of 0\.5 or more\."),
        ({"score_column": "high"}, r"there is no retain example: none of the 12 training examples has a `high` below 0\.5"),
        ({"forget_words": ["dragon"]}, r"`data\.forget_words`: none of the 12 training examples has one of dragon\."),
    ],
)  # fmt: skip
def test_data_without_a_forget_or_a_retain_example(
    write: Callable[..., Path], settings: dict[str, Any], message: str
) -> None:
    topics = ["chemistry"] * 6 + ["cooking"] * 5 + [None]
    more = {"none": None, "low": 0.2, "high": 0.9}
    path = write("rows.jsonl", [{"text": f"Text {n}.", "topic": topic, **more} for n, topic in enumerate(topics)])
    with pytest.raises(ValueError, match=message):
        load_splits(DataConfig(train=str(path), text_column="text", **COUNTS, **settings), seed=0)


def test_one_of_two_sources_is_empty(write: Callable[..., Path]) -> None:
    paths = {"forget": str(write("f.jsonl", [{"text": "a"}])), "retain": str(write("r.jsonl", ""))}
    with pytest.raises(ValueError, match=r"`data\.retain`: .*r\.jsonl holds no example\. Check the file"):
        load_sources(DataConfig(**paths), seed=0)
    paths["retain"] = str(write("r.jsonl", [{"prompt": "a", "completion": "b"}]))
    with pytest.raises(
        ValueError, match=r"The sources should be of one kind, all text or all with prompts or messages, got"
    ):
        load_sources(DataConfig(**paths), seed=0)


# A later file, or the command line, labels in another way


@pytest.mark.parametrize(
    ("first", "then", "kind"),
    [
        ("{train: a.jsonl, forget_words: [tree]}", "{label_column: topic, forget_labels: [x]}", "column"),
        ("{train: a.jsonl, label_column: topic, forget_labels: [x], retain_labels: [y]}", "{score_column: s}", "score"),
        ("{train: a.jsonl, score_column: s}", "{forget_words: [tree]}", "words"),
        ("{train: a.jsonl, validation: b.jsonl, score_column: s}", "{forget: f.jsonl, retain: r.jsonl}", "sources"),
        ("{forget: f.jsonl, retain: r.jsonl}", "{train: a.jsonl, forget_words: [tree]}", "words"),
        ("{train: a.jsonl, label_column: topic, forget_labels: [x]}", "{forget_labels: [y]}", "column"),
    ],
)
def test_a_later_way_to_label_replaces_an_earlier_one(
    write: Callable[..., Path], first: str, then: str, kind: str
) -> None:
    paths = [write("first.yaml", f"data: {first}\n"), write("then.yaml", f"data: {then}\n")]
    config = load_run_config(paths, ["--routing.rule", "full_seq"]).data
    assert config.labels.kind == kind
    assert config.retain_labels == []
    assert config.validation is None
    if kind == "sources":
        assert config.sources == {"forget": "f.jsonl", "retain": "r.jsonl"}
    if kind == "column":
        assert config.forget_labels == [then[-3]]


def test_the_command_line_labels_in_place_of_a_file(write: Callable[..., Path]) -> None:
    path = write("a.yaml", "data: {train: a.jsonl, validation: b.jsonl, forget_words: [tree]}\n")
    config = load_run_config([path], ["--data.train", "c.csv", "--data.label_column", "t", "--data.forget_labels", "1"])
    assert (config.data.train, config.data.validation, config.data.forget_words) == ("c.csv", None, [])
    assert config.data.labels.describe() == {
        "kind": "column",
        "column": "t",
        "forget_labels": ["1"],
        "retain_labels": [],
    }
    assert load_run_config([]).data.forget_words == list(TREE_WORDS)


def test_the_rule_concept_needs_words(write: Callable[..., Path]) -> None:
    path = write("a.yaml", "data: {train: a.jsonl, label_column: t, forget_labels: [x]}\n")
    with pytest.raises(
        ValueError, match=r"`routing\.rule` is 'concept', .* but labels come from examples whose `t` is x\."
    ):
        load_run_config([path], ["--routing.rule", "concept"])


# Routing weights


def scored(scores: list[float | None], tokenizer: PreTrainedTokenizerFast) -> Dataset:
    config = DataConfig(train="rows.jsonl", score_column="score", max_tokens=20)
    rows = Dataset.from_dict({"text": [f"The old tree {n} fell down." for n in range(len(scores))], "score": scores})
    examples, _ = examples_of(rows, config.labels, field="data.train", source="rows")
    return tokenise_examples(label_examples(examples, config, "examples"), tokenizer, config, "examples")


SCORES = [0.1, 0.3, 0.5, 0.7, 0.9, 1.0, 0.0, 1 / 3, None]


def test_under_uniform_weighting_the_weight_is_one_minus_the_score(small_tokenizer: PreTrainedTokenizerFast) -> None:
    for score, example in zip(SCORES, weigh_examples(scored(SCORES, small_tokenizer), UNIFORM, None), strict=True):
        *weights, last = example["routing_weight"]
        assert last == 1.0  # predicts nothing
        expected = np.float32(1) - np.float32(score or 0)
        assert {np.float32(weight).tobytes() for weight in weights} == {expected.tobytes()}, score


def test_under_frequency_weighting_a_score_scales_what_the_rule_takes_off(
    small_tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenised = scored(SCORES, small_tokenizer)
    table = frequency_table(tokenised, FREQUENCY, 600, skip_bos=True)
    of_token = table.weights.numpy()
    assert of_token.min() < 0.99
    for score, example in zip(SCORES, weigh_examples(tokenised, FREQUENCY, table), strict=True):
        rule = of_token[example["input_ids"][1:]]
        expected = np.float32(1) - np.float32(score or 0) * (np.float32(1) - rule)
        np.testing.assert_array_equal(np.float32(example["routing_weight"][:-1]), expected)


# Examples without a label


def test_examples_without_a_label_are_trained_counted_and_held_out(
    write: Callable[..., Path], small_tokenizer: PreTrainedTokenizerFast
) -> None:
    kinds = ["f"] * 12 + ["r"] * 14 + [None] * 40
    rows = [{"text": f"The {kind} tree number {n}.", "kind": kind, "id": n} for n, kind in enumerate(kinds)]
    path = str(write("rows.jsonl", rows))
    config = DataConfig(
        train=path, text_column="text", label_column="kind", forget_labels=["f"], labelled_fraction=0.5, **COUNTS
    )
    splits = load_splits(config, seed=0)
    assert len(splits.validation_unlabelled) == 4  # a tenth
    assert set(splits.validation_unlabelled["label"]) == {UNLABELLED}
    data = prepare_data(splits, small_tokenizer, config, UNIFORM, 600)
    for example in data.train:
        weight = 0.0 if example["label"] == FORGET else 1.0
        assert set(example["routing_weight"][:-1]) == {weight}
    counts = {
        name: data.summary[f"train_{name}"] for name in ("forget_labelled", "forget_unlabelled", "retain", "unlabelled")
    }
    assert counts == {"forget_labelled": 4, "forget_unlabelled": 5, "retain": 12, "unlabelled": 36}
    assert data.summary["train_stories"] == sum(counts.values())
    assert data.summary["validation_unlabelled_stories"] == len(data.validation_unlabelled) == 4
    assert data.summary["labelling"] == {
        "kind": "column",
        "column": "kind",
        "forget_labels": ["f"],
        "retain_labels": [],
    }
    assert data.summary["unused_columns"] == {"data.train": ["id"]}
    texts = [set(getattr(splits, part)["text"]) for part in ("train", "validation_unlabelled", "validation_retain")]
    assert texts[0].isdisjoint(texts[1] | texts[2])
    none = load_splits(replace(config, unlabelled_validation_stories=0), seed=0)
    assert len(none.validation_unlabelled) == 0
    assert len(none.train) == len(splits.train) + 4


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (Labels(forget_words=["a", "b"]), "examples with one of: a, b"),
        (Labels(label_column="t", forget_labels=["x"]), "examples whose `t` is x"),
        (Labels(score_column="s"), "examples by their `s`, the probability of it"),
        (Labels(has_two_sources=True), "the examples of a source of their own"),
    ],
)
def test_labels_say_what_they_are(labels: Labels, text: str) -> None:
    assert str(labels) == text
    assert labels.describe()["kind"] == labels.kind
