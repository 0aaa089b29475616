"""The built-in stories: deterministic, distinct, of the promised length, and worth forgetting."""

import hashlib
import itertools
import math
import os
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_era.data import generator
from hf_era.data.generator import MAXIMUM_STORIES, generate_stories
from hf_era.data.story_grammar import FOREST_WORDS, LESSONS, RETAIN_TOPICS, SHARED

FOREST_WORD = re.compile(r"\b(?:" + "|".join(FOREST_WORDS) + r")\b", re.IGNORECASE)

# A phrase that the arrival of each topic always contains.
TOPIC_MARKS = {
    "sea": r"went to (the beach|the sea|the sandy bay)",
    "farm": r"visited (a|a small|the) farm",
    "kitchen": r"in the kitchen",
    "snow": r"played in the snow",
    "train": r"took a train",
    "music": r"went to (a music lesson|the music room|band practice)",
    "garden": r"worked in the flower garden",
    "pet": r"a new pet",
    "school": r"went to school",
    "rain": r"looked out of the window",
    "market": r"went to the market",
    "night": r"looked at the sky",
    "toys": r"played in the toy room",
    "forest": r"(the|old|edge of the) (forest|woodland)\b",
}


@pytest.fixture(scope="module")
def stories() -> list[str]:
    return generate_stories(5000, seed=0)


def is_forest(story: str) -> bool:
    return FOREST_WORD.search(story) is not None


def words(story: str) -> list[str]:
    return re.findall(r"[a-z]+|[.,!?\"]", story.lower())


def test_same_arguments_give_the_same_stories_and_another_seed_gives_others() -> None:
    assert generate_stories(50, seed=3) == generate_stories(50, seed=3)
    assert not set(generate_stories(50, seed=3)) & set(generate_stories(50, seed=4))


