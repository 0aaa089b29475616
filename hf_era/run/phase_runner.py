"""Runs phases on all processes of a launch, says what happens, and takes the time."""

from __future__ import annotations

import time
from typing import Any

from accelerate import PartialState
from rich.console import Console

from hf_era.methods import Phase
from hf_era.run.directory import RunDirectory
from hf_era.utils.signals import stop_if_requested


class PhaseRunner:
    """Runs a phase, or skips it if it is done already.

    Args:
        directory (`RunDirectory`): that remembers what is done.
        console (`Console`): where it says what it does.
        state (`PartialState`): of this process among the launched ones.

    Attributes:
        seconds (`dict[str, float]`): phase -> how long it took, when it was run.
    """

    def __init__(self, directory: RunDirectory, console: Console, state: PartialState) -> None:
        self.directory, self.console, self.state = directory, console, state
        self.seconds: dict[str, float] = {}

    def run(self, phase: Phase, directory: RunDirectory | None = None) -> dict[str, Any]:
        """Returns what the phase reported, now or when it was run.

        Args:
            phase (`Phase`): the step.
            directory (*optional*): that remembers it, if not the run's own.
        """

        def timed() -> dict[str, Any]:
            self.console.print(f"[bold]{phase.title}[/] ...")
            start = time.monotonic()
            report = phase.work(phase.key)
            return {**report, "seconds": round(time.monotonic() - start, 1)}

        where, wait = directory or self.directory, self.state.wait_for_everyone
        stop_if_requested()  # a signal that came too late for the last phase to stop at it
        wait()
        report, skipped = where.run_phase(phase.name, phase.key, timed, phase.outputs, synchronise=wait)
        phase.clean_up()  # also where it was done before: a run that was killed in between has left it there
        wait()
        self.seconds[phase.name] = report["seconds"]
        done = "already done, skipped" if skipped else f"done in {report['seconds']:.1f} s"
        self.console.print(f"[bold]{phase.title}[/]: {done}")
        return report
