"""Several modules in tables, terminal, page, card and comparison, by planted results."""

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from hf_era.evaluation.results import AnyResult
from hf_era.reporting import module_tables
from hf_era.reporting.comparison import comparison_json, comparison_markdown
from hf_era.reporting.html.comparison import render_comparison
from hf_era.reporting.html.report import render_report
from hf_era.reporting.markdown.model_card import render_model_card
from hf_era.reporting.plots import plot_kinds
from hf_era.reporting.terminal import print_result

from .samples import HOSTILE, model_result, module_values, profile_values, run_of_modules, run_result


@pytest.fixture(autouse=True)
def _without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take seconds, and have tests of their own."""
    for module in ("report", "modules", "comparison"):
        monkeypatch.setattr(f"hf_era.reporting.html.{module}.plots_of", lambda results, kinds: [])


def printed(result: AnyResult) -> str:
    screen = io.StringIO()
    print_result(result, Console(file=screen, width=200))
    return screen.getvalue()


def profiles_alone() -> AnyResult:
    """Of `hf-era eval RUN --profiles`."""
    return model_result(before=None, profiles=profile_values(), differences={}, attack=None, generations={})


def test_each_module_has_a_verdict_of_its_own() -> None:
    result = run_of_modules()
    found = {name: [line.answer for line in lines] for name, lines in module_tables.verdicts(result).items()}
    assert found == {
        "biology": ["Yes", "Unclear: kept learning", "At least 41 %"],
        "chemistry": ["No: nothing was localised", "Unclear: kept learning", "Nothing to come back"],
    }
    differing = module_tables.differing_verdicts(result)
    assert {name: [line.question for line in lines] for name, lines in differing.items()} == {
        "biology": ["Comes back?"],
        "chemistry": ["Removed?", "Comes back?"],
    }


def test_the_table_of_modules() -> None:
    table = module_tables.modules_table(run_of_modules())
    assert table is not None
    rows = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    assert [row["Module"] for row in rows] == ["biology", "chemistry"]
    assert rows[0]["Removed?"] == "Yes"
    assert rows[0]["All modules on"].startswith("3.000 [")
    assert rows[0]["This one off"].startswith("3.400 [")
    assert rows[0]["This model"].startswith("3.500 [")
    assert rows[1]["Unlearning"] == "+0.020 [-0.010, +0.050]"
    assert rows[0]["Robust unlearning"].startswith("≤ +")


def test_the_table_of_crosstalk_has_a_modules_own_gap_on_its_diagonal() -> None:
    table = module_tables.crosstalk_table(run_of_modules())
    assert table is not None
    assert table.header == ["Switched off", "biology: forget examples", "chemistry: forget examples", "Retain examples"]
    assert [[cell.split(" ")[0] for cell in row] for row in table.rows] == [
        ["biology", "+0.500", "+0.011", "+0.030"],
        ["chemistry", "+0.022", "+0.020", "+0.030"],
    ]


def test_the_table_of_selectivity_by_module() -> None:
    modules = module_values()
    del modules["chemistry"]["selectivity"]["1"]
    table = module_tables.module_selectivity_table(run_of_modules(modules=modules))
    assert table is not None
    assert table.rows == [["0", "2.40 [2.20, 2.60]", "1.40 [1.20, 1.60]"], ["1", "2.40 [2.20, 2.60]", "-"]]


def test_the_table_of_profiles() -> None:
    table = module_tables.profiles_table(profiles_alone())
    assert table is not None
    assert [row[0] for row in table.rows] == [
        "core",
        "core + biology",
        "core + chemistry",
        "core + biology + chemistry",
    ]
    assert [row[1].split(" ")[0] for row in table.rows] == ["3.500", "3.000", "3.500", "3.000"]
    # Whose an example is need not be known.
    whole = [{**part, "losses": {**part["losses"], "modules": {}}} for part in profile_values()]
    table = module_tables.profiles_table(model_result(profiles=whole))
    assert table is not None
    assert table.header == ["Profile", "Forget examples", "Retain examples"]


def test_in_the_terminal_modules_stand_below_the_whole_verdict() -> None:
    shown = printed(run_of_modules())
    assert "chemistry: Removed?  " in shown
    assert "biology: Removed?" not in shown  # as of the whole
    assert shown.index("Comes back?") < shown.index("biology: Comes back?") < shown.index("Switched off")
    assert "core + biology + chemistry" in shown


def test_profiles_alone_are_one_table_and_no_verdict() -> None:
    shown = printed(profiles_alone())
    assert "core + biology + chemistry" in shown
    assert "Removed?" not in shown
    assert "This model" not in shown
    page = render_report(profiles_alone())
    assert 'id="verdict"' not in page
    assert [kind.name for kind in plot_kinds([profiles_alone()])] == ["trade_off", "profiles"]
    assert "core + biology + chemistry" in page


def test_with_one_module_nothing_is_said_of_modules() -> None:
    result = run_result()
    assert module_tables.verdicts(result) == {}
    tables = (module_tables.modules_table, module_tables.crosstalk_table, module_tables.profiles_table)
    assert [make(result) for make in (*tables, module_tables.module_selectivity_table)] == [None] * 4
    assert 'id="modules"' not in render_report(result)
    assert "## Modules" not in render_model_card(result)
    assert "## Modules" not in comparison_markdown([result])
    assert "modules" not in comparison_json([result])
    assert "Switched off" not in printed(result)


def test_the_card_and_the_report_have_a_section() -> None:
    card, page = render_model_card(run_of_modules()), render_report(run_of_modules())
    assert "## Modules" in card
    assert "| chemistry | No: nothing was localised |" in card
    assert "| biology | +0.500 [+0.470, +0.530] | +0.011 [+0.007, +0.015] |" in card
    assert 'id="modules"' in page
    assert "<summary>The module biology</summary>" in page
    assert "Removed? No: nothing was localised." in page
    # Fewer trials than of the attack with all examples, and that is said.
    assert "\nbiology: \\`attack.stories\\` asks for 256 stories" in card
    assert "<li>biology: `attack.stories` asks for 256 stories" in page


def test_a_comparison_has_a_row_per_result_and_module() -> None:
    results = [run_of_modules(), run_result(name="one")]
    rows = comparison_json(results)["modules"]
    assert [(row["name"], row["module"]) for row in rows] == [
        ("posttrain_fullseq", "biology"), ("posttrain_fullseq", "chemistry"),
    ]  # fmt: skip
    assert rows[0]["ablation_gap"]["value"] == 0.5
    assert rows[1]["largest_crosstalk"]["value"] == pytest.approx(0.022)
    assert "Largest crosstalk" in comparison_markdown(results)
    bounds = [row["at_most"] for row in rows]
    shown = [line for line in comparison_markdown(results).split("## Modules")[1].splitlines() if "| 0 |" in line]
    assert ["≤" in line for line in shown] == [bool(one) for one in bounds]
    negative = module_values()
    negative["biology"]["crosstalk"] = {"chemistry": {"value": -0.4, "low": -0.5, "high": -0.3}}
    (row, _) = comparison_json([run_of_modules(modules=negative)])["modules"]
    assert row["largest_crosstalk"]["value"] == -0.4
    assert 'id="modules"' in render_comparison(results)


def test_a_comparison_shows_tasks() -> None:
    """Each result's own figures, also of two results with one name and seed."""

    def accuracy(value: float, **about: Any) -> dict[str, Any]:
        metrics = {"acc": {"value": value, "standard_error": 0.01, "low": value - 0.1, "high": value + 0.1}}
        return {"examples": 40, "shots": 0, "version": 1, "chance": 0.25, "group": None, "metrics": metrics, **about}

    run = run_result(tasks={"before": {"wmdp": accuracy(0.6)}, "after_coherence": {"wmdp": accuracy(0.3)}})
    again = run_result(tasks={"after_coherence": {"wmdp": accuracy(0.4), "part": accuracy(0.9, group="wmdp")}})
    other = model_result(name="other", tasks={"final": {"wmdp": accuracy(0.5)}, "ablated": {"wmdp": accuracy(0.2)}})
    results = [run, again, other, run_result(name="without")]
    rows = comparison_json(results)["tasks"]
    figures = [[row[stage] and row[stage]["value"] for stage in ("before", "final", "ablated")] for row in rows]
    assert figures == [[0.6, 0.3, None], [None, 0.4, None], [None, 0.5, 0.2]]
    text = comparison_markdown(results)
    row = "| posttrain_fullseq | 0 | wmdp | Accuracy | 0.600 [0.500, 0.700] | 0.300 [0.200, 0.400] | - | 40 | 0.250 |"
    assert row.lower() in text.lower()
    assert 'id="tasks"' in render_comparison(results)
    assert "tasks" not in comparison_json([run_result()])
    assert "## Tasks" not in comparison_markdown([run_result()])


