"""Controls that train on retain examples: which examples, where some have no label."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_era import RunConfig
from hf_era.data import FORGET, RETAIN, UNLABELLED
from hf_era.methods import data_filtering, get_method

FEW_LABELS = {"labelled_fraction": 0.5, "labelled_retain_fraction": 0.5}


@pytest.mark.parametrize("unlabelled", [True, False])
@pytest.mark.parametrize(
    ("method", "model"), [("continue_retain", {}), ("data_filtering", {"start": "scratch", "base_dir": None})]
)
def test_examples_without_a_label_are_trained_on_or_left_out(
    method: str,
    model: dict[str, Any],
    unlabelled: bool,
    make_models: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained: list[Any] = []
    train_stock = data_filtering.train_stock
    monkeypatch.setattr(data_filtering, "train_stock", lambda *given: trained.append(given[-1]) or train_stock(*given))
    changes = {"model": {"base_dir": str(tmp_path / "base"), **model}, "data": FEW_LABELS}
    run, reports = make_models(tmp_path, method=method, method_settings={"unlabelled": unlabelled}, **changes)
    labels = run.data.train["label"][:]
    assert 0 < labels.count(UNLABELLED) < len(labels)
    assert {FORGET, RETAIN} <= set(labels)
    stories = trained[0] if trained else get_method(method).stories(run)
    expected = {RETAIN, UNLABELLED} if unlabelled else {RETAIN}
    assert set(stories["label"][:]) == expected
    assert len(stories) == sum(map(labels.count, expected))
    if method == "data_filtering":
        assert reports["filter"]["unlabelled_stories"] == (labels.count(UNLABELLED) if unlabelled else 0)


def test_what_is_not_said_is_no_other_run(make_models: Callable[..., Any], tmp_path: Path) -> None:
    """Of an earlier version, whose controls had no settings."""
    shared = {"data": FEW_LABELS, "model": {"base_dir": str(tmp_path / "base")}}
    models = [
        make_models(tmp_path / name, method="continue_retain", method_settings=settings, **shared)[0]
        for name, settings in (("plain", None), ("said", {"unlabelled": True}), ("strict", {"unlabelled": False}))
    ]
    assert models[0].identity == models[1].identity != models[2].identity
    assert "method_settings" not in models[0].settings


@pytest.mark.parametrize("method", ["continue_retain", "data_filtering"])
@pytest.mark.parametrize(
    ("unlabelled", "counts", "message"),
    [
        (False, (0, 7), "`method_settings.unlabelled` is false, .* there is none; 7 have no label"),
        (True, (0, 0), "trains on what is not labelled forget, but every training example is"),
    ],
)
def test_nothing_to_train_on(
    method: str,
    unlabelled: bool,
    counts: tuple[int, int],
    message: str,
    tmp_path: Path,
    make_run_config: Callable[..., RunConfig],
) -> None:
    model = {"start": "scratch"} if method == "data_filtering" else {}
    config = make_run_config(tmp_path, method=method, method_settings={"unlabelled": unlabelled}, model=model)
    with pytest.raises(ValueError, match=message):
        get_method(method).check_data(config, *counts)
