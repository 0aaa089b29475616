"""From settings to weighed tokens: checked against the text, not against the code that made it."""

import math
import re
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from hf_era.data import (
    FORGET,
    RETAIN,
    UNLABELLED,
    DataConfig,
    PreparedData,
    Sources,
    StorySplits,
    data_fingerprint,
    load_splits,
    prepare_data,
    split_sources,
)
from hf_era.data.config import TREE_WORDS
from hf_era.data.preparation import frequency_table
from hf_era.data.tokenising import tokenise_examples
from hf_era.data.word_pieces import ForgetWordPiecesWarning
from hf_era.routing import RoutingRuleConfig

FOREST_WORD = re.compile(r"\b(?:tree|trees|forest|forests|woodland|woodlands)\b", re.IGNORECASE)
RULES = {
    "uniform": RoutingRuleConfig(rule="full_seq", weighting="uniform"),
    "frequency": RoutingRuleConfig(rule="full_seq", weighting="frequency"),
    "concept": RoutingRuleConfig(rule="concept"),
    "none": RoutingRuleConfig(rule="none"),
}
VOCABULARY_SIZE = 640  # larger than the tokenizer's, as models often have it


def make_config(**overrides: Any) -> DataConfig:
    counts = {"forget_validation_stories": 10, "retain_validation_stories": 12, "attack_stories": 6}
    counts |= {"coherence_validation_stories": 8}
    return DataConfig(**{"generator_stories": 300, "labelled_fraction": 0.6, "max_tokens": 120, **counts, **overrides})


@pytest.fixture(scope="module")
def prepare(small_tokenizer: PreTrainedTokenizerFast) -> Callable[..., PreparedData]:
    made: dict[Any, PreparedData] = {}

    def prepare(rule: str, **overrides: Any) -> PreparedData:
        key = (rule, *sorted(overrides.items()))
        if key not in made:
            config = make_config(**overrides)
            splits = load_splits(config, seed=0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ForgetWordPiecesWarning)  # of 600 tokens none is "forest"
                made[key] = prepare_data(splits, small_tokenizer, config, RULES[rule], VOCABULARY_SIZE)
        return made[key]

    return prepare


def frequency_weights(train: Dataset, tokenizer: PreTrainedTokenizerFast, max_tokens: int) -> dict[int, float]:
    """The frequency rule from its formula, counted with a `Counter` from the texts."""
    counts = {True: Counter[int](), False: Counter[int]()}
    for text, label in zip(train["text"], train["label"], strict=True):
        counts[label == FORGET].update(tokenizer(text, add_special_tokens=False)["input_ids"][: max_tokens - 1])
    forget_total = counts[True].total() + VOCABULARY_SIZE
    retain_total = counts[False].total() + 20 * VOCABULARY_SIZE
    weights = {}
    for token in range(VOCABULARY_SIZE):
        ratio = ((counts[True][token] + 1) / forget_total) / ((counts[False][token] + 20) / retain_total)
        weights[token] = 1 - 1 / (1 + math.exp(-max(min(ratio - 1 / ratio - 4, 700), -700)))
    return weights


@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("rule", list(RULES))
def test_weights_belong_to_the_predicted_token(
    prepare: Callable[..., PreparedData], small_tokenizer: PreTrainedTokenizerFast, rule: str, add_bos: bool
) -> None:
    train = prepare(rule, add_bos=add_bos).train
    of_token = frequency_weights(train, small_tokenizer, 120 + (not add_bos)) if rule == "frequency" else {}
    labels = Counter(train["label"])
    assert min(labels[FORGET], labels[UNLABELLED], labels[RETAIN]) > 10
    below_one = 0
    for example in train:
        text, weights = example["text"], example["routing_weight"]
        encoded = small_tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        room = 120 - add_bos
        ids, offsets = encoded["input_ids"][:room], encoded["offset_mapping"][:room]
        assert example["input_ids"] == [small_tokenizer.bos_token_id] * add_bos + ids
        assert len(weights) == len(example["input_ids"])
        if example["label"] == FORGET:
            found = [match.span() for match in FOREST_WORD.finditer(text)]
            hits = [any(end > first and start < last for first, last in found) for start, end in offsets]
            expected = {
                "uniform": [0.0] * len(ids),
                "frequency": [of_token.get(token, 1.0) for token in ids],
                "concept": [0.0 if hit else 1.0 for hit in hits],
                "none": [1.0] * len(ids),
            }[rule]
        else:
            expected = [1.0] * len(ids)
        # What is predicted: with BOS every token of the text, else all but the first.
        predicted = expected if add_bos else expected[1:]
        difference = max(abs(weight - other) for weight, other in zip(weights[:-1], predicted, strict=True))
        assert difference < 1e-6, text
        assert weights[-1] == 1.0
        below_one += sum(weight < 0.5 for weight in weights)
    assert (below_one > 0) == (rule != "none")


