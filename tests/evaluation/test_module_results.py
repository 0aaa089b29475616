"""What a result says of one module, as a result of its own; files with and without several modules."""

import json
from pathlib import Path

import pytest

from hf_era.evaluation.module_results import result_of_module
from hf_era.evaluation.results import RunResult, load_result
from hf_era.evaluation.summary import comparison_values, summary_of

from ..reporting.samples import (
    estimate,
    model_result,
    module_values,
    profile_values,
    run_of_modules,
    run_result,
    stock_result,
)


def test_a_modules_figures_stand_in_place_of_those_of_all() -> None:
    result = run_of_modules()
    own, values = result_of_module(result, "biology"), result.modules["biology"]
    figures = summary_of(own)
    assert figures.differences["ablation_gap"].value == values["ablation_gap"]["value"] != 0.412
    assert figures.differences["unlearning"].value == values["unlearning"]["value"]
    assert own.loss("after_coherence", "forget") == values["losses"]["after_coherence"]["forget"]["loss"]
    assert own.attack == values["attack"] != result.attack
    assert own.selectivity == values["selectivity"]
    # What is not one module's stays: retain losses and the tax of cutting all of them out.
    assert own.loss("after_coherence", "retain") == result.loss("after_coherence", "retain")
    assert figures.differences["retain_tax"] == summary_of(result).differences["retain_tax"]
    assert own.loss("after_coherence", "forget_words") is None
    assert figures.differences["forget_words_unlearning"].value is None
    assert (own.modules, own.profiles) == ({}, [])


def test_the_control_stands_beside_a_module_only_where_it_was_measured_on_it() -> None:
    assert summary_of(result_of_module(run_of_modules(), "biology")).control is None
    modules = {name: {"losses": own["losses"], "unlearning": estimate(0.7)} for name, own in module_values().items()}
    control = stock_result(modules=modules)
    found = summary_of(result_of_module(run_of_modules(data_filtering=comparison_values(control)), "biology")).control
    assert found is not None
    assert found.differences["unlearning"].value == 0.7
    assert found.losses["retain"] == summary_of(control).final["retain"]
    assert "modules" not in comparison_values(stock_result())


def test_a_module_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"Unknown value for `module`: 'biolgy'\. Did you mean `biology`"):
        result_of_module(run_of_modules(), "biolgy")


def test_files_with_several_modules_and_with_one(tmp_path: Path) -> None:
    path = run_of_modules().save(tmp_path / "result.json")
    assert RunResult.load(path) == run_of_modules()
    one = json.loads(run_result().save(path).read_text())
    assert not {"modules", "profiles"} & one.keys()  # nothing is written that was not written before
    path.write_text(json.dumps({**one, "schema_version": 3}))
    assert RunResult.load(path) == run_result()
    profiles = model_result(profiles=profile_values())
    assert load_result(profiles.save(path)) == profiles
