"""Runs `hf-era run CONFIG` and, at a chosen event of a chosen phase, sends itself a signal. Started by the tests.

worker.py CONFIG TRACE [PHASE WHICH NUMBER SIGNAL]
worker.py serve

The second form starts one run after the other, each in a process of its own that was forked once everything is imported: a
line of stdin holds the arguments of the first form, and the file for what the run says on stderr; a line of stdout answers
with the exit status, negative for a signal.

An event is a call of one of the functions below, just before or just after it. They are counted within their phase, all
of them ("any") and those of saving ("saving"); the counts of a run that ends by itself go to the file TRACE. A file that
safetensors wrote is cut in half before a kill, as one that was still being written.
"""

import functools
import json
import os
import pathlib
import shutil
import signal
import sys
from collections import Counter
from typing import Any

import safetensors.torch
import torch
from transformers import GPTNeoModel

from hf_era import cli
from hf_era.methods import Phase
from hf_era.run.pipeline import PhaseRunner

RANK = os.environ.get("RANK", "0")
SAVING = ("rename", "replace", "fsync", "rmtree", "serialize_file")
OWNERS: tuple[tuple[Any, str], ...] = (
    (pathlib.Path, "rename"),
    (pathlib.Path, "replace"),
    (os, "fsync"),
    (shutil, "rmtree"),
    (safetensors.torch, "serialize_file"),
    (torch.optim.AdamW, "step"),
    (GPTNeoModel, "forward"),
)


class Events:
    """Counts events within the phase that is running, and sends the signal when its turn has come."""

    def __init__(self, phase: str = "", which: str = "any", number: str = "0", name: str = "") -> None:
        self.current = "start"
        self.counts: dict[str, Counter[str]] = {"any": Counter(), "saving": Counter()}
        self.wanted = (phase, int(number))
        self.which, self.signal = which, getattr(signal, name) if name else None

    def happen(self, name: str, written: Any = None) -> None:
        kinds = ("any", "saving") if name in SAVING else ("any",)
        for kind in kinds:
            self.counts[kind][self.current] += 1
        if self.signal is None or self.which not in kinds:
            return
        if (self.current, self.counts[self.which][self.current]) != self.wanted:
            return
        if os.environ.get("HF_ERA_TEST_SIGNAL_RANK", "0") != RANK:
            return
        if self.signal == signal.SIGKILL and written is not None:
            os.truncate(written, os.path.getsize(written) // 2)
        print(f"\nsignal at {self.current} {self.wanted[1]} {name}", file=sys.stderr, flush=True)
        os.kill(os.getpid(), self.signal)

    def watch(self, owner: Any, name: str) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.happen(name)
            result = original(*args, **kwargs)
            self.happen(name, args[1] if name == "serialize_file" else None)
            return result

        setattr(owner, name, watched)

    def follow_phases(self) -> None:
        original = PhaseRunner.run

        def run(runner: PhaseRunner, phase: Phase, *args: Any) -> Any:
            self.current = phase.name
            report = original(runner, phase, *args)
            self.current = "card" if phase.name == "attack" else "between"
            return report

        PhaseRunner.run = run  # type: ignore[method-assign]


def run(config: str, trace: str, *plan: str) -> int:
    events = Events(*plan)
    events.follow_phases()
    for owner, function in OWNERS:
        events.watch(owner, function)
    code = cli.main(["run", config])
    if RANK == "0":
        with open(trace, "w") as file:
            json.dump(events.counts, file)
    return code


def serve(limit: int = 240) -> int:
    for line in sys.stdin:
        arguments, stderr = json.loads(line)
        child = os.fork()
        if not child:
            signal.alarm(limit)  # a run that hangs ends by this signal
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), sys.stderr.fileno())
            return run(*arguments)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(serve() if sys.argv[1:] == ["serve"] else run(*sys.argv[1:]))
