"""Writes a comparison of results: Markdown, CSV, JSON, HTML and the plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hf_era.reporting.html.report import write_comparison
from hf_era.reporting.markdown.comparison import Result, comparison_csv, comparison_json, comparison_markdown
from hf_era.reporting.plots import save_plots
from hf_era.utils.files import write_json, write_text


def write_comparison_files(results: Sequence[Result], folder: str | Path) -> list[Path]:
    """Writes `comparison.md`, `.csv`, `.json`, `.html` and `plots/` into a folder and returns their paths.

    Raises:
        ValueError: if there is no result.
    """
    folder = Path(folder)
    return [
        write_text(folder / "comparison.md", comparison_markdown(results)),
        write_text(folder / "comparison.csv", comparison_csv(results)),
        write_json(folder / "comparison.json", comparison_json(results)),
        write_comparison(results, folder / "comparison.html"),
        *save_plots(results, folder / "plots"),
    ]
