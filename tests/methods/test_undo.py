"""UNDO: the noise by its formula, the teacher's loss, what the student learns from, and a run from config to result."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from hf_era import RunConfig
from hf_era.data import FORGET, RETAIN, UNLABELLED
from hf_era.methods import get_method
from hf_era.methods.undo import UndoSettings, max_entropy_losses


def test_the_teacher_learns_the_uniform_distribution_of_forget_examples_alone() -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets, is_forget = torch.tensor([[1, -100, 4], [0, 2, 3]]), torch.tensor([[True], [False]])
    losses = max_entropy_losses(logits, targets, is_forget, 2.0)
    uniform = torch.full((3, 5), 0.2, dtype=torch.float64)
    expected = torch.stack(
        [
            2 * F.cross_entropy(logits[0], uniform, reduction="none") * torch.tensor([1.0, 0.0, 1.0]),
            F.cross_entropy(logits[1], targets[1], reduction="none"),
        ]
    )
    torch.testing.assert_close(losses, expected)
    flat = max_entropy_losses(torch.zeros(1, 1, 5), torch.tensor([[2]]), torch.tensor([[True]]), 1.0)
    assert flat.item() == pytest.approx(math.log(5))


def test_a_run_makes_a_teacher_and_ends_when_the_student_is_near(
    make_models: Callable[..., Any], tmp_path: Path
) -> None:
    settings = {"teacher_steps": 2, "check_every": 2, "check_stories": 4, "retain_tolerance": 1.0}
    run, reports = make_models(tmp_path, method="undo", method_settings=settings)
    assert [stage.name for stage in get_method("undo").stages(run)] == ["teacher", "after_training"]
    base, teacher, final = (load_file(run.folder(name) / "model.safetensors") for name in ("base", "teacher", "model"))
    for one, other in ((base, teacher), (teacher, final)):
        assert not torch.equal(one["transformer.wte.weight"], other["transformer.wte.weight"])
    stop = reports["train"]["distillation"]
    assert stop["reached"]
    assert stop["student_retain_loss"] <= 2 * stop["teacher_retain_loss"]
    assert reports["train"]["steps"] == 2  # of four: the first look was enough
    learnt, held_out = get_method("undo")._split(run)
    assert not set(learnt) & set(held_out)
    assert [run.data.train[index]["label"] for index in held_out] == [RETAIN] * 4
    run.method_settings.distil_on = "retain"
    assert {run.data.train[index]["label"] for index in get_method("undo")._split(run)[0]} == {RETAIN}
    labels = run.data.train["label"][:]
    labels[learnt[0]] = UNLABELLED
    run.data = dataclasses.replace(run.data, train=run.data.train.remove_columns("label").add_column("label", labels))
    for distil_on, known in (("retain", {RETAIN, UNLABELLED}), ("labelled_retain", {RETAIN})):
        run.method_settings.distil_on = distil_on
        assert {run.data.train[index]["label"] for index in get_method("undo")._split(run)[0]} == known
    run.method_settings.retain_tolerance = None
    for distil_on, unlabelled in (("labelled_retain", 5), ("retain", 0)):
        run.method_settings.distil_on = distil_on
        with pytest.raises(ValueError, match=f"is '{distil_on}', but there is no such training example"):
            get_method("undo").check_data(run, retain_stories=0, unlabelled_stories=unlabelled)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1.5}, r"`method_settings.alpha` should be in \[0, 1\], got 1.5"),
        ({"beta": -1.0}, "`method_settings.beta` should be a finite number >= 0, got -1.0"),
        ({"teacher": "max_entropi"}, r"'max_entropi'. Did you mean `max_entropy`\?"),
        (
            {"kl_weight": 0.5},
            "`method_settings.kl_weight` is 0.5, so the student learns the labels .*`distil_on: retain`",
        ),
        ({"retain_tolerance": -0.1}, "`method_settings.retain_tolerance` should be a finite number >= 0, got -0.1"),
        ({"check_every": 0}, "`method_settings.check_every` should be at least 1, got 0"),
    ],
)
def test_what_is_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UndoSettings(**settings)


def test_what_the_run_lacks_is_refused(
    make_run_config: Callable[..., RunConfig], make_models: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"`method: undo` changes a model that exists, .*`model.start: pretrained`"):
        make_run_config(tmp_path, method="undo", model={"start": "scratch"})
    with pytest.raises(ValueError, match=r"`method_settings.check_stories` holds 5000 retain examples out, but"):
        make_models(tmp_path, method="undo", method_settings={"check_stories": 5000})


@pytest.mark.parametrize(
    ("changes", "said", "unsaid"),
    [
        ({}, "a teacher that forgot", "further training"),
        (
            {"teacher": "none", "kl_weight": 0.0, "distil_on": "retain"},
            "all weights were mixed with noise (0.6 of it). Then the model learnt the labels, on the examples not labelled "
            "forget.",
            "teacher",
        ),
        (
            {"teacher": "none", "kl_weight": 0.5, "distil_on": "labelled_retain", "alpha": 1.0, "noise": "initial",
             "noised": "selective", "selective_share": 0.35},
            "35 % of every tensor, the weights that matter most to forget examples, began anew. Then the model learnt the "
            "outputs of the model before the method and the labels, on the examples labelled retain.",
            "teacher",
        ),
    ],
)  # fmt: skip
def test_it_says_of_itself_what_it_does(
    changes: dict[str, Any], said: str, unsaid: str, make_run_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = make_run_config(tmp_path, method="undo", method_settings={"alpha": 0.6, **changes})
    method, own = get_method("undo"), config.method_settings
    texts = " ".join([method.title_of(config), *method.texts_of(config).values()])
    assert said in texts
    assert unsaid not in texts
    assert ("left out" in texts) == (own.distil_on == "labelled_retain")
    assert (FORGET in method.labels_learnt(config)) == (own.distil_on == "all")
