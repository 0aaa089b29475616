"""What `docs/evidence.md` says of the matrix is what the stored results give."""

from pathlib import Path

import pytest

from hf_era.evaluation import RunResult
from hf_era.evaluation.cell_lines import read_lines
from hf_era.evaluation.intervals import mean_interval
from hf_era.evaluation.summary import aggregate
from hf_era.reporting.comparison_tables import differences_over_seeds
from hf_era.reporting.markdown.tables import markdown_table
from hf_era.utils.files import read_json


def stored_results(repository_root: Path) -> list[RunResult]:
    files = sorted((repository_root / "benchmarks" / "results" / "matrix_small").glob("seed*/*.json"))
    assert files, "no stored result: nothing would be checked"
    return [RunResult.load(file) for file in files]


def test_the_stored_comparison_is_that_of_the_stored_results(repository_root: Path) -> None:
    stored = read_json(repository_root / "benchmarks" / "results" / "matrix_small" / "comparison.json")["over_seeds"]
    again = {row["name"]: row for row in aggregate(stored_results(repository_root))}
    assert {row["name"] for row in stored} == set(again)
    for row in stored:
        for name, estimate in row["figures"].items():
            assert again[row["name"]]["figures"][name] == pytest.approx(estimate), (row["name"], name)


def test_the_table_of_differences_is_up_to_date(repository_root: Path) -> None:
    stored = read_json(repository_root / "benchmarks" / "results" / "matrix_small" / "comparison.json")["over_seeds"]
    page = (repository_root / "docs" / "evidence.md").read_text(encoding="utf-8")
    assert markdown_table(differences_over_seeds(stored)) in page


def test_the_table_of_the_bake_off_is_that_of_its_cells(repository_root: Path) -> None:
    folder = repository_root / "benchmarks" / "results" / "bakeoff"
    lines, rows = read_lines(folder / "cells.jsonl").values(), read_json(folder / "table.json")["rows"]
    assert {(row["testbed"], row["row"], seed) for row in rows for seed in row["seeds"]} == {
        (line["testbed"], line["row"], line["seed"]) for line in lines
    }
    for row in rows:
        own = [line for line in lines if (line["testbed"], line["row"]) == (row["testbed"], row["row"])]
        for name, values in (
            ("retain_loss", [line["retain_loss"] for line in own]),
            ("attacked_forget_loss", [line["attack"]["lowest_forget"] for line in own]),
        ):
            assert row["figures"][name] == pytest.approx(mean_interval(values).to_dict()), (row["row"], name)
