"""What a run says and leaves behind: its plan, the result file, model card, report, and a push to the hub."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console

from hf_era.data import PreparedData
from hf_era.data.examples import PROMPT_CHARACTERS
from hf_era.data.labelling import MODULE
from hf_era.data.splits import PARTS
from hf_era.evaluation import RunResult
from hf_era.methods import get_method
from hf_era.reporting.html.report import write_report
from hf_era.reporting.markdown.model_card import write_model_card
from hf_era.reporting.terminal import print_result
from hf_era.run.config import RunConfig
from hf_era.run.directory import RunDirectory
from hf_era.run.push import push_model
from hf_era.utils.files import write_text

HELD_OUT = "held_out"
"""Folder of a run with the examples that were never trained on."""
HELD_OUT_FILES = {
    "validation_forget": "forget",
    "validation_retain": "retain",
    "validation_unlabelled": "unlabelled",
    "attack_forget": "attack",
    "coherence_validation": "coherence",
}
"""Part of the data -> its file there, without `.jsonl`."""


def describe_plan(config: RunConfig, device: Any) -> str:
    """What a run is going to do, as rich markup."""
    if config.model.base is not None:
        start = f"from {config.model.base}"
    elif config.model.start == "pretrained":
        start = f"from a base pretrained here ({config.base_path})"
    else:
        start = "from random weights" + (", beside a base control" if config.model.base_control else "")
    attack = "left out"
    if config.relearn.enabled:
        stories = ", ".join(map(str, config.relearn.stories))
        limits = f"{config.relearn.steps} steps at most, {config.relearn.trials} trials each"
        attack = f"fine-tuning on {stories} forget examples, {limits}"
        if config.relearn.each_module and len(config.data.modules) > 1:
            attack += f"; with all forget examples, and with those of each of {len(config.data.modules)} modules"
    lines = [
        ("model", start),
        *get_method(config.method).plan(config),
        ("data", f"{' and '.join(config.data.sources.values())}; forgetting: {config.data.labels}"),
        ("attack", attack),
        ("output", config.output_path),
    ]
    told = [f"  {label:<10} {text}" for label, text in lines]
    return "\n".join([f"[bold]{config.name}[/], seed {config.seed}, on {device}", *told])


def finish(
    result: RunResult, config: RunConfig, directory: RunDirectory, console: Console, state: PartialState
) -> None:
    """Writes result, card and report, says what came out, and pushes if that was asked for."""
    has_model = result.has_checkpoint
    if state.is_main_process:
        write_outputs(result, directory.path)
    print_result(result, console)
    checkpoint = f"Checkpoint: {directory.path / 'model'}   " if has_model else ""
    console.print(f"{checkpoint}Report: {directory.path / 'report.html'}   Figures: {directory.path / 'result.json'}")
    if state.is_main_process and has_model and config.training.get("push_to_hub"):
        _push(result, config, directory.path / "model", console)


def write_held_out(data: PreparedData, folder: Path) -> None:
    """Writes the examples that were never trained on, a file for each set, so that `hf-era eval` and `relearn` can measure
    other models on them, and this one once more. Texts are cut as they were (`data.max_characters`); of several modules it
    is said whose a forget example is."""
    for name in PARTS[1:]:
        examples = getattr(data, name)
        if not len(examples):
            continue
        prompts = examples[PROMPT_CHARACTERS][:] if PROMPT_CHARACTERS in examples.column_names else None
        rows: list[dict[str, str]] = [{"text": text} for text in examples["text"][:]]
        if prompts is not None:
            rows = [
                {"prompt": row["text"][:end], "completion": row["text"][end:]}
                for row, end in zip(rows, prompts, strict=True)
            ]
        if MODULE in examples.column_names:
            modules = examples[MODULE][:]
            rows = [row | ({MODULE: name} if name else {}) for row, name in zip(rows, modules, strict=True)]
        lines = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
        write_text(folder / f"{HELD_OUT_FILES[name]}.jsonl", lines)


def write_outputs(result: RunResult, folder: Path, seeds: Sequence[RunResult] = ()) -> None:
    """Writes `result.json`, `report.html` and, where there is a final model, its card; with those of other seeds beside."""
    result.save(folder / "result.json")
    if (folder / "model").is_dir():
        write_model_card(result, folder / "model", seeds=seeds)
    write_report(result, folder / "report.html", seeds)


def _push(result: RunResult, config: RunConfig, folder: Path, console: Console) -> None:
    settings = config.training
    repository = push_model(
        result,
        folder,
        settings.get("hub_model_id") or config.output_path.name,
        token=settings.get("hub_token"),
        private=settings.get("hub_private_repo"),
        revision=settings.get("hub_revision"),
    )
    console.print(f"Pushed to {repository}")
