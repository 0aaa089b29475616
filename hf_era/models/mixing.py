"""Mixins in front of the class of a layer that is there: it keeps its parameters and their names, and does more.

The class is made on the way, one for each pair, and can be pickled and copied. `mix_out` takes it back.
"""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar


class MixedIn:
    """Put in front of the class of a layer that is there, which keeps its parameters and their names."""

    prefix: ClassVar[str] = "Expanded"

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class was made on the way: what it was made of is what can be found again.
        mixed_of = getattr(type(self), "mixed_of", None)
        return super().__reduce_ex__(protocol) if mixed_of is None else (_new_layer, mixed_of, self.__dict__)


def mixed_class(mixin: Any, stock: Any) -> Any:
    """The class of a stock layer with a mixin in front: `ExpandedGPTNeoBlock` of `GPTNeoBlock`. One for each pair."""
    return _mixed_class(mixin, stock)


def stock_class_of(layer: Any) -> type:
    """The class of a layer without the mixins in front of it."""
    found = type(layer)
    while "mixed_of" in found.__dict__:
        found = found.mixed_of[1]
    return found


@cache
def _mixed_class(mixin: Any, stock: Any) -> type:
    return type(
        f"{mixin.prefix}{stock.__name__}", (mixin, stock), {"mixed_of": (mixin, stock), "__doc__": mixin.__doc__}
    )


def _new_layer(mixin: type, stock: type) -> Any:
    made: Any = mixed_class(mixin, stock)
    return made.__new__(made)


def mix_in(mixin: type[MixedIn], layer: Any, **attributes: Any) -> None:
    """Puts a mixin in front of a layer's class, in place, with the attributes that it needs."""
    layer.__class__ = mixed_class(mixin, type(layer))
    for name, value in attributes.items():
        setattr(layer, name, value)


def mix_out(layer: Any, *attributes: str) -> None:
    """The inverse of `mix_in`, in place."""
    for name in attributes:
        if hasattr(layer, name):
            delattr(layer, name)
    layer.__class__ = type(layer).mixed_of[1]
