"""An interval says what it is of: one run, over stories or trials; or several seeds of it, where they are known."""

import copy
import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from hf_era.cli import main
from hf_era.evaluation.results import RunResult
from hf_era.evaluation.summary import aggregate, comparison_values
from hf_era.reporting import comparison_tables, render_model_card, tables
from hf_era.reporting.cards import render_cards
from hf_era.reporting.html.report import render_report
from hf_era.reporting.seeds import seeds_of

OF_WHAT = ("of this run", "of its own run", "over trials", "over seeds", "trials and seeds")


@pytest.fixture(autouse=True)
def _without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second each, and nothing is looked for in them."""
    monkeypatch.setattr("hf_era.reporting.html.report.plots_of", lambda results, names: [])


@pytest.fixture
def seeds(make_result: Callable[..., RunResult]) -> list[RunResult]:
    """Three seeds whose unlearning is 0.601, 0.801 and 1.201; data filtering beside each has 0.4."""
    found = []
    for seed, shift in enumerate((0.0, 0.2, 0.6)):
        result = make_result(seed=seed, name="mine")
        result.losses["after_coherence"]["forget"]["loss"] += shift
        result.differences["unlearning"] = {"value": 0.601 + shift, "low": 0.5 + shift, "high": 0.7 + shift}
        filtered = comparison_values(make_result(seed=seed, name="filtered", attack=None))
        filtered["differences"]["unlearning"] = {"value": 0.4, "low": 0.3, "high": 0.5}
        result.data_filtering = filtered
        found.append(result)
    return found


def test_every_table_with_an_interval_says_what_it_is_of(seeds: list[RunResult]) -> None:
    result = seeds[0]
    shown: list[Any] = [
        tables.losses_table(result), tables.differences_table(result), tables.attacks_table(result),
        tables.selectivity_table(result), tables.ablation_table(result),
        comparison_tables.results_table(seeds), comparison_tables.strongest_attacks_table(seeds),
    ]  # fmt: skip
    for table in shown:
        assert any("[" in cell for row in table.rows for cell in row), f"{table.caption}: no interval to speak of"
        assert any(text in table.caption for text in OF_WHAT), table.caption


@pytest.mark.parametrize("render", [render_model_card, render_report])
def test_a_run_alone_says_that_it_is_alone(render: Callable[..., str], make_result: Callable[..., RunResult]) -> None:
    text = " ".join(render(make_result()).split())
    assert "of this run, over examples" in text
    assert "Over seeds" not in text
    assert "Other seeds" in text or "One seed" in text


@pytest.mark.parametrize("render", [render_model_card, render_report])
def test_the_interval_over_seeds_stands_beside_the_figure_of_one(
    render: Callable[..., str], seeds: list[RunResult]
) -> None:
    values = [0.601, 0.801, 1.201]
    mean = sum(values) / 3
    half = 4.302653 * math.sqrt(sum((value - mean) ** 2 for value in values) / 2) / math.sqrt(3)
    over_seeds = f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"
    text = render(seeds[1], seeds=seeds)
    plain = text.replace("\\", "")
    assert "Over seeds" in text
    interval = f"[{mean - half:+.3f}, {mean + half:+.3f}]"
    assert (
        f"{mean:+.3f} nats a token against the pretrained base (mean of 3 seeds, 95 % interval {interval}; here +0.801)"
        in (plain)
    )
    row = text[text.index("Unlearning: forget loss at the end minus before", text.index("This run (seed 1)")) :]
    row = re.sub(r"<[^>]+>", "", row)[:300]
    assert all(cell in row for cell in ("+0.801", over_seeds, "+0.400")), row
    # The run itself counts once, whether it is among them or not; other names do not count.
    others = [seeds[0], seeds[2], *(RunResult(**{**vars(seeds[0]), "name": "other", "seed": 9}),)]
    assert render(seeds[1], seeds=others) == text
    assert render(seeds[1], seeds=[seeds[1]]) == render(seeds[1])


def test_cards_of_a_matrix_show_its_seeds(seeds: list[RunResult], tmp_path) -> None:
    for result in seeds:
        result.save(tmp_path / f"seed{result.seed}" / "mine.json")
    (card,) = render_cards(tmp_path / "seed1", tmp_path / "cards")
    assert card.read_text(encoding="utf-8") == render_model_card(seeds[1], seeds=seeds)
    assert render_cards(tmp_path / "seed1", tmp_path / "cards", check=True) == [card]
    # A folder of another name is no matrix, and what stands beside it is none of its seeds.
    (tmp_path / "seed1").rename(tmp_path / "results")
    (card,) = render_cards(tmp_path / "results", tmp_path / "cards")
    assert card.read_text(encoding="utf-8") == render_model_card(seeds[1])


def test_the_command_card_takes_other_seeds(
    seeds: list[RunResult], tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hf_era.reporting.html.report.write_report", lambda result, path, seeds: path)
    files = [str(result.save(tmp_path / f"seed{result.seed}.json")) for result in seeds]
    command = ["card", files[1], "--output", str(tmp_path / "out"), "--seeds"]
    assert main([*command, *files]) == 0
    assert (tmp_path / "out" / "README.md").read_text(encoding="utf-8") == render_model_card(seeds[1], seeds=seeds)
    assert main([*command, files[1]]) == 2
    assert "`--seeds` holds no other seed than 1" in capsys.readouterr().err
    again = str(with_changes(seeds[1], created="later").save(tmp_path / "again.json"))
    assert main([*command, files[0], again]) == 2
    assert "`--seeds` should be other seeds of 'mine', but another of its results has seed 1, too" in (
        capsys.readouterr().err
    )
    for changes, why in OTHER_RECIPES:
        other = str(with_changes(seeds[0], **changes).save(tmp_path / "other.json"))
        assert main([*command, files[2], other]) == 2
        assert f"`--seeds` should be other seeds of 'mine', but {why}. " in capsys.readouterr().err


def with_changes(result: RunResult, **changes: Any) -> RunResult:
    """The same with other attributes; a dotted name stands for a setting of a section."""
    config = copy.deepcopy(result.config)
    for name in [name for name in changes if "." in name]:
        section, key = name.split(".")
        config.setdefault(section, {})[key] = changes.pop(name)
    return replace(result, **{"config": config, **changes})


OTHER_RECIPES: list[tuple[dict[str, Any], str]] = [
    ({"name": "other"}, '`name` is "other" in one of them and "mine" here'),
    ({"method": "data_filtering"}, '`method` is "data_filtering" in one of them and "gradient_routing" here'),
    ({"routing.rule": "concept"}, '`routing.rule` is "concept" in one of them and "full_seq" here'),
    ({"data.labelled_fraction": 0.1}, "`data.labelled_fraction` is 0.1 in one of them and 0.5 here"),
    ({"model.controls_share_l1": False}, "`model.controls_share_l1` is false in one of them and not given here"),
]


@pytest.mark.parametrize(("changes", "why"), OTHER_RECIPES)
def test_only_seeds_of_one_recipe_are_averaged(
    changes: dict[str, Any], why: str, make_result: Callable[..., RunResult]
) -> None:
    one, other = make_result(name="mine"), with_changes(make_result(name="mine", seed=1), **changes)
    assert [row["seeds"] for row in aggregate([one, other])] == [[0], [1]]
    assert seeds_of(one, [other]) == [one]


def test_a_seed_counts_once_and_where_it_is_kept_does_not(make_result: Callable[..., RunResult]) -> None:
    elsewhere = {
        "model.base_dir": "elsewhere", "training.hub_token": "x", "training.hub_model_id": "me/seed1", "data.num_proc": 4,
        "generation.seed": 1,
    }  # fmt: skip
    one, other = make_result(), with_changes(make_result(seed=1), **elsewhere)
    other.config |= {"seed": 1, "output_dir": "runs/b", "overwrite_output_dir": True, "data_filtering": "b.json"}
    (row,) = aggregate([one, other, make_result(seed=1), make_result()])
    assert row["seeds"] == [0, 1]
    assert seeds_of(one, [make_result(), other]) == [one, other]
