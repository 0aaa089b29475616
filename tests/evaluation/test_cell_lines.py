"""Lines of cells, what they are measured against, and the table over seeds."""

import re
from dataclasses import replace
from itertools import pairwise

import pytest

from hf_era.evaluation.cell_lines import MOST_POINTS, read_lines, thinned, write_lines
from hf_era.evaluation.cell_table import table_of
from hf_era.evaluation.intervals import mean_interval
from hf_era.evaluation.yardsticks import References, check_references

BUDGETS = (300, 600, 1200, 2400)
BASE, FILTERING = (tuple(f"{kind}_{budget}" for budget in BUDGETS) for kind in ("base", "filtering"))
REFERENCES = References(BASE, FILTERING, "base_1200", {"routed": "filtering_1200"})


def retain_loss(compute):
    return 2.0 + 20 * compute**-0.5


def line(row, seed, retain, forget, compute=1200, **more):
    attack = {"lowest_forget": forget, "robust_unlearning": forget - 2.5, "edges": ["stories"], "name": "full 64 0.001"}
    return {
        "testbed": "trees", "row": row, "seed": seed, "method": row.split("_")[0], "role": "method", "compute": compute,
        "retain_loss": retain + 0.1 * seed, "forget_loss": forget + 0.2, "attack": attack | more.pop("attack", {}), **more,
    }  # fmt: skip


def lines_of(seeds=(0, 1), gap=0.8):
    """On A the attacked forget loss is the retain loss, on D it is `gap` higher; a seed's losses are all 0.1 higher."""
    found = []
    for seed in seeds:
        for budget in BUDGETS:
            retain = retain_loss(budget)
            found.append(line(f"base_{budget}", seed, retain, retain + 0.1 * seed, budget))
            found.append(line(f"filtering_{budget}", seed, retain, retain + 0.1 * seed + gap, budget))
        # Where it is a base of 800 steps, three quarters of the way up; seed 1 half the way.
        retain = retain_loss(800)
        found.append(line("routed", seed, retain, retain + 0.1 * seed + gap * (0.75 - 0.25 * seed)))
    return found


def rows_of(table):
    return {row["row"]: row for row in table["rows"]}


def test_every_cell_is_measured_against_the_models_of_its_seed():
    measured, table = table_of(lines_of(), ["base_1200", "routed"], REFERENCES)
    routed = [part for part in measured if part["row"] == "routed"]
    assert [part["share_of_filtering"]["loss"] for part in routed] == pytest.approx([0.75, 0.5], abs=1e-3)
    assert [part["compute_ratio"]["retain"]["value"] for part in routed] == pytest.approx([2 / 3] * 2, abs=2e-3)
    # Worse at forget examples than the smallest base.
    assert routed[0]["compute_ratio"]["forget_attacked"] == {"value": 0.25, "bound": "at most"}
    rows = rows_of(table)
    assert list(rows) == ["base_1200", "routed"]  # those asked for, in that order
    figures = rows["routed"]["figures"]
    assert figures["share_of_filtering"] == pytest.approx(mean_interval([0.75, 0.5]).to_dict(), abs=1e-2)
    assert figures["retain_tax"]["value"] == pytest.approx(retain_loss(800) - retain_loss(1200))
    over = [retain_loss(800) - retain_loss(1200) - part for part in (0.2, 0.4)]
    assert figures["over_filtering"]["value"] == pytest.approx(sum(over) / 2)
    assert figures["retain_over_filtering"]["value"] == pytest.approx(retain_loss(800) - retain_loss(1200))
    assert rows["base_1200"]["figures"]["retain_tax"]["value"] == 0
    (testbed,) = table["testbeds"]
    assert testbed["range"]["loss"]["mean"] == pytest.approx(0.8)
    assert testbed["compute_curves"]["retain"]["exponent"] == pytest.approx(0.5, rel=1e-2)
    assert testbed["notes"] == []


def test_a_seed_without_its_own_models_is_measured_against_the_mean_of_the_others():
    lines = [*lines_of(seeds=(0,)), line("routed", 1, 2.7, 3.2)]  # retain loss 2.8, seed 1
    measured, _ = table_of(lines, ["routed"], REFERENCES)
    assert measured[-1]["share_of_filtering"]["loss"] == pytest.approx(0.5)


