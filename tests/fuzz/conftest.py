"""What the fuzz tests share: how many examples there are, and what counts as refused.

Every fuzz test exists once and takes `fuzz`, which runs it with a few examples, always the same ones, in an ordinary run,
and with many, drawn anew, under `-m slow`. At the end of each kind of run the examples that really ran are counted.
"""

from __future__ import annotations

import ast
import functools
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from accelerate.state import AcceleratorState
from hypothesis import HealthCheck, Phase, Verbosity, given, settings

from hf_era.cli import _is_ours

# Examples of each test: in an ordinary run, and with `-m slow`. Their sums are asserted at the end.
EXAMPLES = {
    "configs": (250, 2_500),
    "nested": (120, 2_500),
    "overrides": (80, 1_500),
    "yaml": (120, 2_500),
    "labels": (200, 4_000),
    "spellings": (120, 2_500),
    "stories": (20, 80),
    "batches": (300, 4_000),
    "weights": (100, 2_000),
    "evaluation_sets": (40, 500),
    "training_sets": (20, 500),
    "checkpoints": (60, 1_000),
    "config_files": (60, 1_000),
    "optimizers": (40, 1_000),
}
LEAST = (500, 10_000)
ran = {False: dict.fromkeys(EXAMPLES, 0), True: dict.fromkeys(EXAMPLES, 0)}


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["fast", "slow"])
def fuzz(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Runs `check(**example)` on examples of the strategies, and counts them under `name`."""
    slow = request.param

    def run(name: str, check: Callable[..., None], **strategies: Any) -> None:
        chosen = settings(
            max_examples=EXAMPLES[name][slow],
            derandomize=not slow,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate, Phase.shrink],
            verbosity=Verbosity.normal,
            print_blob=True,
        )

        # hypothesis wants a function with these very arguments.
        def counted(**example: Any) -> None:
            ran[slow][name] += 1
            check(**example)

        chosen(given(**strategies)(counted))()

    return run


@pytest.fixture(scope="session", autouse=True)
def _own_data_set_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("data_set_cache"))
        yield


@pytest.fixture(autouse=True)
def _no_file_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing new stands in the working directory, and nothing in a directory for temporary files, of the test's own."""
    work, temporary = tmp_path / "work", tmp_path / "temporary"
    work.mkdir()
    temporary.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    yield
    assert os.listdir(work) == []
    assert os.listdir(temporary) == []


@pytest.fixture(autouse=True)
def _other_tests_see_nothing_of_it() -> Iterator[None]:
    """`TrainingArguments` write to the environment and to accelerate's one state, even of settings that are then refused."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def _memory_is_little() -> Iterator[None]:
    """What takes gigabytes fails with a `MemoryError` here, which is not one of our messages, and not the whole machine."""
    try:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):  # not Linux
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 3_000_000_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def refusal(error: BaseException) -> str:
    """The message of an error that is one of ours: a `ValueError` from a `raise` statement of the package.

    That its last frame is ours is not enough: what a built-in function raises looks the same.
    """
    if not isinstance(error, ValueError) or not _is_ours(error) or not _is_raised(error):
        raise AssertionError(f"not one of our messages: {''.join(traceback.format_exception(error))}") from error
    message = str(error)
    assert message.strip(), "a message that says nothing"
    assert len(message) < 4_000, f"a message of {len(message):,} characters"
    return message


def _is_raised(error: BaseException) -> bool:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return any(first <= (frame.lineno or 0) <= last for first, last in _raise_statements(frame.filename))


@functools.cache
def _raise_statements(filename: str) -> list[tuple[int, int]]:
    tree = ast.parse(Path(filename).read_text(encoding="utf-8"))
    return [(node.lineno, node.end_lineno or node.lineno) for node in ast.walk(tree) if isinstance(node, ast.Raise)]


@pytest.fixture(scope="session")
def accepted() -> Callable[..., tuple[Any, str | None]]:
    """Calls something: its result and `None`, or `None` and our message. Any other error is a failure."""

    def call(function: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Any, str | None]:
        try:
            return function(*arguments, **options), None
        except Exception as error:
            return None, refusal(error)

    return call


@pytest.fixture(scope="session")
def example_counts() -> dict[bool, dict[str, int]]:
    return ran


@pytest.fixture(scope="session")
def wanted_examples() -> tuple[dict[str, tuple[int, int]], tuple[int, int]]:
    return EXAMPLES, LEAST
