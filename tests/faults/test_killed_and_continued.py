"""Killed at any point of any phase, or asked to stop, and continued: the same weights, bit for bit, and the same result."""

import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_era.utils import exit_codes

KILL, TERMINATE, WARN = "SIGKILL", "SIGTERM", "SIGUSR1"
ENDS = {KILL: -signal.SIGKILL, TERMINATE: exit_codes.STOPPED, WARN: exit_codes.STOPPED}


def disturb(run: Any, phase: str, name: str, which: str, number: int) -> str:
    """Starts the run and lets the signal come at the numbered event of the phase; returns the event."""
    code = run.start(phase, which, number, name)
    assert code == ENDS[name], f"{phase} {number} {name}: {code}\n{run.stderr[-4000:]}"
    if name != KILL:
        assert "Stopped by" in run.stderr or "Stopped at step" in run.stderr
        assert "Give the same command again to go on from there." in run.stderr
    return next(line for line in run.stderr.splitlines() if line.startswith("signal at"))


@pytest.mark.slow  # CI runs it all the same
def test_a_disturbed_run_ends_like_an_undisturbed_one(
    undisturbed: Any, faulty_run: Callable[..., Any], tmp_path: Path
) -> None:
    # Where in the phase, as a share of its events. A later start of the same phase has less of it left.
    plan = [
        ("route", TERMINATE, "any", 0.3),
        ("route", KILL, "saving", 0.1),
        ("coherence", KILL, "any", 0.6),
        ("attack", WARN, "any", 0.5),
    ]
    run = faulty_run(tmp_path / "disturbed")
    for phase, name, which, share in plan:
        print(disturb(run, phase, name, which, max(round(share * undisturbed.events(which, phase)), 1)))
    assert run.start() == 0, run.stderr
    assert run.outcome() == undisturbed.outcome()
    names = [sorted(path.name for path in folder.iterdir()) for folder in (run.output, undisturbed.output)]
    assert names[0] == names[1]  # nothing half-written is left


@pytest.mark.slow
def test_twenty_kills(undisturbed: Any, faulty_run: Callable[..., Any], tmp_path: Path) -> None:
    plan = [
        *[("base", "any")] * 3,
        *[("route", "any")] * 3,
        *[("route", "saving")] * 2,
        ("contract", "saving"),
        *[("coherence", "any")] * 3,
        ("coherence", "saving"),
        *[("evaluation", "any")] * 2,
        ("generation", "any"),
        *[("attack", "any")] * 2,
        *[("card", "saving")] * 2,
    ]
    assert len(plan) == 20
    run, chance = faulty_run(tmp_path / "disturbed"), random.Random(1)
    for phase, which in plan:
        starts = sum(entry[0] == phase for entry in plan)
        number = chance.randint(1, max(undisturbed.events(which, phase) * 2 // (3 * starts), 1))
        print(disturb(run, phase, KILL, which, number))
    assert run.start() == 0, run.stderr
    assert run.outcome() == undisturbed.outcome()
