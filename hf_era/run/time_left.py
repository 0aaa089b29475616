"""How long a run still takes, said before each phase and now and then within one.

What a phase computes is known beforehand (`Phase.cost`); how fast this machine does it is seen in the phases that are done,
now or by an earlier launch, and in the one that runs. Before anything was measured nothing is said.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from tqdm.auto import tqdm

from hf_era.methods import Phase

SECONDS_BETWEEN_LINES = 60.0
LEAST_SECONDS = 2.0
"""Of a phase, before it says how fast the rest of it goes."""


class RunClock:
    """Time used by a run and time left.

    Args:
        console (`Console`): where it is said.
        clock (*optional*): the seconds of a clock that never goes back.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self._clock = console, clock
        self._begun = self._told = clock()
        self._phases: list[Phase] = []
        self._seconds: dict[str, float] = {}  # of the phases that are done
        self._current: Phase | None = None
        # Of the current phase: when, and how much of it was done then, at its first and its last word.
        self._first: tuple[float, float] | None = None
        self._last = (0.0, 0.0)

    def plan(self, phases: Sequence[Phase], done: Mapping[str, float]) -> None:
        """Takes all phases of the run, in order, and how many seconds those took that are done already."""
        self._phases, self._seconds = list(phases), dict(done)

    def begin(self, phase: Phase) -> str:
        """What to say of a phase that begins: which one it is, and the time used and left; empty without a plan."""
        self._current = phase
        self._first = None
        self._told = self._clock()
        self._seconds.pop(phase.name, None)  # what it left is gone: it is made again
        names = [one.name for one in self._phases]
        return (
            f"phase {names.index(phase.name) + 1} of {len(names)}, {self.used_and_left()}"
            if phase.name in names
            else ""
        )

    def progress(self, fraction: float) -> None:
        """Which share of the current phase is done, in [0, 1]; a line is said once a minute at most."""
        if self._current is None:
            return
        self._last = (self._clock(), fraction)
        if self._first is None:  # a phase that goes on where it was stopped does not begin with nothing
            self._first = self._last
        if self._clock() - self._told >= SECONDS_BETWEEN_LINES:
            self._told = self._clock()
            with tqdm.external_write_mode():
                text = f"  {self._current.title}: {fraction:.0%}; whole run: {self.used_and_left()}"
                self.console.print(text, markup=False, highlight=False)

    def end(self, phase: Phase, seconds: float) -> None:
        """The phase is through, now or before."""
        self._current = None
        self._seconds[phase.name] = seconds

    def used_and_left(self) -> str:
        used, left = self._clock() - self._begun, self.left()
        if left is None:
            return f"{spoken(used)} used"
        not_done = [phase for phase in self._phases if phase.name not in self._seconds]
        at_most = "at most " if any(phase.cost and phase.cost.at_most for phase in not_done) else ""
        return f"{spoken(used)} used, {at_most}about {spoken(left)} left"

    def left(self) -> float | None:
        """Seconds that the run still takes, about; `None` where nothing was measured yet, or a phase does not say what it
        computes."""
        to_do = [phase for phase in self._phases if phase.name not in self._seconds]
        if any(phase.cost is None for phase in to_do):
            return None
        passes = sum(self._share_left(phase) * phase.cost.passes for phase in to_do if phase.cost)
        rate = self._rate()
        return 0.0 if not passes else None if rate is None else passes / rate

    def _share_left(self, phase: Phase) -> float:
        return 1.0 - self._last[1] if phase is self._current and self._first is not None else 1.0

    def _rate(self) -> float | None:
        """Passes a second: of the current phase, or as long as it has said too little of all that were measured."""
        if self._current is not None and self._current.cost is not None and self._first is not None:
            seconds, share = self._last[0] - self._first[0], self._last[1] - self._first[1]
            if seconds >= LEAST_SECONDS and share > 0 and self._current.cost.passes:
                return self._current.cost.passes * share / seconds
        known = [phase for phase in self._phases if phase.cost and phase.cost.passes and phase.name in self._seconds]
        seconds = sum(self._seconds[phase.name] for phase in known)
        return sum(phase.cost.passes for phase in known if phase.cost) / seconds if seconds else None


def spoken(seconds: float) -> str:
    """A time as it is said: `40 s`, `3 min`, `2 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
