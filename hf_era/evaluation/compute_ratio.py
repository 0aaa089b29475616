"""Compute ratio: how much of the base control's compute a model that was trained on everything needs to be as good.

A difference in nats says little by itself: 0.05 nats may be a tenth of a training or half of it, and a model that was
trained for longer hides what was cut out of it. So several base models are trained with different budgets, each with its own
schedule, a power law is fitted to their losses, and a model's loss becomes the budget with which a base has it, over that of
the base control. Of the retain loss 1 is good; of the forget loss after an attack 0 is.

Source: the compute ratio of GRAM ("Modular pretraining", ICML 2026): loss = a + b C^-c over base runs of five budgets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hf_era.utils.checks import short_repr

LEAST_BUDGETS = 3
"""The power law has three parameters: with fewer points there is nothing to fit."""
AT_LEAST, AT_MOST = "at least", "at most"
_EXPONENTS = (0.01, 10.0)
"""Those that are tried. A curve at the lower end is a straight line over log C."""


@dataclass(frozen=True)
class ComputeRatio:
    """A share of the base control's compute, > 0. `bound` is `at least` or `at most` where the loss lies outside those of
    the base runs: `value` is then that of the largest or smallest budget; else it is empty."""

    value: float
    bound: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ComputeCurve:
    """loss = `floor` + `scale` (compute / `unit`) ** -`exponent`, fitted to base runs.

    Attributes:
        floor, scale (`float`): >= 0, in the unit of the losses. exponent (`float`): > 0.
        unit (`float`): the largest budget.
        compute, losses (`tuple[float, ...]`): what it was fitted to, by rising compute.
        r_squared (`float`): share of the variance of the losses that it explains, at most 1.
        largest_residual (`float`): of a loss from the curve, absolute, in the unit of the losses.
    """

    floor: float
    scale: float
    exponent: float
    unit: float
    compute: tuple[float, ...]
    losses: tuple[float, ...]
    r_squared: float
    largest_residual: float

    def loss_at(self, compute: float) -> float:
        """The loss of a base run with so much compute."""
        return float(self.floor + self.scale * (compute / self.unit) ** -self.exponent)

    def ratio(self, loss: float, reference: float) -> ComputeRatio:
        """The compute with which a base run has this loss, over `reference`, the base control's; a bound outside the budgets
        that the curve was fitted to. Raises `ValueError` for a loss or a reference that is no number."""
        if not math.isfinite(loss) or not (math.isfinite(reference) and reference > 0):
            raise ValueError(
                f"The compute ratio needs a finite loss and a positive reference, got {short_repr(loss)} and "
                f"{short_repr(reference)}."
            )
        least, most = self.compute[0], self.compute[-1]
        if loss > self.loss_at(least):
            return ComputeRatio(least / reference, AT_MOST)
        if loss < self.loss_at(most):
            return ComputeRatio(most / reference, AT_LEAST)
        return ComputeRatio(self.unit * ((loss - self.floor) / self.scale) ** (-1 / self.exponent) / reference)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"compute": list(self.compute), "losses": list(self.losses)}


def fit_compute_curve(compute: Sequence[float], losses: Sequence[float]) -> ComputeCurve:
    """Fits loss = a + b C^-c, a and b >= 0, c > 0, by least squares.

    For each exponent the best a and b are a linear problem, so that there is one parameter to search for and no start that
    could be wrong.

    Args:
        compute (`list[float]`): of each base run: steps, tokens or FLOP, > 0. losses (`list[float]`): theirs.

    Raises:
        ValueError: for fewer than three different budgets, values that are not finite or positive, or losses that do not
            fall with compute.
    """
    from scipy.optimize import minimize_scalar, nnls

    values = np.array(sorted(zip(compute, losses, strict=True)), dtype=float).reshape(-1, 2)
    budgets, measured = values.T
    different = sorted(set(budgets.tolist()))
    if len(different) < LEAST_BUDGETS:
        raise ValueError(
            f"A compute curve needs base runs of at least {LEAST_BUDGETS} different budgets, got {short_repr(different)}. "
            "Train more of them."
        )
    if not np.isfinite(values).all() or budgets[0] <= 0:
        raise ValueError(
            f"A compute curve needs positive, finite compute and finite losses, got {short_repr(values.tolist())}."
        )
    shares = budgets / budgets[-1]

    def best(exponent: float) -> tuple[np.ndarray[Any, Any], float]:
        found, distance = nnls(np.stack([np.ones_like(shares), shares**-exponent], axis=1), measured)
        return found, float(distance)

    grid = np.geomspace(*_EXPONENTS, 61)
    place = int(np.argmin([best(exponent)[1] for exponent in grid]))
    around = np.log(grid[[max(place - 1, 0), min(place + 1, len(grid) - 1)]])
    found = minimize_scalar(
        lambda x: best(math.exp(x))[1], bounds=tuple(around), method="bounded", options={"xatol": 1e-9}
    )
    exponent = math.exp(found.x)
    (floor, scale), distance = best(exponent)
    if not scale > 0:
        raise ValueError(
            f"The losses of the base runs do not fall with compute: {short_repr(values.tolist())}. Take budgets that are "
            "further apart, or losses of more examples."
        )
    predicted = floor + scale * shares**-exponent
    return ComputeCurve(
        floor=float(floor),
        scale=float(scale),
        exponent=exponent,
        unit=float(budgets[-1]),
        compute=tuple(budgets.tolist()),
        losses=tuple(measured.tolist()),
        r_squared=float(1 - distance**2 / ((measured - measured.mean()) ** 2).sum()),
        largest_residual=float(abs(predicted - measured).max()),
    )
