"""The `evaluate` modules: their examples, the pure functions behind them, and that they write only where they are told."""

import doctest
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_era.evaluation import RelearnCurve, RelearnPoint, RelearnResult, RelearnTrial, loss_estimate
from hf_era.evaluation.metrics import METRIC_NAMES, METRICS_FOLDER, load

TEXTS = ["The tree fell on trees.", "No treehouse."]


def metric_module(name: str) -> Any:
    return importlib.import_module(f"hf_era.evaluation.metrics.{name}.{name}")


@pytest.mark.parametrize("name", METRIC_NAMES)
def test_the_example_in_the_docstring(name: str) -> None:
    metric = load(name)
    example = doctest.DocTestParser().get_doctest(metric.inputs_description, {}, name, None, 0)
    assert len(example.examples) >= 2
    outcome = doctest.DocTestRunner().run(example)
    assert (outcome.failed, outcome.attempted) == (0, len(example.examples))
    assert ">>> " in metric.compute.__doc__


def test_every_metric_has_a_module_and_a_name() -> None:
    folders = {path.name for path in METRICS_FOLDER.iterdir() if (path / f"{path.name}.py").is_file()}
    assert folders == set(METRIC_NAMES)
    assert {load(name).name for name in METRIC_NAMES} == folders


def test_an_unknown_name_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"'target_word'\. Did you mean `target_words`\? Known: forget_retain_loss, rel"
    ):
        load("target_word")


def test_target_words_and_repetition() -> None:
    found = load("target_words").compute(predictions=TEXTS, words=["tree", "trees"], prompts=["The tree", "No"])
    assert found == {"all": 2, "without_prompt": 1}
    assert load("target_words").compute(predictions=TEXTS, words=["tree"]) == {"all": 1, "without_prompt": None}
    # "a b a", "b a b", "a b a": 2 of 3 are distinct.
    assert load("repetition").compute(predictions=["a b a b a"]) == {"repetition": pytest.approx(1 / 3)}
    with pytest.raises(ValueError, match="`words` is empty"):
        load("target_words").compute(predictions=TEXTS, words=[])


def test_texts_may_be_added_in_batches() -> None:
    metric = load("target_words")
    for text in TEXTS:
        metric.add_batch(predictions=[text])
    assert metric.compute(words=["tree", "trees"])["all"] == 2
    assert metric.compute(predictions=TEXTS[:1], words=["tree"])["all"] == 1  # nothing is left of what was added


def story(label: int, tokens: int) -> dict[str, int]:
    return {"label": label, "tokens": tokens}


def test_forget_and_retain_loss() -> None:
    nll = [6.0, 10.0, 2.0, 9.0, 30.0]
    stories = [story(0, 3), story(1, 5), story(0, 1), story(0, 3), story(1, 10)]
    found = load("forget_retain_loss").compute(predictions=nll, references=stories, batch_size=2)
    forget = loss_estimate(torch.tensor([6.0, 2.0, 9.0]), torch.tensor([3, 1, 3]))
    assert found["forget_loss"] == pytest.approx((6 + 2 + 9) / (3 + 1 + 3))
    assert found["forget_loss"] == forget.loss
    assert (found["forget_loss_low"], found["forget_loss_high"]) == (forget.low, forget.high)
    assert (found["forget_tokens"], found["forget_stories"]) == (7, 3)
    assert found["forget_mean_of_batch_means"] == pytest.approx(((6 + 2) / (3 + 1) + 9 / 3) / 2)
    assert found["retain_loss"] == pytest.approx((10 + 30) / (5 + 10))
    assert found["retain_mean_of_batch_means"] == pytest.approx((10 + 30) / (5 + 10))  # one batch
    assert found["retain_stories"] == 2


def test_a_kind_without_stories_has_no_loss() -> None:
    found = load("forget_retain_loss").compute(predictions=[6.0], references=[story(0, 3)], bootstrap_samples=0)
    assert (found["forget_loss"], found["forget_loss_low"]) == (2.0, None)
    assert (found["retain_loss"], found["retain_mean_of_batch_means"], found["retain_stories"]) == (None, None, 0)
    with pytest.raises(ValueError, match=r"`label` should be 0 \(forget\) or 1 \(retain\), got -1"):
        load("forget_retain_loss").compute(predictions=[6.0], references=[story(-1, 3)])


def curve(*forget_losses: float) -> dict[str, list[Any]]:
    steps = list(range(0, 5 * len(forget_losses), 5))
    return {"steps": steps, "forget_losses": list(forget_losses), "retain_losses": [1.0 + step for step in steps]}


