"""Asked to stop by a signal: SIGTERM (preemption) or SIGUSR1 (SLURM's warning before the time is up).

`with stoppable():` takes the signals. Training (`with signals_deferred():`) finishes its step, saves a checkpoint and then
raises `StoppedError`; everything else has nothing of its own to save and raises it at once. Either way the same command
goes on from there. Outside of `stoppable` nothing is changed and signals do what they always did.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = tuple(
    number
    for number in (getattr(signal, name, None) for name in ("SIGTERM", "SIGUSR1"))
    if number is not None  # Windows has no SIGUSR1
)


class StoppedError(Exception):
    """The run was asked to stop. What is worth keeping was saved."""


class _Request:
    """What this process was asked. Signals belong to the process, so there is one."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.deferring = 0

    def receive(self, number: int, frame: FrameType | None) -> None:
        if self.name is not None:
            return  # it is stopping already; a second signal must not cut off what it saves
        self.name = signal.Signals(number).name
        if not self.deferring:
            raise StoppedError(f"Stopped by {self.name}.")


_request = _Request()


@contextmanager
def stoppable() -> Iterator[None]:
    """Within this context SIGTERM and SIGUSR1 stop the work in good order, with a `StoppedError`.

    Outside of the main thread, where Python takes no signals, it changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _request.receive) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        _request.name = None


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Within this context a signal only makes `stop_requested` say its name: the block itself stops where it can save."""
    _request.deferring += 1
    try:
        yield
    finally:
        _request.deferring -= 1


def stop_requested() -> str | None:
    """The name of the signal that asked this process to stop, if one did."""
    return _request.name


def stop_if_requested() -> None:
    """Raises `StoppedError` if this process was asked to stop."""
    if _request.name is not None:
        raise StoppedError(f"Stopped by {_request.name}.")
