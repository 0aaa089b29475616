"""`hf-era eval RUN --profiles`: a run's expanded model on its held-out examples, each combination of modules."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoForCausalLM

from hf_era import ExpansionConfig, expand_base
from hf_era.cli import main
from hf_era.data import generate_stories, train_tokenizer
from hf_era.data.splits import PARTS
from hf_era.evaluation import ModelResult, story_losses
from hf_era.run.outputs import HELD_OUT, write_held_out

OWN = ["biology", "chemistry", "biology", None, "chemistry"]
MAX_TOKENS = 20


@pytest.fixture(scope="module")
def finished_run(make_config: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run with two modules keeps, as far as it is read here."""
    folder = tmp_path_factory.mktemp("profiles") / "my_run"
    stories = list(dict.fromkeys(generate_stories(40, seed=3)))
    tokenizer = train_tokenizer(stories, 300)
    torch.manual_seed(0)
    base = GPTNeoForCausalLM(make_config(vocab_size=len(tokenizer)))
    modules = [{"name": name, "width": 4, "initialization_scale": 5.0} for name in ("biology", "chemistry")]
    expand_base(base, ExpansionConfig(modules=modules)).save_pretrained(folder / "expanded")
    tokenizer.save_pretrained(folder / "expanded")
    parts: dict[str, Any] = {name: Dataset.from_dict({"text": []}) for name in PARTS}
    parts["validation_forget"] = Dataset.from_dict({"text": stories[:5], "module": OWN})
    parts["validation_retain"] = Dataset.from_dict({"text": stories[5:8], "module": [None] * 3})
    write_held_out(SimpleNamespace(**parts), folder / HELD_OUT)  # type: ignore[arg-type]
    (folder / "run.json").write_text("{}")
    (folder / "result.json").write_text(json.dumps({"config": {"data": {"max_tokens": MAX_TOKENS}}}))
    return folder


@pytest.fixture
def evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs `hf-era eval MODEL --profiles ...`; the exit status, and what it said."""

    def call(model: Path, *options: str) -> tuple[int, str, str]:
        fixed = ("--output", str(tmp_path / "out"), "--evaluation.bootstrap_samples", "0")
        status = main(["eval", str(model), *fixed, "--profiles", *options])
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


def own_loss(folder: Path, module: str, off: list[str]) -> float:
    """Token-weighted loss on a module's own examples, one by one, with these modules off."""
    model = AutoModelForCausalLM.from_pretrained(folder / "expanded")
    tokenizer = AutoTokenizer.from_pretrained(folder / "expanded")
    rows = [json.loads(line) for line in (folder / HELD_OUT / "forget.jsonl").read_text().splitlines()]
    texts = [row["text"] for row in rows if row.get("module") == module]
    ids = [[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts]
    tensors = [torch.tensor([one[:MAX_TOKENS]]) for one in ids]
    for name in off:
        model.set_active(name, False)
    losses = story_losses(model, [{"input_ids": one, "labels": one} for one in tensors])
    return float(losses.nll.sum() / losses.tokens.sum())


def test_the_profiles_of_a_run(finished_run: Path, evaluate: Any, tmp_path: Path) -> None:
    status, shown, error = evaluate(finished_run)
    assert status == 0, error
    result = ModelResult.load(tmp_path / "out" / "result.json")
    assert [profile["on"] for profile in result.profiles] == [[], ["biology"], ["chemistry"], ["biology", "chemistry"]]
    core, biology, _, both = (profile["losses"] for profile in result.profiles)
    assert core["modules"]["biology"]["loss"] == pytest.approx(
        own_loss(finished_run, "biology", ["biology", "chemistry"]), rel=1e-5
    )
    assert biology["modules"]["chemistry"]["loss"] == pytest.approx(
        own_loss(finished_run, "chemistry", ["chemistry"]), rel=1e-5
    )
    assert both["retain"] == result.losses["retain"]
    assert core["retain"]["loss"] != both["retain"]["loss"]
    assert result.generations == {}
    assert result.name == "my_run"
    assert "core + biology + chemistry" in shown
    assert "4, of the modules biology, chemistry" in error
    assert "core + biology" in (tmp_path / "out" / "report.html").read_text()


def test_examples_begin_and_end_as_in_the_run(finished_run: Path, evaluate: Any, tmp_path: Path) -> None:
    """With a BOS and an EOS two tokens more of each example are predicted than without either."""
    tokens = []
    for has_them in (False, True):
        folder = tmp_path / str(has_them)
        shutil.copytree(finished_run, folder)
        (folder / HELD_OUT / "retain.jsonl").write_text('{"text": "A cat sat."}\n')
        data = {"max_tokens": MAX_TOKENS, "add_bos": has_them, "add_eos": has_them}
        (folder / "result.json").write_text(json.dumps({"config": {"data": data}}))
        status, _, error = evaluate(folder, "chemistry", "--output", str(folder / "out"))
        assert status == 0, error
        result = ModelResult.load(folder / "out" / "result.json")
        tokens.append(result.profiles[0]["losses"]["retain"]["tokens"])
    assert tokens[1] == tokens[0] + 2


def test_some_modules_of_an_expanded_model_on_other_examples(finished_run: Path, evaluate: Any, tmp_path: Path) -> None:
    folder = finished_run / HELD_OUT
    options = ("chemistry", "--forget", str(folder / "retain.jsonl"), "--retain", str(folder / "forget.jsonl"))
    status, _, error = evaluate(finished_run / "expanded", *options)
    assert status == 0, error
    result = ModelResult.load(tmp_path / "out" / "result.json")
    assert [profile["name"] for profile in result.profiles] == ["core", "core + chemistry"]
    assert result.profiles[0]["losses"]["modules"] == {}


@pytest.mark.parametrize(
    ("missing", "options", "message"),
    [
        ("expanded", [], "has no expanded model (`expanded/`). A run with `method: gradient_routing` keeps one; if it was"),
        (f"{HELD_OUT}/retain.jsonl", [], "`profiles`: the run's own examples are not there: "),
        (None, ["biolgy"], "Unknown key `biolgy` in the model's modules. Did you mean `biology`? Known: biology, che"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(
    missing: str | None, options: list[str], message: str, finished_run: Path, evaluate: Any, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished_run, copy)
    if missing is not None:
        path = copy / missing
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    status, _, error = evaluate(copy, *options)
    assert (status, message in error) == (2, True), error


def test_names_of_modules_that_are_no_names(finished_run: Path, evaluate: Any, tmp_path: Path) -> None:
    odd = tmp_path / "odd.jsonl"
    odd.write_text('{"text": "Once upon a time there was a sea.", "module": 3}\n')
    retain = str(finished_run / HELD_OUT / "retain.jsonl")
    status, _, error = evaluate(finished_run, "--forget", str(odd), "--retain", retain)
    assert status == 2
    assert "the column `module` of" in error
    assert "should hold names of modules (or null), got 3." in error


def test_a_stock_model_has_no_profiles(finished_run: Path, evaluate: Any, tmp_path: Path) -> None:
    expanded = AutoModelForCausalLM.from_pretrained(finished_run / "expanded")
    expanded.contract().save_pretrained(tmp_path / "stock")
    AutoTokenizer.from_pretrained(finished_run / "expanded").save_pretrained(tmp_path / "stock")
    folder = finished_run / HELD_OUT
    files = ("--forget", str(folder / "forget.jsonl"), "--retain", str(folder / "retain.jsonl"))
    status, _, error = evaluate(tmp_path / "stock", *files)
    assert status == 2
    assert "`profiles`: the model has no auxiliary module to switch. Give an expanded model" in error
