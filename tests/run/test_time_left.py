"""Time left for the whole run: nothing before something was measured, then what the phases' costs say."""

import io

import pytest
from rich.console import Console

from hf_era.methods import Cost, Phase
from hf_era.run.time_left import RunClock, spoken


def phase(name: str, cost: Cost | None) -> Phase:
    return Phase(name, name.capitalize(), "key", lambda key: {}, cost=cost)


ROUTE, CUT = phase("route", Cost(trained=80)), phase("cut", Cost())  # 200 passes
ATTACK = phase("attack", Cost(trained=40, measured=300, at_most=True))  # 400


@pytest.fixture
def now() -> list[float]:
    return [0.0]


@pytest.fixture
def screen() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def clock(now: list[float], screen: io.StringIO) -> RunClock:
    found = RunClock(Console(file=screen, width=200), clock=lambda: now[0])
    found.plan([ROUTE, CUT, ATTACK], {})
    return found


def test_nothing_is_said_before_it_is_known(clock: RunClock, now: list[float]) -> None:
    assert clock.begin(ROUTE) == "phase 1 of 3, 0 s used"
    now[0] = 10.0
    clock.progress(0.1)
    assert clock.left() is None  # one word says nothing of the speed


def test_the_current_phase_says_how_fast_the_others_are(clock: RunClock, now: list[float], screen: io.StringIO) -> None:
    clock.begin(ROUTE)
    # Continued at a half: what came before took none of this time. 40 passes in 40 seconds; 60 and 400 are left.
    for seconds, share in ((30.0, 0.5), (70.0, 0.7), (80.0, 0.75)):
        now[0] = seconds
        clock.progress(share)
    assert clock.left() == pytest.approx(50 + 400)
    assert screen.getvalue() == "  Route: 70%; whole run: 70 s used, at most about 8 min left\n"  # once a minute


def test_phases_that_are_done_say_it_too(clock: RunClock, now: list[float]) -> None:
    clock.plan([ROUTE, CUT, ATTACK], {"route": 20.0})
    clock.end(ROUTE, 20.0)
    assert clock.begin(ATTACK) == "phase 3 of 3, 0 s used, at most about 40 s left"
    assert clock.begin(ROUTE) == "phase 1 of 3, 0 s used"  # what it left is damaged: nothing is known again


def test_a_phase_that_does_not_say_what_it_computes(clock: RunClock, now: list[float]) -> None:
    clock.plan([ROUTE, phase("own", None)], {})
    clock.begin(ROUTE)
    now[0] = 20.0
    clock.end(ROUTE, 20.0)
    assert clock.used_and_left() == "20 s used"
    assert clock.begin(phase("unplanned", None)) == ""


def test_how_times_are_said() -> None:
    assert [spoken(seconds) for seconds in (0.4, 89, 90, 5_000, 7_500)] == [
        "0 s",
        "89 s",
        "2 min",
        "83 min",
        "2 h 05 min",
    ]
