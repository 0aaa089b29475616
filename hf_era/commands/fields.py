"""`hf-era fields [SECTION]`: what a config can hold."""

from __future__ import annotations

import argparse
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

        print(describe_fields(options.section))
    return 0
