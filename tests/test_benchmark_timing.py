"""What the benchmarks share: turns are taken, and ratios are taken pair by pair."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still unless a variant moves it. Before each turn nothing is collected: after many other tests
    that takes a quarter of a second."""
    now = [0.0]
    monkeypatch.setattr(common.gc, "collect", lambda: 0)
    monkeypatch.setattr(common.time, "perf_counter", lambda: now[0])
    return now


def test_variants_take_turns_and_the_warm_up_is_not_timed(clock: list[float]) -> None:
    calls: list[str] = []

    def work(name: str, seconds: float) -> None:
        calls.append(name)
        clock[0] += seconds * (100 if len(calls) <= 2 else 1)

    times = common.interleave({"a": lambda: work("a", 1), "b": lambda: work("b", 3)}, rounds=3, warm_up=1)
    assert times == {"a": [1, 1, 1], "b": [3, 3, 3]}
    assert "".join(calls) == "ba" + "ab" + "ba" + "ab"


def test_the_time_limit_ends_whole_rounds(clock: list[float]) -> None:
    def work() -> None:
        clock[0] += 10

    for limit, rounds in ((0.0, 3), (65.0, 4), (None, 5)):
        times = common.interleave({"a": work, "b": work}, rounds=5, warm_up=0, time_limit_s=limit)
        assert [len(seconds) for seconds in times.values()] == [rounds, rounds]


def test_the_device_is_waited_for_before_the_clock_starts_and_before_it_stops() -> None:
    events: list[str] = []
    common.interleave({"a": lambda: events.append("work")}, 1, 0, synchronise=lambda: events.append("wait"))
    assert events == ["wait", "work", "wait"]


def test_ratios_are_taken_pair_by_pair() -> None:
    times = {"ours": [1.0, 10.0, 100.0], "theirs": [2.0, 20.0, 100.0]}  # the machine slowed down; the ratio did not
    assert common.median_ratio(times, "theirs", over="ours") == 2.0
    assert common.median_ratio(times, "ours", over="theirs") == 0.5
    assert common.summarise(times)["ours"] == {
        "median_s": 10.0, "fastest_s": 1.0, "slowest_s": 100.0, "rounds_s": [1.0, 10.0, 100.0]
    }  # fmt: skip


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="`variants` is empty"):
        common.interleave({})
    with pytest.raises(ValueError, match="`rounds` should be at least 1, got 0"):
        common.interleave({"a": int}, rounds=0)
    with pytest.raises(ValueError, match="`warm_up` should be at least 0, got -1"):
        common.interleave({"a": int}, warm_up=-1)


def test_a_result_says_where_and_with_what(tmp_path: Path) -> None:
    path = common.write_result(tmp_path / "new" / "x.json", {**common.environment(), "figure": 1})
    stored = json.loads(path.read_text())
    assert list(stored) == ["date", "machine", "versions", "git_revision", "figure"]
    assert {"cpu_model", "cpu_cores", "torch_cpu_capability", "torch_threads"} <= set(stored["machine"])
    assert [file.name for file in path.parent.iterdir()] == ["x.json"]


def test_figures_that_are_not_measured_again_keep_what_they_were_measured_in(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    assert common.kept_figures(path, "parts", ["a"]) == {}
    path.write_text(json.dumps({"date": "monday", "machine": "m", "parts": {"a": {"s": 1}, "b": {"s": 2}}}))
    kept = common.kept_figures(path, "parts", ["a"])
    assert kept == {"b": {"s": 2, "measured": {"date": "monday", "machine": "m"}}}
    path.write_text(json.dumps({"date": "tuesday", "machine": "n", "parts": {"a": {"s": 3}, **kept}}))
    assert common.kept_figures(path, "parts", ["a"]) == kept
