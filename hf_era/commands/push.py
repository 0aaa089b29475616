"""`hf-era push RUN`: uploads the contracted model of a finished run with its card."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "push",
        help="upload the final model of a run, with its card, to the hub",
        description="Uploads the folder `model` of a finished run: the contracted, stock model with tokenizer and card, and "
        "nothing else. The auxiliary module is never pushed. Log in first (`hf auth login`, or HF_TOKEN).",
        allow_abbrev=False,
    )
    parser.add_argument("run", help="output directory of `hf-era run`")
    parser.add_argument("--repository", metavar="ID", help="`owner/name`, or a name of your own (default: the run's)")
    parser.add_argument("--private", action="store_true", help="a repository that is made now is private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to push to (default: main)")
    parser.add_argument(
        "--license", metavar="ID", help="licence in the card, e.g. apache-2.0 (default: as the card has it)"
    )


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from hf_era.run.push import MODEL, checked_result, push_model

    folder = Path(options.run)
    result = checked_result(folder)
    named = (result.config.get("training") or {}).get("hub_model_id")
    repository = push_model(
        result,
        folder / MODEL,
        options.repository or named or folder.resolve().name,
        private=options.private or None,
        revision=options.revision,
        license=options.license,
    )
    print(f"Pushed: https://huggingface.co/{repository}")
    return 0
