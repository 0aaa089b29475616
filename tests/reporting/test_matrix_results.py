"""What stays of the cells of a matrix: lines, a table and a plot, with or without the runs."""

import json
import shutil

import pytest
import yaml

from hf_era.cli import main
from hf_era.evaluation.cell_lines import cell_line, read_lines
from hf_era.reporting.matrix_tables import kinds_table, labels_text, matrix_markdown, rows_table
from hf_era.reporting.plots import frontier, reference_curves
from hf_era.run.matrix import load_matrix
from hf_era.run.matrix_results import CellLines, aggregate_cells


def test_the_line_of_a_result(make_result):
    line = cell_line(make_result(), "trees", "abc")
    assert {name: line[name] for name in ("testbed", "row", "seed", "method", "router", "start", "settings_key")} == {
        "testbed": "trees", "row": "posttrain_fullseq", "seed": 0, "method": "gradient_routing", "router": "activation",
        "start": "pretrained", "settings_key": "abc",
    }  # fmt: skip
    assert (line["labelled_fraction"], line["label_errors"]) == (0.5, "random")
    assert (line["forget_loss"], line["retain_loss"]) == (1.802, 1.291)
    assert line["before"] == {"forget": 1.201, "retain": 1.273}
    assert line["with_modules"] == {"forget": 1.086, "retain": 1.079}
    attack = line["attack"]
    assert (attack["name"], attack["trials"], attack["lowest_step"]) == ("full 4 5e-05", 2, 12.5)
    assert attack["lowest_forget"] == pytest.approx((1.24 + 1.4) / 2)
    assert attack["curve"] == {
        "step": [0, 5, 10, 15],
        "forget": [1.8, 1.5, 1.3, 1.24],
        "retain": [1.3, 1.31, 1.32, 1.33],
    }
    assert list(attack["kinds"]) == ["full, forget", "lora, forget"]
    assert attack["kinds"]["full, forget"]["lowest_forget"] == attack["lowest_forget"]
    assert line["steps"] == 300
    assert len(json.dumps(line)) < 2_000


def test_steps_of_what_a_cell_went_on_from(make_result):
    trained = {"base_training": {"steps": 700}, "training": {"steps": 300}}
    config = make_result().config | {"pretraining": {"per_device_train_batch_size": 10}}
    further = cell_line(make_result(**trained, config=config))
    assert (further["steps"], further["base_steps"], further["compute"]) == (300, 700, 300 * 16 + 700 * 10)
    assert (further["own_compute"], further["training_share"]) == (300 * 16, pytest.approx(4800 / 7000, abs=1e-4))
    given = cell_line(make_result(training={"steps": 300}, base_training={}, config=config | {"budget": 0.01}))
    assert given["training_share"] == 0.01  # of a base from elsewhere
    scratch = cell_line(make_result(**trained, config={**config, "model": {"start": "scratch"}}))
    assert (scratch["steps"], scratch["base_steps"]) == (300, 0)  # that was the base control
    base = cell_line(make_result(**trained, method="base", method_role="untouched"))
    assert (base["steps"], base["base_steps"], base["compute"]) == (0, 700, 11_200)


@pytest.fixture
def matrix_file(tmp_path, make_result):
    """A matrix of two testbeds whose cells, but for one, have results."""
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"model": {"start": "scratch"}}))
    values = {
        "output_dir": str(tmp_path / "matrix"),
        "seeds": [0],
        "testbeds": {"trees": {}, "letters": {"data": {"max_tokens": 99}}},
        "settings": {
            "output_dir": str(tmp_path / "runs" / "{testbed}" / "{name}-seed{seed}"),
            "data": {"train": "a.jsonl", "forget_words": ["a"]},
        },
        "runs": [
            {"name": "first", "recipe": "recipe.yaml"},
            {"name": "second", "recipe": "recipe.yaml", "settings": {"expansion": {"width": 7}}},
        ],
    }  # fmt: skip
    path = tmp_path / "matrix.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    for cell in load_matrix(path)[1][:3]:
        make_result(name=cell.row, config=cell.config.to_dict()).save(cell.result_file)
    return path


def test_a_matrix_is_aggregated_from_its_lines_alone(matrix_file, tmp_path, capsys, monkeypatch):
    # Half a second each; what is drawn is looked at below.
    monkeypatch.setattr("hf_era.run.matrix_results.figure_svg", lambda figure: f"{len(figure.axes)} panels")
    folder = tmp_path / "matrix"
    assert main(["matrix", str(matrix_file), "--aggregate"]) == 0
    assert "3 of 4 cells compared in" in capsys.readouterr().err
    lines = list(read_lines(folder / "cells.jsonl").values())
    assert [(line["testbed"], line["row"]) for line in lines] == [
        ("trees", "first"),
        ("trees", "second"),
        ("letters", "first"),
    ]
    assert [line["settings"] for line in lines] == [
        {"expansion.width": 64},
        {"expansion.width": 7},
        {"expansion.width": 64},
    ]
    table = (folder / "table.md").read_text()
    assert "## letters" in table
    assert (folder / "plots" / "reference_curves.svg").read_text() == "2 panels"
    assert not (folder / "comparison.md").exists()
    # On another machine: the runs are gone, and a new one comes.
    cells = load_matrix(matrix_file)[1]
    text = cells[0].result_file.read_text()
    shutil.rmtree(tmp_path / "runs")
    assert main(["matrix", str(matrix_file), "--list"]) == 0
    assert ["done" in line for line in capsys.readouterr().out.splitlines()] == [True, True, True, False]
    last = json.loads(text) | {"name": "second", "config": cells[3].config.to_dict()}
    cells[3].result_file.parent.mkdir(parents=True)
    cells[3].result_file.write_text(json.dumps(last))
    assert main(["matrix", str(matrix_file), "--aggregate"]) == 0
    assert list(read_lines(folder / "cells.jsonl").values())[:3] == lines
    assert len((folder / "cells.jsonl").read_text().splitlines()) == 4


