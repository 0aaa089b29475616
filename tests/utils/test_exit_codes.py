"""How a command ends: one line on standard error and a status that a script can act on."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hf_era import cli
from hf_era.evaluation.batch_halving import BatchMemoryError
from hf_era.models.config import ExpansionConfig
from hf_era.training import NonFiniteLossError
from hf_era.utils import exit_codes
from hf_era.utils.storage_errors import StorageError


def raising(error: BaseException) -> Callable[[], int]:
    def work() -> int:
        raise error

    return work


def asked_to_stop() -> int:
    os.kill(os.getpid(), signal.SIGUSR1)
    return exit_codes.DONE


@pytest.mark.parametrize(
    ("work", "status", "said"),
    [
        (lambda: exit_codes.DONE, 0, ""),
        (raising(NonFiniteLossError("The loss became nan.")), 1, "hf-era: The loss became nan.\n"),
        (raising(BatchMemoryError("too long")), 1, "hf-era: too long\n"),
        (lambda: torch.empty(10**13).numel(), 1, "Halve `--per_device_train_batch_size` and double"),
        (
            lambda: ExpansionConfig(width=0).width,
            2,
            "hf-era: `expansion.width` should be an integer of at least 1, got 0.",
        ),
        (raising(StorageError("x cannot be written", Path("x"), 28)), 74, "hf-era: x cannot be written\n"),
        (asked_to_stop, 75, "hf-era: Stopped by SIGUSR1. Give the same command again to go on from there.\n"),
        (raising(KeyboardInterrupt()), 130, "hf-era: Interrupted. Give the same command again"),
    ],
)
def test_each_end_has_its_status(
    work: Callable[[], int], status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli._guarded(work) == status
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError("of somebody else"), RuntimeError("a bug"), KeyError("a bug")])
def test_what_nobody_knows_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        cli._guarded(raising(error))
    assert caught.value is error


def test_a_reader_that_has_seen_enough(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As with `| head -1`: no traceback, and none of Python's own when it closes its output at the end."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert cli._guarded(lambda: print("a line") or 0) == 1
    assert capsys.readouterr().err == "hf-era: What read the output, such as `head`, closed it.\n"
