"""Labels, and the tokens of forget words. A forget example is one with a forget word in its text (`hf_era.data.words`).

Words are looked for in the *text*, not among tokens: " tree", "Tree" and "tree." are all found, whatever the tokenizer
makes of them. (Encoding the bare word and looking for its token id misses " tree", which is another token.)
"""

from __future__ import annotations

from collections.abc import Sequence

FORGET, RETAIN, UNLABELLED = 0, 1, -1


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


def check_words_have_tokens(words: Sequence[str], tokenizer: object) -> None:
    """Raises `ValueError` if the tokenizer turns a forget word into nothing, or into unknown tokens only."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    special = set(getattr(tokenizer, "all_special_ids", []))
    for word in words:
        ids = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]  # type: ignore[operator]
        if not [token for token in ids if token != unknown and token not in special]:
            raise ValueError(
                f"`data.forget_words`: no token of the tokenizer matches {word!r}, so it can never be routed. "
                "Take the word out, or use a tokenizer that knows it."
            )
