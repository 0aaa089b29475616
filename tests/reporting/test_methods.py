"""Reports know no method by name: one that nobody has heard of is shown with its own title, stages and prose."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from hf_era.evaluation.results import RunResult
from hf_era.reporting.comparison import comparison_markdown, write_comparison_files
from hf_era.reporting.html.comparison import render_comparison
from hf_era.reporting.html.report import render_report
from hf_era.reporting.markdown.model_card import render_model_card
from hf_era.reporting.plots import figure_svg, plot_kinds
from hf_era.reporting.provenance import not_tested
from hf_era.reporting.verdict import verdict

from .html.test_report import Page, check_needs_nothing_else
from .samples import generations, run_result, stage, stock_result

STAGES = {"before": "Before the method", "scrubbed": "After scrubbing", "polished": "After polishing"}
TEXTS = {
    "summary": "This is moon scrubbing, which nobody has tried.",
    "introduction": "A model that hf_era {version} **scrubbed** ([a paper](https://arxiv.org/abs/1234.56789)).\n\n"
    "In two parts.",
    "training": "It was scrubbed by moonlight.",
    "labels": "Those without a label were left in the dark.",
}


def invented(role: str = "method", texts: dict[str, str] = TEXTS) -> RunResult:
    return stock_result(
        name="scrubbed_run",
        method="moon_scrubbing",
        method_title="moon scrubbing",
        method_role=role,
        method_texts=texts,
        stages=[{"name": name, "title": title} for name, title in STAGES.items()],
        losses={"before": stage(3.0, 3.1, 3.4), "scrubbed": stage(3.5, 3.2, 7.0), "polished": stage(3.4, 3.15, 6.0)},
        differences={},
        generations=generations("before", "polished"),
        mean_of_batch_means={"batch_size": 16, "scrubbed": {"forget": 3.5, "retain": 3.2}},
    )


def test_its_card() -> None:
    card = render_model_card(invented())
    for expected in (
        "A model that hf_era 0.2.0 **scrubbed** ([a paper](https://arxiv.org/abs/1234.56789)).\n\nIn two parts.",
        "It was scrubbed by moonlight.",
        "| Method | moon scrubbing |",
        "| After scrubbing | 3.500",
        'This checkpoint is the row "After polishing".',
        "- moon-scrubbing\n",
        "name: Perplexity on forget examples",
        "🟢 **Removed? Yes.** The forget loss is +0.400",
        "No comparison with data filtering",
    ):
        assert expected in card, expected
    for other in ("module was cut out", "Auxiliary module", "Selectivity", "localised", "After ablation"):
        assert other not in card, other


def test_its_report_and_its_plots() -> None:
    text = render_report(invented())
    page = check_needs_nothing_else(text)
    assert "moon scrubbing, from a pretrained model, seed 0" in page.text
    assert "This is moon scrubbing, which nobody has tried." in page.text
    assert "After scrubbing 3.500 [3.420, 3.580] 3.200" in page.text
    assert "<h4>After polishing</h4>" in text  # what its last stage wrote
    assert "No leak audit was made." not in page.text
    for kind in plot_kinds([invented()]):
        assert "<svg" in figure_svg(kind.draw([invented()]))


def test_a_comparison_with_it(tmp_path: Path) -> None:
    results = [invented(), run_result(), stock_result()]
    text = comparison_markdown(results)
    assert "| scrubbed_run | 0 | +0.400 |" in text  # forget 3.4 at the end, 3.0 before
    assert "| moon scrubbing | pretrained |" in text
    assert "moon scrubbing pretrained" in Page(render_comparison(results)).text
    assert all(path.stat().st_size > 500 for path in write_comparison_files(results, tmp_path))


def test_the_row_of_an_invented_control_is_set_off() -> None:
    control = invented("control")
    assert "| **scrubbed_run** | 0 | +0.400 |" in comparison_markdown([control, run_result()])
    assert "No comparison with data filtering" not in " ".join([render_model_card(control), *not_tested(control)])


def test_what_an_untouched_one_is_not_asked() -> None:
    untouched = invented("untouched")
    untouched.attack = None
    assert not untouched.has_checkpoint
    assert {line.answer for line in verdict(untouched)} == {"Untouched"}


def test_without_prose_nothing_is_made_up() -> None:
    card = render_model_card(invented(texts={}))
    assert 'that was made by hf_era 0.2.0 with the method "moon scrubbing".' in card
    assert "\n\n\n" not in card
    assert "None" not in card
    assert "nobody has tried" not in render_report(invented(texts={}))


# ---- The source ----


def named_methods(root: Path) -> list[str]:
    """One line for each place in the source where the name of a method stands as a string."""
    files = sorted(root.rglob("*.py"))
    assert files, f"no Python file under {root}: nothing was checked"
    return [f"{path.name}:{line}: {name}" for path in files for line, name in _names(ast.parse(path.read_text()))]


def _names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Any such string; `base` is also a key of configs, so that it counts only where it is compared.

    The field `data_filtering` of a result is read as an attribute, which is no string.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in ("gradient_routing", "data_filtering"):
            yield node.lineno, str(node.value)
        compared = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        compared += [node.value] if isinstance(node, ast.MatchValue) else []
        for part in compared:
            for item in part.elts if isinstance(part, ast.Tuple | ast.List | ast.Set) else [part]:
                if isinstance(item, ast.Constant) and item.value == "base":
                    yield item.lineno, "base"


def test_no_report_asks_for_the_name_of_a_method(repository_root: Path) -> None:
    assert named_methods(repository_root / "hf_era" / "reporting") == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('x = figures.method == "gradient_routing"', "gradient_routing"),
        ('if "data_filtering" != result.method:\n    pass', "data_filtering"),
        ('x = result.method in ("data_filtering", "base")', "data_filtering"),
        ('TITLES = {"gradient_routing": "gradient routing"}', "gradient_routing"),
        ('FILTERED = "data_filtering"', "data_filtering"),
        ('match method:\n    case "base":\n        pass', "base"),
        ('x = TITLES.get("gradient_routing")', "gradient_routing"),
    ],
)
def test_a_planted_name_is_found(source: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "fine.py").write_text("values = result.data_filtering or {}\n")
    assert named_methods(tmp_path) == []
    (tmp_path / "planted.py").write_text(source)
    assert any(line.endswith(f": {found}") for line in named_methods(tmp_path))