def test_bounds_and_figures_that_not_all_seeds_have():
    lines = lines_of()
    lines.append(line("wild", 0, 2.0, 9.0, attack={"edges": ["stories", "steps"]}))
    lines.append(line("wild", 1, 2.7, 3.0))
    _, table = table_of(lines, ["routed", "wild"], REFERENCES)
    wild = rows_of(table)["wild"]
    # Seed 0 lies outside of the curves: no mean over what is left.
    assert wild["figures"]["share_of_filtering"] == {"value": None, "low": None, "high": None, "seeds": 1}
    falls = ("attacked_forget_loss", "robust_unlearning", "over_filtering", "of_filtering", "share_of_filtering")
    assert wild["bounds"] == {
        **dict.fromkeys((*falls, "share_of_filtering_error"), "at most"),
        "compute_ratio_retain": "at least", "compute_ratio_forget": "at most", "attacked_accuracy": "at least",
        "forget_recovery": "at least",
        "compute_ratio_forget_attacked": "at least and at most",  # outside of the budgets, and of an open attack
    }  # fmt: skip
    assert "compute_ratio_retain" not in rows_of(table)["routed"]["bounds"]


def test_an_open_attack_on_a_reference_model_makes_shares_a_bound_from_below():
    lines = lines_of()
    for part in lines:
        if part["row"] == "filtering_1200" and part["seed"] == 1:
            part["attack"]["edges"] = ["learning rate"]
    _, table = table_of(lines, ["routed"], REFERENCES)
    bounds = rows_of(table)["routed"]["bounds"]
    names = ("share_of_filtering", "share_of_filtering_error", "over_filtering", "of_filtering")
    assert {name: bounds.get(name) for name in (*names, "attacked_forget_loss")} == {
        **dict.fromkeys(names, "at least"), "attacked_forget_loss": None,
    }  # fmt: skip


def test_a_row_of_the_frontier_is_compared_with_what_continued_for_as_long():
    frontier = {"all": ("all_300", "all_600"), "method": ("method_300", "method_600", "filtered_600")}
    references = replace(REFERENCES, frontier=frontier, continuing=frontier["all"])
    attack = {"start_forget": 3.5}
    lines = [
        *lines_of(),
        *(line(f"all_{own}", seed, 2.0, 2.0, 1200 + own, own_compute=own) for own in (300, 600) for seed in (0, 1)),
        *(
            line(f"method_{own}", seed, 2.0 + own / 1000, 3.0, 1200 + own, own_compute=own, attack=attack)
            for own in (300, 600)
            for seed in (0, 1)
        ),
        *(line("filtered_600", seed, 3.0, 3.0, 600, own_compute=600, start="scratch") for seed in (0, 1)),
    ]
    for part in lines:
        if "own_compute" in part and "start" not in part:
            part["training_share"] = part["own_compute"] / 1200
    rows = rows_of(table_of(lines, ["routed", *frontier["all"], *frontier["method"]], references)[1])
    shares = {row: rows[row]["figures"]["training_share"]["value"] for row in (*frontier["all"], *frontier["method"])}
    # From random weights it is a share of the base control's compute.
    assert shares == {"all_300": 0.25, "all_600": 0.5, "method_300": 0.25, "method_600": 0.5, "filtered_600": 0.5}
    over = {row: rows[row]["figures"]["over_continuing"]["value"] for row in frontier["method"]}
    assert over == pytest.approx({"method_300": 0.3, "method_600": 0.6, "filtered_600": 1.0})
    recovered = {name: rows["method_300"]["figures"].get(f"{name}_recovery") for name in ("forget", "retain")}
    assert recovered["forget"]["value"] == pytest.approx(0.5)
    assert recovered["retain"] is None  # not recorded
    assert "training_share" not in rows["routed"]["figures"]
    references = replace(references, base_control=None)  # that with the most
    found = rows_of(table_of(lines, ["filtered_600"], references)[1])["filtered_600"]["figures"]["training_share"]
    assert found["value"] == 0.25


