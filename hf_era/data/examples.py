"""What of a row is an example: its text, and what its label is made of.

Whatever the columns of a source, `examples_of` makes these, and the last four only where there is something in them:

* `text`: all of it. Of `messages` (a list of `role` and `content`) what the tokenizer's chat template makes of them; of
  `prompt` and `completion` both, one after the other, or through the template if they are messages too.
* `prompt_characters` (int32): how many at the front are the prompt, on which there is no loss.
* `is_chat` (bool): whether a template made it, which says for itself where an example begins and ends.
* `given_label` (text) or `score` (float32): the value of the label or score column.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Features, List, Value

from hf_era.data.columns import map_tables
from hf_era.data.labelling import LABEL_COLUMN, Labels, label_text
from hf_era.utils.checks import error_text, listed, short_repr
from hf_era.utils.suggestions import close_name

TEXT_COLUMNS = ("text", "story", "content")
MESSAGES, PROMPT, COMPLETION = "messages", "prompt", "completion"
PROMPT_CHARACTERS, IS_CHAT, SCORE = "prompt_characters", "is_chat", "score"

_KINDS = {
    "text": Value("string"),
    PROMPT_CHARACTERS: Value("int32"),
    IS_CHAT: Value("bool"),
    LABEL_COLUMN: Value("string"),
    SCORE: Value("float32"),
}


class Examples(NamedTuple):
    """Examples of a source, and the names of its columns that are no part of them."""

    examples: Dataset
    unused_columns: list[str]


def examples_of(
    rows: Dataset,
    labels: Labels,
    *,
    field: str,
    source: str,
    text_column: str | None = None,
    tokenizer: Any = None,
    num_proc: int | None = None,
) -> Examples:
    """Makes examples of the rows of a source.

    Args:
        rows (`Dataset`): with the columns that the source has.
        labels (`Labels`): which column to read a label from, if any.
        field, source (`str`): name of the setting, and its value, for messages.
        text_column (`str`, *optional*): not given: found.
        tokenizer (*optional*): whose chat template makes texts of messages.
        num_proc (`int`, *optional*): processes that work at it.

    Raises:
        ValueError: if there is no text column, no such label column, a score that is not in [0, 1], or no chat template.
    """
    text_of, used = _text_reader(rows, labels, field, source, text_column, tokenizer)
    label_of = _label_reader(rows, labels, field, source)
    if labels.column is not None:
        used = [*used, labels.column]
    makes_plain_text = used == ["text"]
    if makes_plain_text:
        return Examples(rows.select_columns(["text"]), [name for name in rows.column_names if name != "text"])

    def convert(table: pa.Table) -> pa.Table:
        columns = text_of(table) | label_of(table)
        features = Features({name: _KINDS[name] for name in columns})
        return pa.table(list(columns.values()), schema=features.arrow_schema)

    first = convert(rows.select(range(min(1, len(rows)))).with_format("arrow")[:])
    features = Features({name: _KINDS[name] for name in first.column_names})
    examples = map_tables(rows.select_columns(used), convert, num_proc, f"Reading {field}", features)
    return Examples(examples, [name for name in rows.column_names if name not in used])


# ---- Text ----

_Reader = Callable[[pa.Table], dict[str, Any]]


def _text_reader(
    rows: Dataset, labels: Labels, field: str, source: str, text_column: str | None, tokenizer: Any
) -> tuple[_Reader, list[str]]:
    """What makes the text of examples, and the columns that it reads; that of the labels is none of them."""
    if text_column is not None and text_column == labels.column:
        raise ValueError(
            f"{labels.name('text_column')} and {labels.name(labels.column_setting)} are both {short_repr(text_column)}, "
            "but a text is not its own label. Name two columns."
        )
    features: Mapping[str, Any] = {name: kind for name, kind in rows.features.items() if name != labels.column}
    texts = [name for name, kind in features.items() if _is_text(kind)]
    found = [text_column] if text_column is not None else [name for name in TEXT_COLUMNS if name in texts]
    if text_column is None and not found:
        if MESSAGES in features and _is_messages(features[MESSAGES]):
            return _chat_reader(MESSAGES, field, source, tokenizer), [MESSAGES]
        if PROMPT in features and COMPLETION in features:
            return _completion_reader(features, field, source, tokenizer), [PROMPT, COMPLETION]
        found = texts if len(texts) == 1 else []
    if found and found[0] in texts:
        return lambda table: {"text": table[found[0]].cast(pa.string())}, found[:1]
    if found and found[0] in features and _is_messages(features[found[0]]):
        return _chat_reader(found[0], field, source, tokenizer), found[:1]
    asked_for = f"{labels.section}text_column"
    unreadable = next((name for name in (found or TEXT_COLUMNS) if name in features), None)
    if unreadable is not None:
        raise ValueError(
            f"`{field}`: the column `{unreadable}` of {source} holds {_kind(features[unreadable])}, but every value should "
            f"be a string (or null). Repair it, or name another with `--{asked_for}`: {', '.join(features)}."
        )
    asked = f"no text column `{text_column}`" if text_column else "no column that is clearly the text"
    raise ValueError(
        f"`{field}`: {source} has {asked}. Its columns: {', '.join(rows.column_names) or 'none'}. "
        f"Name the one with the examples: `--{asked_for} NAME`."
    )


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _is_messages(feature: Any) -> bool:
    inner = (
        feature.feature if isinstance(feature, List) else feature[0] if isinstance(feature, list) and feature else None
    )
    return isinstance(inner, Mapping) and {"role", "content"} <= set(inner)


def _kind(feature: Any) -> str:
    dtype = getattr(feature, "dtype", None)
    return "nulls only" if dtype == "null" else f"values of type {dtype or type(feature).__name__}"


def _chat_reader(column: str, field: str, source: str, tokenizer: Any) -> _Reader:
    template = _chat_template(tokenizer, f"`{field}`: the column `{column}` of {source} holds messages")

    def read(table: pa.Table) -> dict[str, Any]:
        texts = [template(messages) if messages else None for messages in table[column].to_pylist()]
        return {"text": pa.array(texts, pa.string()), IS_CHAT: pa.array([True] * len(texts))}

    return read


def _completion_reader(features: Mapping[str, Any], field: str, source: str, tokenizer: Any) -> _Reader:
    kinds = {name: "text" if _is_text(features[name]) else "messages" for name in (PROMPT, COMPLETION)}
    odd = [name for name in kinds if kinds[name] == "messages" and not _is_messages(features[name])]
    if odd or len(set(kinds.values())) > 1:
        held = " and ".join(f"`{name}` holds {_kind(features[name])}" for name in kinds)
        raise ValueError(f"`{field}`: of {source} {held}, but both should hold text, or both messages.")
    is_chat = kinds[PROMPT] == "messages"
    held = f"`{field}`: `prompt` and `completion` of {source} hold messages"
    join = partial(_join_messages, _chat_template(tokenizer, held), field) if is_chat else _join_texts

    def read(table: pa.Table) -> dict[str, Any]:
        pairs = zip(table[PROMPT].to_pylist(), table[COMPLETION].to_pylist(), strict=True)
        joined = [join(prompt, completion) if completion else (None, 0) for prompt, completion in pairs]
        texts, lengths = zip(*joined, strict=True) if joined else ((), ())
        columns = {"text": pa.array(texts, pa.string()), PROMPT_CHARACTERS: pa.array(lengths, pa.int32())}
        return columns | ({IS_CHAT: pa.array([True] * len(texts))} if is_chat else {})

    return read


def _join_texts(prompt: str | None, completion: str) -> tuple[str, int]:
    """Both as one text, and how many characters of it are the prompt."""
    return (prompt or "") + completion, len(prompt or "")


def _join_messages(template: Callable[..., str], field: str, prompt: Any, completion: Any) -> tuple[str, int]:
    whole = template([*(prompt or []), *completion])
    asked = template(prompt, add_generation_prompt=True) if prompt else ""
    if not whole.startswith(asked):
        raise ValueError(
            f"`{field}`: the chat template does not begin a conversation as it begins its prompt, so nothing says where the "
            "completion is. Give `prompt` and `completion` as text."
        )
    return whole, len(asked)


def _chat_template(tokenizer: Any, what: str) -> Callable[..., str]:
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        lacks = "a tokenizer that is trained here has none" if tokenizer is None else "the tokenizer has none"
        raise ValueError(
            f"{what}, which need a chat template, but {lacks}. Name a tokenizer with one (`model.tokenizer`; "
            "`--tokenizer`), or give the examples as text."
        )

    def apply(messages: Sequence[Any], **options: Any) -> str:
        try:
            return str(tokenizer.apply_chat_template(_without_nulls(messages), tokenize=False, **options))
        except Exception as error:  # a template is a program of its own
            raise ValueError(
                f"{what}, and the chat template does not take {short_repr(messages)}: {error_text(error)}"
            ) from error

    return apply


def _without_nulls(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A table has every key in every message, with nulls where there was none."""
    return [{key: value for key, value in message.items() if value is not None} for message in messages]