def test_a_result_of_other_settings_does_not_replace_a_line(matrix_file, make_result):
    matrix, cells = load_matrix(matrix_file)
    CellLines(matrix, cells).add(*cells)
    make_result(name=cells[0].row, created="later").save(cells[0].result_file)
    lines = CellLines(matrix, cells)
    assert lines.add(*cells)[0]["date"] != "later"
    assert [lines.has(cell) for cell in cells] == [True, True, True, False]
    # With other settings of the cell both are old: the later one is taken, and has to be made again.
    matrix, cells = load_matrix(matrix_file, {"settings": {"training": {"max_steps": 3}}})
    lines = CellLines(matrix, cells)
    assert lines.add(*cells)[0]["date"] == "later"
    assert not any(map(lines.has, cells))


def test_the_table_says_which_lines_are_of_other_settings(matrix_file, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_era.run.matrix_results.figure_svg", lambda figure: "")

    def aggregate(width):
        values = yaml.safe_load(matrix_file.read_text())
        values["runs"][1]["settings"]["expansion"]["width"] = width
        matrix_file.write_text(yaml.safe_dump(values, sort_keys=False))
        aggregate_cells(*load_matrix(matrix_file))
        table = json.loads((tmp_path / "matrix" / "table.json").read_text())
        notes = {
            part["name"]: [note for note in part["notes"] if "other settings" in note] for part in table["testbeds"]
        }
        return notes, [row["settings"] for row in table["rows"] if row["row"] == "second"]

    assert aggregate(7) == ({"trees": [], "letters": []}, [{"expansion.width": 7}])
    # The row is changed, and nothing was run since.
    notes, settings = aggregate(9)
    assert notes["letters"] == []
    (note,) = notes["trees"]
    assert note.startswith(
        "Of other settings than the matrix has now, or of seeds that it no longer has: second, seed 0."
    )
    assert settings == [{"expansion.width": 7}]


def figures(**values):
    return {name: {"value": value, "low": None, "high": None} for name, value in values.items()}


TABLE = {
    "testbeds": [
        {
            "name": "trees",
            "range": {
                "loss": {"mean": 0.09, "lowest": 0.08, "highest": 0.1, "retain": [2.7, 3.1], "discriminates": False},
                "error": {"mean": 0.4, "lowest": 0.35, "highest": 0.5, "retain": [2.7, 3.1], "discriminates": True},
            },
            "curves": {"loss": {"base": {"retain": [2.7, 3.1], "forget": [2.8, 3.2]}}},
            "compute_curves": {},
            "notes": ["No compute ratio: too few."],
        }
    ],
    "rows": [
        {
            "testbed": "trees", "row": name, "method": "gradient_routing", "role": "method", "router": router,
            "labelled_fraction": 0.5, "label_errors": "short", "seeds": [0, 1],
            "figures": figures(retain_loss=2.8, attacked_forget_loss=2.9, compute_ratio_retain=1.5)
            | {"share_of_filtering": {"value": None, "seeds": 1}},
            "bounds": {"compute_ratio_retain": "at least", "attacked_forget_loss": "at most"},
        }
        for name, router in (("one", "gram"), ("two", "sgtm"))
    ],
}  # fmt: skip


def test_the_page_of_a_table():
    page = matrix_markdown(TABLE, "plots/p.svg")
    assert (
        "0.090 nats a token (0.080 to 0.100 at retain losses from 2.700 to 3.100). Below 0.3: this testbed is unable"
        in page
    )
    assert "40.0 points of accuracy (35.0 to 50.0 at retain losses from 2.700 to 3.100).\n" in page
    assert "No compute ratio: too few." in page
    assert "](plots/p.svg)" in page
    shown = rows_table(TABLE["rows"])
    assert shown.header[4:] == [
        "Retain loss",
        "Forget loss after the attack",
        "Share of filtering",
        "Compute ratio: retain",
    ]
    assert shown.rows[0] == [
        "one", "gradient_routing, gram", "50 %, short", "2", "2.800", "≤ 2.900", "1 of 2 seeds", "≥ 1.50",
    ]  # fmt: skip
    assert labels_text({"labelled_fraction": None, "label_errors": "score 0.5"}) == "score 0.5"
    assert kinds_table(TABLE["rows"]) is None
    attack = {
        "figures": figures(attacked_forget_loss=2.9, over_filtering=-0.25),
        "bounds": {"attacked_forget_loss": "at most"},
    }
    attacked = [TABLE["rows"][0] | {"attack_kinds": {"lora, retain": attack}}]
    assert kinds_table(attacked).rows == [["one", "50 %, short", "lora, retain", "≤ 2.900", "-0.250"]]
    assert "| lora, retain | ≤ 2.900 |" in matrix_markdown(TABLE | {"rows": attacked})


def test_the_plot_has_a_panel_per_testbed_with_curves_and_points():
    figure = reference_curves.draw(TABLE)
    (panel,) = figure.axes
    assert panel.get_title() == "trees: D - A 0.09 nats"
    assert [list(line.get_ydata()) for line in panel.lines[:1]] == [[2.8, 3.2]]
    assert [list(bars.lines[0].get_ydata()) for bars in panel.containers] == [[2.9], [2.9]]
    looks = reference_curves.looks_of_rows(TABLE["rows"])
    assert looks["one"].color != looks["two"].color
    assert len(reference_curves.draw(TABLE, ["one"]).axes[0].containers) == 1
    far = {**TABLE, "rows": [{**TABLE["rows"][0], "figures": figures(retain_loss=6.5, attacked_forget_loss=2.9)}]}
    (panel,) = reference_curves.draw(far).axes
    assert panel.get_xlim()[1] < 3.3  # a model that lost everything does not press the others together
    assert [text.get_text() for text in panel.texts] == ["at 6.5 \u2192"]
    wide = {"value": 2.9, "low": -5.0, "high": 10.0}
    rows = [{**TABLE["rows"][0], "figures": {**far["rows"][0]["figures"], "retain_loss": wide}}]
    (panel,) = reference_curves.draw({**TABLE, "rows": rows}).axes
    assert 2.4 < panel.get_xlim()[0] < panel.get_xlim()[1] < 3.3
    assert not reference_curves.draw({"testbeds": [], "rows": []}).axes[0].axison


def test_what_starts_from_a_model_has_a_panel_beside_what_starts_from_random_weights():
    first, second = TABLE["rows"][:2]
    rows = [first | {"start": "scratch"}, second | {"start": "pretrained"}]
    drawn = reference_curves.draw({**TABLE, "rows": rows})
    titles = [panel.get_title().split("\n")[1] for panel in drawn.axes]
    assert titles == ["from random weights", "from a pretrained model"]
    assert [len(panel.containers) for panel in drawn.axes] == [1, 1]
    assert [len(panel.lines) > 1 for panel in drawn.axes] == [True, True]  # both have the curves


def test_the_frontier_has_a_line_for_each_method_in_the_order_of_its_compute():
    def row(name, share, filtering, over, testbed="letters"):
        values = figures(training_share=share, share_of_filtering=filtering, over_continuing=over)
        return {"testbed": testbed, "row": name, "figures": values}

    rows = [
        row("kept_50", 0.5, 0.4, 0.0), row("kept_25", 0.25, 0.3, 0.1), row("noise_50", 0.5, 0.9, None),
        row("kept_25", 0.25, 0.8, 0.1, "facts"), row("other", None, 0.9, 0.1),
    ]  # fmt: skip
    methods = {"kept": ["kept_25", "kept_50"], "noise": ["noise_50"], "never run": ["never_50"]}
    drawn = frontier.draw({"rows": rows}, methods)
    assert [panel.get_title() for panel in drawn.axes if panel.get_title()] == ["letters", "facts"]
    panel = drawn.axes[0]
    assert [list(line.lines[0].get_xdata()) for line in panel.containers] == [[0.25, 0.5], [0.5]]
    assert list(panel.containers[0].lines[0].get_ydata()) == [0.3, 0.4]
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["kept", "noise"]
    ticks = [text.get_text() for text in drawn.axes[2].get_xticklabels()]
    assert ticks == ["25 %", "50 %"]
    assert len(frontier.draw({"rows": []}, methods).axes) == 1


def test_of_one_testbed_the_panels_stand_side_by_side_and_single_budgets_beside_one_another():
    def row(name, share, filtering):
        return {"testbed": "", "row": name, "figures": figures(training_share=share, share_of_filtering=filtering)}

    rows = [row("kept_25", 0.25, 0.3), row("kept_50", 0.5, 0.4), row("noise_50", 0.5, 0.9), row("npo_50", 0.501, 0.7)]
    methods = {"kept": ["kept_25", "kept_50"], "noise": ["noise_50"], "npo": ["npo_50"]}
    drawn = frontier.draw({"rows": rows}, methods)
    assert [panel.get_subplotspec().colspan.start for panel in drawn.axes] == [0, 1]
    places = [list(line.lines[0].get_xdata()) for line in drawn.axes[0].containers]
    assert places[0] == [0.25, 0.5]  # a line is where its budgets are
    (noise,), (npo,) = places[1:]
    assert 0.35 < noise < 0.5 < npo < 0.7
