"""Runs phases on all processes of a launch, says what happens, and takes the time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console

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

    def run(
        self,
        phase: str,
        inputs: str,
        work: Callable[[str], dict[str, Any]],
        description: str,
        outputs: list[Path] | None = None,
        directory: RunDirectory | None = None,
        remove_unfinished: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """Returns what the phase reported, now or when it was run.

        Args:
            phase (`str`): its name. inputs (`str`): fingerprint of what it depends on; `work` is called with it.
            description (`str`): what it does, to be shown.
            outputs (*optional*): must be there for the phase to count as done.
            directory (*optional*): that remembers it, if not the run's own.
            remove_unfinished (*optional*): removes what it kept in case it is stopped. Called by every process when
                the phase is written down as done, or was: a run that was killed in between has left it there.
        """

        def timed() -> dict[str, Any]:
            self.console.print(f"[bold]{description}[/] ...")
            start = time.monotonic()
            report = work(inputs)
            return {**report, "seconds": round(time.monotonic() - start, 1)}

        where, wait = directory or self.directory, self.state.wait_for_everyone
        stop_if_requested()  # a signal that came too late for the last phase to stop at it
        wait()
        report, skipped = where.run_phase(phase, inputs, timed, outputs or [], synchronise=wait)
        remove_unfinished()
        wait()
        self.seconds[phase] = report["seconds"]
        done = "already done, skipped" if skipped else f"done in {report['seconds']:.1f} s"
        self.console.print(f"[bold]{description}[/]: {done}")
        return report
