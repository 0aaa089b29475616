"""How a command ended, as its exit status. 74 and 75 are those of `sysexits.h` (EX_IOERR, EX_TEMPFAIL)."""

DONE = 0
FAILED = 1
"""Training went wrong (a loss became NaN), or an error that hf_era does not know; the traceback says where."""
BAD_INPUT = 2
"""A setting, a file or a model cannot be used. Nothing was trained."""
STORAGE = 74
"""Something could not be written: disk full, read-only. What was whole before was kept; give the same command again."""
STOPPED = 75
"""Stopped by SIGTERM or SIGUSR1, with a checkpoint where there was something to save. Give the same command again."""
INTERRUPTED = 130
"""Stopped by Ctrl-C: nothing was saved for it. Give the same command again to go on from the last checkpoint."""