@pytest.mark.parametrize("rule", list(RULES))
def test_stories_without_a_forget_label_are_trained_as_retain(prepare: Callable[..., PreparedData], rule: str) -> None:
    train = prepare(rule).train
    unlabelled = 0
    for example in train:
        assert (example["label"] == RETAIN) == (FOREST_WORD.search(example["text"]) is None)
        if example["label"] != FORGET:
            assert set(example["routing_weight"]) == {1.0}
            unlabelled += example["label"] == UNLABELLED
    assert unlabelled > 10


def test_the_frequency_table_is_what_was_counted(
    prepare: Callable[..., PreparedData], small_tokenizer: PreTrainedTokenizerFast
) -> None:
    prepared = prepare("frequency")
    counts = {True: Counter[str](), False: Counter[str]()}
    for text, label in zip(prepared.train["text"], prepared.train["label"], strict=True):
        ids = small_tokenizer(text, add_special_tokens=False)["input_ids"][:119]
        counts[label == FORGET].update(small_tokenizer.decode([token]) for token in ids)
    forget_total, retain_total = counts[True].total(), counts[False].total()
    both = counts[True] + counts[False]
    expected = {token for token, count in both.items() if count * 1e4 / both.total() > 5}
    assert {row.token for row in prepared.frequency_rows} == expected
    assert len(expected) > 100
    for row in prepared.frequency_rows:
        assert row.forget_per_10k == pytest.approx(counts[True][row.token] * 1e4 / forget_total), row
        assert row.retain_per_10k == pytest.approx(counts[False][row.token] * 1e4 / retain_total), row
    weights = [row.weight for row in prepared.frequency_rows]
    assert weights == sorted(weights)
    assert prepared.frequency_rows[0].forget_per_10k > 5 * prepared.frequency_rows[0].retain_per_10k


def test_frequencies_are_counted_in_so_many_stories_of_each_kind(
    prepare: Callable[..., PreparedData], small_tokenizer: PreTrainedTokenizerFast
) -> None:
    train = prepare("frequency").train
    table = frequency_table(train, replace(RULES["frequency"], frequency_stories=5), VOCABULARY_SIZE, skip_bos=True)
    for forget, counted in ((True, table.forget_counts), (False, table.retain_counts)):
        chosen = [example for example in train if (example["label"] == FORGET) == forget][:5]
        expected = Counter(token for example in chosen for token in example["input_ids"][1:])
        assert {token: count for token, count in enumerate(counted.tolist()) if count} == expected


def test_other_rules_have_no_table(prepare: Callable[..., PreparedData]) -> None:
    for rule in ("uniform", "concept", "none"):
        assert prepare(rule).frequency_rows == []


@pytest.mark.parametrize("rule", list(RULES))
def test_the_summary_adds_up(prepare: Callable[..., PreparedData], rule: str) -> None:
    prepared = prepare(rule)
    summary, train = prepared.summary, prepared.train
    assert summary["source"] == "generator"
    assert summary["validation_source"] is None
    assert summary["forget_words"] == ["tree", "trees", "forest", "forests", "woodland", "woodlands"]
    kinds = [summary[f"train_{name}"] for name in ("forget_labelled", "forget_unlabelled", "retain")]
    assert sum(kinds) == summary["train_stories"] == len(train)
    forget = 60 - 10 - 6  # a fifth of the 300 generated stories is forest
    assert kinds == [round(0.6 * forget), forget - round(0.6 * forget), 240 - 12 - 8]
    held_out = {"validation_forget": 10, "validation_retain": 12, "attack_forget": 6, "coherence_validation": 8}
    assert {name: summary[f"{name}_stories"] for name in held_out} == held_out
    assert sum(held_out.values()) + summary["train_stories"] == 300
    assert (summary["duplicates_dropped"], summary["blanks_dropped"]) == (0, 0)
    for name in ("train", *held_out):
        assert summary[f"{name}_tokens"] == sum(map(len, getattr(prepared, name)["input_ids"]))
    assert summary["train_forget_word_tokens"] == sum(map(sum, train["is_forget_word"])) > 50
    routed = sum(weight < 0.5 for weights in train["routing_weight"] for weight in weights)
    assert summary["train_tokens_routed_as_forget"] == routed
    labelled = [example for example in train if example["label"] == FORGET]
    everything = sum(len(example["input_ids"]) - 1 for example in labelled)
    concept = sum(sum(example["is_forget_word"]) for example in labelled)
    assert {"uniform": routed == everything, "concept": routed == concept > 0, "none": routed == 0}.get(
        rule, concept / 2 < routed < everything / 2
    )


