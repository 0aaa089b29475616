"""Forget words are found in the text, whole and in any case, and every one of their tokens is marked."""

import random
import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from tokenizers import Tokenizer, normalizers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace, WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from hf_era.data import WordFinder, generate_stories, load_stories
from hf_era.data.config import TREE_WORDS
from hf_era.data.tokenising import tokens_of_spans
from hf_era.data.word_pieces import check_words_have_tokens

TEXTS = [
    "Once upon a time there was a tree. The tree was old; trees, TREES and a Forest stood near the treetop.",
    "Tree",
    'tree-house, pine tree\'s tree_house (forest) "woodland" street trees? forestry!',
    "🌲 tree 🌳 naïve tree, Straße tree 森 tree\n\ntree\ttree",
    "no such word here",
    "",
]


def slow_characters(words: Sequence[str], text: str) -> list[bool]:
    """For each character whether it is part of a whole word: tried at every place, one character at a time."""

    def is_word_character(position: int) -> bool:
        return 0 <= position < len(text) and text[position].isalnum()

    inside = [False] * len(text)
    for word in words:
        for start in range(len(text) - len(word) + 1):
            end = start + len(word)
            same = all(a.lower() == b.lower() for a, b in zip(text[start:end], word, strict=True))
            if same and not is_word_character(start - 1) and not is_word_character(end):
                inside[start:end] = [True] * len(word)
    return inside


def marked_characters(spans: Sequence[tuple[int, int]], text: str) -> list[bool]:
    return [any(start <= position < end for start, end in spans) for position in range(len(text))]


# In the text


@pytest.mark.parametrize(
    "text",
    [
        "tree",
        " tree",
        "Tree",
        "TREE",
        "tree.",
        "a tree, b",
        "'tree'",
        "(tree)",
        "tree's",
        "tree-house",
        "\ntree\n",
        "old tree",
    ],
)
def test_a_whole_word_is_found_in_any_case_and_company(text: str) -> None:
    finder = WordFinder(["tree"])
    assert finder.found_in(text)
    start = text.lower().index("tree")
    assert finder.spans(text) == [(start, start + 4)]


@pytest.mark.parametrize("text", ["treetop", "street", "tree2", "2tree", "trees", "treeé", "tre e", "", "t"])
def test_a_part_of_a_word_is_not_found(text: str) -> None:
    finder = WordFinder(["tree"])
    assert not finder.found_in(text)
    assert finder.spans(text) == []


def test_spans_are_in_the_order_of_the_text() -> None:
    text = "A forest has trees, and a tree is no forest."
    found = [text[start:end] for start, end in WordFinder(TREE_WORDS).spans(text)]
    assert found == ["forest", "trees", "tree", "forest"]


def test_a_phrase_is_found_across_any_white_space() -> None:
    finder = WordFinder(["christmas tree"])
    for text in ("A Christmas tree.", "A christmas\ntree.", "A Christmas  tree."):
        start, end = finder.spans(text)[0]
        assert " ".join(text[start:end].lower().split()) == "christmas tree"
    assert not finder.found_in("A Christmas and a tree.")
    assert not finder.found_in("Christmastree")


@pytest.mark.parametrize("word", ["c++", "a.b", "(tree)", "[x]", "tree|forest", "what?", "*", "$5", "^", "back\\slash"])
def test_characters_of_regular_expressions_stand_for_themselves(word: str) -> None:
    finder = WordFinder([word])
    text = f"see {word} here"
    assert finder.spans(text) == [(4, 4 + len(word))]
    assert not finder.found_in("see cc axb tree x forest wha 5 here")


def test_words_of_other_scripts() -> None:
    assert WordFinder(["дерево"]).spans("Это Дерево.") == [(4, 10)]
    assert WordFinder(["café"]).spans("Le CAFÉ, le cafétéria") == [(3, 7)]


def test_overlapping_phrases_are_all_covered() -> None:
    finder = WordFinder(["old oak", "oak tree", "tree"])
    assert finder.spans("An old oak tree.") == [(3, 15)]
    assert finder.spans("An old oak.") == [(3, 10)]
    assert finder.spans("An oak tree, a tree") == [(3, 11), (15, 19)]
    assert WordFinder(["a b c", "b"]).spans("a b c b") == [(0, 5), (6, 7)]
    assert WordFinder(["tree", "tree house"]).spans("tree house tree") == [(0, 10), (11, 15)]


