"""The README's table is the one that the stored results give."""

from pathlib import Path

from hf_era.evaluation import RunResult
from hf_era.reporting.tables import comparison_table

# Recipes A to D, then the runs that they are compared with.
ORDER = (
    "stories_small/scratch_fullseq",
    "stories_small/posttrain_fullseq",
    "stories_small/scratch_concept",
    "stories_small/posttrain_concept",
    "stories_small_controls/scratch_fullseq_uniform",
    "stories_small_controls/posttrain_fullseq_uniform",
    "stories_small_controls/posttrain_no_routing",
)


def test_the_results_table_is_up_to_date(repository_root: Path) -> None:
    results = [RunResult.load(repository_root / "benchmarks" / "results" / f"{name}.json") for name in ORDER]
    assert comparison_table(results) in (repository_root / "README.md").read_text(encoding="utf-8")