def test_the_card_says_whose_labels_are_whose_and_what_a_module_file_is() -> None:
    result = run_of_modules()
    labelling = {"kind": "column", "column": "topic", "forget_labels": ["cells", "acids"], "retain_labels": []}
    labelling["modules"] = {"biology": ["cells"], "chemistry": ["acids"]}
    counts = {"biology": {"train_stories": 1200, "train_tokens": 34_000, "attack_forget_stories": 8}}
    card = render_model_card(replace(result, data={**result.data, "labelling": labelling, "modules": counts}))
    assert '"cells" (module biology), "acids" (module chemistry) in the column "topic" makes a forget example' in card
    assert "| Module biology: forget examples to train on | 1,200 examples, 34,000 tokens |" in card
    assert "A module file restores the capability, and publishing it publishes the capability" in " ".join(card.split())
    control = render_model_card(run_result(stages=[{"name": "after_training", "title": "After training"}]))
    assert "A module file" not in control


def test_what_was_not_measured_of_a_module_is_left_out() -> None:
    """A control has losses by module, and nothing of the modules themselves; an attack may be missing."""
    bare = {name: {"losses": own["losses"]} for name, own in module_values().items()}
    result = run_of_modules(modules=bare, profiles=[])
    assert module_tables.crosstalk_table(result) is None
    card = render_model_card(result)
    assert "Robust unlearning" in card
    assert "biology: no attack with its own forget examples was made." in card
    assert "This model" in render_report(result)
    empty = run_of_modules(modules={"biology": {}, "chemistry": {}}, profiles=[{"name": "core", "on": []}])
    assert "core" in printed(empty)
    assert render_report(empty)
    assert render_model_card(empty)


def test_names_of_modules_are_text() -> None:
    names = (HOSTILE, "[bold]x[/]")
    result = run_of_modules(modules=module_values(names), profiles=profile_values(names))
    page = render_report(result)
    assert "<script>document" not in page
    assert "&lt;script&gt;document" in page
    assert "[bold]x[/]" in printed(result)
    assert "<script>document" not in render_comparison([result])
