"""Stories of every kind: labelled as another way of looking says, tokenised and weighed consistently, or refused."""

import itertools
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, disable_progress_bars
from hypothesis import strategies as st

from hf_era.data import DataConfig, WordFinder, examples_of, load_stories, train_tokenizer
from hf_era.data.generator import generate_stories
from hf_era.data.labelling import FORGET, RETAIN
from hf_era.data.routing_weights import frequency_table, weigh_examples
from hf_era.data.splits import story_key
from hf_era.data.tokenising import label_examples, tokenise_examples
from hf_era.data.words import _WITHOUT_SPACES, fold, origins
from hf_era.evaluation.text_metrics import count_target_words
from hf_era.routing import RoutingRuleConfig

from .strategies import STRANGE_TEXTS, texts

WORDS = (
    "tree",
    "trees",
    "forest",
    "old oak",
    "e-mail",
    "c++",
    "naïve",
    "עץ",
    "\N{DECIDUOUS TREE}",
    "ß",
    "\u017f",
    "I",
    "İ",
    "o'clock",
    "B\u00e4ume",
    "पेड़",
    "树",
    "\u304b",
    "\u0e01",
)
# The last ones turn the letter before into another one, or are no part of a text that one sees.
GLUE = (" ", "", ".", "-", "_", "\n", "s", "'", "\u2019", "\u00a0", "1", "é", "\0", "\u200b", "の",
        "\u0301", "\u3099", "\u00ad", "\u200d")  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(generate_stories(60, seed=0), vocab_size=400)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    disable_progress_bars()


def is_of_a_word(character: str) -> bool:
    """Letters, numbers of every kind, and the marks on them."""
    return character.isalnum() or unicodedata.category(character)[0] == "M"


def is_border(folded: str, place: int) -> bool:
    """Whether a word may begin or end between two characters."""
    if place in (0, len(folded)):
        return True
    before, after = folded[place - 1], folded[place]
    return unicodedata.category(after)[0] != "M" and bool(_WITHOUT_SPACES.match(before) or _WITHOUT_SPACES.match(after))


def has_word(text: str, words: list[str]) -> bool:
    """An oracle without regular expressions: every place in the folded text, every word, character by character."""
    folded, wanted = fold(text), [fold(word) for word in words]
    for start, word in itertools.product(range(len(folded)), wanted):
        end = end_of(folded, start, word) if folded[start] == word[0] else None
        if end is None or (start and unicodedata.category(folded[start])[0] == "M"):
            continue
        before, after = folded[max(start - 1, 0) : start], folded[end : end + 1]
        if all(
            not beside or not is_of_a_word(beside) or is_border(folded, place)
            for beside, place in ((before, start), (after, end))
        ):
            return True
    return False


def end_of(text: str, start: int, word: str) -> int | None:
    at = start
    for number, part in enumerate(word.split()):
        if number:
            spaces = at
            while at < len(text) and text[at].isspace():
                at += 1
            if at == spaces:
                return None
        if text[at : at + len(part)] != part:
            return None
        at += len(part)
    return at


def cases(word: str) -> st.SearchStrategy[str]:
    return st.sampled_from([word, word.upper(), word.lower(), word.title(), word.swapcase()])


stories = st.lists(
    st.one_of(st.sampled_from(WORDS).flatmap(cases), st.sampled_from(GLUE), texts, st.sampled_from(STRANGE_TEXTS)),
    max_size=8,
).map("".join)


def test_labels_agree_with_a_search_by_hand(fuzz: Callable) -> None:
    def check(words: list[str], story: str) -> None:
        finder = WordFinder(words)
        story = story.strip()[:300]
        expected = has_word(story, words)
        assert finder.found_in(story) == expected
        spans = finder.spans(story)
        assert bool(spans) == expected
        assert all(0 <= start < end <= len(story) for start, end in spans)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))

    fuzz("labels", check, words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=3, unique=True), story=stories)


def test_spellings_of_one_text_are_one_text(fuzz: Callable) -> None:
    """Unicode's forms of a text and of a word, and any case, change neither what is found nor where."""

    def check(words: list[str], story: str) -> None:
        folded, finder = fold(story), WordFinder(words)
        starts, ends = origins(story)
        assert len(starts) == len(ends) == len(folded)
        assert list(starts) == sorted(starts)
        assert list(ends) == sorted(ends)
        for start, end in finder.spans(story):
            assert finder.found_in(story[start:end])
            assert finder.spans(story[start:end]) == [(0, end - start)]
        for form in ("NFC", "NFD"):
            normal = unicodedata.normalize(form, story)
            others = WordFinder([unicodedata.normalize(form, word.casefold()) for word in words])
            for spelling in (normal, normal.casefold()):
                assert fold(spelling) == folded
                assert story_key(spelling) == story_key(story)
                assert finder.found_in(spelling) == others.found_in(story) == finder.found_in(story)
                counts = [count_target_words([text], words).all for text in (spelling, story)]
                assert counts[0] == counts[1]

    fuzz("spellings", check, words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=3, unique=True), story=stories)


