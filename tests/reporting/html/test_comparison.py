"""The page that compares results."""

import functools
import re

import pytest

from hf_era.reporting.comparison_tables import FIRST, comparability_warnings
from hf_era.reporting.html.comparison import render_comparison, write_comparison
from hf_era.reporting.html.parts import Sortable
from hf_era.reporting.labels import LOSSES
from hf_era.reporting.tables import Table

from ..samples import HOSTILE, bare_run, comparison, hostile_run, model_result, run_result
from .test_report import Page, check_needs_nothing_else


@functools.cache
def page():
    """Rendered once for all tests."""
    return render_comparison(comparison(), "Small runs")


def test_all_results_and_means_over_seeds():
    text = page()
    shown = check_needs_nothing_else(text).text
    assert re.findall(r'<section aria-labelledby="([a-z-]+)">', text) == [
        "verdict", "seeds", "results", "plots", "attacks", "generations",
    ]  # fmt: skip
    assert text.count("<details>") == 6  # what each of six results writes
    assert "6 results under 4 names" in shown
    # Final forget losses 3.29, 3.34, 3.39: mean 3.34, deviation 0.05, t(2) = 4.303: 4.303 * 0.05 / sqrt(3) = 0.124.
    assert "3.036 [3.036, 3.036] 3.340 [3.216, 3.464]" in shown


def test_rows_are_sorted_by_radio_buttons_alone():
    table = Table("", ["Name", "Loss"], [["a", "2"], ["b", "-"], ["c", "3"]], sort_by={1: [2.0, None, 3.0]})
    assert Sortable(table, "by").places() == [
        "--down-1: 1; --up-1: 0",
        "--down-1: 3; --up-1: 3",
        "--down-1: 0; --up-1: 1",
    ]
    text = page()
    first = text[text.index("<thead role") :].split("</thead>")[0]
    heads = re.findall(r"<th[^>]*>([^<]+)", first)
    assert [head.strip() for head in heads[:6]] == [
        "Result", "Seeds", "Unlearning", "Retain tax", "Robust unlearning", "Ablation gap",
    ]  # fmt: skip
    # Each way of each column has a button, a rule, and a place in every row.
    columns = {int(column) for column in re.findall(r'class="down-(\d+)"', first)}
    assert columns == set(range(2, 2 + len(FIRST) + len(LOSSES)))
    for way in ("down", "up"):
        assert {
            int(column) for column in re.findall(rf'type="radio" name="seeds-by" class="{way}-(\d+)"', first)
        } == columns
        rules = re.findall(rf":has\(\.{way}-(\d+):checked\) tbody tr {{ order: var\(--{way}-\1\); }}", text)
        assert {int(column) for column in rules} == columns
    rows = re.findall(r'<tr[^>]* role="row" style="([^"]*)"', text)
    assert len(rows) == 4 + 6
    assert all(row.count("--down-") == row.count("--up-") == len(columns) for row in rows)


def test_one_seed_each_has_no_means():
    text = render_comparison([run_result(), model_result()])
    assert 'aria-labelledby="seeds"' not in text
    assert text.count("<figure") == 3


def test_results_that_cannot_be_compared(monkeypatch):
    monkeypatch.setattr("hf_era.reporting.html.comparison.plots_of", lambda results, names: [])  # a second each
    other = model_result(data={"fingerprint": "def"})
    assert comparability_warnings(comparison()) == []
    assert comparability_warnings([run_result(), other])[0].startswith(
        "These results were not measured on the same examples"
    )
    assert "not measured on the same examples" in Page(render_comparison([run_result(), other])).text
    assert comparability_warnings([run_result(), run_result()]) == [
        "The same name and seed stands here more than once: posttrain_fullseq. Means over seeds count one of them."
    ]
    (text,) = comparability_warnings(
        [run_result(), run_result(config={"routing": {"rule": "concept"}}), run_result(seed=1)]
    )
    assert text.startswith("Different methods or settings stand here under the same name: posttrain_fullseq. ")


def test_hostile_and_empty_results():
    page = check_needs_nothing_else(render_comparison([hostile_run(), bare_run()], HOSTILE))
    assert '<script>document.title="pwned"</script>' in page.text
    check_needs_nothing_else(render_comparison([bare_run()]))
    with pytest.raises(ValueError, match="`results` is empty"):
        render_comparison([])


def test_the_file_is_written(tmp_path):
    path = write_comparison([bare_run()], tmp_path / "comparison.html", "One")
    assert path.read_text(encoding="utf-8") == render_comparison([bare_run()], "One")
