"""`hf-era fields [SECTION]`: what a config can hold."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "fields",
        help="list every field of a config with its type and default",
        description="Lists every field of a config, or those of one section, with type, default and help. Takes some "
        "seconds: the fields of training are those of the installed transformers.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "section",
        nargs="?",
        metavar="SECTION",
        help="data, training, relearn, ...; run: fields without a section; router, method_settings: of all that there are",
    )


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from hf_era.run.reference import describe_fields

        print_all(describe_fields(options.section))
    return 0


def print_all(text: str) -> None:
    """Prints a long text, as far as somebody reads it: `hf-era fields | head` is no error."""
    try:
        print(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python flushes once more, and fails
