"""Cards of a folder of results, and the check that they have not drifted from them."""

import runpy
import shutil
import sys
from unittest import mock

import pytest

import hf_era
from hf_era.reporting import render_model_card
from hf_era.reporting.cards import main, render_cards
from hf_era.utils.files import write_json


@pytest.fixture
def folders(make_result, tmp_path):
    results, cards = tmp_path / "results", tmp_path / "cards"
    make_result().save(results / "posttrain_fullseq.json")
    make_result(name="scratch_concept").save(results / "scratch_concept.json")
    write_json(results / "speed.json", {"schema_version": 1, "tokens_per_second": 3})
    write_json(results / "list.json", [1, 2])
    (results / "broken.json").write_text("{", encoding="utf-8")
    return results, cards


def test_each_result_gets_a_card_and_other_files_none(folders, make_result):
    results, cards = folders
    written = render_cards(results, cards)
    assert written == [cards / "posttrain_fullseq.md", cards / "scratch_concept.md"]
    assert sorted(cards.iterdir()) == written
    assert written[0].read_text(encoding="utf-8") == render_model_card(make_result())
    assert render_cards(results, cards, check=True) == written


def test_check_catches_a_planted_change(folders):
    results, cards = folders
    render_cards(results, cards)
    card = cards / "scratch_concept.md"
    planted = card.read_text(encoding="utf-8").replace("+0.601", "+0.701")
    card.write_text(planted, encoding="utf-8")
    with pytest.raises(ValueError, match=r"scratch_concept\.md is not the one that its result gives. Run `make cards`"):
        render_cards(results, cards, check=True)
    assert card.read_text(encoding="utf-8") == planted
    render_cards(results, cards)
    render_cards(results, cards, check=True)


def test_check_names_a_missing_card_and_writes_nothing(folders):
    results, cards = folders
    with pytest.raises(ValueError, match=r"posttrain_fullseq\.md is missing. Run `make cards`"):
        render_cards(results, cards, check=True)
    assert not cards.exists()


def test_a_result_of_another_version_is_not_skipped_silently(folders, make_result):
    results, cards = folders
    write_json(results / "old.json", {**make_result().to_dict(), "schema_version": 0})
    with pytest.raises(ValueError, match=r"old\.json has schema version 0"):
        render_cards(results, cards)


def test_an_incomplete_result_names_what_it_lacks(folders, make_result):
    results, cards = folders
    values = make_result().to_dict()
    del values["seed"]
    write_json(results / "half.json", values)
    with pytest.raises(ValueError, match=r"half\.json lacks fields of a result file: seed"):
        render_cards(results, cards)


def test_no_folder_and_no_result(folders, tmp_path):
    results, cards = folders
    with pytest.raises(ValueError, match="is no folder"):
        render_cards(tmp_path / "nowhere", cards)
    shutil.rmtree(results)
    results.mkdir()
    with pytest.raises(ValueError, match="holds no result of a run"):
        render_cards(results, cards, check=True)


def test_command_line(folders, capsys):
    results, cards = folders
    assert main([str(results), str(cards)]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("posttrain_fullseq.md")
    assert main([str(results), str(cards), "--check"]) == 0
    (cards / "scratch_concept.md").unlink()
    assert main([str(results), str(cards), "--check"]) == 1
    assert "Run `make cards`" in capsys.readouterr().err


def test_runs_as_a_module(folders, monkeypatch, capsys):
    """As `python -m` in a fresh interpreter, with warnings as errors: importing the package may not import the module."""
    monkeypatch.setattr("sys.argv", ["cards", *map(str, folders)])
    monkeypatch.setattr(hf_era, "reporting", hf_era.reporting)
    others = {name: module for name, module in sys.modules.items() if not name.startswith("hf_era.reporting")}
    with mock.patch.dict(sys.modules, others, clear=True), pytest.raises(SystemExit) as ended:
        runpy.run_module("hf_era.reporting.cards", run_name="__main__")
    assert not ended.value.code
    assert "scratch_concept.md" in capsys.readouterr().out
