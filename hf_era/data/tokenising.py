"""From text to token ids, with the tokens of forget words marked. BOS once, EOS only where an example really ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Value

from hf_era.data.columns import list_column, map_tables
from hf_era.data.config import DataConfig
from hf_era.data.labelling import FORGET, RETAIN, tokens_of_spans
from hf_era.data.words import WordFinder

_LABELLED = Features({"text": Value("string"), "label": Value("int64"), "is_whole": Value("bool")})


def label_stories(stories: Dataset, config: DataConfig, description: str) -> Dataset:
    """Cuts examples at `max_characters`, adds `label` (0 forget, 1 retain) and `is_whole`; drops blank examples, nulls too.

    Raises:
        ValueError: if all examples are blank.
    """
    finder = WordFinder(config.forget_words)

    def label(table: pa.Table) -> pa.Table:
        given = zip(table["text"].to_pylist(), finder.may_be_in(table["text"]), strict=True)
        rows = [(story.strip(), maybe) for story, maybe in given if story and story.strip()]
        texts = [story[: config.max_characters].strip() for story, _ in rows]
        found = [maybe and finder.found_in(text) for text, (_, maybe) in zip(texts, rows, strict=True)]
        labels = [FORGET if has_word else RETAIN for has_word in found]
        is_whole = [len(text) == len(story) for text, (story, _) in zip(texts, rows, strict=True)]
        return pa.table([texts, labels, is_whole], schema=_LABELLED.arrow_schema)

    labelled = map_tables(stories, label, config.num_proc, f"Labelling {description}", _LABELLED)
    if not len(labelled):
        raise ValueError(f"All of the {len(stories)} {description} are blank. Check the text column.")
    return labelled


def tokenise_stories(stories: Dataset, tokenizer: Any, config: DataConfig, description: str) -> Dataset:
    """Adds `input_ids`, `is_forget_word` (one bool per token) and `length` to labelled examples.

    Raises:
        ValueError: if a BOS or EOS is asked for that the tokenizer does not have.
    """
    front = [_special_token(tokenizer, "bos")] if config.add_bos else []
    end = [_special_token(tokenizer, "eos")] if config.add_eos else []
    room = config.max_tokens - len(front)
    finder = WordFinder(config.forget_words)

    def tokenise(table: pa.Table) -> pa.Table:
        texts = table["text"].to_pylist()
        wholes = table["is_whole"].to_pylist() if "is_whole" in table.column_names else [True] * len(texts)
        ids, words = [], []
        for is_whole, (tokens, marked) in zip(wholes, _tokens_and_marks(texts, tokenizer, finder), strict=True):
            ending = end if is_whole and len(tokens) + len(end) <= room else []
            ids.append(np.array([*front, *tokens[:room], *ending], dtype=np.int32))
            is_word = np.zeros(len(ids[-1]), dtype=bool)
            is_word[[len(front) + index for index in marked if index < room]] = True
            words.append(is_word)
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        for name, values in (("input_ids", ids), ("is_forget_word", words)):
            table = table.append_column(name, list_column(np.concatenate(values), lengths))
        return table.append_column("length", pa.array(lengths))

    return map_tables(stories, tokenise, config.num_proc, f"Tokenising {description}")


def _tokens_and_marks(
    texts: list[str], tokenizer: Any, finder: WordFinder
) -> Iterator[tuple[list[int], Sequence[int]]]:
    """For each text its tokens, without special ones, and which of them (by position) belong to a forget word."""
    # The backend itself, as the tokenizer would call it. The special tokens are ours: a tokenizer that adds its own BOS
    # would double it.
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    spans = [finder.spans(text) for text in texts]
    # Offsets take time, and only texts with a forget word need them.
    with_words = [text for text, found in zip(texts, spans, strict=True) if found]
    without = [text for text, found in zip(texts, spans, strict=True) if not found]
    located = iter(backend.encode_batch(with_words, add_special_tokens=False))
    plain = iter(backend.encode_batch_fast(without, add_special_tokens=False))
    for found in spans:
        if not found:
            yield next(plain).ids, ()
            continue
        encoding = next(located)
        yield encoding.ids, [index for index, hit in enumerate(tokens_of_spans(found, encoding.offsets)) if hit]


def _special_token(tokenizer: Any, name: str) -> int:
    token_id = getattr(tokenizer, f"{name}_token_id")
    if token_id is None:
        raise ValueError(
            f"`data.add_{name}` is on, but the tokenizer has no {name.upper()} token. Set `data.add_{name}: false`."
        )
    return int(token_id)