@pytest.mark.parametrize("hash_seed", ["1", "4242"])
def test_another_process_with_another_hash_seed_gives_the_same_stories(hash_seed: str) -> None:
    # The package's own imports take seconds; the stand-in leaves them out.
    program = (
        "import hashlib, sys, types; package = types.ModuleType('hf_era.data'); package.__path__ = [sys.argv[1]];"
        "sys.modules['hf_era.data'] = package; from hf_era.data.generator import generate_stories;"
        "print(hashlib.sha256(repr(generate_stories(200, seed=7, forest_fraction=0.3)).encode()).hexdigest())"
    )
    folder = Path(generator.__file__).parent
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(folder.parent.parent)}
    command = [sys.executable, "-c", program, str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    expected = hashlib.sha256(repr(generate_stories(200, seed=7, forest_fraction=0.3)).encode()).hexdigest()
    assert result.stdout.strip() == expected


def test_global_random_state_is_neither_used_nor_changed() -> None:
    random.seed(0)
    before = random.getstate()
    first = generate_stories(5, seed=1)
    assert random.getstate() == before
    random.seed(99)
    assert generate_stories(5, seed=1) == first


def test_all_stories_are_distinct(stories: list[str]) -> None:
    assert len(stories) == 5000
    assert len(set(stories)) == 5000
    # Not merely other names: with the names masked, nearly all still differ.
    names = "|".join(re.findall(r"[A-Z][a-z]+", "".join(SHARED.split("opening:")[0])))
    assert len({re.sub(rf"\b({names})\b", "NAME", story) for story in stories}) > 4990


@pytest.mark.parametrize(
    ("number", "fraction", "expected"), [(1000, 0.2, 200), (7, 0.5, 4), (40, 0.0, 0), (40, 1.0, 40)]
)
def test_forest_fraction_is_exact(number: int, fraction: float, expected: int) -> None:
    made = generate_stories(number, seed=5, forest_fraction=fraction)
    assert len(made) == number
    assert sum(map(is_forest, made)) == expected


def test_forest_stories_are_spread_over_the_list(stories: list[str]) -> None:
    for start in range(0, 5000, 500):
        assert 60 <= sum(map(is_forest, stories[start : start + 500])) <= 140
    flags = [is_forest(story) for story in stories]
    neighbours = sum(left and right for left, right in itertools.pairwise(flags))
    assert 120 <= neighbours <= 280  # 200 are expected of random places, none of every fifth place


def test_forget_words_are_where_they_belong(stories: list[str]) -> None:
    forest = [story for story in stories if is_forest(story)]
    assert min(len(FOREST_WORD.findall(story)) for story in forest) >= 2
    found = Counter(match.lower() for story in forest for match in FOREST_WORD.findall(story))
    assert set(found) == set(FOREST_WORDS)
    # Not only in the stories that were drawn: no template outside the forest has such a word.
    assert FOREST_WORD.search(RETAIN_TOPICS) is None
    assert FOREST_WORD.search(SHARED) is None


def test_every_story_has_its_one_topic_and_all_topics_are_common(stories: list[str]) -> None:
    counts: Counter[str] = Counter()
    for story in stories:
        topics = [topic for topic, mark in TOPIC_MARKS.items() if re.search(mark, story)]
        assert len(topics) == 1, story
        assert (topics == ["forest"]) == is_forest(story)
        counts[topics[0]] += 1
    assert len(counts) == len(TOPIC_MARKS) == 14
    assert min(counts.values()) > 200  # 4000 stories over 13 topics: about 308 each


def test_what_belongs_to_the_forest_is_told_there_only(stories: list[str]) -> None:
    for word in ("squirrel", "branch", "acorn", "owl", "roots", "leaves", "trunk", "moss", "bark"):
        told = [story for story in stories if re.search(rf"\b{word}s?\b", story)]
        assert len(told) > 20, word
        assert all(map(is_forest, told)), word


def test_events_have_consequences(stories: list[str]) -> None:
    consequences = {
        r"The maple still": "red leaves [a-z]+ down",
        r"The birch still": "yellow leaves [a-z]+ down",
        r"planted an acorn": "little oak had",
        r"broke, and": "(moss|ferns|leaves)",
        r"saw a crab": "crab walked sideways",
        r"saw a starfish": "starfish held on",
        r"home with a puppy": "bone.*wagged its tail",
        r"play the violin": "bow gently",
    }
    for cause, effect in consequences.items():
        told = [story.replace("\n", " ") for story in stories if re.search(cause, story)]
        assert len(told) > 5, cause
        assert all(re.search(f"{cause}.*{effect}", story) for story in told), cause


def test_length_and_paragraphs(stories: list[str]) -> None:
    lengths = [len(story.split()) for story in stories]
    assert min(lengths) >= 60
    assert max(lengths) <= 150
    assert max(lengths) - min(lengths) > 40
    assert {story.count("\n") for story in stories} == {0, 1, 2}


def test_stories_are_clean_english(stories: list[str]) -> None:
    for story in stories:
        assert not re.search(r"[\[\]{}|#/=_]", story), story  # nothing of the template language is left
        assert not re.search(r"  | \n|\n | [.,!?]|\.\.|^\s|\s$", story), story
        assert not re.search(r"\b[Aa] [aeio]|\b[Aa]n (?!hour)[^aeio]", story), story
        assert not re.search(r"[.!?] [a-z]", re.sub(r'"[^"]*"', "", story)), story
        assert story.count('"') % 2 == 0, story
        assert not re.search(r"\b(\w+) \1\b", story), story
        assert story[-1] in '.!?"', story
    assert sum('"' in story for story in stories) > 4500


def test_characters_keep_their_pronouns(stories: list[str]) -> None:
    told = 0
    for story in stories:
        child = re.search(r"\b(girl|boy)\b", story)
        assert child is not None
        # With a grown-up alone (no friend) every pronoun is the hero's: grown-ups get none.
        if re.search(r"(friend|cousin|neighbor) [A-Z]", story) or "the hen" in story or "She keeps" in story:
            continue
        wrong = r"\b(he|him|his|himself)\b" if child[1] == "girl" else r"\b(she|her|herself)\b"
        body = re.sub(r"(Someone covered his ears|wear his hat|the snowman lost his head)", "", story)
        assert not re.search(wrong, body, re.IGNORECASE), story
        told += 1
    assert told > 1500


def test_a_lesson_ties_the_beginning_to_the_end(stories: list[str]) -> None:
    for lesson in LESSONS:
        assert f"\n{lesson}_trait: " in SHARED
        assert f"\n{lesson}_ending: " in SHARED
    impatient = [story for story in stories if "did not like to wait." in story]
    assert len(impatient) > 50
    assert all(re.search(r"worth the wait|take time|are slow|easier to wait", story) for story in impatient)


def bigram_model(texts: list[str]) -> Callable[[str], float]:
    """Cross entropy in nats per word of an interpolated bigram model with add-one unigrams."""
    unigrams: Counter[str] = Counter()
    bigrams: dict[str, Counter[str]] = defaultdict(Counter)
    for text in texts:
        tokens = words(text)
        unigrams.update(tokens)
        for left, right in itertools.pairwise(tokens):
            bigrams[left][right] += 1
    total = sum(unigrams.values())
    sums = {left: sum(counts.values()) for left, counts in bigrams.items()}

    def cross_entropy(text: str) -> float:
        tokens = words(text)
        loss = 0.0
        for left, right in itertools.pairwise(tokens):
            unigram = (unigrams[right] + 1) / (total + len(unigrams) + 1)
            bigram = bigrams[left][right] / sums[left] if left in sums else unigram
            loss -= math.log(0.1 * unigram + 0.9 * bigram)
        return loss / (len(tokens) - 1)

    return cross_entropy


def test_a_model_that_never_saw_the_forest_has_a_higher_loss_there_and_not_elsewhere(stories: list[str]) -> None:
    train, held_out = stories[:4000], stories[4000:]
    filtered = bigram_model([story for story in train if not is_forest(story)])
    complete = bigram_model(train)
    forest = [story for story in held_out if is_forest(story)]
    retain = [story for story in held_out if not is_forest(story)]

    def mean(model: Callable[[str], float], texts: list[str]) -> float:
        return sum(map(model, texts)) / len(texts)

    assert mean(filtered, forest) > mean(complete, forest) + 0.5
    assert abs(mean(filtered, retain) - mean(complete, retain)) < 0.1
    # The shared scaffolding helps in the forest too: the filtered model does not fall to the unigram's level.
    assert mean(filtered, forest) < mean(complete, forest) + 3.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"number": 0}, r"`number` should be positive, got 0\. Ask for 1 to 200000 stories\."),
        ({"number": -3}, r"`number` should be positive, got -3"),
        ({"number": 1.5}, r"`number` should be an integer, got 1\.5"),
        ({"number": True}, r"`number` should be an integer, got True"),
        ({"number": MAXIMUM_STORIES + 1}, r"at most 200000, got 200001: the generator makes up to 200000 distinct"),
        ({"number": 1, "seed": -1}, r"`seed` should not be negative, got -1\. Pass 0 or more\."),
        ({"number": 1, "seed": "a"}, r"`seed` should be an integer, got 'a'"),
        ({"number": 1, "forest_fraction": 1.2}, r"`forest_fraction` should lie in \[0, 1\], got 1\.2\. Pass 0\.2"),
        ({"number": 1, "forest_fraction": -0.1}, r"`forest_fraction` should lie in \[0, 1\], got -0\.1"),
        ({"number": 1, "forest_fraction": math.nan}, r"`forest_fraction` should lie in \[0, 1\], got nan"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, int | float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate_stories(**arguments)  # type: ignore[arg-type]
