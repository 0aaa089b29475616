"""A push uploads the final folder, and no token gets into what is stored."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from transformers import AutoModelForCausalLM, GPTNeoForCausalLM

from hf_era import RunConfig, run_pipeline
from hf_era.evaluation import RunResult


def test_a_push_uploads_the_final_folder(
    finished_copy: tuple[RunConfig, RunResult],
    monkeypatch: pytest.MonkeyPatch,
    make_run_config: Callable[..., RunConfig],
) -> None:
    uploads: list[dict[str, Any]] = []

    class Repository:
        repo_id = "someone/forgetful"

    monkeypatch.setattr(huggingface_hub, "create_repo", lambda *args, **options: Repository())
    monkeypatch.setattr(huggingface_hub, "upload_folder", lambda **options: uploads.append(options))
    pushing = {"push_to_hub": True, "hub_model_id": "someone/forgetful", "hub_token": "hf_secret"}
    config = make_run_config(finished_copy[0].output_path.parent, training=pushing)
    run_pipeline(config)
    (upload,) = uploads
    folder = Path(upload["folder_path"])
    assert "someone/forgetful" in (folder / "README.md").read_text()
    assert type(AutoModelForCausalLM.from_pretrained(folder)) is GPTNeoForCausalLM
    assert "hf_secret" not in (config.output_path / "result.json").read_text()
    assert "hf_secret" not in (config.output_path / "run.json").read_text()
