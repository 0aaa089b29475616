"""A push uploads the final folder alone, never what was removed, and no token gets into what is stored."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import HfApi
from transformers import AutoModelForCausalLM, GPTNeoForCausalLM

from hf_era import RunConfig, run_pipeline
from hf_era.cli import main
from hf_era.evaluation import RunResult

TOKEN = "hf_" + "a" * 34


class Repository:
    repo_id = "someone/forgetful"


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A hub that takes everything: what it was asked for."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(HfApi, "create_repo", lambda api, name, **options: asked.append(options) or Repository())
    monkeypatch.setattr(HfApi, "upload_folder", lambda api, **options: asked.append({**options, "token": api.token}))
    return asked


@pytest.fixture
def pushed_run(finished_copy: tuple[RunConfig, RunResult]) -> Path:
    return finished_copy[0].output_path


def test_a_run_pushes_the_final_folder(
    pushed_run: Path, uploads: list[dict[str, Any]], make_run_config: Callable[..., RunConfig]
) -> None:
    pushing = {"push_to_hub": True, "hub_model_id": "someone/forgetful", "hub_token": "hf_secret"}
    config = make_run_config(pushed_run.parent, training=pushing)
    run_pipeline(config)
    _, upload = uploads
    folder = Path(upload["folder_path"])
    assert upload["token"] == "hf_secret"
    assert "someone/forgetful" in (folder / "README.md").read_text()
    assert type(AutoModelForCausalLM.from_pretrained(folder)) is GPTNeoForCausalLM
    assert "hf_secret" not in (config.output_path / "result.json").read_text()
    assert "hf_secret" not in (config.output_path / "run.json").read_text()


def test_the_command_pushes_the_same_folder_and_keeps_the_licence(
    pushed_run: Path, uploads: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(pushed_run), "--repository", "someone/forgetful", "--license", "mit", "--private"]) == 0
    assert main(["push", str(pushed_run)]) == 0
    made, upload, _, again = uploads
    assert made["private"]
    assert upload["folder_path"] == again["folder_path"] == str(pushed_run / "model")
    assert upload["repo_id"] == "someone/forgetful"
    assert "license: mit" in (pushed_run / "model" / "README.md").read_text()
    assert "Pushed: https://huggingface.co/someone/forgetful" in capsys.readouterr().out


def _link_the_expanded_model(run: Path) -> None:
    for path in (run / "model").iterdir():
        path.unlink()
    for path in (run / "expanded").iterdir():
        os.link(path, run / "model" / path.name)
    (run / "phases" / "coherence.json").unlink()  # which knows the files


def _rename_it_to_a_stock_one(run: Path) -> None:
    _link_the_expanded_model(run)
    config = run / "model" / "config.json"
    text = config.read_text()
    config.unlink()
    config.write_text(text.replace("expanded_gpt_neo", "gpt_neo"))


@pytest.mark.parametrize(
    ("folder", "change", "message"),
    [
        ("expanded", lambda run: None, r"holds no result.json of a run that went through. Pass the run: `hf-era push "),
        (".", lambda run: (run / "result.json").unlink(), "Pass the output directory of `hf-era run`."),
        (".", _link_the_expanded_model, "model is the expanded model: what was to be removed is inside."),
        (".", _rename_it_to_a_stock_one, "mlp.auxiliary.forget"),
        (".", lambda run: (run / "model" / "expanded.bin").touch(), "expanded.bin is no file of the run"),
        (".", lambda run: (run / "model" / "notes.txt").write_text(f"key {TOKEN}"), "looks like a token of the hub"),
        (
            ".",
            lambda run: (run / "model" / "config.json").unlink(),
            "is not as the run left it: config.json is missing.",
        ),
    ],
)
def test_what_is_no_whole_contracted_model_is_not_pushed(
    pushed_run: Path,
    uploads: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    folder: str,
    change: Callable[[Path], Any],
    message: str,
) -> None:
    change(pushed_run)
    assert main(["push", str(pushed_run / folder)]) == 2
    assert message in capsys.readouterr().err
    assert uploads == []


def test_without_a_hub_the_model_is_kept_and_the_way_out_named(
    pushed_run: Path, uploads: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(api: HfApi, name: str, **options: Any) -> Any:
        raise OSError("401 Client Error")

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert main(["push", str(pushed_run), "--repository", "someone/it"]) == 2
    said = capsys.readouterr().err
    assert "The push to someone/it failed: 401 Client Error. Log in first: `hf auth login`, or set HF_TOKEN." in said
    assert f"`hf-era push {pushed_run} --repository someone/it`" in said
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: True)
    assert main(["push", str(pushed_run), "--repository", "someone/it"]) == 2
    said = capsys.readouterr().err
    assert f"HF_HUB_OFFLINE is set. The model is whole in {pushed_run / 'model'}, loads from there" in said
    assert main(["push", str(pushed_run), "--repository", "a/b/c"]) == 2
    assert "`repository` should be a hub id such as `owner/name`, got 'a/b/c'." in capsys.readouterr().err
    assert uploads == []


def test_a_run_that_cannot_push_says_so_first(
    tmp_path: Path, make_run_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: True)
    with pytest.raises(ValueError, match=r"HF_HUB_OFFLINE is set. Leave `training.push_to_hub` out, and push later"):
        run_pipeline(make_run_config(tmp_path, training={"push_to_hub": True}))
    assert not list(tmp_path.iterdir())
