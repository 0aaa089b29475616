"""`hf-era compare RESULT ...`: results side by side, as Markdown, CSV, JSON, HTML and plots."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_era.commands.fields import print_all


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "compare",
        help="put results side by side: Markdown, CSV, JSON, HTML",
        description="Writes comparison.md, .csv, .json, .html and plots of several results. Results of the same name, "
        "method and settings are also averaged over their seeds.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "results", nargs="+", help="result files of `hf-era run`, `eval` or `relearn`, or run directories"
    )
    parser.add_argument("--output", default="comparison", help="folder for the files (default: comparison)")


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from hf_era.evaluation.results import broken_result, load_result
    from hf_era.reporting.comparison import comparison_markdown, write_comparison_files

    paths = [Path(name) / "result.json" if Path(name).is_dir() else Path(name) for name in options.results]
    with broken_result(*paths):
        results = [load_result(path) for path in paths]
        files = write_comparison_files(results, options.output)
    print_all(f"{comparison_markdown(results)}\nWritten: {', '.join(map(str, files))}")
    return 0
