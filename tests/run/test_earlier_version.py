"""Run directories of revision 9e61e8a (`earlier_version/README.md`) are continued rightly or refused clearly."""

import hashlib
import io
import json
import tarfile
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from hf_era import cli

EARLIER = Path(__file__).with_name("earlier_version")
WEIGHTS = ("model/model.safetensors", "expanded/model.safetensors")
BASE = "Pretraining the base"
PHASES_AFTER_THE_BASE = (
    "Training with gradient routing",
    "Cutting the module out",
    "Coherence fine-tuning",
    "Evaluating",
    "Generating",
    "Attacking: relearning forget examples",
)
ATTACK = PHASES_AFTER_THE_BASE[-1]
SKIPPED = "already done, skipped"
AS_THEN = ("--data.coherence_validation_stories", "0")
STEPS_BEFORE_THE_STOP, STEPS = 5, 10


def figures(result: dict[str, Any]) -> dict[str, Any]:
    """The figures of a result file that a continued run has to arrive at: all but how long things took."""
    log = [
        {name: value for name, value in entry.items() if not name.endswith(("_runtime", "_per_second"))}
        for entry in result["training"]["log_history"]
    ]
    found = {
        "losses": result["losses"],
        "differences": result["differences"],
        "attack": attack_on_retain(result["attack"]),
        "log": log,
    }
    return without_intervals(found)


def attack_on_retain(attack: dict[str, Any]) -> dict[str, Any]:
    """Of forget examples an attack reports one half now; retain examples are those that they were."""
    names = ("kind", "stories", "learning_rate", "trials", "start_retain")
    summaries = [{name: part[name] for name in names} for part in attack["summaries"]]
    return {"before": attack["before"]["retain"], "summaries": summaries}


def without_intervals(values: Any) -> Any:
    """Intervals are made in another way now: the figures are the same, their bounds are not."""
    if isinstance(values, dict):
        return {name: without_intervals(value) for name, value in values.items() if name not in ("low", "high")}
    return [without_intervals(value) for value in values] if isinstance(values, list) else values


def probe() -> str:
    """The hash of a stock model after three steps: it differs where a machine rounds otherwise."""
    torch.manual_seed(0)
    config = GPTNeoConfig(
        vocab_size=280,
        hidden_size=8,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=96,
        window_size=32,
    )
    model = GPTNeoForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, fused=True)
    tokens = torch.randint(0, 280, (16, 96))
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file under a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status, what it said, and the folder that it ran in."""

    status: int
    stderr: str
    folder: Path

    def said(self, phase: str) -> str:
        """What was said of a phase at its end."""
        (line,) = [line for line in self.stderr.splitlines() if line.startswith(f"{phase}: ")]
        return line.removeprefix(f"{phase}: ")


RunIn = Callable[..., Ended]


def unpack(name: str, folder: Path) -> Path:
    """Unpacks the archive in a folder and returns the folder of one of its runs."""
    with tarfile.open(EARLIER / "runs.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / name


@pytest.fixture(scope="module")
def run_in(tmp_path_factory: pytest.TempPathFactory) -> RunIn:
    """Gives the command `hf-era run config.yaml`, with overrides, in the folder of a run; with the examples split as they
    were, unless they are not to be."""
    cache = tmp_path_factory.mktemp("cache")

    def run(folder: Path, *overrides: str, as_then: bool = True) -> Ended:
        stderr = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(), redirect_stderr(stderr):
            warnings.simplefilter("default")
            patch.chdir(folder)
            patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
            status = cli.main(["run", "config.yaml", *overrides, *(AS_THEN if as_then else ())])
        return Ended(status, stderr.getvalue(), folder)

    return run


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """What revision 9e61e8a itself made of the stopped run."""
    values: dict[str, Any] = read(EARLIER / "expected.json")
    return without_intervals(values)


@pytest.fixture(scope="module")
def continued(run_in: RunIn, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """The stopped run, continued to its end, to be read only."""
    return run_in(unpack("stopped", tmp_path_factory.mktemp("continued")))


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The folder of the run that went through."""
    return unpack("finished", tmp_path)


def test_the_stopped_run_goes_on_from_its_checkpoint(continued: Ended, tmp_path: Path) -> None:
    """Neither the base nor the steps before the stop are trained again."""
    assert continued.status == 0, continued.stderr
    assert continued.said(BASE) == SKIPPED
    for phase in PHASES_AFTER_THE_BASE:
        assert continued.said(phase).startswith("done in "), phase
    before = unpack("stopped", tmp_path)
    weights = "base/model/model.safetensors"
    assert (continued.folder / weights).read_bytes() == (before / weights).read_bytes()

    (checkpoint,) = (before / "run" / "checkpoints").glob(f"route-*/checkpoint-{STEPS_BEFORE_THE_STOP}")
    log_before = read(checkpoint / "trainer_state.json")["log_history"]
    training = read(continued.folder / "run" / "result.json")["training"]
    assert training["steps"] == STEPS
    # With the seconds that each evaluation took: steps that were made again would have taken others.
    assert any("eval_forget_runtime" in entry for entry in log_before)
    assert training["log_history"][: len(log_before)] == log_before
    assert min(entry["step"] for entry in training["log_history"][len(log_before) :]) > STEPS_BEFORE_THE_STOP
    assert not list((continued.folder / "run").rglob("checkpoint-*"))


