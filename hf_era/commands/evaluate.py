"""`hf-era eval MODEL`: losses with intervals and generations of any causal LM."""

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
        "eval",
        help="measure any causal LM on forget and retain stories",
        description="Measures any causal LM on forget and retain stories: losses with 95 % intervals, generations with "
        "their forget words and repetition; against the model before the method with --before.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_model_options(parser)
    return parser


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from hf_era.evaluation.model_evaluation import evaluate_model

    result = evaluate_model(model_config(options, overrides), attack=False)
    write_model_result(result, options.output or default_folder(result.name, "eval"))
    return 0