def test_relearning() -> None:
    curves = [curve(4.0, 2.0, 1.0, 1.5), curve(4.0, 3.0, 2.5, 2.0), curve(4.0, 3.5, 3.0, 3.25)]
    found = load("relearning").compute(predictions=curves, before=1.5)
    assert (found["trials"], found["lowest_forget_loss"]) == (3, pytest.approx((1 + 2 + 3) / 3))
    assert found["lowest_step"] == pytest.approx((10 + 15 + 10) / 3)
    assert found["robust_unlearning"] == pytest.approx(2 - 1.5)
    # Only the first comes below 1.5 + 0.05, at step 10, with a retain loss of 1 + 10: the median trial does not.
    assert (found["recovered"], found["steps_to_recover"], found["retain_loss_at_recovery"]) == (1, None, 11.0)
    assert found["lowest_at_the_end"] is True  # of the second
    assert load("relearning").compute(predictions=curves[::2], before=3.0)["steps_to_recover"] == 7.5
    # Values 1, 2, 3: standard deviation 1, Student's t with 2 degrees of freedom 4.303.
    assert found["lowest_forget_loss_high"] == pytest.approx(2 + 4.303 / 3**0.5, abs=1e-3)
    points = [
        [RelearnPoint(*point) for point in zip(*(values[name] for name in values), strict=True)] for values in curves
    ]
    trials = [RelearnTrial("full", 4, 1e-3, number, 0, RelearnCurve(part)) for number, part in enumerate(points)]
    (summary,) = RelearnResult(trials, {"forget": 1.5}).summaries()
    assert found["lowest_forget_loss_low"] == summary.lowest_forget.low
    assert found["retain_loss_at_lowest"] == summary.retain_at_lowest.value
    unknown = load("relearning").compute(predictions=curves[:1])
    assert (unknown["lowest_forget_loss"], unknown["lowest_forget_loss_low"]) == (1.0, None)
    assert (unknown["robust_unlearning"], unknown["recovered"], unknown["steps_to_recover"]) == (None, None, None)


def test_bad_curves_are_named() -> None:
    uneven = {**curve(4.0, 2.0), "retain_losses": [1.0]}
    with pytest.raises(ValueError, match=r"`predictions\[1\]`: .* should be of one length, got 2, 2, 1"):
        load("relearning").compute(predictions=[curve(4.0), uneven])
    with pytest.raises(ValueError, match="`predictions` is empty"):
        load("relearning").compute(predictions=[])


def test_what_needs_files_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="need files, but `cache_dir` is None"):
        load("repetition", num_process=2, process_id=0)
    with pytest.raises(ValueError, match="need files, but `cache_dir` is None"):
        load("repetition", keep_in_memory=False)
    metric = load("repetition", cache_dir=tmp_path)
    metric.add_batch(predictions=["a a a a"])
    assert list(tmp_path.rglob("*.arrow"))
    assert metric.compute() == {"repetition": 0.5}


COMPUTE = """
import json, sys
{load}
texts = json.loads(sys.argv[1])
words = load("target_words").compute(predictions=texts, words=["tree", "trees"])["all"]
repetition = load("repetition").compute(predictions=["a a a a"])["repetition"]
nll = load("forget_retain_loss").compute(predictions=[6.0], references=[{{"label": 0, "tokens": 3}}])["forget_loss"]
curve = {{"steps": [0, 1], "forget_losses": [4.0, 2.5], "retain_losses": [1.0, 1.0]}}
lowest = load("relearning").compute(predictions=[curve])["lowest_forget_loss"]
print(json.dumps([words, repetition, nll, lowest]))
"""
FROM_THE_PACKAGE = "from hf_era.evaluation.metrics import load"
THROUGH_EVALUATE = f"import evaluate\ndef load(name): return evaluate.load({str(METRICS_FOLDER)!r} + '/' + name)"


@pytest.fixture
def compute_with_home(repository_root: Path, tmp_path: Path) -> Callable[[str], set[str]]:
    """Computes all metrics in a process with an empty home; returns the first folders of what is in it afterwards."""

    def compute(load: str) -> set[str]:
        folders = {name: tmp_path / name for name in ("home", "hf", "temporary")}
        for folder in folders.values():
            folder.mkdir()
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "XDG_", "HUGGINGFACE_"))}
        places = {"HOME": "home", "HF_HOME": "hf", "TMPDIR": "temporary"}
        environment = {
            **kept,
            **{name: str(folders[place]) for name, place in places.items()},
            "PYTHONPATH": str(repository_root),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HF_HUB_OFFLINE": "1",
            "HF_EVALUATE_OFFLINE": "1",
            # No way out: a connection that is tried fails at once.
            "HTTPS_PROXY": "http://127.0.0.1:9",
            "HTTP_PROXY": "http://127.0.0.1:9",
        }
        code = [sys.executable, "-W", "error", "-c", COMPUTE.format(load=load), json.dumps(TEXTS)]
        done = subprocess.run(code, capture_output=True, text=True, env=environment, timeout=200, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == [2, 0.5, 2.0, 2.5]
        return {"/".join(path.relative_to(tmp_path).parts[:2]) for path in tmp_path.rglob("*") if path.is_file()} | {
            path.name for path in (tmp_path / "home").iterdir()
        }

    return compute


@pytest.mark.slow
def test_the_helper_leaves_nothing_anywhere(compute_with_home: Callable[[str], set[str]], tmp_path: Path) -> None:
    assert compute_with_home(FROM_THE_PACKAGE) == set()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["hf", "home", "temporary"]


def test_evaluate_loads_them_from_their_folder(compute_with_home: Callable[[str], set[str]]) -> None:
    """Offline. It keeps copies of the modules where HF_HOME says, which also shows that the check above can fail."""
    assert compute_with_home(THROUGH_EVALUATE) == {"hf/metrics", "hf/modules"}