def test_words_are_stripped() -> None:
    assert WordFinder([" tree "]).spans("tree") == [(0, 4)]


@pytest.mark.parametrize(
    "words", [TREE_WORDS, ("tree",), ("old oak", "oak tree", "tree"), ("a", "b", "a b"), ("a-b", "b")]
)
def test_spans_are_those_of_the_slow_way(words: Sequence[str]) -> None:
    pieces = ["tree", "Trees", "forest", "old", "oak", "a", "b", "-", " ", " ", ".", "_", "é", "1", "top"]
    generator = random.Random(0)
    texts = [" ".join("".join(generator.choices(pieces, k=12)).split()) for _ in range(400)] + TEXTS
    finder = WordFinder(words)
    seen = 0
    for text in texts:
        spans = finder.spans(text)
        expected = slow_characters(words, text)
        assert marked_characters(spans, text) == expected, text
        assert all(before[1] <= after[0] for before, after in pairwise(spans)), text
        assert finder.found_in(text) == any(expected)
        seen += any(expected)
    assert 10 < seen < len(texts)


# In the tokens


def test_tokens_that_touch_a_span_are_marked() -> None:
    offsets = [(0, 0), (0, 3), (3, 8), (8, 9), (9, 12), (12, 16), (0, 0)]
    assert tokens_of_spans([(4, 8)], offsets) == [False, False, True, False, False, False, False]
    assert tokens_of_spans([(0, 1), (8, 13)], offsets) == [False, True, False, True, True, True, False]
    assert tokens_of_spans([(15, 16)], offsets) == [False] * 5 + [True, False]
    assert tokens_of_spans([], offsets) == [False] * 7
    assert tokens_of_spans([(0, 4)], []) == []
    # One token over two spans, several tokens of one character.
    assert tokens_of_spans([(0, 1), (2, 3)], [(0, 3), (3, 4)]) == [True, False]
    assert tokens_of_spans([(1, 2)], [(0, 1), (1, 2), (1, 2), (2, 3)]) == [False, True, True, False]


def assert_tokens_are_marked(tokenizer: PreTrainedTokenizerFast, words: Sequence[str], texts: Sequence[str]) -> int:
    finder = WordFinder(words)
    marked = 0
    for text in texts:
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        inside = slow_characters(words, text)
        expected = [any(inside[start:end]) for start, end in offsets]
        assert tokens_of_spans(finder.spans(text), offsets) == expected, text
        marked += sum(expected)
    return marked


def test_tokens_are_those_of_the_slow_way(small_tokenizer: PreTrainedTokenizerFast) -> None:
    assert assert_tokens_are_marked(small_tokenizer, TREE_WORDS, TEXTS + generate_stories(60, seed=5)) > 50


def test_every_occurrence_in_running_text_is_marked(small_tokenizer: PreTrainedTokenizerFast) -> None:
    stories = generate_stories(150, seed=6)
    token = small_tokenizer(" tree", add_special_tokens=False)["input_ids"]
    assert len(token) == 1
    assert_every_occurrence_is_marked(small_tokenizer, stories, token[0])


