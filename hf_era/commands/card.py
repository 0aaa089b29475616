"""`hf-era card RESULT`: renders model card and report anew from a result file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "card",
        help="render model card and report of a run anew",
        description="Renders the model card (README.md) and the report of a run from its result file. Nothing is measured.",
        allow_abbrev=False,
    )
    parser.add_argument("result", help="result.json of a run, or its directory")
    parser.add_argument("--output", help="folder for README.md and report.html (default: those of the run)")
    parser.add_argument(
        "--seeds", nargs="+", default=[], metavar="RESULT", help="results of other seeds: means over them stand beside"
    )
    parser.add_argument("--repository", help="hub id to show, `owner/name`")
    parser.add_argument(
        "--license", help="licence for the metadata: apache-2.0, mit, ..., other:NAME (default: the base's)"
    )
    parser.add_argument(
        "--language", nargs="+", metavar="CODE", help="languages for the metadata, e.g. en (default: left out)"
    )


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from hf_era.evaluation import RunResult
    from hf_era.evaluation.results import broken_result
    from hf_era.reporting.html.report import write_report
    from hf_era.reporting.markdown.model_card import write_model_card
    from hf_era.reporting.seeds import check_seeds

    path, *others = (
        Path(name) / "result.json" if Path(name).is_dir() else Path(name) for name in (options.result, *options.seeds)
    )
    with broken_result(path, *others):
        result, *seeds = (RunResult.load(file) for file in (path, *others))
        check_seeds(result, seeds)
    report_folder = card_folder = Path(path.parent if options.output is None else options.output)
    if options.output is None:
        card_folder = report_folder / "model"
        if not card_folder.is_dir():
            raise ValueError(f"There is no folder {card_folder} for the card. Name one: `--output FOLDER`.")
    with broken_result(path):
        card = write_model_card(
            result, card_folder, options.repository, options.license, seeds, language=options.language
        )
        report = write_report(result, report_folder / "report.html", seeds)
    print(f"Written: {card}, {report}")
    return 0
