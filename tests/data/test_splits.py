"""No story is in two places, counts are exact, and the same seed gives the same split."""

import random
from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest
from datasets import Dataset

from hf_era.data import FORGET, RETAIN, UNLABELLED, DataConfig, StorySplits
from hf_era.data.splits import split_stories
from hf_era.data.tokenising import label_examples

PARTS = ("train", "validation_forget", "validation_retain", "attack_forget")


def make_config(**overrides: Any) -> DataConfig:
    counts = {
        "forget_validation_stories": 5,
        "retain_validation_stories": 7,
        "attack_stories": 3,
        "coherence_validation_stories": 0,
    }
    return DataConfig(**{**counts, "forget_words": ["tree", "forest"], **overrides})


def make_texts(forget: int, retain: int, name: str = "story") -> list[str]:
    texts = [f"The tree of {name} {index}." for index in range(forget)]
    texts += [f"The sea of {name} {index}." for index in range(retain)]
    random.Random(name).shuffle(texts)
    return texts


@pytest.fixture
def split() -> Callable[..., StorySplits]:
    def split(train: list[str], validation: list[str] | None = None, seed: int = 0, **overrides: Any) -> StorySplits:
        config = make_config(**overrides)
        labelled = label_examples(Dataset.from_dict({"text": train}), config, "training examples")
        other = None
        if validation is not None:
            other = label_examples(Dataset.from_dict({"text": validation}), config, "validation examples")
        return split_stories(labelled, other, config, seed)

    return split


def texts_of(splits: StorySplits) -> dict[str, list[str]]:
    return {part: list(getattr(splits, part)["text"]) for part in PARTS}


def normal(text: str) -> str:
    return " ".join(text.lower().split())


def assert_disjoint(splits: StorySplits) -> None:
    texts = texts_of(splits)
    for first in PARTS:
        for second in PARTS:
            if first < second:
                assert {normal(text) for text in texts[first]}.isdisjoint(map(normal, texts[second])), (first, second)


def assert_labels(splits: StorySplits) -> None:
    for part in ("validation_forget", "attack_forget"):
        assert set(getattr(splits, part)["label"]) == {FORGET}
        assert all("tree" in normal(text) or "forest" in normal(text) for text in getattr(splits, part)["text"])
    assert set(splits.validation_retain["label"]) == {RETAIN}
    assert all("sea" in text for text in splits.validation_retain["text"])
    for text, label in zip(splits.train["text"], splits.train["label"], strict=True):
        assert (label == RETAIN) == ("sea" in text)


# Disjoint


def test_parts_taken_out_of_the_training_stories(split: Callable[..., StorySplits]) -> None:
    stories = make_texts(30, 50)
    splits = split(stories)
    texts = texts_of(splits)
    assert {part: len(found) for part, found in texts.items()} == {
        "train": 80 - 15, "validation_forget": 5, "validation_retain": 7, "attack_forget": 3,
    }  # fmt: skip
    assert sorted(chain(*texts.values())) == sorted(stories)
    assert_disjoint(splits)
    assert_labels(splits)
    assert splits.duplicates_dropped == 0
    held_out = set(stories) - set(texts["train"])
    assert texts["train"] == [story for story in stories if story not in held_out]  # in the order given


def test_parts_taken_from_a_validation_source(split: Callable[..., StorySplits]) -> None:
    stories, validation = make_texts(20, 40), make_texts(12, 15, "other")
    splits = split(stories, validation)
    texts = texts_of(splits)
    assert texts["train"] == stories
    assert [len(texts[part]) for part in PARTS[1:]] == [5, 7, 3]
    for part in PARTS[1:]:
        assert set(texts[part]) <= set(validation)
    assert_disjoint(splits)
    assert_labels(splits)


def test_no_attack_stories_are_fine(split: Callable[..., StorySplits]) -> None:
    splits = split(make_texts(10, 10), attack_stories=0)
    assert [len(getattr(splits, part)) for part in PARTS] == [8, 5, 7, 0]


# Duplicates


