"""Result files of unknown origin: where a value in one is not what hf_era writes, the file is to blame, and is named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def broken_result(*paths: Path) -> Iterator[None]:
    """Turns an error that a value of the wrong kind causes into a `ValueError` that names the files. Our own pass through.

    Their shape is not checked field by field: a result holds hundreds, and hf_era wrote them itself. The original error
    stays its cause.
    """
    try:
        yield
    except (TypeError, AttributeError, KeyError, IndexError, OverflowError, RecursionError) as error:
        names = ", ".join(map(str, paths))
        raise ValueError(
            f"{names}: a value is not what hf_era writes ({type(error).__name__}: {error}). Was the file changed by hand? "
            "Evaluate again: give the same command as for the run."
        ) from error
