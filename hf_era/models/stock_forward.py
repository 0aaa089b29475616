"""The forward pass of a stock causal LM with arguments of ours beside its own, whatever its own are."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from transformers.modeling_outputs import CausalLMOutputWithPast

CACHE_NAME = "cache" if any(item.name == "cache" for item in fields(CausalLMOutputWithPast)) else "past_key_values"
"""What transformers calls the keys and values that are kept in generation: `past_key_values`, and from 5.24 on `cache`."""
CACHE_NAMES = ("cache", "past_key_values")


def give_forward(model_class: type, stock_class: type, forward: Callable[..., Any]) -> None:
    """Gives a class a `forward` that takes what the stock one takes, and the keyword arguments of `forward`.

    It passes the stock arguments on by their names, in one mapping: `forward(self, inputs, **own)`. Its signature is that of
    the stock class with ours behind it, because transformers, the Trainer and peft read it.
    """
    stock = inspect.signature(stock_class.forward)  # type: ignore[attr-defined]
    own = [part for part in inspect.signature(forward).parameters.values() if part.kind is part.KEYWORD_ONLY]
    names = [name for name, part in stock.parameters.items() if part.kind is part.POSITIONAL_OR_KEYWORD][1:]
    own_names = tuple(part.name for part in own)

    @functools.wraps(forward)
    def forward_of_class(self: Any, *args: Any, **kwargs: Any) -> Any:
        ours = {name: kwargs.pop(name) for name in own_names if name in kwargs}
        return forward(self, _inputs_by_name(names, args, kwargs), **ours)

    del forward_of_class.__wrapped__  # type: ignore[attr-defined]  # accelerate takes autocast off by following these
    forward_of_class.__signature__ = _joined(stock, own)  # type: ignore[attr-defined]
    model_class.forward = forward_of_class  # type: ignore[attr-defined]


def _joined(stock: inspect.Signature, own: Sequence[inspect.Parameter]) -> inspect.Signature:
    parts = list(stock.parameters.values())
    rest = [part for part in parts if part.kind is part.VAR_KEYWORD] or [
        inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)
    ]
    named = [part for part in parts if part.kind not in (part.VAR_KEYWORD, part.VAR_POSITIONAL)]
    other_cache = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)
        for name in CACHE_NAMES
        if name not in stock.parameters
    ]
    return inspect.Signature([*named, *other_cache, *own, *rest])


def _inputs_by_name(names: Sequence[str], args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The stock arguments as keywords, the cache under the name that the installed transformers takes.

    Raises:
        TypeError: for more positional arguments than there are names, or an argument given twice.
        ValueError: if the cache was given under both names.
    """
    if len(args) > len(names):
        raise TypeError(f"`forward` takes at most {len(names)} positional arguments, got {len(args)}.")
    positional = dict(zip(names, args, strict=False))
    twice = [name for name in positional if name in kwargs]
    if twice:
        raise TypeError(f"`forward` got several values for the argument `{twice[0]}`.")
    inputs = {**positional, **kwargs}
    caches = [inputs.pop(name) for name in CACHE_NAMES if name in inputs]
    given = [value for value in caches if value is not None]
    if len(given) > 1:
        raise ValueError("`cache` and `past_key_values` are two names of the same. Pass one of them.")
    if caches:
        inputs[CACHE_NAME] = given[0] if given else None
    return inputs
