"""The page that compares results."""

import re

import pytest

from hf_era.reporting.html.comparison import comparability_warnings, render_comparison, write_comparison

from ..samples import HOSTILE, bare_run, comparison, hostile_run, model_result, run_result
from .test_report import Page, check_needs_nothing_else


def test_all_results_and_means_over_seeds():
    text = render_comparison(comparison(), "Small runs")
    page = check_needs_nothing_else(text)
    assert re.findall(r'<section aria-labelledby="([a-z-]+)">', text) == [
        "verdict", "results", "seeds", "trade-off", "attacks", "selectivity", "generations",
    ]  # fmt: skip
    assert text.count("<details>") == 6  # what each of six results writes
    assert "6 results under 4 names" in page.text
    assert "posttrain_fullseq 2 gradient routing, full_seq (frequency) pretrained 3.036 [2.956, 3.116]" in page.text
    # Final forget losses 3.29, 3.34, 3.39: mean 3.34, deviation 0.05, t(2) = 4.303: 4.303 * 0.05 / sqrt(3) = 0.124.
    assert "posttrain_fullseq 3.036 [3.036, 3.036] 3.340 [3.216, 3.464]" in page.text


def test_one_seed_each_has_no_means():
    text = render_comparison([run_result(), model_result()])
    assert 'aria-labelledby="seeds"' not in text
    assert text.count("<svg") == 3


def test_results_that_cannot_be_compared():
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
    path = write_comparison([run_result()], tmp_path / "comparison.html", "One")
    assert path.read_text(encoding="utf-8") == render_comparison([run_result()], "One")
