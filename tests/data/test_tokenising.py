"""Cuts, special tokens, and the marks of forget words."""

from collections.abc import Callable
from typing import Any

import pytest
from datasets import Dataset
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from hf_era.data import FORGET, RETAIN, DataConfig, generate_stories
from hf_era.data.tokenising import label_examples, tokenise_examples

BOS, EOS = 0, 1


@pytest.fixture
def tokenise(small_tokenizer: PreTrainedTokenizerFast) -> Callable[..., Dataset]:
    """Labels and tokenises texts; options are fields of `DataConfig`."""

    def tokenise(texts: list[str | None], tokenizer: Any = small_tokenizer, **options: Any) -> Dataset:
        config = DataConfig(**options)
        labelled = label_examples(Dataset.from_dict({"text": texts}), config, "stories")
        return tokenise_examples(labelled, tokenizer, config, "stories")

    return tokenise


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


# Cuts


def test_characters_are_cut_first_then_tokens(
    tokenise: Callable[..., Dataset], small_tokenizer: PreTrainedTokenizerFast
) -> None:
    text = "One day a little girl went out to play in the park with her friend."
    for characters, tokens in ((20, 256), (1000, 8), (20, 4), (None, 256)):
        example = tokenise([text], max_characters=characters, max_tokens=tokens)[0]
        kept = text[:characters].strip()
        assert example["text"] == kept
        assert example["input_ids"] == [BOS, *ids_of(small_tokenizer, kept)][:tokens]
        assert example["length"] == len(example["input_ids"]) == len(example["is_forget_word"])
    cut = tokenise([text], max_characters=20, max_tokens=4)[0]
    assert len(cut["input_ids"]) == 4
    assert len(ids_of(small_tokenizer, text[:20])) + 1 > 4  # so both cuts had something to cut


def test_white_space_around_a_story_does_not_count(tokenise: Callable[..., Dataset]) -> None:
    assert tokenise([" " * 50 + "A tree.\n"], max_characters=6)["text"][:] == ["A tree"]


def test_the_label_is_that_of_the_cut_text(tokenise: Callable[..., Dataset]) -> None:
    texts = ["At sea. " * 3 + "A tree.", "A tree. " + "At sea. " * 3, "Look at the treetop now."]
    assert tokenise(texts, max_characters=None)["label"][:] == [FORGET, FORGET, RETAIN]
    assert tokenise(texts, max_characters=20)["label"][:] == [RETAIN, FORGET, RETAIN]
    # Cut in the middle of a word, what is left is what is read.
    assert tokenise(texts, max_characters=16)["label"][2] == FORGET
    # Beyond the token limit the label stays: the cut at tokens comes later.
    late = tokenise(texts, max_characters=None, max_tokens=3)
    assert late["label"][0] == FORGET
    assert not any(late["is_forget_word"][0])


def test_blank_and_missing_stories_are_dropped(tokenise: Callable[..., Dataset]) -> None:
    stories = tokenise(["a", "", None, " \n\t ", " b "])
    assert stories["text"][:] == ["a", "b"]


def test_a_batch_of_blank_stories_alone_is_no_trouble(tokenise: Callable[..., Dataset]) -> None:
    stories = tokenise([""] * 1500 + ["a tree"])  # more than a batch of `map`
    assert stories["text"][:] == ["a tree"]
    assert stories["label"][:] == [FORGET]


# Special tokens


def test_bos_once_and_no_eos_by_default(tokenise: Callable[..., Dataset]) -> None:
    for ids in tokenise(generate_stories(20, seed=1))["input_ids"]:
        assert ids[0] == BOS
        assert ids.count(BOS) == 1
        assert EOS not in ids


def test_bos_once_where_the_tokenizer_adds_its_own(
    tokenise: Callable[..., Dataset], small_tokenizer: PreTrainedTokenizerFast
) -> None:
    eager = PreTrainedTokenizerFast(
        tokenizer_object=type(small_tokenizer.backend_tokenizer).from_str(small_tokenizer.backend_tokenizer.to_str()),
        bos_token="<|bos|>", eos_token="<|eos|>", pad_token="<|pad|>",
    )  # fmt: skip
    eager.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|bos|> $A <|eos|>", special_tokens=[("<|bos|>", BOS), ("<|eos|>", EOS)]
    )
    text = "A tree by the sea."
    assert eager(text)["input_ids"] == [BOS, *ids_of(small_tokenizer, text), EOS]  # it does add them
    for options in ({}, {"add_eos": True}, {"add_bos": False}, {"max_tokens": 3}):
        ours = tokenise([text], tokenizer=eager, **options)[0]
        assert ours == tokenise([text], **options)[0]
        assert ours["input_ids"].count(BOS) == (0 if options.get("add_bos") is False else 1)


