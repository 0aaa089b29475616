"""Which module an example belongs to: said by labels or words, kept through split and tokens, and a number in a batch."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from hf_era.data import (
    PaddingRowCollator,
    PreparedData,
    RoutingCollator,
    Sources,
    StoriesWithPaddingRows,
    data_fingerprint,
    examples_of,
    load_sources,
    load_splits,
    prepare_data,
    prepared_data_key,
    split_sources,
)
from hf_era.data.config import DataConfig
from hf_era.data.label_errors import change_labels
from hf_era.data.tokenising import label_examples
from hf_era.routing import RoutingRuleConfig
from hf_era.run.config import load_run_config

UNIFORM = RoutingRuleConfig(rule="full_seq", weighting="uniform")
MODULES = {"biology": ["cells", "genes"], "chemistry": ["acids"]}
BY_LABEL = {"label_column": "topic", "modules": MODULES}
COUNTS = {
    "forget_validation_stories": 9,
    "retain_validation_stories": 5,
    "attack_stories": 3,
    "coherence_validation_stories": 0,
}


def with_modules(rows: dict[str, list[Any]], **settings: Any) -> list[tuple[int, str | None]]:
    config = DataConfig(train="rows.jsonl", **settings)
    examples, _ = examples_of(Dataset.from_dict(rows), config.labels, field="data.train", source="rows.jsonl")
    labelled = label_examples(examples, config, "examples")
    return list(zip(labelled["label"], labelled["module"], strict=True))


def topics(*values: Any) -> dict[str, list[Any]]:
    return {"text": [f"Example {n}." for n in range(len(values))], "topic": list(values)}


# ---- By labels, and by words ----


def test_labels_say_the_module() -> None:
    found = with_modules(topics("genes", "acids", " cells ", "music", None), **BY_LABEL)
    assert found == [(0, "biology"), (0, "chemistry"), (0, "biology"), (1, None), (-1, None)]
    kept = with_modules(topics("genes", "acids", "music", "art"), **BY_LABEL, retain_labels=["art"])
    assert kept == [(0, "biology"), (0, "chemistry"), (-1, None), (1, None)]
    numbers = with_modules(topics(1, 2, 3), label_column="topic", modules={"a": [2], "b": ["1"]})
    assert numbers == [(0, "b"), (0, "a"), (1, None)]


def test_words_say_the_module_where_no_column_does() -> None:
    rows = {"text": ["A cell wall.", "An Enzyme.", "Acid rain.", "A street.", "Excellent."]}
    modules = {"biology": ["cell", "enzyme"], "chemistry": ["acid"]}
    expected = [(0, "biology"), (0, "biology"), (0, "chemistry"), (1, None), (1, None)]
    assert with_modules(rows, modules=modules) == expected
    assert with_modules(rows, modules=modules, forget_words=["acid", "Cell", "enzyme"]) == expected


def test_what_the_modules_name_is_what_is_forgotten() -> None:
    config = DataConfig(train="rows.jsonl", **BY_LABEL)
    assert (config.forget_labels, config.forget_words) == (["cells", "genes", "acids"], [])
    assert config.labels.describe()["modules"] == MODULES
    shown = "examples whose `topic` is cells, genes (module 'biology'), acids (module 'chemistry')"
    assert str(config.labels) == shown
    assert DataConfig(**config.to_dict()) == config == replace(config)
    words = DataConfig(modules={"a": ["fox"], "b": ["bear"]})  # of the built-in stories
    assert (words.labels.kind, words.forget_words) == ("words", ["fox", "bear"])
    built_in = DataConfig(train="topics", modules={"a": ["chemistry"], "b": ["sailing"]})
    assert (built_in.label_column, built_in.forget_labels) == ("topic", ["chemistry", "sailing"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modules": {"a": ["x"], "b": ["y", " x"]}, "label_column": "topic"},
         r"`data\.modules`: ' x' is under `a` and under `b`, but an example belongs to one module\. Take it out of one"),
        ({"modules": {"a": ["Cell"], "b": ["cell"]}}, r"`data\.modules`: 'cell' is under `a` and under `b`"),
        ({"modules": {"a": ["x"]}, "label_column": "topic", "forget_labels": ["x", "z"]},
         r"`data\.forget_labels` is \['x', 'z'\], but `data\.modules` names \['x'\]\. Leave `data\.forget_labels` out: it"),
        ({"modules": {"a": ["x"]}, "forget_words": ["y"]},
         r"`data\.forget_words` is \['y'\], but `data\.modules` names \['x'\]\. Leave `data\.forget_words` out"),
        ({"modules": {"a": ["x"]}, "score_column": "s"},
         r"`data\.modules` says which label, or word, belongs to which module, but with `data\.score_column` an example has "
         r"neither\. Name a label column and give each module its labels, or leave `data\.modules` out\."),
        ({"modules": {"a": ["x"]}, "forget": "f", "retain": "r"}, r"`data\.modules` says .* with `data\.forget` an exam"),
        ({"modules": {"a": "x"}, "label_column": "topic"},
         r"`data\.modules\.a` should be a list of labels or words, got 'x'\. Write `\['x'\]`\."),
        ({"modules": {"a": []}, "label_column": "topic"}, r"`data\.modules\.a` should be a list .*, got \[\]\. Name at"),
        ({"modules": {"a": [1]}}, r"`data\.modules\.a` should hold words, got 1\. If it is a label, name its column: `data"),
        ({"modules": ["a"]}, r"`data\.modules` should be a mapping from a module to its labels, got \['a'\]\."),
        ({"modules": {"a": [" "]}, "label_column": "topic"}, r"`data\.forget_labels` should hold labels, got ' '\."),
    ],
)  # fmt: skip
def test_modules_that_contradict(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**{"train": "rows.jsonl", **settings})


def test_an_example_of_two_modules() -> None:
    words = {"biology": ["cell", "enzyme"], "chemistry": ["acid"]}
    message = (
        r"`data\.modules`: an example has words of `biology`, `chemistry`, but it can belong to one module only: 'Acid in a "
        r"cell\.'\. Name rarer words, take such examples out, or label them in a column \(`data\.label_column`\)\."
    )
    with pytest.raises(ValueError, match=message):
        with_modules({"text": ["A cell, an enzyme.", "Acid in a cell."]}, modules=words)
    message = (
        r"the column `topic` of rows\.jsonl holds values of type List, .* An example belongs to one module at most\."
    )
    with pytest.raises(ValueError, match=message):
        with_modules(topics(["genes", "acids"], ["music"]), **BY_LABEL)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (BY_LABEL | {"modules": {"a": ["genes"], "b": ["acid"]}},
         r"`data\.modules`: none of the 40 training examples has acid in the column `topic`\. Did you mean 'acids'\?"),
        ({"modules": {"a": ["genes"], "b": ["laser"]}, "text_column": "text"},
         r"`data\.modules`: none of the 40 training examples belongs to `b`, whose words are laser\. Name other words, or "
         r"if these are labels, their column: `data\.label_column`\."),
        (BY_LABEL | {"modules": {"a": ["genes"], "b": ["acids"]}, "forget_validation_stories": 10, "attack_stories": 9},
         r"`data\.modules`: none of the 14 examples that are left to train on belongs to `b`, whose labels are acids\. Give "
         r"more examples, or hold fewer back\."),
    ],
)  # fmt: skip
def test_a_module_without_an_example(write: Callable[..., Path], settings: dict[str, Any], message: str) -> None:
    values = ["genes"] * 18 + ["acids"] * 2 + ["music"] * 20
    rows = [{"text": f"Text {n} on {topic}.", "topic": topic} for n, topic in enumerate(values)]
    settings = {"retain_validation_stories": 7, "forget_validation_stories": 2, "attack_stories": 1} | settings
    settings["coherence_validation_stories"] = 0
    with pytest.raises(ValueError, match=message):
        load_splits(DataConfig(train=str(write("rows.jsonl", rows)), **settings), seed=0)


# ---- Splits, tokens, counts ----


@pytest.fixture(scope="module")
def sources() -> Sources:
    values = ["cells"] * 40 + ["genes"] * 20 + ["acids"] * 30 + ["music"] * 40 + [None] * 10
    rows = Dataset.from_dict({"text": [f"Text {n} on {topic}." for n, topic in enumerate(values)], "topic": values})
    config = DataConfig(train="rows.jsonl", **BY_LABEL)
    return Sources(examples_of(rows, config.labels, field="data.train", source="rows.jsonl").examples, None)


@pytest.fixture(scope="module")
def config() -> DataConfig:
    return DataConfig(train="rows.jsonl", max_tokens=24, **BY_LABEL, **COUNTS)


@pytest.fixture(scope="module")
def prepared(sources: Sources, config: DataConfig, small_tokenizer: PreTrainedTokenizerFast) -> PreparedData:
    # The model has them in another order.
    return prepare_data(
        split_sources(sources, config, 0), small_tokenizer, config, UNIFORM, 600, ["chemistry", "biology"]
    )


def test_each_module_has_its_share_of_every_part(sources: Sources, config: DataConfig) -> None:
    splits = split_sources(sources, config, 0)
    counts = {
        name: Counter(getattr(splits, name)["module"]) for name in ("train", "validation_forget", "attack_forget")
    }
    assert counts["validation_forget"] == {"biology": 6, "chemistry": 3}
    assert counts["attack_forget"] == {"biology": 2, "chemistry": 1}
    assert counts["train"] == {"biology": 52, "chemistry": 26, None: 44}
    assert set(splits.validation_retain["module"]) == {None}
    texts = [split_sources(sources, config, seed).attack_forget["text"][:] for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_the_index_is_the_place_among_the_models_modules(prepared: PreparedData) -> None:
    pairs = set(zip(prepared.train["module"], prepared.train["module_index"], prepared.train["label"], strict=True))
    assert pairs == {("biology", 1, 0), ("chemistry", 0, 0), (None, -1, 1), (None, -1, -1)}
    assert prepared.train.features["module_index"].dtype == "int64"
    assert "module_index" not in prepared.validation_forget.column_names
    assert set(prepared.validation_forget["module"]) == set(MODULES)


def test_examples_and_tokens_are_counted_by_module(prepared: PreparedData) -> None:
    counts = prepared.summary["modules"]
    assert list(counts) == list(MODULES)
    for module, own in counts.items():
        rows = [row for row in prepared.train if row["module"] == module]
        assert (own["train_stories"], own["train_tokens"]) == (len(rows), sum(row["length"] for row in rows))
    assert [own["validation_forget_stories"] for own in counts.values()] == [6, 3]
    assert sum(own["train_stories"] for own in counts.values()) == prepared.summary["train_forget_labelled"]
    assert {name.rsplit("_", 1)[0] for name in counts["biology"]} == {"train", "validation_forget", "attack_forget"}


def test_an_example_that_lost_its_label_lost_its_module(sources: Sources, config: DataConfig) -> None:
    train = change_labels(split_sources(sources, config, 0).train, 0.5, seed=0)
    for label, module in zip(train["label"], train["module"], strict=True):
        assert (label == 0) == (module is not None)
    assert Counter(train["label"])[0] == 39


def test_without_modules_nothing_is_added(sources: Sources, small_tokenizer: PreTrainedTokenizerFast) -> None:
    config = DataConfig(train="rows.jsonl", label_column="topic", forget_labels=["cells"], **COUNTS)
    prepared = prepare_data(split_sources(sources, config, 0), small_tokenizer, config, UNIFORM, 600, ["a", "b"])
    assert not {"module", "module_index"} & set(prepared.train.column_names)
    assert "modules" not in prepared.summary


def test_other_modules_are_other_data(
    sources: Sources, config: DataConfig, small_tokenizer: PreTrainedTokenizerFast
) -> None:
    swapped = {"biology": ["acids"], "chemistry": ["cells", "genes"]}
    others = [config, replace(config, modules=swapped, forget_labels=[])]
    assert len({data_fingerprint(split_sources(sources, other, 0)) for other in others}) == 2

    def key(changed: DataConfig, modules: list[str]) -> str:
        return prepared_data_key(sources, changed, 0, UNIFORM, small_tokenizer, None, modules)

    orders = [["biology", "chemistry"], ["chemistry", "biology"]]
    assert len({key(other, order) for other in others for order in orders}) == 4


# ---- Batches ----

ROWS = [{"input_ids": [5, 6], "module_index": 1}, {"input_ids": [7, 8, 9], "module_index": -1}]


@pytest.mark.parametrize("given", [int, np.int64, np.int8, torch.tensor])
def test_a_batch_has_one_index_per_example(given: Callable[[int], Any]) -> None:
    rows = [{**row, "module_index": given(row["module_index"])} for row in ROWS]
    index = RoutingCollator(0)(rows)["module_index"]
    assert (index.tolist(), index.dtype) == ([1, -1], torch.int64)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-2, r"`module_index` of row 1 should be an integer of at least -1 \(no module\), got -2\."),
        (0.0, r"`module_index` of row 1 should be an integer .*, got 0\.0\."),
        (None, r"`module_index` of row 1 .*, got None\."),
        (True, r"`module_index` of row 1 .*, got True\."),
        ([0, 0, 0], r"`module_index` of row 1 .*, got \[0, 0, 0\]\."),
        (2**63, r"`module_index` of row 1 .*, got 9223372036854775808\."),
    ],
)
def test_an_index_that_is_none(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RoutingCollator(0)([ROWS[0], {**ROWS[1], "module_index": value}])


def test_an_index_that_only_some_examples_have() -> None:
    with pytest.raises(
        ValueError, match=r"Some examples of the batch have `module_index` and some do not\. Give it to all"
    ):
        RoutingCollator(0)([ROWS[0], {"input_ids": [1]}])


@pytest.mark.parametrize("kind", [None, "numpy", "torch"])
def test_padding_rows_take_an_index_as_it_is(kind: str | None) -> None:
    rows: Any = Dataset.from_list(ROWS).with_format(kind)
    stories = StoriesWithPaddingRows(rows)
    batch = PaddingRowCollator(RoutingCollator(0))(stories.__getitems__([1, 2]))
    assert batch["module_index"].tolist() == [-1, 1]
    assert batch["labels"][1].tolist() == [-100] * 3


# ---- A run's config ----

RUN = "expansion: {modules: [{name: biology}, {name: chemistry}]}\nrouting: {rule: full_seq}\n"


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ("{biolgy: [a], chemistry: [b]}",
         r"Unknown key `biolgy` in `data\.modules` \(`expansion\.modules` does not have it\)\. Did you mean `biology`\?"),
        ("{biology: [a]}", r"`data\.modules` names nothing for `chemistry` of `expansion\.modules`, so no forget exam"),
    ],
)  # fmt: skip
def test_modules_that_the_expansion_does_not_have(write: Callable[..., Path], modules: str, message: str) -> None:
    path = write("run.yaml", f"{RUN}data: {{train: a.jsonl, label_column: topic, modules: {modules}}}\n")
    with pytest.raises(ValueError, match=message):
        load_run_config([path])


def test_later_modules_replace_earlier_labels(write: Callable[..., Path]) -> None:
    earlier = [
        "{label_column: topic, forget_labels: [x]}",
        "{label_column: topic, modules: {biology: [x], physics: [y]}}",
        "{forget_words: [tree], label_column: null}",
    ]
    given = ["--data.label_column", "topic", "--data.modules", "{biology: [a], chemistry: [b, c]}"]
    for data in earlier:
        config = load_run_config([write("run.yaml", f"{RUN}data: {data}\n")], ["--data.train", "a.jsonl", *given])
        assert config.data.modules == {"biology": ["a"], "chemistry": ["b", "c"]}
        assert config.data.forget_labels == ["a", "b", "c"]
    path = write("run.yaml", f"{RUN}data: {{train: topics, modules: {{biology: [a], chemistry: [b]}}}}\n")
    assert load_run_config([path], ["--data.modules", "null"]).data.forget_labels == ["chemistry"]


def test_the_packaged_run_has_two_modules() -> None:
    config = load_run_config(["two_modules"])
    names = [module.name for module in config.expansion.module_configs]
    assert names == list(config.data.modules) == ["chemistry", "sailing"]
    assert load_sources(replace(config.data, generator_stories=10), 0).train.column_names == ["text", "given_label"]
