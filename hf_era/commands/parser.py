"""The parser of all commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any


class CommandParser(argparse.ArgumentParser):
    """Takes `--batch_size` for `--batch-size`, as the fields of a config do."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([self._as_declared(word) for word in words], namespace)

    def _as_declared(self, word: str) -> str:
        """An option that is declared with hyphens, if it was typed with underscores; its value is left alone."""
        name, separator, value = word.partition("=")
        hyphens = name.replace("_", "-")
        return f"{hyphens}{separator}{value}" if hyphens in self._option_string_actions else word