def test_duplicates_in_the_training_stories_are_dropped(split: Callable[..., StorySplits]) -> None:
    stories = make_texts(12, 12)
    copies = [story.upper() for story in stories] + [f"  {story.replace(' ', '  ')}\n" for story in stories[:6]]
    splits = split(stories + copies)
    assert splits.duplicates_dropped == 30
    assert sorted(chain(*texts_of(splits).values())) == sorted(stories)  # the first of each is kept
    assert_disjoint(splits)


def test_validation_stories_that_are_trained_on_are_dropped(split: Callable[..., StorySplits]) -> None:
    stories = make_texts(20, 40)
    own = make_texts(8, 7, "other")
    leaked = [story.upper() for story in stories[:10]] + [story.replace(" ", "\n") for story in stories[10:20]]
    splits = split(stories, [*leaked, *own, *own[:4]])
    assert splits.duplicates_dropped == 24
    assert_disjoint(splits)
    texts = texts_of(splits)
    assert texts["train"] == stories
    assert set(chain(*(texts[part] for part in PARTS[1:]))) == set(own)  # 15 asked for, 15 left


def test_stories_that_differ_after_the_cut_only_are_duplicates(split: Callable[..., StorySplits]) -> None:
    stories = make_texts(12, 12)
    longer = [f"{story}{' ' * 20}And more." for story in stories]
    splits = split(stories + longer, max_characters=30)
    assert splits.duplicates_dropped == 24
    assert_disjoint(splits)


# Too little


def test_no_forget_story_is_an_error(split: Callable[..., StorySplits]) -> None:
    with pytest.raises(
        ValueError,
        match=r"`data\.forget_words`: none of the 9 training examples has one of tree, forest\. "
        r"Check the words and the text column, or give more examples\.",
    ):
        split(make_texts(0, 9))


def test_no_retain_story_is_an_error(split: Callable[..., StorySplits]) -> None:
    with pytest.raises(
        ValueError,
        match=r"`data\.train`: all of the 9 training examples have one of tree, forest; there is no retain example",
    ):
        split(make_texts(9, 0))


def test_no_forget_training_story_is_an_error_even_if_validation_has_some(split: Callable[..., StorySplits]) -> None:
    with pytest.raises(ValueError, match=r"none of the 9 training examples"):
        split(make_texts(0, 9), make_texts(20, 20, "other"))


