"""Share of filtering: how far a model is from one that saw the forget examples to one that never did, at equal retain loss.

A model that is worse at everything is worse at forget examples too. So its forget loss after an attack is compared with that
of two models *of the same retain loss*: one trained on all examples, one on retain examples alone (data filtering):

    share = (f - A(r)) / (D(r) - A(r))

f is its forget loss after the attack, r its retain loss before it; A and D are the forget losses after the same attack of
all-data and filtered models as functions of their retain loss, interpolated over models of at least four budgets each. 0: it
knows as much as a model that saw them; 1: as little as one that never did.

D - A is the range of the testbed: where it is small, a model that never saw a forget example predicts them nearly as well as
one that did, and no method can be told from another. In place of losses everything here takes error rates, 1 - accuracy.

Source: this package; why nats alone do not do, `docs/evidence.md`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hf_era.utils.checks import short_repr

LEAST_BUDGETS = 4
LEAST_RANGE = 0.3
"""Nats a token, or 30 points of accuracy as a share: a testbed with a smaller D - A is unable to discriminate."""


@dataclass(frozen=True)
class ReferenceCurve:
    """Forget loss after the attack over the retain loss before it, of models of one kind with several budgets.

    Attributes:
        retain (`tuple[float, ...]`): rising. forget (`tuple[float, ...]`): that of each.

    Raises:
        ValueError: for fewer than four models of different retain loss, or a loss that is not finite.
    """

    retain: tuple[float, ...]
    forget: tuple[float, ...]

    @classmethod
    def of(cls, retain: Sequence[float], forget: Sequence[float]) -> ReferenceCurve:
        """That through these models, in any order."""
        pairs = sorted(zip(retain, forget, strict=True))
        return cls(tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs))

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (*self.retain, *self.forget))):
            raise ValueError(f"A reference curve needs finite losses, got {short_repr(asdict(self))}.")
        if len(set(self.retain)) < max(LEAST_BUDGETS, len(self.retain)):
            raise ValueError(
                f"A reference curve needs models of at least {LEAST_BUDGETS} budgets, each with a retain loss of its own, "
                f"got {short_repr(list(self.retain))}. Train more of them."
            )

    def at(self, retain: float) -> float | None:
        """The forget loss of a model with this retain loss, interpolated on straight lines; `None` outside of the curve."""
        if not self.retain[0] <= retain <= self.retain[-1]:
            return None
        return float(np.interp(retain, self.retain, self.forget))


def share_of_filtering(
    forget: float, retain: float, all_data: ReferenceCurve, filtered: ReferenceCurve
) -> float | None:
    """(f - A(r)) / (D(r) - A(r)); below 0 or above 1 where a model lies outside of the two.

    Args:
        forget (`float`): its forget loss after the attack. retain (`float`): its retain loss before it.
        all_data, filtered (`ReferenceCurve`): A and D, under the same attack and on the same examples.

    Returns: `None` where the retain loss lies outside of one of the curves, or D is not above A there.
    """
    known, unknown = all_data.at(retain), filtered.at(retain)
    if known is None or unknown is None or not unknown > known or not math.isfinite(forget):
        return None
    return (forget - known) / (unknown - known)


@dataclass(frozen=True)
class FilteringRange:
    """D - A of a testbed, over the retain losses that both curves have.

    Attributes:
        mean, lowest, highest (`float`): of D - A, nats a token or a share of examples.
        retain (`tuple[float, float]`): those retain losses.
    """

    mean: float
    lowest: float
    highest: float
    retain: tuple[float, float]

    @property
    def discriminates(self) -> bool:
        """Whether methods can be told apart on it."""
        return self.mean >= LEAST_RANGE

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"retain": list(self.retain), "discriminates": self.discriminates}


def range_of_testbed(all_data: ReferenceCurve, filtered: ReferenceCurve) -> FilteringRange | None:
    """D - A where both curves are known; `None` if their retain losses do not overlap."""
    least, most = max(all_data.retain[0], filtered.retain[0]), min(all_data.retain[-1], filtered.retain[-1])
    if least > most:
        return None
    # The difference of two lines of straight pieces has its corners where one of them has.
    places = np.unique([least, *(r for r in (*all_data.retain, *filtered.retain) if least <= r <= most), most])
    gaps = np.interp(places, filtered.retain, filtered.forget) - np.interp(places, all_data.retain, all_data.forget)
    mean = float(((gaps[1:] + gaps[:-1]) * np.diff(places)).sum() / 2 / (most - least)) if most > least else gaps[0]
    return FilteringRange(float(mean), float(gaps.min()), float(gaps.max()), (float(least), float(most)))
