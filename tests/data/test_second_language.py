"""The built-in second language: a substitution that keeps the shape of a text, and never a story beside its translation."""

import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_era.data import FORGET, DataConfig, generate_stories, load_splits
from hf_era.data.second_language import FIRST, SECOND, in_two_languages, translate
from hf_era.data.splits import PARTS, story_key

STORIES = generate_stories(400, seed=1)


def config(**overrides: Any) -> DataConfig:
    counts = {"forget_validation_stories": 5, "retain_validation_stories": 7, "attack_stories": 3}
    return DataConfig(**{"train": "second_language", "generator_stories": 200, **counts, **overrides})


def test_the_substitution_is_a_permutation_without_fixed_points_that_keeps_case_and_signs() -> None:
    letters = translate(string.ascii_lowercase)
    assert sorted(letters) == list(string.ascii_lowercase)
    assert not any(one == other for one, other in zip(letters, string.ascii_lowercase, strict=True))
    assert translate(string.ascii_uppercase) == letters.upper()
    assert translate("1. Émile's café — 7 \n") == "1. Élpov'e xqgé — 7 \n"


def test_hardly_a_word_of_one_language_is_a_word_of_the_other() -> None:
    words = {word for story in STORIES for word in re.findall("[a-z]+", story.lower())}
    assert not {word for word in words if len(word) > 1} & set(map(translate, words))


def test_a_quarter_of_the_texts_is_translated_whatever_other_texts_are_there() -> None:
    made = in_two_languages(STORIES, seed=3)
    languages = made["language"]
    assert languages.count(SECOND) == pytest.approx(100, abs=25)
    assert made["text"] == [
        translate(story) if language == SECOND else story for story, language in zip(STORIES, languages, strict=True)
    ]
    assert in_two_languages(STORIES[50:], seed=3)["language"] == languages[50:]
    assert in_two_languages(STORIES, seed=4)["language"] != languages
    assert in_two_languages([None, ""], seed=0)["text"] == [None, ""]


def test_a_story_and_its_translation_never_both_occur(write: Callable[[str, Any], Path]) -> None:
    doubled = [{"story": text} for story in STORIES[:120] for text in (story, story.upper())]
    splits = load_splits(config(stories_file=str(write("stories.jsonl", doubled))), seed=0)
    assert splits.duplicates_dropped == 120  # also of those whose copy differs in case alone
    assert splits.contradictions_dropped == 0
    contents = []
    for part in PARTS:
        examples = getattr(splits, part)
        of_content = {story_key(translate(story)): story_key(story) for story in STORIES[:120]}
        for text, label in zip(examples["text"], examples["label"], strict=True):
            contents.append(of_content[story_key(text)] if label == FORGET else story_key(text))
    assert sorted(contents) == sorted(map(story_key, STORIES[:120]))


def test_without_a_file_the_stories_are_the_generators() -> None:
    splits = load_splits(config(), seed=2)
    made = in_two_languages(generate_stories(200, seed=2), seed=2)
    kept = {text for part in PARTS for text in getattr(splits, part)["text"]}
    assert kept == set(made["text"])
    forget = {text for text, language in zip(made["text"], made["language"], strict=True) if language == SECOND}
    assert set(splits.validation_forget["text"]) | set(splits.attack_forget["text"]) < forget
    assert not forget & set(splits.validation_retain["text"])
    assert FIRST in made["language"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"train": "topics", "stories_file": "x.jsonl"},
            "`data.stories_file` is 'x.jsonl', but `data.train: 'topics'`",
        ),
        (
            {"stories_file": "topics"},
            "`data.stories_file` should be a file, a directory or a hub data set id, got 'topics'",
        ),
        ({"validation": "x.jsonl"}, "`data.validation` is 'x.jsonl', but with `data.train: second_language` the"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**settings)


def test_a_file_that_is_not_there_is_named_with_its_setting() -> None:
    with pytest.raises(ValueError, match=r"`data.stories_file`: the file nowhere.jsonl does not exist"):
        load_splits(config(stories_file="nowhere.jsonl"), seed=0)