def test_without_bos_the_story_begins_at_once(
    tokenise: Callable[..., Dataset], small_tokenizer: PreTrainedTokenizerFast
) -> None:
    text = "A tree by the sea."
    ids = ids_of(small_tokenizer, text)
    assert tokenise([text], add_bos=False)["input_ids"][0] == ids
    assert tokenise([text], add_bos=False, max_tokens=3)["input_ids"][0] == ids[:3]


def test_eos_ends_stories_that_were_not_cut(
    tokenise: Callable[..., Dataset], small_tokenizer: PreTrainedTokenizerFast
) -> None:
    text = "A tree by the sea."
    ids = [BOS, *ids_of(small_tokenizer, text)]
    room = len(ids)
    assert tokenise([text], add_eos=True)["input_ids"][0] == [*ids, EOS]
    assert tokenise([text], add_eos=True, max_tokens=room + 1)["input_ids"][0] == [*ids, EOS]
    # The whole story fits, but not its EOS: no token of the story is given up for it.
    assert tokenise([text], add_eos=True, max_tokens=room)["input_ids"][0] == ids
    assert tokenise([text], add_eos=True, max_tokens=room - 1)["input_ids"][0] == ids[:-1]


def test_no_eos_after_a_cut_at_characters(tokenise: Callable[..., Dataset]) -> None:
    text = "A tree by the sea."
    for characters, ends in (
        (10, False),
        (len(text) - 1, False),
        (len(text), True),
        (len(text) + 1, True),
        (None, True),
    ):
        ids = tokenise([f" {text}\n"], add_eos=True, max_characters=characters)["input_ids"][0]
        assert (ids[-1] == EOS) is ends, characters


@pytest.mark.parametrize(("name", "kept"), [("bos", {"add_eos": False}), ("eos", {"add_bos": False, "add_eos": True})])
def test_a_special_token_that_the_tokenizer_lacks(
    tokenise: Callable[..., Dataset], small_tokenizer: PreTrainedTokenizerFast, name: str, kept: dict[str, bool]
) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=small_tokenizer.backend_tokenizer)
    with pytest.raises(
        ValueError,
        match=rf"`data\.add_{name}` is on, but the tokenizer has no {name.upper()} token\. Set `data\.add_{name}: false`\.",
    ):
        tokenise(["a tree"], tokenizer=bare, **kept)
    assert tokenise(["a tree"], tokenizer=bare, add_bos=False)["input_ids"][0] == ids_of(small_tokenizer, "a tree")


# Marks


def test_forget_words_are_marked_beside_their_tokens(
    tokenise: Callable[..., Dataset], small_tokenizer: PreTrainedTokenizerFast
) -> None:
    example = tokenise(["The tree and the treetop. Forests!"], add_eos=True)[0]
    marked = [i for i, found in zip(example["input_ids"], example["is_forget_word"], strict=True) if found]
    assert small_tokenizer.decode(marked) == " tree Forests"
    assert example["is_forget_word"][0] is False
    assert example["is_forget_word"][-1] is False
    assert example["input_ids"][-1] == EOS


@pytest.mark.parametrize("options", [{}, {"add_eos": True}, {"add_bos": False}, {"max_tokens": 7, "add_eos": True}])
def test_all_columns_have_the_length_of_the_tokens(tokenise: Callable[..., Dataset], options: dict[str, Any]) -> None:
    stories = tokenise(generate_stories(40, seed=2), **options)
    assert sum(map(any, stories["is_forget_word"])) > 0 or options.get("max_tokens") == 7
    for example in stories:
        assert example["length"] == len(example["input_ids"]) == len(example["is_forget_word"])
        assert 1 <= example["length"] <= options.get("max_tokens", 256)


def test_two_processes_give_what_one_gives(tokenise: Callable[..., Dataset]) -> None:
    texts = [*generate_stories(60, seed=3), "", *[" "] * 10]
    one, two = (tokenise(texts, num_proc=number, add_eos=True) for number in (None, 2))
    assert one.to_dict() == two.to_dict()
    assert len(one) == 60
