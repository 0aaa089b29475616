"""What counts as the same text: one table of texts and words, for the labels and for the counts of generated texts."""

import unicodedata

import pytest

from hf_era.data import DataConfig, WordFinder
from hf_era.data.splits import story_key
from hf_era.evaluation.text_metrics import count_target_words, target_word_spans, trigram_repetition

DECOMPOSED, ACUTE = unicodedata.normalize("NFD", "Bäume"), "\u0301"

# (text, word, what a label finds of it, what a count finds of it)
FOUND = [
    # Spellings that Unicode calls the same
    (f"Die {DECOMPOSED}.", "Bäume", [DECOMPOSED], [DECOMPOSED]),
    ("Die Bäume.", DECOMPOSED, ["Bäume"], ["Bäume"]),
    (f"le cafe{ACUTE}", "cafe", [], []),
    (f"le cafe{ACUTE}", "café", [f"cafe{ACUTE}"], [f"cafe{ACUTE}"]),
    ("le café", "cafe", [], []),
    ("die Bäume, eine Baumschule", "baum", [], []),
    ("a\u0323\u0302", "\u1ead", ["a\u0323\u0302"], ["a\u0323\u0302"]),
    ("a\u0302\u0323", "\u1ead", ["a\u0302\u0323"], ["a\u0302\u0323"]),  # marks in another order
    ("\u1112\u1161\u11ab \u1112\u1161", "한", ["\u1112\u1161\u11ab"], ["\u1112\u1161\u11ab"]),  # Hangul in letters
    ("한", "하", [], []),
    # Any case
    ("Die STRASSE, die Straße", "straße", ["STRASSE", "Straße"], ["STRASSE", "Straße"]),
    ("Die Straße", "STRASSE", ["Straße"], ["Straße"]),
    ("İstanbul", "istanbul", ["İstanbul"], ["İstanbul"]),
    ("ISTANBUL istanbul \u0131stanbul", "İstanbul", ["ISTANBUL", "istanbul", "\u0131stanbul"], None),
    ("ΔΕΝΤΡΟΣ", "δεντρος", ["ΔΕΝΤΡΟΣ"], ["ΔΕΝΤΡΟΣ"]),  # a sigma at the end is another small letter
    ("300 \u212a", "k", ["\u212a"], ["\u212a"]),
    ("ﬁr tree", "fir", ["ﬁr"], ["ﬁr"]),
    # Combining marks belong to the word
    ("पेड़ पेड़ों", "पेड़", ["पेड़"], ["पेड़"]),
    ("पेड़ों", "पेड", [], []),
    ("किताब", "कि", [], []),
    ("किताब", "ताब", [], []),
    # Apostrophes and hyphens as they are typed
    ("at one o\u2019clock", "o'clock", ["o\u2019clock"], ["o\u2019clock"]),
    ("at one o\u00b4clock", "o'clock", ["o\u00b4clock"], ["o\u00b4clock"]),
    ("\ua98f\ua99b\ua9a0\ua9a1", "\ua99b\ua9a0", ["\ua99b\ua9a0"], ["\ua99b\ua9a0"]),  # Javanese
    ("at one o'clock", "o\u02bcclock", ["o'clock"], ["o'clock"]),
    ("the tree\u2019s top", "tree", ["tree"], []),
    ("the tree\u02bcs top", "tree", ["tree"], []),
    ("an e\u2011mail", "e-mail", ["e\u2011mail"], ["e\u2011mail"]),
    # Borders
    ("_tree_ and __tree__.", "tree", ["tree", "tree"], ["tree", "tree"]),
    ("tree_house", "tree", ["tree"], []),
    ("a tree-house", "tree", ["tree"], []),
    ("treetop street tree2", "tree", [], []),
    ("\N{DECIDUOUS TREE}\ufe0f x", "\N{DECIDUOUS TREE}", ["\N{DECIDUOUS TREE}"], ["\N{DECIDUOUS TREE}"]),
    # What is invisible is not there; a space without width is a space between words
    ("a tr\u00adee\u2060.", "tree", ["tr\u00adee"], ["tr\u00adee"]),
    ("\u202etree\u202c", "tree", ["tree"], ["tree"]),
    ("\u062f\u0631\u062e\u062a\u200c\u0647\u0627", "\u062f\u0631\u062e\u062a", [], []),
    ("a tree\u200bhouse", "tree", ["tree"], []),
    # Scripts without spaces
    ("山上有一棵树。", "树", ["树"], ["树"]),
    ("这棵树很高。那棵树也是", "树", ["树", "树"], ["树", "树"]),
    ("森木", "木", ["木"], ["木"]),
    ("大きな木がある", "木", ["木"], ["木"]),
    ("がらす", "か", [], []),  # the mark that makes it another letter
    ("がらす", "カ", [], []),
    ("ต้นไม้ใหญ่", "ต้นไม้", ["ต้นไม้"], ["ต้นไม้"]),
    ("กุ", "ก", [], []),
    ("一棵tree吗", "tree", ["tree"], ["tree"]),
    ("一棵treetop吗", "tree", [], []),
    ("나무가", "나무", [], []),  # Korean has spaces
]


@pytest.mark.parametrize(("text", "word", "labelled", "counted"), FOUND)
def test_labels_and_counts_agree_on_what_is_the_same_word(text, word, labelled, counted):
    assert [text[start:end] for start, end in WordFinder([word]).spans(text)] == labelled
    assert WordFinder([word]).found_in(text) == bool(labelled)
    counted = labelled if counted is None else counted
    assert [text[start:end] for start, end in target_word_spans(text, [word])] == counted
    assert count_target_words([text], [word]).all == len(counted)


@pytest.mark.parametrize(("text", "word", "labelled", "counted"), FOUND)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_the_spelling_does_not_matter(form, text, word, labelled, counted):
    counted = labelled if counted is None else counted
    for given, named in ((unicodedata.normalize(form, text), word), (text, unicodedata.normalize(form, word))):
        for one, other in ((given, named), (given.casefold(), named), (given, named.casefold())):
            assert len(WordFinder([other]).spans(one)) == len(labelled)
            assert len(target_word_spans(one, [other])) == len(counted)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (f"Die {DECOMPOSED}\n stehen", "die Bäume stehen", True),
        ("Die STRASSE", "die Straße", True),
        ("İstanbul", "istanbul", True),
        ("It\u2019s a tree", "It's  a TREE", True),
        ("a tr\u00adee", "a tree", True),
        (f"cafe{ACUTE}", "cafe", False),
        ("a tree", "atree", False),
        ("a_tree", "a tree", False),
    ],
)
def test_stories_that_are_the_same(one, other, same):
    assert (story_key(one) == story_key(other)) == same


def test_repetition_sees_through_spellings():
    text = "die Bäume dort"
    assert trigram_repetition(f"{text} {unicodedata.normalize('NFD', text)}") == pytest.approx(1 / 4)


@pytest.mark.parametrize("word", ["\u00ad", " \u200d ", "\ufeff"])
def test_a_word_that_cannot_be_seen_is_refused(word):
    with pytest.raises(ValueError, match=r"`data\.forget_words` should hold words, got .*\. Take the empty word out\."):
        DataConfig(forget_words=["tree", word])
    with pytest.raises(ValueError, match=r"`words` should hold words, got .*\. Take the empty word out\."):
        target_word_spans("a tree", [word])