@pytest.mark.parametrize(
    ("forget", "retain", "message"),
    [
        (
            8,
            20,
            r"`data\.forget_validation_stories`: 5 forget examples to evaluate on and 3 held back for the relearn attack "
            r"were asked for, but the training data has 8 distinct ones\. Lower `data\.forget_validation_stories` or "
            r"`data\.attack_stories`, or give more\.",
        ),
        (
            20,
            7,
            r"`data\.retain_validation_stories`: 7 retain examples to evaluate on were asked for, but the training data has "
            r"7 distinct ones\. Lower `data\.retain_validation_stories`, or give more\.",
        ),
    ],
)
def test_something_must_be_left_to_train_on(
    split: Callable[..., StorySplits], forget: int, retain: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        split(make_texts(forget, retain))
    enough = split(make_texts(max(forget, 9), max(retain, 8)))
    assert {FORGET, RETAIN} == set(enough.train["label"])


def test_copies_do_not_count_as_stories(split: Callable[..., StorySplits]) -> None:
    stories = make_texts(4, 20)
    with pytest.raises(ValueError, match=r"the training data has 4 distinct ones"):
        split([*stories, *stories, *stories])


@pytest.mark.parametrize(
    ("forget", "retain", "message"),
    [
        (7, 20, r"5 forget examples to evaluate on and 3 held back .* but the validation data has 7 distinct ones"),
        (20, 6, r"7 retain examples to evaluate on were asked for, but the validation data has 6 distinct ones"),
    ],
)
def test_a_validation_source_that_is_too_small(
    split: Callable[..., StorySplits], forget: int, retain: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        split(make_texts(20, 20), make_texts(forget, retain, "other"))
    exactly = split(make_texts(20, 20), make_texts(max(forget, 8), max(retain, 7), "other"))
    assert [len(getattr(exactly, part)) for part in PARTS] == [40, 5, 7, 3]


# Labels that are taken away


@pytest.mark.parametrize(("fraction", "labelled"), [(1.0, 22), (0.5, 11), (0.25, 6), (0.1, 2), (0.001, 1)])
def test_the_labelled_fraction_is_exact(split: Callable[..., StorySplits], fraction: float, labelled: int) -> None:
    stories = make_texts(30, 30)
    splits = split(stories, labelled_fraction=fraction)
    labels = list(splits.train["label"])
    assert labels.count(FORGET) == labelled
    assert labels.count(UNLABELLED) == 22 - labelled
    assert labels.count(RETAIN) == 23
    assert_labels(splits)  # only forget stories lose their label
    assert texts_of(splits) == texts_of(split(stories))  # and nothing else moves


# Retain examples that coherence fine-tuning chooses its weights on


@pytest.mark.parametrize(("asked", "number"), [(0, 0), (3, 3), (100, 9)])
def test_coherence_has_retain_examples_of_its_own(split: Callable[..., StorySplits], asked: int, number: int) -> None:
    """At most a tenth of those there are; nothing else moves, the labels that are lost neither."""
    stories = make_texts(30, 100)
    splits, without = (
        split(stories, coherence_validation_stories=count, labelled_fraction=0.5) for count in (asked, 0)
    )
    own = set(splits.coherence_validation["text"])
    assert len(splits.coherence_validation) == len(own) == number
    assert set(splits.coherence_validation["label"]) <= {RETAIN}
    others = texts_of(without)
    assert texts_of(splits) == others | {"train": [text for text in others["train"] if text not in own]}
    lost = [
        {text for text, label in zip(part.train["text"], part.train["label"], strict=True) if label == UNLABELLED}
        for part in (splits, without)
    ]
    assert lost[0] == lost[1]
    assert len(own & set(others["train"])) == number
    if asked:
        assert set(split(stories, seed=1, coherence_validation_stories=asked).coherence_validation["text"]) != own


def test_no_copy_of_such_an_example_is_trained_on(split: Callable[..., StorySplits]) -> None:
    """Of a file that has its own validation file, repeated examples are trained on as they are."""
    stories = make_texts(20, 40)
    stories += [story.upper() for story in stories]
    splits = split(stories, make_texts(12, 15, "other"), coherence_validation_stories=8)
    own = {normal(text) for text in splits.coherence_validation["text"]}
    assert len(own) == len(splits.coherence_validation) >= 4
    assert own.isdisjoint(map(normal, splits.train["text"]))
    assert len(splits.train) == len(stories) - 2 * len(own)


# Seeds


def test_the_same_seed_gives_the_same_split_and_another_seed_another(split: Callable[..., StorySplits]) -> None:
    stories = make_texts(60, 60)
    first, same, other = (texts_of(split(stories, seed=seed)) for seed in (1, 1, 2))
    assert first == same
    for part in PARTS[1:]:
        assert set(first[part]) != set(other[part]), part


def test_a_validation_split_depends_on_the_seed(split: Callable[..., StorySplits]) -> None:
    stories, validation = make_texts(5, 5), make_texts(60, 60, "other")
    first, same, other = (texts_of(split(stories, validation, seed=seed)) for seed in (1, 1, 2))
    assert first == same
    assert first["train"] == other["train"]
    assert set(first["attack_forget"]) != set(other["attack_forget"])


def test_python_random_state_is_left_alone(split: Callable[..., StorySplits]) -> None:
    random.seed(3)
    before = random.getstate()
    first = texts_of(split(make_texts(20, 20), labelled_fraction=0.5))
    random.seed(4)
    assert texts_of(split(make_texts(20, 20), labelled_fraction=0.5)) == first
    random.seed(3)
    assert random.getstate() == before
    split(make_texts(20, 20), labelled_fraction=0.5)
    assert random.getstate() == before
