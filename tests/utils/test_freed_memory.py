"""Freed memory is kept by the process, unless the user's environment says how malloc should behave."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from hf_era.utils.freed_memory import keep_freed_memory

glibc_only = pytest.mark.skipif(
    "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}), reason="mallopt is glibc's: Linux"
)
# Held by the process before, with, and after a block of 64 MiB, in MiB.
HELD = """
import ctypes, pathlib, sys
if sys.argv[1] == "keep":
    from hf_era.utils.freed_memory import keep_freed_memory
    assert keep_freed_memory()
def held():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) // 1024
before = held()
block = ctypes.create_string_buffer(64 << 20)
ctypes.memset(block, 1, 64 << 20)
inside = held()
del block
print(before, inside, held())
"""


@glibc_only
@pytest.mark.parametrize("kept", [True, False])
def test_a_large_block_stays_with_the_process(kept: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", HELD, "keep" if kept else "leave"],
        capture_output=True,
        text=True,
        check=True,
        env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    before, inside, after = map(int, done.stdout.split())
    assert inside - before > 60
    assert (after - before > 60) is kept


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_what_the_user_set_is_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    assert keep_freed_memory() is False
