"""Renders the cards of a folder of results, or checks that the cards there are still those of the results.

python -m hf_era.reporting.cards benchmarks/results model_cards
python -m hf_era.reporting.cards benchmarks/results model_cards --check
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from hf_era.evaluation.results import RunResult
from hf_era.reporting.markdown.model_card import render_model_card
from hf_era.utils.files import read_json, write_text

COMMAND = "make cards"


def render_cards(results_folder: str | Path, output_folder: str | Path, check: bool = False) -> list[Path]:
    """Renders each result of a folder to a card: `<results_folder>/NAME.json` to `<output_folder>/NAME.md`.

    A folder `seedN` is one of several: the results of that name in its sisters stand beside, as means over seeds. JSON files
    that are no result of a run are skipped. With `check` nothing is written, but compared. Returns the cards'
    paths, sorted.

    Raises:
        ValueError: if there is no such folder or no result in it, or a result has another schema version; with `check`,
            if a card is missing or differs (the first one is named).
    """
    results_folder, output_folder = Path(results_folder), Path(output_folder)
    if not results_folder.is_dir():
        raise ValueError(f"`results_folder`: {results_folder} is no folder. Pass the one with the runs' result files.")
    results = {path: RunResult.load(path) for path in sorted(results_folder.glob("*.json")) if _is_of_a_run(path)}
    cards = {output_folder / f"{path.stem}.md": result for path, result in results.items() if result.has_checkpoint}
    if not cards:
        raise ValueError(
            f"`results_folder`: {results_folder} holds no result of a run (`*.json`), so there is no card."
        )
    for path, result in cards.items():
        text = render_model_card(result, seeds=_sisters(results_folder, f"{path.stem}.json"))
        if not check:
            write_text(path, text)
        elif not path.is_file():
            raise ValueError(f"The card {path} is missing. Run `{COMMAND}`.")
        elif path.read_text(encoding="utf-8") != text:
            raise ValueError(f"The card {path} is not the one that its result gives. Run `{COMMAND}`.")
    return list(cards)


def _sisters(folder: Path, name: str) -> list[RunResult]:
    """The results of this file name in the folders of a matrix's seeds, where the folder is one of them."""
    if not re.fullmatch(r"seed\d+", folder.name):
        return []
    return [RunResult.load(path) for path in sorted(folder.parent.glob(f"seed*/{name}")) if _is_of_a_run(path)]


def _is_of_a_run(path: Path) -> bool:
    """Whether a file has what only a run's result has, in any schema version."""
    values = read_json(path)
    return isinstance(values, dict) and values.keys() >= {"schema_version", "name", "config", "losses"}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status (0 done, 1 a card differs, or bad input)."""
    parser = argparse.ArgumentParser(prog="python -m hf_era.reporting.cards", description="Renders model cards.")
    parser.add_argument("results", type=Path, help="folder with the result files of runs (*.json)")
    parser.add_argument("output", type=Path, help="folder for the cards")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a card is missing or differs")
    options = parser.parse_args(arguments)
    try:
        cards = render_cards(options.results, options.output, options.check)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    for path in cards:
        print(path if not options.check else f"{path}: unchanged")
    return 0


if __name__ == "__main__":
    sys.exit(main())
