"""A contracted model in EleutherAI's lm-evaluation-harness, on the tasks of `recipes/lm_eval`."""

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from hf_era.data import WordFinder, generate_stories, train_tokenizer
from hf_era.data.generator import FOREST_WORDS

LENGTH = 64
"""Most tokens that the model takes: the generated stories need several windows, the short ones below need one."""

# The harness where `hf_era` cannot be imported, and does not need to be: only an expanded checkpoint does.
HARNESS_WITHOUT_HF_ERA = """
import sys
sys.modules["hf_era"] = None
from transformers import AutoConfig
try:
    AutoConfig.from_pretrained("expanded")
except ValueError as error:
    assert "expanded_gpt_neo" in str(error), error
else:
    raise SystemExit("an expanded checkpoint was loaded, so hf_era was imported")
from lm_eval.__main__ import cli_evaluate
cli_evaluate()
"""


@pytest.fixture(scope="module")
def story_source(repository_root: Path) -> ModuleType:
    """The code beside the task files."""
    path = repository_root / "recipes" / "lm_eval" / "stories.py"
    spec = importlib.util.spec_from_file_location("lm_eval_stories", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_stories(path: Path, texts: list[str | None]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def run_harness(folder: Path, tasks: Path) -> dict[str, dict[str, Any]]:
    """Runs both tasks on `contracted`, `forget.jsonl` and `retain.jsonl` in a folder: task -> metric -> value."""
    model = ("--model", "hf", "--model_args", "pretrained=contracted,dtype=float32", "--device", "cpu")
    task = ("--include_path", str(tasks), "--tasks", "era_stories")
    files = ("--metadata", json.dumps({"forget": "forget.jsonl", "retain": "retain.jsonl"}))
    done = subprocess.run(
        [sys.executable, "-c", HARNESS_WITHOUT_HF_ERA, *model, *task, *files, "--output_path", "results"],
        cwd=folder,
        env={**os.environ, "HF_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    (written,) = (folder / "results").rglob("results_*.json")
    return json.loads(written.read_text(encoding="utf-8"))["results"]


@torch.no_grad()
def log_likelihood(model: Any, tokenizer: Any, text: str) -> float:
    """Of all tokens of a text, nats: chunks of LENGTH tokens, each predicted from the one token before the chunk and
    those within it. The last chunk is shorter and sees as far back as the model's length allows. Before all: BOS.
    """
    tokens = [tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]
    number, total = len(tokens) - 1, 0.0
    for first in range(0, number, LENGTH):
        last = min(first + LENGTH, number)
        seen_from = max(min(first, number - LENGTH), 0)
        read = torch.tensor([tokens[seen_from:last]])
        predicted = model(input_ids=read).logits[0].log_softmax(-1)[first - seen_from :]
        targets = torch.tensor(tokens[first + 1 : last + 1])
        total += float(predicted.gather(1, targets[:, None]).sum())
    return total


def expected_metrics(model: Any, tokenizer: Any, texts: list[str]) -> dict[str, float]:
    total = sum(log_likelihood(model, tokenizer, text) for text in texts)
    words = sum(len(text.split()) for text in texts)
    size = sum(len(text.encode("utf-8")) for text in texts)
    return {
        "word_perplexity,none": math.exp(-total / words),
        "byte_perplexity,none": math.exp(-total / size),
        "bits_per_byte,none": -total / size / math.log(2),
    }


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs lm_eval: pip install -e .[lm-eval]")
def test_the_harness_scores_a_contracted_model_as_the_ablated_one(
    make_expanded: Callable[..., Any], tmp_path: Path, repository_root: Path
) -> None:
    stories, finder = generate_stories(60, seed=3), WordFinder(FOREST_WORDS)
    tokenizer = train_tokenizer(stories, vocab_size=400, model_max_length=LENGTH)
    model = make_expanded(
        vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=1, max_position_embeddings=LENGTH, window_size=16
    )
    for name, part in (("contracted", model.contract()), ("expanded", model)):
        part.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)

    texts = {
        "forget": [*[story for story in stories if finder.found_in(story)][:3], "The café has a tree."],
        "retain": [*[story for story in stories if not finder.found_in(story)][:3], "Zoë likes 🍎."],
    }
    write_stories(tmp_path / "forget.jsonl", [*texts["forget"], None])
    write_stories(tmp_path / "retain.jsonl", ["  ", *(f"\n{text} " for text in texts["retain"])])
    found = run_harness(tmp_path, repository_root / "recipes" / "lm_eval")

    model.double().eval()
    for kind, kept in texts.items():
        values = found[f"era_{kind}_stories"]
        with model.ablated():
            expected = expected_metrics(model, tokenizer, kept)
        assert {name: values[name] for name in expected} == pytest.approx(expected, rel=2e-6), kind
        module_on = expected_metrics(model, tokenizer, kept)
        assert all(abs(values[name] / module_on[name] - 1) > 1e-3 for name in module_on), (kind, values, module_on)


def test_stories_are_read_as_in_training(story_source: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "stories.jsonl"
    write_stories(file, [" A tree.\n", None, "", " \n", "No\n\nword."])
    for kind in story_source.KINDS:
        read = getattr(story_source, f"{kind}_stories")(**{kind: str(file), "pretrained": "x", "version": 1.0})
        assert read["test"].to_dict() == {"text": ["A tree.", "No\n\nword."]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist. Pass JSON lines with a string `text` each."),
        (b"", "holds no story. Check the file, or pass another."),
        (b'{"text": " "}\n', "holds no story. Check the file, or pass another."),
        (b'{"story": "One."}\n', 'line 1 should be a JSON object with a string `text`, got {"story": "One."}. Repair'),
        (b'\n{"text": "One."}\n{"text": ', 'line 3 should be a JSON object with a string `text`, got {"text":. Repair'),
        (b'{"text": 7}', 'line 1 should be a JSON object with a string `text`, got {"text": 7}. Repair'),
        (b'["One."]', 'line 1 should be a JSON object with a string `text`, got ["One."]. Repair'),
        (b'{"text": "\xff"}', 'line 1 should be a JSON object with a string `text`, got {"text": "\ufffd"}. Repair'),
    ],
)
def test_wrong_files(content: bytes | None, message: str, story_source: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "stories.jsonl"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        story_source.retain_stories(retain=str(file))
    assert "`retain`" in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_file_that_was_not_named(story_source: ModuleType) -> None:
    message = (
        "The task era_forget_stories needs the metadata `forget`, got none. "
        """Pass --metadata '{"forget": "forget.jsonl", "retain": "retain.jsonl"}'."""
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        story_source.forget_stories(retain="retain.jsonl", version=1.0)
