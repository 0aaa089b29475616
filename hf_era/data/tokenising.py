"""From text to token ids, with the tokens of forget words marked. BOS once, EOS only where a story really ends."""

from __future__ import annotations

from typing import Any

from datasets import Dataset, Features, Value

from hf_era.data.config import DataConfig
from hf_era.data.labelling import FORGET, RETAIN, WordFinder, tokens_of_spans

_LABELLED = Features({"text": Value("string"), "label": Value("int64"), "is_whole": Value("bool")})


def label_stories(stories: Dataset, config: DataConfig, description: str) -> Dataset:
    """Cuts stories at `max_characters`, adds `label` (0 forget, 1 retain) and `is_whole`; drops blank stories, nulls too.

    Raises:
        ValueError: if all stories are blank.
    """
    finder = WordFinder(config.forget_words)

    def label(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        stories = [text.strip() for text in batch["text"] if text and text.strip()]
        texts = [text[: config.max_characters].strip() for text in stories]
        return {
            "text": texts,
            "label": [FORGET if finder.found_in(text) else RETAIN for text in texts],
            "is_whole": [len(text) == len(story) for text, story in zip(texts, stories, strict=True)],
        }

    # Features are given: a batch of blank stories alone has none to infer them from.
    labelled = stories.map(
        label, batched=True, num_proc=config.num_proc, features=_LABELLED, desc=f"Labelling {description}"
    )
    if not len(labelled):
        raise ValueError(f"All of the {len(stories)} {description} are blank. Check the text column.")
    return labelled


def tokenise_stories(stories: Dataset, tokenizer: Any, config: DataConfig, description: str) -> Dataset:
    """Adds `input_ids`, `is_forget_word` (one bool per token) and `length` to labelled stories.

    Raises:
        ValueError: if a BOS or EOS is asked for that the tokenizer does not have.
    """
    front = [_special_token(tokenizer, "bos")] if config.add_bos else []
    end = [_special_token(tokenizer, "eos")] if config.add_eos else []
    room = config.max_tokens - len(front)
    finder = WordFinder(config.forget_words)

    def tokenise(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        # The special tokens are ours: a tokenizer that adds its own BOS would double it.
        encoded = tokenizer(batch["text"], add_special_tokens=False, return_offsets_mapping=True, truncation=False)
        all_ids, all_words = [], []
        wholes = batch["is_whole"] if "is_whole" in batch else [True] * len(batch["text"])
        examples = zip(batch["text"], encoded["input_ids"], encoded["offset_mapping"], wholes, strict=True)
        for text, ids, offsets, is_whole in examples:
            words = tokens_of_spans(finder.spans(text), offsets)
            ending = end if is_whole and len(ids) + len(end) <= room else []
            all_ids.append(front + list(ids[:room]) + ending)
            all_words.append([False] * len(front) + words[:room] + [False] * len(ending))
        return {"input_ids": all_ids, "is_forget_word": all_words, "length": [len(ids) for ids in all_ids]}

    return stories.map(tokenise, batched=True, num_proc=config.num_proc, desc=f"Tokenising {description}")


def _special_token(tokenizer: Any, name: str) -> int:
    token_id = getattr(tokenizer, f"{name}_token_id")
    if token_id is None:
        raise ValueError(
            f"`data.add_{name}` is on, but the tokenizer has no {name.upper()} token. Set `data.add_{name}: false`."
        )
    return int(token_id)