def test_each_kind_of_attack_has_its_own_figures():
    def attacked(name, row, forget, edges=()):
        start = {"start_forget": 4.0, "start_retain": 2.5}
        kinds = {
            "full, forget": start | {"lowest_forget": forget, "retain_at_lowest": 3.0, "edges": []},
            "lora, forget": start | {"lowest_forget": forget + 0.3, "retain_at_lowest": 2.6, "edges": [*edges]},
        }
        return line(name, row, 2.5, forget, attack={"kinds": kinds})

    lines = [*(attacked("filtering_1200", seed, 3.6) for seed in (0, 1)), attacked("routed", 0, 3.0, ["stories", "steps"]),
             attacked("routed", 1, 3.2, ["stories"]), *(attacked("base_1200", seed, 2.6) for seed in (0, 1))]  # fmt: skip
    rows = rows_of(table_of(lines, ["filtering_1200", "routed"], REFERENCES)[1])
    kinds = rows["routed"]["attack_kinds"]
    means = {kind: {name: value["value"] for name, value in part["figures"].items()} for kind, part in kinds.items()}
    assert means == {
        "full, forget": pytest.approx(
            {
                "attacked_forget_loss": 3.1,
                "over_filtering": -0.5,
                "between_controls": 0.5,
                "forget_recovery": 0.9,
                "retain_recovery": -0.5,
            }
        ),
        "lora, forget": pytest.approx(
            {
                "attacked_forget_loss": 3.4,
                "over_filtering": -0.5,
                "between_controls": 0.5,
                "forget_recovery": 0.6,
                "retain_recovery": -0.1,
            }
        ),
    }
    assert kinds["full, forget"]["bounds"] == {}
    falls = ("attacked_forget_loss", "over_filtering", "between_controls")
    own = dict.fromkeys(falls, "at most") | {"forget_recovery": "at least"}
    assert kinds["lora, forget"]["bounds"] == own
    lines[0]["attack"]["kinds"]["lora, forget"]["edges"] = ["learning rate"]  # and of the control as well
    del lines[3]["attack"]["kinds"]["lora, forget"]  # which failed with one seed
    (lora,) = [rows_of(table_of(lines, ["routed"], REFERENCES)[1])["routed"]["attack_kinds"]["lora, forget"]]
    assert lora["bounds"] == own | dict.fromkeys(falls[1:], "at least and at most")
    assert lora["figures"]["attacked_forget_loss"] == {"value": None, "low": None, "high": None, "seeds": 1}
    assert "attack_kinds" not in rows_of(table_of(lines_of(), ["routed"], REFERENCES)[1])["routed"]


def test_accuracies_are_measured_as_error_rates():
    lines = lines_of(seeds=(0,))
    for part in lines:
        share = {"base": 0, "filtering": 1, "routed": 0.25}[part["method"]]
        curve = {"accuracy": [0.5, 0.95 - 0.8 * share, 0.9 - 0.8 * share]}
        part["attack"] |= {"accuracy": 0.9 - 0.8 * share, "start_accuracy": 0.5, "curve": curve}
    measured, table = table_of(lines, ["routed"], REFERENCES)
    assert measured[-1]["share_of_filtering"]["error"] == pytest.approx(0.25)
    assert rows_of(table)["routed"]["figures"]["highest_accuracy"]["value"] == pytest.approx(0.75)
    assert table["testbeds"][0]["range"]["error"] == {
        "mean": pytest.approx(0.8), "lowest": pytest.approx(0.8), "highest": pytest.approx(0.8),
        "retain": pytest.approx([retain_loss(2400), retain_loss(300)]), "discriminates": True,
    }  # fmt: skip


def test_what_there_are_too_few_models_for_is_said():
    lines = [part for part in lines_of(seeds=(0,)) if part["row"] not in ("base_300", "base_600")]
    _, table = table_of(lines, ["routed"], REFERENCES)
    (testbed,) = table["testbeds"]
    assert "No compute ratio of the retain loss: A compute curve needs base runs of at least 3" in testbed["notes"][0]
    assert any("No share of filtering (loss), A: A reference curve needs" in note for note in testbed["notes"])
    assert "share_of_filtering" not in rows_of(table)["routed"]["figures"]


@pytest.mark.parametrize(
    ("base", "filtering", "message"),
    [
        (BASE[:2], (), "`base_curve` names 2 rows; a compute ratio needs base controls of at least 3 budgets"),
        (BASE[:3], FILTERING, "`base_curve` 3; a share of filtering needs at least 4 budgets of each"),
        (BASE, FILTERING[:2], "`filtering_curve` names 2 rows"),
    ],
)
def test_curves_with_too_few_rows(base, filtering, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_references(References(base, filtering))


def test_a_thinned_curve_keeps_its_ends_and_its_lowest_point():
    for size, kept in ((20, 3), (31, 17), (200, 199), (1000, 7)):
        points = thinned(list(range(size)), kept)
        assert len(points) == min(size, len(points))
        assert len(points) <= MOST_POINTS
        assert {0, size - 1, kept} <= set(points)
        assert points == sorted(points)
    assert max(after - before for before, after in pairwise(points)) < 60


def test_lines_are_read_as_they_were_written(tmp_path):
    path, lines = tmp_path / "cells.jsonl", lines_of()
    assert read_lines(path) == {}
    write_lines(path, lines)
    assert list(read_lines(path).values()) == lines
    path.write_text(path.read_text() + '{"row": "half a li')
    with pytest.raises(ValueError, match=f"line {len(lines) + 1}, is no cell of a matrix .* Take it out"):
        read_lines(path)