def test_stories_become_examples(fuzz: Callable, accepted: Callable, tmp_path: Path, tokenizer: Any) -> None:
    """From a file to routing weights; what a file holds that cannot be read is named."""
    rules = st.sampled_from(["concept", "uniform", "frequency", "none"])
    # A megabyte, written out only once it is needed.
    long = st.sampled_from([("tree ", 200_000), ("x", 1_000_000), ("\N{DECIDUOUS TREE}", 300_000)])
    files = iter(range(1_000_000))

    def check(given: list[Any], rule: str, beginning: str, ending: str, extra: dict[str, Any]) -> None:
        file = tmp_path / f"{beginning}{next(files)}{ending}"
        given = [part[0] * part[1] if isinstance(part, tuple) else part for part in given]
        if ending == ".txt":
            file.write_text("<|endoftext|>".join(map(str, given)), encoding="utf-8", errors="surrogatepass")
        else:
            file.write_text("".join(json.dumps({"text": story}) + "\n" for story in given))
        config = DataConfig(forget_words=["tree", "forest"], **extra)
        rows, _ = accepted(load_stories, str(file))
        named = {"field": "data.train", "source": str(file)}
        found, _ = (None, None) if rows is None else accepted(examples_of, rows, config.labels, **named)
        loaded = None if found is None else found.examples
        if loaded is not None and ending == ".jsonl" and not any(isinstance(story, int) for story in given):
            assert loaded["text"][:] == given
        labelled, _ = (None, None) if loaded is None else accepted(label_examples, loaded, config, "stories")
        if labelled is None:
            return
        check_labels(labelled, config)
        examples = tokenise_examples(labelled, tokenizer, config, "stories")
        weighed = weigh(examples, rule)
        check_examples(weighed, config, rule, tokenizer)

    fuzz(
        "stories",
        check,
        given=st.lists(st.one_of(stories, st.none(), st.integers(), long), min_size=1, max_size=4),
        rule=rules,
        beginning=st.sampled_from(["", "", "[0-9]", "a?*", "**", "zip::", "~", "{a,b}", "$HOME", "#"]),
        ending=st.sampled_from([".jsonl", ".txt"]),
        extra=st.fixed_dictionaries(
            {"max_characters": st.sampled_from([None, 1, 7, 1_029]), "max_tokens": st.sampled_from([2, 3, 16])},
            optional={"add_bos": st.booleans(), "add_eos": st.booleans()},
        ),
    )


def check_labels(labelled: Dataset, config: DataConfig) -> None:
    for row in labelled:
        assert row["text"].strip() == row["text"]
        assert config.max_characters is None or len(row["text"]) <= config.max_characters
        if len(row["text"]) <= 300:
            assert row["label"] == (FORGET if has_word(row["text"], config.forget_words) else RETAIN)


def weigh(examples: Dataset, rule: str) -> Dataset:
    settings = RoutingRuleConfig(weighting=rule) if rule in ("uniform", "frequency") else RoutingRuleConfig(rule=rule)
    table = frequency_table(examples, settings, 400, skip_bos=False) if settings.needs_frequencies else None
    return weigh_examples(examples, settings, table)


def check_examples(examples: Dataset, config: DataConfig, rule: str, tokenizer: Any) -> None:
    for row in examples:
        ids, weights, words = row["input_ids"], np.array(row["routing_weight"]), row["is_forget_word"]
        assert len(ids) == len(weights) == len(words) == row["length"] <= config.max_tokens
        assert all(0 <= token < 400 for token in ids)
        assert ((weights >= 0) & (weights <= 1)).all()
        if row["label"] == RETAIN or rule == "none":
            assert (weights == 1).all()
        elif rule == "concept":
            assert weights[:-1].tolist() == [0.0 if word else 1.0 for word in words[1:]]
        elif rule == "uniform":
            assert (weights[:-1] == 0).all()
        assert weights[-1:].tolist() in ([], [1.0])
        body = ids[1:] if config.add_bos else ids
        if not config.add_eos and len(ids) < config.max_tokens and "<|" not in row["text"]:
            assert tokenizer.decode(body) == row["text"]


def test_the_oracle_is_another_way_of_looking() -> None:
    """It says yes and no where that is plain."""
    assert has_word("The OLD \n oak.", ["old oak"])
    assert has_word("x tree", ["tree"])
    assert not has_word("streets", ["tree"])
    assert has_word("tree_house", ["tree"])
    assert has_word("那棵树也", ["树"])
    assert not has_word("cafe\u0301", ["cafe"])
    assert not has_word("trees", ["tree"])
    assert unicodedata.name(WORDS[8]) == "DECIDUOUS TREE"
