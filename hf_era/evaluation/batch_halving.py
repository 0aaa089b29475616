"""Running out of memory is survived: the batch is halved, and the work done again. The only place where that is decided.

It works on a CPU as on a GPU, for what torch says it could not allocate. (Where the operating system hands out more than it
has, it may end the process instead, and nobody is asked.) What accelerate knows of errors and devices is used, but not its
`find_executable_batch_size`: that collects garbage before every call (0.2 s, and an attack calls once a step), clears the
device while the failed try still holds its tensors, and knows no `MemoryError`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from hf_era.utils.processes import is_main

Result = TypeVar("Result")


class BatchMemoryError(MemoryError):
    """Memory does not suffice for a batch of one."""


def halving_batches(
    work: Callable[[int], Result],
    batch_size: int,
    *,
    doing: str,
    setting: str,
    state: PartialState | None = None,
) -> tuple[Result, int]:
    """Calls `work` with a batch size, and with half of it as long as memory does not suffice.

    A smaller batch changes the speed, and the figures not beyond rounding.

    Args:
        work: takes a batch size. It begins anew each time. Where it shares out work over processes, it raises the error
            of one process in all of them (`hf_era.utils.processes` does), so that all go on with the same size.
        batch_size (`int`): to start with.
        doing, setting (`str`): for messages, what is done and what to lower: "Evaluating", "`evaluation.batch_size`".
        state (`PartialState`, *optional*): of a launch whose processes all are here: the main one alone warns.

    Returns: what `work` returned, and with which size. Raises `BatchMemoryError` if not even a batch of one fits.
    """
    while True:
        try:
            return work(batch_size), batch_size
        except Exception as error:
            if not _out_of_memory(error):
                raise
            if batch_size == 1:
                raise BatchMemoryError(
                    f"{doing}: memory does not suffice for a batch of one. Shorten what is read (`data.max_tokens`) "
                    "or written (`generation.new_tokens`), take a smaller model or dtype, or a device with more memory. "
                    f"It said: {error}"
                ) from error
        # Out here the error, and with it the frames that hold on to tensors, is gone.
        clear_device_cache(garbage_collection=True)
        half = batch_size // 2
        if is_main(state):
            warnings.warn(
                f"{doing}: memory did not suffice for batches of {batch_size}, going on with {half}. That changes the "
                f"speed, and the figures not beyond rounding. Lower {setting} to {half} to avoid the failed try.",
                stacklevel=2,
            )
        batch_size = half


def _out_of_memory(error: Exception) -> bool:
    """What accelerate knows of devices and torch's allocator, and Python's own error; ours is the last word already."""
    if isinstance(error, BatchMemoryError):
        return False
    return isinstance(error, MemoryError) or should_reduce_batch_size(error)
