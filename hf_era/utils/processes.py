"""Work that is shared out over the processes of a launch: each does its part, and all have all results.

All processes call these functions in the same order with the same tasks. Without a state, or with one process, they do the
work and nothing else. Results travel pickled, so tensors in them should be on the CPU.

An error of one process is raised in all of them, with its type and text: the others would wait for it for ever.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cache
from typing import Any, TypeGuard, TypeVar

import torch.distributed as distributed
from accelerate import PartialState

Task = TypeVar("Task")
Result = TypeVar("Result")
# Processes wait for the slowest, and an attack may take hours; a process that died is noticed at once all the same.
_PATIENCE = timedelta(days=7)


def share_of(tasks: Sequence[Task], state: PartialState | None = None) -> list[Task]:
    """The tasks of this process: those number r, r + P, ... for process r of P. Without a state: all."""
    return list(tasks[state.process_index :: state.num_processes]) if _several(state) else list(tasks)


def share_out(tasks: Sequence[Task], work: Callable[[Task], Result], state: PartialState | None = None) -> list[Result]:
    """The results of all tasks, in order, the same in every process; each task is done by one of them.

    `work` does one task, and must not itself wait for other processes.

    Raises:
        Exception: what `work` raised, in every process, the first of several. Each process hears of it after its first
            task, or at the end of its share.
        RuntimeError: if the processes do not have the same number of tasks.
    """
    mine = share_of(tasks, state)
    if not _several(state):
        return [work(task) for task in mine]
    done: list[Result] = []

    def do(part: list[Task]) -> int:
        done.extend(work(task) for task in part)
        return len(tasks)

    # What fails (memory above all) mostly fails at once: all hear of that before they do their whole share.
    counts = in_all(lambda: do(mine[:1]), state)
    if len(set(counts)) > 1:
        raise RuntimeError(f"The processes have {counts} tasks. Give each the same ones, in the same order.")
    shares = in_all(lambda: (do(mine[1:]), done)[1], state)
    return [shares[number % len(shares)][number // len(shares)] for number in range(len(tasks))]


def in_all(work: Callable[[], Result], state: PartialState | None = None) -> list[Result]:
    """What `work` returns in each process, in the order of the processes; all have the whole list. Of several errors, that
    of the first process is raised in all of them."""
    if not _several(state):
        return [work()]
    own: Exception | None = None
    result: Any = None
    try:
        result = work()
    except Exception as error:
        own = error
    gathered: list[Any] = [None] * state.num_processes
    distributed.all_gather_object(gathered, (result, own and _sendable(own)), group=_patient_group())
    for number, (_, sent) in enumerate(gathered):
        if sent is not None:
            raise own if own is not None and number == state.process_index else sent
    return [result for result, _ in gathered]


def main_first(work: Callable[[], Result], state: PartialState | None = None) -> Result:
    """Does the same work in every process, in the main one first: the others find what it put into a cache."""
    found: list[Result] = []
    for main in (True, False):
        mine = not _several(state) or state.is_main_process == main
        in_all(lambda mine=mine: found.append(work()) if mine and not found else None, state)  # type: ignore[misc]
    return found[0]


def is_main(state: PartialState | None) -> bool:
    """Whether this is the process that speaks and writes."""
    return state is None or state.is_main_process


def _several(state: PartialState | None) -> TypeGuard[PartialState]:
    return state is not None and state.num_processes > 1


@cache
def _patient_group() -> Any:
    """All processes, over gloo: objects need no room on a GPU that may just have run out of memory. `None`, the default
    group, where there is no gloo."""
    return distributed.new_group(backend="gloo", timeout=_PATIENCE) if distributed.is_gloo_available() else None


def _sendable(error: Exception) -> Exception:
    """The error as others can raise it: itself if it survives being sent, else a `RuntimeError` that names it."""
    said = f"In process {distributed.get_rank()}:\n{''.join(traceback.format_exception(error))}"
    try:
        copy = pickle.loads(pickle.dumps(error))
        faithful = type(copy) is type(error) and str(copy) == str(error)
    except Exception:  # whatever its own methods raise
        faithful = False
    sent = copy if faithful else RuntimeError(f"{type(error).__name__}: {error}")
    sent.add_note(said)  # not part of the text: it is for those who look at the traceback
    return sent