def test_retain_stories_that_are_labelled_forget_are_routed_and_counted(prepare: Callable[..., PreparedData]) -> None:
    errors = {"labelled_fraction": 1.0, "label_errors": "score", "label_threshold": 1e-4}
    prepared = prepare("uniform", **errors)
    summary, train = prepared.summary, prepared.train
    assert summary["label_errors"] == {"kind": "score", "threshold": 1e-4}
    mistaken = [
        example
        for example in train
        if example["label"] == FORGET and not re.search(r"(?i)\b(tree|forest|woodland)s?\b", example["text"])
    ]
    assert summary["train_retain_labelled_forget"] == len(mistaken) > 0
    assert {weight for example in mistaken for weight in example["routing_weight"][:-1]} == {0.0}
    assert summary["train_forget_labelled"] + summary["train_forget_unlabelled"] == 44 + len(mistaken)
    assert set(prepared.coherence_validation["label"]) == {RETAIN}  # what is held out keeps the truth
    assert "label_errors" not in prepare("uniform", labelled_fraction=1.0).summary


def test_evaluation_stories_have_tokens_and_no_weights(prepare: Callable[..., PreparedData]) -> None:
    prepared = prepare("uniform")
    for name, label in (
        ("validation_forget", FORGET),
        ("validation_retain", RETAIN),
        ("attack_forget", FORGET),
        ("coherence_validation", RETAIN),
    ):
        part = getattr(prepared, name)
        assert "routing_weight" not in part.column_names
        assert {"input_ids", "is_forget_word", "label", "length", "text"} <= set(part.column_names)
        assert set(part["label"]) == {label}
        assert (
            all((sum(words) > 0) == (label == FORGET) for words in part["is_forget_word"])
            or name != "validation_retain"
        )


def test_a_forget_word_without_a_token_is_refused(small_tokenizer: PreTrainedTokenizerFast) -> None:
    config = make_config()
    splits = load_splits(config, seed=0)

    class Deaf(PreTrainedTokenizerFast):
        def __call__(self, text: Any, **options: Any) -> Any:
            return {"input_ids": []} if text == " forests" else super().__call__(text, **options)

    deaf = Deaf(tokenizer_object=small_tokenizer.backend_tokenizer, bos_token="<|bos|>")
    with pytest.raises(ValueError, match=r"no token of the tokenizer matches 'forests', so it can never be routed"):
        prepare_data(splits, deaf, config, RULES["uniform"], VOCABULARY_SIZE)


# Words that are cut into pieces


def dragon_tokenizer(*words: str) -> PreTrainedTokenizerFast:
    """Of each word a token, of all else a token for each character."""
    pieces = ["<|bos|>", *words, *dict.fromkeys("adegnorstbu. ")]
    backend = Tokenizer(WordLevel({piece: index for index, piece in enumerate(pieces)}))
    backend.pre_tokenizer = Split(Regex("|".join([*words, "."])), behavior="isolated")
    backend.decoder = Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|bos|>")


@pytest.fixture
def dragon_splits() -> tuple[StorySplits, DataConfig]:
    """A forget word to each story of sea and sand, or none."""
    config = DataConfig(
        forget_words=["dragon", "bear"], forget_validation_stories=1, retain_validation_stories=1, attack_stories=0
    )
    texts = [f"a dragon {'a ' * index}sat on sand." for index in range(12)]
    texts += [f"a goose {'a ' * index}sat on sand." for index in range(12)]
    return split_sources(Sources(Dataset.from_dict({"text": texts}), None), config, 0), config


def test_a_word_without_a_token_of_its_own_is_warned_of(dragon_splits: tuple[StorySplits, DataConfig]) -> None:
    splits, config = dragon_splits
    tokenizer = dragon_tokenizer("bear")
    with pytest.warns(
        ForgetWordPiecesWarning,
        match=r"`data\.forget_words`: .*'dragon' is 'd' \([\d.]+\) 'r' \(0\) 'a' .* 'n' \([\d.]+\)\. Take a tokenizer",
    ):
        prepared = prepare_data(splits, tokenizer, config, RULES["concept"], 40)
    (word,) = prepared.summary["forget_word_pieces"]
    ids, marks = ([x for story in prepared.train[name] for x in story] for name in ("input_ids", "is_forget_word"))
    others = [token for token, mark in zip(ids, marks, strict=True) if not mark]
    assert (word["text"], word["share"]) == ("dragon", 1.0)
    for piece, letter in zip(word["pieces"], "dragon", strict=True):
        expected = 1e4 * others.count(tokenizer.convert_tokens_to_ids(letter)) / len(others)
        assert piece == {"token": letter, "per_10k_elsewhere": pytest.approx(expected, abs=0.05)}


