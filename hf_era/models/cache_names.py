"""What transformers calls the keys and values that are kept in generation: `past_key_values`, and from 5.24 on `cache`."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from transformers.modeling_outputs import CausalLMOutputWithPast

CACHE_NAME = "cache" if any(item.name == "cache" for item in fields(CausalLMOutputWithPast)) else "past_key_values"


def cache_argument(past_key_values: Any | None, cache: Any | None) -> dict[str, Any]:
    """The one of the two that was given, under the name that the installed transformers takes.

    Raises:
        ValueError: if both were given.
    """
    if past_key_values is not None and cache is not None:
        raise ValueError("`cache` and `past_key_values` are two names of the same. Pass one of them.")
    return {CACHE_NAME: past_key_values if cache is None else cache}
