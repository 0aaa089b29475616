"""From text to token ids, with the tokens of forget words marked. BOS once, EOS only where an example really ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Value

from hf_era.data.collator import IGNORE_INDEX
from hf_era.data.columns import list_column, map_tables
from hf_era.data.config import DataConfig
from hf_era.data.examples import IS_CHAT, PROMPT_CHARACTERS, SCORE
from hf_era.data.labelling import FORGET, LABEL_COLUMN, LABEL_NAMES, MODULE, RETAIN, Labels
from hf_era.data.words import WordFinder

_LABELLED = {"text": Value("string"), "label": Value("int64"), "is_whole": Value("bool")}
_KEPT = {
    LABEL_COLUMN: Value("string"),
    SCORE: Value("float32"),
    PROMPT_CHARACTERS: Value("int32"),
    IS_CHAT: Value("bool"),
    MODULE: Value("string"),
}


def label_examples(examples: Dataset, config: DataConfig, description: str) -> Dataset:
    """Cuts texts at `max_characters`, adds `label` (0 forget, 1 retain, -1 unlabelled) where there is none yet, with
    `module` where labels name modules, and `is_whole`; drops blank examples, nulls too, and those whose completion is cut
    away.

    Raises:
        ValueError: if all examples are blank, or one has words of two modules.
    """
    labels, kept = config.labels, [name for name in _KEPT if name in examples.column_names]
    has_labels = "label" in examples.column_names
    of_modules = {MODULE: Value("string")} if labels.modules and not has_labels else {}
    features = Features(_LABELLED | of_modules | {name: _KEPT[name] for name in kept})
    words = list(labels.modules.values()) or [labels.forget_words]
    finders = [WordFinder(one) for one in words] if labels.kind == "words" and not has_labels else []

    def label(table: pa.Table) -> pa.Table:
        texts, is_whole = _cut_texts(table, config.max_characters)
        table = table.set_column(table.column_names.index("text"), "text", pa.array(texts, pa.string()))
        table = table.append_column("is_whole", pa.array(is_whole))
        table = table.filter(pa.array([bool(text) for text in texts]))
        if not has_labels:
            for name, column in _labels_of(table, labels, finders).items():
                table = table.append_column(name, column)
        return table.select(list(features)).cast(features.arrow_schema)

    labelled = map_tables(examples, label, config.num_proc, f"Labelling {description}", features)
    if not len(labelled):
        cut = f", or end in their prompt where they are cut, at {config.max_characters} characters"
        told = cut if PROMPT_CHARACTERS in kept and config.max_characters is not None else ""
        raise ValueError(f"All of the {len(examples)} {description} are blank{told}. Check the text column.")
    return labelled


def _cut_texts(table: pa.Table, max_characters: int | None) -> tuple[list[str], list[bool]]:
    """Each text without white space around it and cut, empty if nothing is left to learn from; and whether it is whole."""
    texts, is_whole = [], []
    prompts = table[PROMPT_CHARACTERS].to_pylist() if PROMPT_CHARACTERS in table.column_names else None
    for row, given in enumerate(table["text"].to_pylist()):
        # Where a prompt ends is counted from the front: of such a text only the end is stripped.
        whole = (given or "").strip() if prompts is None else (given or "").rstrip()
        text = whole[:max_characters].rstrip() if prompts is not None else whole[:max_characters].strip()
        has_completion = prompts is None or len(text) > prompts[row]
        texts.append(text if text.strip() and has_completion else "")
        is_whole.append(len(text) == len(whole))
    return texts, is_whole


def _labels_of(table: pa.Table, labels: Labels, finders: Sequence[WordFinder]) -> dict[str, pa.Array]:
    """The columns `label` and, where labels name modules, `module`. `finders`: of each module's words, or of all."""
    if finders:
        texts = table["text"].to_pylist()
        found = np.array([_have_words(table["text"], texts, finder) for finder in finders], dtype=bool)
        columns = {"label": pa.array(np.where(found.any(0), FORGET, RETAIN), pa.int64())}
        return columns | ({MODULE: labels.modules_of_words(found, texts)} if labels.modules else {})
    if labels.kind == "score":
        return {"label": pa.array(labels.of_scores(table[SCORE].to_numpy()), pa.int64())}
    columns = {"label": pa.array(labels.of_values(table[LABEL_COLUMN].to_pylist()), pa.int64())}
    return columns | ({MODULE: labels.modules_of_values(table[LABEL_COLUMN])} if labels.modules else {})


def _have_words(column: pa.ChunkedArray, texts: list[str], finder: WordFinder) -> list[bool]:
    maybe = zip(texts, finder.may_be_in(column), strict=True)
    return [bool(may_be) and finder.found_in(text) for text, may_be in maybe]