# ---- Labels ----


def _label_reader(rows: Dataset, labels: Labels, field: str, source: str) -> _Reader:
    column = labels.column
    if column is None:
        return lambda table: {}
    features: Mapping[str, Any] = rows.features
    setting = labels.name(labels.column_setting)
    if column not in features:
        close = close_name(column, list(features))
        hint = f" Did you mean `{close}`?" if close else ""
        raise ValueError(
            f"{setting}: `{field}`, {source}, has no column {short_repr(column)}.{hint} Its columns: {listed(features)}."
        )
    feature = features[column]
    if not isinstance(feature, Value | ClassLabel):
        of_modules = " An example belongs to one module at most." if labels.modules else ""
        raise ValueError(
            f"{setting}: the column `{column}` of {source} holds {_kind(feature)}, but every value should be one "
            f"{'label' if labels.kind == 'column' else 'number'} (or null).{of_modules}"
        )
    if labels.kind == "score":
        return lambda table: {SCORE: _scores(table[column], setting, column, source)}
    names = feature.names if isinstance(feature, ClassLabel) else None

    def read(table: pa.Table) -> dict[str, Any]:
        values = table[column].to_pylist()
        if names is not None:  # a null is -1 in some data sets
            values = [None if value is None or value < 0 else names[value] for value in values]
        return {LABEL_COLUMN: pa.array([label_text(value) for value in values], pa.string())}

    return read


def _scores(column: Any, setting: str, name: str, source: str) -> pa.Array:
    """Probabilities as fp32, nulls left as they are."""
    try:
        scores = column.combine_chunks().cast(pa.float64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(
            f"{setting}: the column `{name}` of {source} should hold numbers from 0 to 1 (or null): {error_text(error)}"
        ) from error
    values = scores.to_numpy(zero_copy_only=False)
    is_odd = ~np.isnan(values) & ~((values >= 0) & (values <= 1))
    if is_odd.any():
        raise ValueError(
            f"{setting}: the column `{name}` of {source} should hold probabilities from 0 to 1 that an example is to be "
            f"forgotten, got {short_repr(float(values[is_odd][0]))}."
        )
    return pc.if_else(pa.array(np.isnan(values)), pa.scalar(None, pa.float64()), scores).cast(pa.float32())
