"""Target words on hand-made texts: what counts, where it stands, and what the prompt brought along."""

import pytest

from hf_era.data.config import TREE_WORDS
from hf_era.evaluation.text_metrics import TargetWordCounts, count_target_words, target_word_spans


def found(text: str, words: list[str]) -> list[str]:
    return [text[start:end] for start, end in target_word_spans(text, words)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a tree", ["tree"]),  # with a space in front, the token that the reference's mask misses
        ("tree", ["tree"]),
        ("Tree.", ["Tree"]),
        ('"TREES!" she said', ["TREES"]),
        ("(forest),\nwoodland... ¡woodlands!", ["forest", "woodland", "woodlands"]),
        ("tree tree\ttree", ["tree", "tree", "tree"]),
        ("treehouse streets tree1 tree_top", []),
        ("_tree_ __Forest__", ["tree", "Forest"]),
        ("tree-house tree's tree,forest", []),  # one piece between white space, and not a forget word
        ("the bird flew", []),
        ("", []),
        (" .,! \n", []),
    ],
)
def test_what_counts(text: str, expected: list[str]) -> None:
    assert found(text, list(TREE_WORDS)) == expected
    assert count_target_words([text], TREE_WORDS).all == len(expected)


def test_spans_are_characters_of_the_text_as_it_is() -> None:
    assert target_word_spans("A tree, 'Forest'!", ["tree", "forest"]) == [(2, 6), (9, 15)]
    assert target_word_spans("a tree", []) == []


def test_the_words_may_be_in_any_case_and_are_found_once() -> None:
    assert found("a tree and a TREE", ["Tree", "tree", "TREE"]) == ["tree", "TREE"]
    assert found("Die STRASSE, die Straße", ["straße"]) == ["STRASSE", "Straße"]


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("An oak tree.", ["oak tree"], ["oak tree"]),
        ("oak\n tree", ["oak tree"], ["oak\n tree"]),
        ("(Oak, tree)", ["oak tree"], ["Oak, tree"]),  # punctuation is stripped from each word
        ("oak trees, tree oak", ["oak tree"], []),
        ("an oak", ["oak tree"], []),
        ("oak - tree, oak. (", ["oak tree"], []),  # a piece between them
        ("oak tree, tree", ["tree", "oak tree"], ["oak tree", "tree"]),  # the tree of the phrase is not counted again
        ("big oak tree", ["oak", "big oak", "big oak tree"], ["big oak tree"]),
        ("big oak bush", ["oak", "big oak", "big oak tree"], ["big oak"]),
        ("tree tree tree", ["tree tree"], ["tree tree", "tree tree"]),  # wherever the words stand in a row
        ("big tree house", ["big tree", "tree house"], ["big tree", "tree house"]),
    ],
)
def test_phrases(text: str, words: list[str], expected: list[str]) -> None:
    assert found(text, words) == expected


def test_a_word_may_have_characters_of_its_own_at_its_ends() -> None:
    text = "C, C++, (C++) and C#."
    assert found(text, ["C++"]) == ["C++", "C++"]
    assert found(text, ["C#"]) == ["C#"]
    for words in (["c++", "c"], ["c", "c++"]):
        assert found(text, words) == ["C", "C++", "C++", "C"]
    assert found("in .NET, net", [".net"]) == [".NET"]


def test_sums_over_texts_with_and_without_prompts() -> None:
    prompts = ["Timmy went to the forest", "The tree", "A bird sat on the tree", "Once"]
    texts = [
        "Timmy went to the forest. The forest had trees.",  # forest, forest, trees; without the prompt's: 2
        "The trees fell.",  # begins in the prompt and ends beyond it: both 1
        "A bird sat on the treetop.",  # the prompt's word is no word of the text: 0
        "Once upon a time.",  # 0
    ]
    assert count_target_words(texts, TREE_WORDS, prompts) == TargetWordCounts(all=3 + 1, without_prompt=2 + 1)
    assert count_target_words(texts, TREE_WORDS) == TargetWordCounts(all=4, without_prompt=None)
    assert count_target_words([], TREE_WORDS, []) == TargetWordCounts(all=0, without_prompt=0)


@pytest.mark.parametrize(("continuation", "expected"), [("", 0), (".", 0), ("!' she said", 0), ("s", 1), (" tree", 1)])
def test_punctuation_after_the_prompt_is_no_new_word(continuation: str, expected: int) -> None:
    counts = count_target_words(["To the tree" + continuation], TREE_WORDS, ["To the tree"])
    assert counts.without_prompt == expected


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="`words` is empty, so nothing can be counted"):
        count_target_words(["a tree"], [])
    with pytest.raises(ValueError, match="`words` should hold words, got '  '"):
        count_target_words(["a tree"], ["tree", "  "])
    with pytest.raises(
        ValueError, match=r"`words` should be a list of strings, got the string 'tree'. Pass \['tree'\]"
    ):
        count_target_words(["a tree"], "tree")
    with pytest.raises(ValueError, match="`texts` should be a list of strings, got the string 'a tree'"):
        count_target_words("a tree", ["tree"])
    with pytest.raises(ValueError, match="`prompts` should hold one prompt per text, got 1 for 2 texts"):
        count_target_words(["a tree", "b"], ["tree"], ["a"])
    with pytest.raises(ValueError, match=r"`texts\[1\]` should begin with its prompt 'The', got ' The tree'"):
        count_target_words(["a tree", " The tree"], ["tree"], ["a", "The"])
