"""Controls that train on retain examples: which examples, where some have no label."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_era import RunConfig
from hf_era.data import FORGET, RETAIN, UNLABELLED
from hf_era.methods import data_filtering, get_method
from hf_era.run.context import identity_settings

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


@pytest.mark.parametrize(("method", "start"), [("continue_retain", "pretrained"), ("data_filtering", "scratch")])
def test_what_goes_without_saying_is_as_earlier_versions_wrote_it(
    method: str, start: str, tmp_path: Path, make_run_config: Callable[..., RunConfig]
) -> None:
    """These methods had no settings: a run of theirs goes on, and its result is still that of the same cell."""

    def values(settings: Any) -> dict[str, Any]:
        config = make_run_config(
            tmp_path, method=method, model={"start": start}, data=FEW_LABELS, method_settings=settings
        )
        assert RunConfig.from_dict(config.to_dict()) == config
        return {"written": config.to_dict()["method_settings"], "identity": identity_of(config)}

    def identity_of(config: RunConfig) -> Any:
        return identity_settings(config, config.training_arguments(tmp_path)).get("method_settings")

    for plain in (None, {}, {"unlabelled": True}):
        assert values(plain) == {"written": None, "identity": None}
    assert values({"unlabelled": False}) == {"written": {"unlabelled": False}, "identity": {"unlabelled": False}}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"method": "continue_retain", "method_settings": {"unlabelled": False}}, "method_settings.unlabelled"),
        (
            {"method": "data_filtering", "model": {"start": "scratch"}, "method_settings": {"unlabelled": False}},
            "method_settings.unlabelled",
        ),
        ({"method": "undo", "method_settings": {"distil_on": "labelled_retain"}}, "method_settings.distil_on"),
    ],
)
def test_labels_that_forget_examples_alone_have_lost_are_not_given_away(
    changes: dict[str, Any], field: str, tmp_path: Path, make_run_config: Callable[..., RunConfig]
) -> None:
    for data in ({"labelled_fraction": 0.5}, {"label_errors": "score", "label_threshold": 0.5}):
        with pytest.raises(ValueError, match=f"`{field}` leaves out examples without a label, .* would know them all"):
            make_run_config(tmp_path, data=data, **changes)
    make_run_config(tmp_path, data=FEW_LABELS, **changes)
    make_run_config(tmp_path, **changes)


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