def test_the_stopped_run_ends_with_the_recorded_losses(continued: Ended, expected: dict[str, Any]) -> None:
    """To 1e-4 with any versions and on any machine."""
    assert continued.status == 0, continued.stderr
    found = read(continued.folder / "run" / "result.json")
    assert _numbers(without_intervals(found["losses"])) == pytest.approx(_numbers(expected["losses"]), abs=1e-4)
    assert _numbers(without_intervals(found["differences"])) == pytest.approx(
        _numbers(expected["differences"]), abs=1e-4
    )


def test_the_stopped_run_ends_bit_for_bit_as_recorded(continued: Ended, expected: dict[str, Any]) -> None:
    """With the recorded versions, on a machine that rounds as the recorded one did."""
    assert continued.status == 0, continued.stderr
    for name in ("torch", "transformers"):
        found, recorded = metadata.version(name), expected["versions"][name]
        if found != recorded:
            pytest.skip(f"recorded with {name} {recorded}, this is {found}: only the losses are compared, to 1e-4")
    if probe() != expected["probe"]:
        pytest.skip("this machine rounds otherwise than the recorded one: only the losses are compared, to 1e-4")
    output = continued.folder / "run"
    hashes = {name: hashlib.sha256((output / name).read_bytes()).hexdigest() for name in WEIGHTS}
    assert hashes == expected["sha256"]
    found_figures = figures(read(output / "result.json"))
    recorded = {**expected, "attack": attack_on_retain(expected["attack"])}
    assert found_figures == {name: recorded[name] for name in found_figures}


def test_a_finished_run_makes_its_attack_again_and_nothing_else(run_in: RunIn, finished: Path) -> None:
    """Attacks measure more than they did. The models stay as they are, and two steps give the figures that they gave."""
    result = finished / "run" / "result.json"
    before, models = figures(read(result)), _models(finished)
    result.unlink()
    again = run_in(finished)
    assert again.status == 0, again.stderr
    for phase in (BASE, *PHASES_AFTER_THE_BASE[:-1]):
        assert again.said(phase) == SKIPPED, phase
    assert again.said(ATTACK).startswith("done in ")
    assert read(result)["attack"]["before_attacked"]["lowest_forget"]["value"] > 0
    found = figures(read(result))
    attack, attack_before = found.pop("attack"), before.pop("attack")
    assert found == before
    assert _numbers(_by_number(attack)) == pytest.approx(_numbers(_by_number(attack_before)), abs=1e-4)
    assert all(part["lowest_forget"]["value"] > 0 for part in read(result)["attack"]["summaries"])
    assert _models(finished) == models


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("learning_rate", "0.04"),
        ("dataloader_drop_last", "true"),  # revision 9e61e8a took a run with it for the same run
    ],
)
def test_a_finished_run_with_another_setting_is_refused(
    run_in: RunIn, finished: Path, setting: str, value: str
) -> None:
    """The message names the setting and the way out, and nothing in the folder is changed."""
    before = digests(finished / "run"), digests(finished / "base")
    refused = run_in(finished, f"--training.{setting}", value)
    assert refused.status == 2, refused.stderr
    assert "Traceback" not in refused.stderr
    (message,) = [line for line in refused.stderr.splitlines() if line.startswith("hf-era: ")]
    assert setting in message
    assert "--overwrite_output_dir" in message
    assert (digests(finished / "run"), digests(finished / "base")) == before


def test_with_examples_held_back_for_coherence_it_is_another_run(run_in: RunIn, finished: Path) -> None:
    """The message says how it goes on."""
    before = digests(finished / "run"), digests(finished / "base")
    refused = run_in(finished, as_then=False)
    assert refused.status == 2, refused.stderr
    assert "If an earlier version of hf_era began it, set `--data.coherence_validation_stories 0`" in refused.stderr
    assert (digests(finished / "run"), digests(finished / "base")) == before


def test_an_old_result_can_still_be_compared(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A result file of schema version 2 is read by `hf-era compare`."""
    monkeypatch.chdir(tmp_path)
    assert read(finished / "run" / "result.json")["schema_version"] == 2
    assert cli.main(["compare", "finished/run/result.json", "--output", "comparison"]) == 0, capsys.readouterr().err
    assert "earlier" in (tmp_path / "comparison" / "comparison.md").read_text(encoding="utf-8")


def test_an_old_result_can_still_be_rendered(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`hf-era card` makes the model card and the report of a result file of schema version 2."""
    monkeypatch.chdir(finished)
    card, report = finished / "run" / "model" / "README.md", finished / "run" / "report.html"
    card.unlink()
    assert cli.main(["card", "run"]) == 0, capsys.readouterr().err
    assert "earlier" in card.read_text(encoding="utf-8")
    assert "earlier" in report.read_text(encoding="utf-8")


def _models(folder: Path) -> dict[str, str]:
    """The hashes of all weights in the folder of a run."""
    return {name: digest for name, digest in digests(folder).items() if name.endswith(".safetensors")}


def _by_number(attack: dict[str, Any]) -> dict[str, Any]:
    """What an attack measures on retain examples, under its number."""
    summaries = enumerate(attack["summaries"])
    return {"before": attack["before"], **{str(at): part["start_retain"] for at, part in summaries}}


def _numbers(value: Any, name: str = "") -> dict[str, float]:
    """All numbers in nested dictionaries, under their path; what is not measured has none."""
    if isinstance(value, dict):
        return {path: number for key, part in value.items() for path, number in _numbers(part, f"{name}/{key}").items()}
    return {} if value is None else {name: float(value)}
