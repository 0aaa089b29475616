"""`hf-era relearn MODEL`: how much of a capability comes back under fine-tuning, and how fast."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from hf_era.commands.model_options import (
    EPILOG,
    add_model_options,
    default_folder,
    model_config,
    write_model_result,
)


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        "relearn",
        help="attack any causal LM: fine-tune on a few forget stories and see what comes back",
        description="Fine-tunes any causal LM on a few forget stories, with several numbers of stories and learning rates, "
        "all weights and LoRA, and measures forget and retain loss on the way. Also measures what `eval` does.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_model_options(parser)
    parser.add_argument(
        "--attack", metavar="FILE", help="forget stories of the attacker (default: taken out of --forget)"
    )
    parser.add_argument(
        "--allow-fewer", action="store_true", help="use fewer stories or trials where there are too few"
    )
    return parser


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from hf_era.evaluation.model_evaluation import evaluate_model

    result = evaluate_model(model_config(options, overrides), attack=True)
    write_model_result(result, options.output or default_folder(result.name, "relearn"))
    return 0
