"""Prompts are the first tokens of held-out examples, with their labels, unless some were given."""

from typing import Any

import pytest
from datasets import Dataset

from hf_era.data.tokenizer import train_tokenizer
from hf_era.evaluation.prompts import LabelledPrompts, prompts_for
from hf_era.evaluation.sampling import SamplingConfig

FORGET = [
    "Acids give protons to water at once",
    "A base takes protons from water",
    "Salt",
    "鉄は酸素と結びついて錆びる",
]
RETAIN = ["Cut the onions into small cubes", "Cut the onions into rings and fry"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """About one token per byte."""
    return train_tokenizer(["abc"], vocab_size=259)


def examples(tokenizer: Any) -> dict[str, Dataset]:
    def rows(texts: list[str]) -> Dataset:
        return Dataset.from_list([{"text": text, "length": 1 + len(tokenizer(text)["input_ids"])} for text in texts])

    return {"forget": rows(FORGET), "retain": rows(RETAIN)}


def begin(tokenizer: Any, **settings: Any) -> LabelledPrompts:
    return prompts_for(SamplingConfig(**settings), tokenizer, examples(tokenizer))


def test_prompts_are_the_first_words_of_examples_with_their_labels(tokenizer: Any) -> None:
    settings, labels = begin(tokenizer, prompt_tokens=8)
    found = dict(zip(settings.prompts or [], labels, strict=True))
    # The two retain examples begin alike: one prompt. "Salt" has four tokens, of which no more than half begin a text; words
    # are finished unless that doubles the tokens: kanji and kana have three each.
    sizes = {"Acids give": "forget", "A base takes": "forget", "Sa": "forget", "鉄は酸素と結": "forget"}
    assert found == {**sizes, "Cut the onions": "retain"}
    assert begin(tokenizer, prompt_tokens=8) == (settings, labels)
    assert begin(tokenizer, prompt_tokens=8, seed=1).settings.prompts != settings.prompts
    assert begin(tokenizer, prompt_examples=1).labels == ["forget", "retain"]


def test_given_prompts_are_of_no_example(tokenizer: Any) -> None:
    assert begin(tokenizer, prompts=["Water", "Salt"]).labels == [None, None]
    assert begin(tokenizer, prompts=["Water", "Salt"]).settings.prompts == ["Water", "Salt"]


def test_examples_that_no_text_can_begin_with(tokenizer: Any) -> None:
    short = {"forget": Dataset.from_list([{"text": "a", "length": 2}])}
    with pytest.raises(ValueError, match=r"No held-out example has more than two tokens.*Give `generation\.prompts`"):
        prompts_for(SamplingConfig(), tokenizer, short)