@pytest.mark.parametrize(("words", "rule"), [(["dragon"], "concept"), ([], "uniform"), ([], "frequency")])
def test_whole_words_and_other_rules_are_not_warned_of(
    dragon_splits: tuple[StorySplits, DataConfig], words: list[str], rule: str
) -> None:
    splits, config = dragon_splits
    prepared = prepare_data(splits, dragon_tokenizer("bear", *words), config, RULES[rule], 40)
    assert not prepared.summary.get("forget_word_pieces")


# The fingerprint


def test_the_fingerprint_changes_with_stories_and_labels_only() -> None:
    config = make_config(generator_stories=200)
    splits = load_splits(config, seed=0)
    same = data_fingerprint(splits)
    assert data_fingerprint(load_splits(config, seed=0)) == same
    assert data_fingerprint(load_splits(replace(config, max_tokens=50, add_eos=True), seed=0)) == same
    assert data_fingerprint(replace(splits, duplicates_dropped=7)) == same

    def changed(part: str, **columns: list[Any]) -> str:
        values = getattr(splits, part).to_dict()
        return data_fingerprint(replace(splits, **{part: Dataset.from_dict({**values, **columns})}))

    texts, labels = list(splits.train["text"]), list(splits.train["label"])
    assert changed("train", text=texts) == same
    others = {
        "a story": changed("train", text=[texts[0] + "!", *texts[1:]]),
        "a label": changed("train", label=[UNLABELLED if labels[0] != UNLABELLED else RETAIN, *labels[1:]]),
        "the order": changed("train", text=texts[::-1], label=labels[::-1]),
        "another seed": data_fingerprint(load_splits(config, seed=1)),
        "other words": data_fingerprint(load_splits(replace(config, forget_words=["friend"]), seed=0)),
        "other labels kept": data_fingerprint(load_splits(replace(config, labelled_fraction=0.5), seed=0)),
        "examples for coherence": data_fingerprint(
            load_splits(replace(config, coherence_validation_stories=7), seed=0)
        ),
        "a cut": data_fingerprint(load_splits(replace(config, max_characters=300), seed=0)),
        "parts exchanged": data_fingerprint(
            replace(splits, validation_forget=splits.attack_forget, attack_forget=splits.validation_forget)
        ),
        "a story moved": data_fingerprint(
            replace(
                splits,
                train=splits.train.select(range(len(splits.train) - 1)),
                validation_forget=Dataset.from_list([splits.train[-1], *splits.validation_forget]),
            )
        ),
    }
    assert len({same, *others.values()}) == len(others) + 1


# Real stories, as the seed counted them


def real_rows(tokenizer: PreTrainedTokenizerFast, shared_folder: Path, stories: int | None) -> dict[str, Any]:
    folder = shared_folder / "data" / "tinystories"
    config = DataConfig(
        train=str(folder / "train.jsonl"),
        validation=str(folder / "validation.jsonl"),
        forget_words=list(TREE_WORDS),
        max_train_stories=stories,
        attack_stories=64,
    )
    train = tokenise_examples(load_splits(config, seed=0).train, tokenizer, config, "training examples")
    table = frequency_table(train, RULES["frequency"], len(tokenizer), skip_bos=True)
    return {row.token: row for row in table.rows(lambda token: tokenizer.decode([token]), 5.0)}


@pytest.mark.stories
def test_tree_comes_first_in_the_table_of_real_stories(
    gpt2_tokenizer: PreTrainedTokenizerFast, shared_folder: Path
) -> None:
    rows = real_rows(gpt2_tokenizer, shared_folder, 2500)
    assert next(iter(rows)) == " tree"
    assert " bird" in list(rows)[:5]  # few stories: how the next few are ordered is chance
    assert rows[" tree"].weight < 0.001
    assert rows[" tree"].forget_per_10k == pytest.approx(99.4, rel=0.1)
    assert rows[" tree"].retain_per_10k < 0.1


@pytest.mark.slow
@pytest.mark.stories
def test_the_table_of_all_real_stories_is_the_seeds(
    gpt2_tokenizer: PreTrainedTokenizerFast, shared_folder: Path
) -> None:
    rows = real_rows(gpt2_tokenizer, shared_folder, None)
    assert list(rows)[:2] == [" tree", " bird"]
    assert rows[" tree"].weight < 0.001
    assert rows[" tree"].forget_per_10k == pytest.approx(99.4, rel=0.1)
    assert rows[" tree"].retain_per_10k < 0.05
    assert rows[" bird"].weight == pytest.approx(0.586, abs=0.1)
    assert rows[" bird"].forget_per_10k == pytest.approx(73.1, rel=0.2)
    assert rows[" bird"].retain_per_10k == pytest.approx(18.7, rel=0.2)
    for token in (" flew", " bear"):
        assert 0.7 < rows[token].weight < 0.95
    assert len(rows) == pytest.approx(226, rel=0.15)
    assert min(row.weight for token, row in rows.items() if token not in list(rows)[:4]) > 0.85
