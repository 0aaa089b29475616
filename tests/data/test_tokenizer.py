"""The tokenizer that is trained on the spot: lossless, with true offsets, and the same after saving and loading."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_era.data.generator import generate_stories
from hf_era.data.tokenizer import MINIMUM_VOCAB_SIZE, train_tokenizer

TEXTS = [
    "Once upon a time, there was a tall tree.",
    ' "Trees!" she said.\n\nThe forest  was   green.',
    "naïve café, Straße, 森の木, дерево, שלום",
    "emoji 🌲🌳 and 👩‍👧 family",
    "tabs\tand\r\nwindows lines , spaces . before ! marks ' s",
    "   leading and trailing   ",
    "\x00\x7f odd bytes \ufeff",
    "",
]


@pytest.fixture(scope="module")
def stories() -> list[str]:
    return generate_stories(400, seed=0)


@pytest.fixture(scope="module")
def tokenizer(stories: list[str]) -> PreTrainedTokenizerFast:
    return train_tokenizer(stories, vocab_size=1024)


def test_special_tokens_have_fixed_ids(tokenizer: PreTrainedTokenizerFast) -> None:
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|bos|>", "<|eos|>", "<|pad|>")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)
    assert tokenizer.unk_token is None
    assert len(tokenizer) == tokenizer.vocab_size == 1024
    assert tokenizer.model_max_length == 2048


def test_no_special_token_is_added_on_encoding(tokenizer: PreTrainedTokenizerFast, stories: list[str]) -> None:
    encoded = tokenizer(stories[:20])["input_ids"]
    assert not {0, 1, 2} & {token for row in encoded for token in row}
    assert tokenizer("")["input_ids"] == []
    # Written out in a text, they are one token each.
    assert tokenizer("<|bos|><|eos|><|pad|>")["input_ids"] == [0, 1, 2]


@pytest.mark.parametrize("text", TEXTS)
def test_every_text_survives_a_round_trip(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_offsets_cut_the_text_without_gap_or_overlap(tokenizer: PreTrainedTokenizerFast, stories: list[str]) -> None:
    for text in [*stories[:50], TEXTS[0], TEXTS[1]]:  # one byte per character, so that no character is split
        encoded = tokenizer(text, return_offsets_mapping=True)
        offsets = encoded["offset_mapping"]
        assert "".join(text[start:end] for start, end in offsets) == text
        for token, (start, end) in zip(encoded["input_ids"], offsets, strict=True):
            assert tokenizer.decode([token]) == text[start:end]


def test_a_word_with_and_without_its_space_is_found_by_offsets(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "Tree by tree, the tree."
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    for start in (0, 8, 18):
        covering = [span for span in offsets if span[0] < start + 4 and span[1] > start]
        assert covering
        assert "".join(text[a:b] for a, b in covering).strip().lower() == "tree"


def test_saved_and_loaded_it_encodes_the_same(
    tokenizer: PreTrainedTokenizerFast, stories: list[str], tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = [*stories[:50], *TEXTS]
    ours, theirs = (each(texts, return_offsets_mapping=True) for each in (tokenizer, loaded))
    assert ours["input_ids"] == theirs["input_ids"]
    assert ours["offset_mapping"] == theirs["offset_mapping"]
    assert [loaded.decode(row) for row in theirs["input_ids"]] == texts
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "padding_side", "model_max_length"):
        assert getattr(loaded, name) == getattr(tokenizer, name), name
    assert loaded.is_fast
    assert len(loaded) == len(tokenizer)


def test_padding_goes_to_the_right_and_truncation_to_the_maximum(stories: list[str]) -> None:
    tokenizer = train_tokenizer(stories[:50], vocab_size=400, model_max_length=16)
    batch = tokenizer(["a", stories[0]], padding=True, truncation=True)
    assert [len(row) for row in batch["input_ids"]] == [16, 16]
    assert batch["input_ids"][0][1:] == [2] * 15
    assert batch["attention_mask"][0] == [1] + [0] * 15


def test_the_same_texts_give_the_same_tokenizer_and_no_noise(
    stories: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    first = train_tokenizer(stories, vocab_size=600)
    second = train_tokenizer((story for story in stories), vocab_size=600)
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_common_words_become_one_token_and_few_texts_give_few_entries(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer(" forest")["input_ids"]) == 1
    assert len(train_tokenizer(["ab ab"], vocab_size=2048)) < 300
    assert len(train_tokenizer(["abc"], vocab_size=MINIMUM_VOCAB_SIZE)) == MINIMUM_VOCAB_SIZE


def test_bad_arguments_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"`vocab_size` should be at least 259 \(256 bytes and 3 special tokens\), got 2"
    ):
        train_tokenizer(["a"], vocab_size=258)
    with pytest.raises(ValueError, match=r"`model_max_length` should be at least 1, got 0"):
        train_tokenizer(["a"], model_max_length=0)
    for nothing in ([], ["", "  \n"]):
        with pytest.raises(ValueError, match=r"`texts` should hold at least one text that is not empty, got none"):
            train_tokenizer(nothing)
    with pytest.raises(TypeError, match=r"got one string\. Pass a list"):
        train_tokenizer("a story")
