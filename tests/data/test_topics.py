"""The built-in texts on topics: deterministic, distinct, in one set of sentences, and each topic with facts of its own."""

import re
from collections import Counter

import pytest

from hf_era.data.sources import load_stories
from hf_era.data.topic_facts import FACTS, FIELDS
from hf_era.data.topics import MAXIMUM_TEXTS, TOPICS, generate_topics


@pytest.fixture(scope="module")
def texts() -> list[tuple[str, str]]:
    made = generate_topics(1000, seed=3)
    return list(zip(made["text"], made["topic"], strict=True))


def test_same_arguments_give_the_same_texts_and_another_seed_gives_others(texts: list[tuple[str, str]]) -> None:
    made = generate_topics(1000, seed=3)
    assert list(zip(made["text"], made["topic"], strict=True)) == texts
    assert not set(generate_topics(100, seed=4)["text"]) & {text for text, _ in texts}


def test_texts_are_distinct_and_topics_are_equally_many(texts: list[tuple[str, str]]) -> None:
    assert len({text for text, _ in texts}) == 1000
    assert Counter(topic for _, topic in texts) == dict.fromkeys(TOPICS, 200)
    assert Counter(topic for _, topic in texts[:500])["chemistry"] == pytest.approx(100, abs=40)  # spread over the list


def test_texts_are_clean_english_of_a_short_length(texts: list[tuple[str, str]]) -> None:
    for text, _ in texts:
        assert 40 <= len(text.split()) <= 110, text
        assert not re.search(r"[\[\]{}|#/=_]|  | [.,!?]|\.\.|^\s|\s$", text), text
        assert not re.search(r"\b[Aa] [aeio]|\b(\w+) \1\b|[.!?] [a-z]", re.sub(r'"[^"]*"', "", text)), text
        assert text.count('"') % 2 == 0, text
        assert text[-1] in '.!?"', text


def test_a_fact_is_told_in_its_own_topic_alone(texts: list[tuple[str, str]]) -> None:
    for topic in TOPICS:
        for line in FACTS[topic].strip("\n").replace("\n ", " ").split("\n"):
            fields = [field.strip() for field in line.split("/")]
            assert len(fields) == len(FIELDS), line
            told = [other for text, other in texts if fields[4] in text]
            assert len(told) > 3, line
            assert set(told) == {topic}, line


def test_load_stories_knows_the_source_by_its_name(texts: list[tuple[str, str]]) -> None:
    loaded = load_stories("topics", generator_stories=1000, seed=3)
    assert list(zip(loaded["text"], loaded["topic"], strict=True)) == texts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "`number` should be at least 1, got 0"),
        ((MAXIMUM_TEXTS + 1,), "`number` should be at most 200,000"),
        ((5, -1), "`seed` should be at least 0, got -1"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate_topics(*arguments)
