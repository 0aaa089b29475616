"""The built-in facts: each with a chance level, never in the same words, attacked by one half, measured on the other."""

import re
from collections import Counter
from typing import Any

import pytest

from hf_era.data import DataConfig, StorySplits, generate_stories, load_splits, load_stories
from hf_era.data.facts import ANIMALS, CHANCE, MOST_FACT_EXAMPLES, ROOMS, TEXT, THINGS, among_facts, rooms_of
from hf_era.run.config import lay_over

COUNTS = {"forget_validation_stories": 20, "retain_validation_stories": 40, "attack_stories": 20}


def config(**overrides: Any) -> DataConfig:
    return DataConfig(**{"train": "facts", "generator_stories": 200, **COUNTS, **overrides})


@pytest.fixture(scope="module")
def splits() -> StorySplits:
    return load_splits(config(), seed=1)


def told(text: str) -> tuple[str, int] | None:
    """The name and the room that an example states; nothing of a story."""
    found = re.search(r" room (\d)$", text)
    if found is None:
        return None
    names = [name for name in (*ANIMALS, *THINGS) if re.search(rf"\b{name}\b", text)]
    assert len(names) == 1, text
    return names[0], int(found[1])


def test_of_each_half_as_many_facts_name_one_room_as_any_other() -> None:
    rooms = rooms_of(seed=5)
    assert set(rooms) == {*ANIMALS, *THINGS}
    for kind, number in (("animal_1", 16), ("animal_2", 16), ("thing", 32)):
        counts = Counter(room for room, own in rooms.values() if own == kind)
        assert counts == dict.fromkeys(range(1, ROOMS + 1), number * CHANCE), kind
    assert {name for name, (_, kind) in rooms.items() if kind.startswith("animal")} == set(ANIMALS)
    assert rooms_of(seed=6) != rooms == rooms_of(seed=5)


def test_two_facts_stand_behind_each_text_each_as_often_and_never_in_the_same_words() -> None:
    texts: list[str | None] = [f"Text {number}." for number in range(320)]
    made = among_facts(texts, seed=2)
    rows = list(zip(made["prompt"], made["completion"], made["kind"], strict=True))
    assert rows[::3] == [("", text, TEXT) for text in texts]
    told_facts = [row for number, row in enumerate(rows) if number % 3]
    rooms, facts = rooms_of(seed=2), [told(f"{prompt}{completion}") for prompt, completion, _ in told_facts]
    assert Counter(fact[0] for fact in facts if fact) == dict.fromkeys(rooms, 10)
    assert all(fact and fact[1] == rooms[fact[0]][0] for fact in facts)
    assert [kind for *_, kind in told_facts] == [rooms[fact[0]][1] for fact in facts if fact]
    assert len({prompt for prompt, *_ in told_facts}) == 640


def test_facts_end_where_their_wordings_do() -> None:
    texts = [""] * (MOST_FACT_EXAMPLES // 2 + 3)
    made = among_facts(texts)
    assert len(made["prompt"]) == len(texts) + MOST_FACT_EXAMPLES
    assert len(set(made["prompt"])) == MOST_FACT_EXAMPLES + 1


def test_the_attacker_has_one_half_the_other_is_measured_and_all_are_trained_on(splits: StorySplits) -> None:
    rooms = rooms_of(seed=1)

    def kinds(part: str) -> Counter[str]:
        facts = [told(text) for text in getattr(splits, part)["text"]]
        return Counter(TEXT if fact is None else rooms[fact[0]][1] for fact in facts)

    assert kinds("attack_forget") == {"animal_1": 20}
    assert kinds("validation_forget") == {"animal_2": 20}
    assert set(kinds("validation_retain")) == {"thing", TEXT}
    assert set(kinds("train")) == {"animal_1", "animal_2", "thing", TEXT}
    measured = {told(text) for text in splits.validation_forget["text"]}
    assert measured <= {told(text) for text in splits.train["text"]}
    assert splits.duplicates_dropped == 0


def test_the_texts_are_those_of_the_generator(splits: StorySplits) -> None:
    parts = (splits.train, splits.validation_retain, splits.coherence_validation)
    kept = [text for part in parts for text in part["text"] if told(text) is None]
    assert sorted(kept) == sorted(generate_stories(200, seed=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"attack_labels": ["animal_3"]},
            r"`data.attack_labels` should be some of `data.forget_labels`, and not all, got",
        ),
        ({"train": "topics", "attack_labels": ["chemistry"]}, r"not all, got \['chemistry'\] of \['chemistry'\]"),
        (
            {"train": "generator", "attack_labels": ["tree"]},
            r"got \['tree'\] of \[\]: the model is measured on the others",
        ),
    ],
)
def test_labels_of_the_attack_that_are_no_part_of_the_forget_labels(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"attack_stories": 150},
            r"`data.attack_stories`: 150 forget .* one of `data.attack_labels` \(animal_1\) were",
        ),
        ({"forget_validation_stories": 150}, "`data.forget_validation_stories`: 150 forget examples without one of"),
    ],
)
def test_too_few_examples_of_a_half(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_splits(config(**settings), seed=1)


def test_load_stories_knows_the_source_by_its_name() -> None:
    loaded = load_stories("facts", generator_stories=50, seed=3)
    assert loaded.to_dict() == among_facts(generate_stories(50, seed=3), seed=3)


def test_over_a_recipe_with_forget_words_a_built_in_source_brings_its_own_labels() -> None:
    recipe = {"data": {"train": "stories.jsonl", "forget_words": ["tree"], "stories_file": None, "max_tokens": 64}}
    assert lay_over(recipe, {"data": {"train": "facts"}})["data"] == {"train": "facts", "max_tokens": 64}
    of_words = {"train": "facts", "forget_words": ["frog"]}  # said beside it, so meant
    assert lay_over(recipe, {"data": of_words})["data"] == {**of_words, "max_tokens": 64}
    back = lay_over({"data": {"train": "facts", "stories_file": "s.jsonl", "attack_labels": ["x"]}}, recipe)
    assert back["data"] == recipe["data"]