def assert_every_occurrence_is_marked(tokenizer: PreTrainedTokenizerFast, stories: Sequence[str], token: int) -> None:
    finder, occurrences = WordFinder(TREE_WORDS), 0
    for story in stories:
        encoded = tokenizer(story, add_special_tokens=False, return_offsets_mapping=True)
        marks = tokens_of_spans(finder.spans(story), encoded["offset_mapping"])
        for mark, found, (_, end) in zip(marks, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            if found == token and not story[end : end + 1].isalnum():  # else a longer word, such as " treetop"
                assert mark, story
                occurrences += 1
        assert sum(marks) >= len(re.findall(r"\b(?:tree|forest|woodland)s?\b", story, re.IGNORECASE)), story
    assert occurrences > 30


@pytest.mark.stories
def test_gpt2_tokens_are_those_of_the_slow_way(gpt2_tokenizer: PreTrainedTokenizerFast, shared_folder: Path) -> None:
    stories = load_stories(str(shared_folder / "data" / "tinystories" / "validation.jsonl"))["text"][:100]
    assert assert_tokens_are_marked(gpt2_tokenizer, TREE_WORDS, [*TEXTS, *stories]) > 30


@pytest.mark.stories
def test_every_gpt2_tree_in_real_stories_is_marked(
    gpt2_tokenizer: PreTrainedTokenizerFast, shared_folder: Path
) -> None:
    stories = load_stories(str(shared_folder / "data" / "tinystories" / "validation.jsonl"))["text"][:800]
    token = gpt2_tokenizer(" tree", add_special_tokens=False)["input_ids"]
    bare = gpt2_tokenizer("tree", add_special_tokens=False)["input_ids"]
    assert len(token) == 1
    assert bare != token  # the bare word is another token: a search by token id would miss running text
    assert_every_occurrence_is_marked(gpt2_tokenizer, stories, token[0])


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_tokens_of_a_decomposed_word_are_marked_whatever_the_tokenizer_does_to_it(form: str) -> None:
    backend = Tokenizer(WordLevel({"<unk>": 0, "die": 1, unicodedata.normalize(form, "Bäume"): 2}, unk_token="<unk>"))
    backend.normalizer, backend.pre_tokenizer = getattr(normalizers, form)(), WhitespaceSplit()
    for text in ("die Bäume die", unicodedata.normalize("NFD", "die Bäume die"), "die B\u00adäume die"):
        encoding = backend.encode(text, add_special_tokens=False)
        assert tokens_of_spans(WordFinder(["bäume"]).spans(text), encoding.offsets) == [False, True, False]


# Words that the tokenizer does not know


@pytest.fixture(scope="module")
def word_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(WordLevel({"<unk>": 0, "tree": 1, "oak": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def test_words_without_a_token_are_an_error(word_tokenizer: PreTrainedTokenizerFast) -> None:
    check_words_have_tokens(["tree", "oak", "oak wood"], word_tokenizer)
    with pytest.raises(
        ValueError,
        match=r"`data\.forget_words`: no token of the tokenizer matches 'forest', so it can never be routed\. "
        r"Take the word out, or use a tokenizer that knows it\.",
    ):
        check_words_have_tokens(["tree", "forest"], word_tokenizer)


def test_a_byte_level_tokenizer_knows_every_word(small_tokenizer: PreTrainedTokenizerFast) -> None:
    check_words_have_tokens(["tree", "森", "🌲", "x\x00"], small_tokenizer)


# The short cuts


def test_the_short_cut_misses_nothing() -> None:
    generator = random.Random(1)
    pieces = [
        "tree",
        "TREES",
        "street",
        "old",
        "oak",
        "oak  tree",
        "kiss",
        "KI\u017fS",
        "\u212aiss",
        "\u0130",
        "k\u0131ss",
        "é",
        " ",
        "\n",
        ".",
    ]
    for words in (TREE_WORDS, ["kiss", "kisses"], ["old oak", "oak tree"], ["é tree"], ["k\u0131ss"], ["c++", "."]):
        finder = WordFinder(words)
        for _ in range(300):
            text = "".join(generator.choices([*pieces, " "], k=9))
            spans = finder.spans(text)
            assert finder.found_in(text) == bool(spans), text
            (maybe,) = finder.may_be_in(pa.chunked_array([[text]]))
            assert maybe or not spans, text


def test_most_stories_need_no_search() -> None:
    texts = ["At sea.", "A Tree.", "A street.", "Naïve.", "", "Ferns"]
    assert WordFinder(TREE_WORDS).may_be_in(pa.chunked_array([texts])) == [False, True, True, True, False, False]
    # A word with other characters is never in ASCII text; one that is the same as an ASCII word may be.
    assert WordFinder(["树", "Bäume"]).may_be_in(pa.chunked_array([texts])) == [False, False, False, True, False, False]
    assert WordFinder(["Straße"]).may_be_in(pa.chunked_array([["Die STRASSE", "Weg"]])) == [True, False]