def tokenise_examples(examples: Dataset, tokenizer: Any, config: DataConfig, description: str) -> Dataset:
    """Adds `input_ids`, `is_forget_word` (one bool per token) and `length` to labelled examples; and `labels`, -100 on the
    prompt, if there are prompts. Of those an example is dropped whose prompt fills `max_tokens`.

    Raises:
        ValueError: if a BOS or EOS is asked for that the tokenizer does not have, or of the examples of a label all are
            dropped.
    """
    front = [_special_token(tokenizer, "bos")] if config.add_bos else []
    end = [_special_token(tokenizer, "eos")] if config.add_eos else []
    finder = WordFinder(config.forget_words)
    has_prompts = PROMPT_CHARACTERS in examples.column_names

    def tokenise(table: pa.Table) -> pa.Table:
        names = ("text", PROMPT_CHARACTERS, *_DEFAULTS)
        rows = {name: table[name].to_pylist() for name in names if name in table.column_names}
        texts = rows["text"]
        ids, words, labels = [], [], []
        encoded = _tokens_and_marks(texts, tokenizer, finder, rows.get(PROMPT_CHARACTERS))
        for row, (tokens, marked, in_prompt) in enumerate(encoded):
            is_whole, is_chat = (rows[name][row] if name in rows else value for name, value in _DEFAULTS.items())
            begin = [] if is_chat else front
            room = config.max_tokens - len(begin)
            ending = end if is_whole and not is_chat and len(tokens) + len(end) <= room else []
            ids.append(np.array([*begin, *tokens[:room], *ending], dtype=np.int32))
            is_word = np.zeros(len(ids[-1]), dtype=bool)
            is_word[[len(begin) + index for index in marked if index < room]] = True
            words.append(is_word)
            labels.append(ids[-1].astype(np.int64))
            if in_prompt:
                labels[-1][: len(begin) + in_prompt] = IGNORE_INDEX
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        columns = {"input_ids": ids, "is_forget_word": words} | ({"labels": labels} if has_prompts else {})
        for name, values in columns.items():
            flat = np.concatenate(values) if values else np.zeros(0, np.int64)
            table = table.append_column(name, list_column(flat, lengths))
        table = table.append_column("length", pa.array(lengths))
        if has_prompts:
            table = table.filter(pa.array([bool((row[1:] != IGNORE_INDEX).any()) for row in labels], pa.bool_()))
        return table

    tokenised = map_tables(examples, tokenise, config.num_proc, f"Tokenising {description}")
    if has_prompts:
        _check_completions_are_left(examples, tokenised, config, description)
    return tokenised


def _check_completions_are_left(before: Dataset, after: Dataset, config: DataConfig, description: str) -> None:
    left = set(after["label"][:]) if len(after) else set()
    for label, number in Counter(before["label"][:]).items():
        if label not in left:
            raise ValueError(
                f"Of the {description} none that is {LABEL_NAMES[label]} is left: the prompt of each of the {number} fills "
                f"all of {config.max_tokens} tokens, so there is no completion to learn. Raise {config.length_setting}, or "
                "shorten the prompts."
            )


_DEFAULTS = {"is_whole": True, IS_CHAT: False}


def _tokens_and_marks(
    texts: list[str], tokenizer: Any, finder: WordFinder, prompts: list[int] | None
) -> Iterator[tuple[list[int], Sequence[int], int]]:
    """For each text its tokens, without special ones; which of them (by position) belong to a forget word; and how many at
    the front are the prompt's. A token that the prompt shares with the completion is the completion's."""
    # The backend itself, as the tokenizer would call it. The special tokens are ours: a tokenizer that adds its own BOS
    # would double it.
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    spans = [finder.spans(text) for text in texts]
    needs_places = [bool(found) or prompts is not None for found in spans]
    # Offsets take time, and only texts with a forget word or a prompt need them.
    located_texts = [text for text, needed in zip(texts, needs_places, strict=True) if needed]
    plain_texts = [text for text, needed in zip(texts, needs_places, strict=True) if not needed]
    located = iter(backend.encode_batch(located_texts, add_special_tokens=False))
    plain = iter(backend.encode_batch_fast(plain_texts, add_special_tokens=False))
    for row, found in enumerate(spans):
        if not needs_places[row]:
            yield next(plain).ids, (), 0
            continue
        encoding = next(located)
        prompt = 0 if prompts is None else sum(end <= prompts[row] for _, end in encoding.offsets)
        marked = [index for index, hit in enumerate(tokens_of_spans(found, encoding.offsets)) if hit]
        yield encoding.ids, marked, prompt


def tokens_of_spans(spans: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]]) -> list[bool]:
    """For each token, given by its character offsets (start, end), whether it overlaps one of the spans.

    Both are sorted by position; special tokens have the empty offset (0, 0) and overlap nothing.
    """
    hits = [False] * len(offsets)
    if not spans:
        return hits
    remaining = iter(spans)
    start, end = next(remaining)
    for index, (token_start, token_end) in enumerate(offsets):
        while token_start >= end:
            following = next(remaining, None)
            if following is None:
                return hits
            start, end = following
        hits[index] = token_end > start and token_start < end
    return hits


def _special_token(tokenizer: Any, name: str) -> int:
    token_id = getattr(tokenizer, f"{name}_token_id")
    if token_id is None:
        raise ValueError(
            f"`data.add_{name}` is on, but the tokenizer has no {name.upper()} token. Set `data.add_{name}: false`."
        )
    return int(token_id)
