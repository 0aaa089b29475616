"""EleutherAI's lm-evaluation-harness: a contracted model in it, on the tasks of `recipes/lm_eval`; its tasks in hf_era."""

import copy
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_era.cli import main
from hf_era.data import WordFinder, generate_stories, train_tokenizer
from hf_era.data.generator import FOREST_WORDS
from hf_era.evaluation import EvaluationConfig, tasks
from hf_era.evaluation.results import ModelResult
from hf_era.evaluation.tasks import Suite, suite_key
from hf_era.reporting.tables import tasks_table
from hf_era.run.measuring import Measuring
from hf_era.utils.files import recipes_folder

needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="needs lm_eval: pip install -e .[lm-eval]"
)

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


def load_recipe_code(name: str) -> ModuleType:
    """The code beside the task files."""
    path = recipes_folder() / "lm_eval" / name
    spec = importlib.util.spec_from_file_location(f"lm_eval_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def story_source() -> ModuleType:
    return load_recipe_code("stories.py")


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
@needs_lm_eval
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


# ---- hf-era eval --tasks, and tasks of a run ----

QUESTIONS = [
    {"question": "What hangs on an oak?", "choices": ["leaves", "wheels", "pages", "keys"], "answer": 0},
    {"question": " Who sings at dawn? ", "choices": ["a stone", "a bird"], "answer": 1},
    {"question": "What is wet?", "choices": ["a fire", "the lake", "the sand"], "answer": 1},
]
ANSWERS = [
    {
        "question": "Where does Mr Oak live?",
        "answer": "Mr Oak lives by the lake.",
        "paraphrased_answer": "By the lake lives Mr Oak.",
        "perturbed_answer": ["Mr Oak lives in a town.", "Mr Oak lives on a hill."],
    },
    {"question": "What does Ann grow?", "answer": "Ann grows beans.", "perturbed_answer": ["Ann grows bread."]},
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(generate_stories(60, seed=3), vocab_size=400, model_max_length=256)


@pytest.fixture(scope="module")
def folder(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory, make_expanded: Callable[..., Any]) -> Path:
    """An expanded model, the same contracted, and made-up questions in the two formats."""
    folder = tmp_path_factory.mktemp("tasks")
    model = make_expanded(
        vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=1, max_position_embeddings=256, window_size=16
    )
    for name, part in (("expanded", model), ("contracted", model.contract())):
        part.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for name, rows in (("choices", QUESTIONS), ("answers", ANSWERS)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def suite_of(tokenizer: Any, *names: str, **settings: Any) -> Suite:
    return Suite(EvaluationConfig(tasks=list(names), **settings), tokenizer)


@torch.no_grad()
def answer_log_likelihood(model: Any, tokenizer: Any, prompt: str, answer: str) -> tuple[float, int]:
    """Of the answer's tokens after a prompt, nats; and how many those are."""
    start, tokens = (tokenizer(text)["input_ids"] for text in (prompt, f"{prompt} {answer}"))
    logits = model(input_ids=torch.tensor([tokens])).logits[0].double().log_softmax(-1)
    return sum(float(logits[i - 1, tokens[i]]) for i in range(len(start), len(tokens))), len(tokens) - len(start)


def expected_figures(model: Any, tokenizer: Any) -> dict[str, float]:
    """What the tasks should say of a model, from its logits alone."""
    likelihood = partial(answer_log_likelihood, model, tokenizer)
    right: dict[str, list[bool]] = {"letters": [], "cloze": [], "cloze_norm": []}
    for row in QUESTIONS:
        question, choices = str(row["question"]).strip(), list(row["choices"])  # type: ignore[call-overload]
        letters = "ABCD"[: len(choices)]
        listed = "".join(f"{letter}. {choice}\n" for letter, choice in zip(letters, choices, strict=True))
        scores = {
            "letters": [likelihood(f"{question}\n{listed}Answer:", letter)[0] for letter in letters],
            "cloze": [likelihood(f"{question}\nAnswer:", choice)[0] for choice in choices],
        }
        scores["cloze_norm"] = [score / len(choice) for score, choice in zip(scores["cloze"], choices, strict=True)]
        for kind, found in scores.items():
            right[kind].append(found.index(max(found)) == row["answer"])
    probabilities, ratios = [], []
    for row in ANSWERS:
        texts = [row["answer"], row.get("paraphrased_answer", row["answer"]), *row["perturbed_answer"]]
        pairs = [likelihood(f"Question: {row['question']}\nAnswer:", str(text)) for text in texts]
        each = [math.exp(total / tokens) for total, tokens in pairs]
        probabilities.append(each[0])
        ratios.append(sum(each[2:]) / len(each[2:]) / each[1])
    means = {kind: sum(found) / len(found) for kind, found in right.items()}
    return {**means, "probability": sum(probabilities) / 2, "truth_ratio": sum(ratios) / 2}


@needs_lm_eval
def test_eval_measures_tasks_with_the_modules_on_and_ablated(folder: Path, tmp_path: Path) -> None:
    tasks = [f"wmdp_local={folder}/choices.jsonl,wmdp_local_cloze={folder}/choices.jsonl"]
    tasks += [f"tofu_local_probability={folder}/answers.jsonl"]
    arguments = ["eval", str(folder / "expanded"), "--before", str(folder / "contracted"), "--tasks", *tasks]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 0
    result = ModelResult.load(tmp_path / "out" / "result.json")
    assert list(result.tasks) == ["before", "final", "ablated"]
    assert result.losses == {}
    tokenizer = AutoTokenizer.from_pretrained(folder / "expanded")
    model = AutoModelForCausalLM.from_pretrained(folder / "expanded")
    with_modules = expected_figures(model, tokenizer)
    with model.ablated():
        without = expected_figures(model, tokenizer)
    for stage, expected in (("before", without), ("final", with_modules), ("ablated", without)):
        found = result.tasks[stage]
        letters, cloze, tofu = found.values()
        assert list(found) == [
            f"{name}={file}.jsonl"
            for name, file in (
                ("wmdp_local", "choices"),
                ("wmdp_local_cloze", "choices"),
                ("tofu_local_probability", "answers"),
            )
        ]
        values = {
            "letters": letters["metrics"]["acc"],
            "cloze": cloze["metrics"]["acc"],
            "cloze_norm": cloze["metrics"]["acc_norm"],
            **tofu["metrics"],
        }
        assert {name: value["value"] for name, value in values.items()} == pytest.approx(expected, rel=1e-5), stage
        assert (letters["examples"], letters["shots"]) == (3, 0)
        assert letters["chance"] == pytest.approx((1 / 4 + 1 / 2 + 1 / 3) / 3)
        assert tofu["chance"] is None
        for value in values.values():
            assert value["low"] <= value["value"] <= value["high"]
    assert abs(without["probability"] / with_modules["probability"] - 1) > 1e-3
    assert ">accuracy<" in (tmp_path / "out" / "report.html").read_text()


@needs_lm_eval
def test_written_answers(folder: Path, tokenizer: Any) -> None:
    """A tokenizer that has nothing to pad with will do, and stays so; the same twice."""
    without = copy.deepcopy(tokenizer)
    without.pad_token = None
    suite = suite_of(without, f"tofu_local_rouge={folder}/answers.jsonl")
    (task,) = suite._tasks.values()
    task.config.generation_kwargs["max_gen_toks"] = 4  # for speed
    model = AutoModelForCausalLM.from_pretrained(folder / "contracted")
    state = torch.get_rng_state()
    written = suite.measure(model)
    assert suite.measure(model) == written
    assert torch.equal(torch.get_rng_state(), state)
    assert without.pad_token is None
    (figures,) = written.values()
    assert 0 <= figures["metrics"]["rougeL_recall"]["value"] <= 1


@needs_lm_eval
def test_rouge_is_the_recall_of_the_answers_words() -> None:
    questions = load_recipe_code("questions.py")
    doc = {"answer": "Ann grows beans in May."}
    assert questions.rouge(doc, ["In the garden Ann is growing beans."]) == {"rougeL_recall": pytest.approx(3 / 5)}


@needs_lm_eval
def test_limit_and_few_shots(folder: Path, tokenizer: Any) -> None:
    suite = suite_of(tokenizer, f"wmdp_local={folder}/choices.jsonl", task_limit=2, num_fewshot=1)
    (found,) = suite.measure(AutoModelForCausalLM.from_pretrained(folder / "contracted")).values()
    assert (found["examples"], found["shots"], suite.examples) == (2, 1, 5)
    assert found["chance"] == pytest.approx(3 / 8)


@needs_lm_eval
@pytest.mark.parametrize(
    ("task", "content", "message"),
    [
        ("wmdp_local", None, "questions.jsonl does not exist. Pass JSON lines such as {"),
        ("wmdp_local", [], "questions.jsonl holds no question. Check the file, or pass another."),
        (
            "wmdp_local",
            [{"question": "a?", "choices": ["b", "c"]}],
            "line 1: the column 'answer' is missing. Each line",
        ),
        (
            "wmdp_local",
            [QUESTIONS[0], {**QUESTIONS[1], "answer": 2}],
            "line 2: `answer` should be an index from 0 to 1, got 2",
        ),
        ("wmdp_local", [{**QUESTIONS[1], "answer": True}], "`answer` should be an index from 0 to 1, got true"),
        ("wmdp_local", [{**QUESTIONS[1], "choices": ["b"]}], '`choices` should be a list of 2 to 26 texts, got ["b"]'),
        ("wmdp_local", [{**QUESTIONS[1], "question": " "}], '`question` should be text, got " "'),
        ("wmdp_local", ["a?"], 'it should be a JSON object, got "a?"'),
        ("tofu_local", [{"question": "a?", "answer": 3}], "`answer` should be text, got 3"),
        (
            "tofu_local",
            [{**ANSWERS[1], "perturbed_answer": "b"}],
            '`perturbed_answer` should be a list of texts, got "b"',
        ),
        ("tofu_local", [ANSWERS[0], {"question": "a?", "answer": "b"}], "has `perturbed_answer` in some lines alone."),
    ],
)
def test_files_that_are_not_as_they_should_be(
    task: str, content: list[Any] | None, message: str, tmp_path: Path, tokenizer: Any
) -> None:
    file = tmp_path / "questions.jsonl"
    if content is not None:
        file.write_text("".join(json.dumps(row) + "\n" for row in content))
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        suite_of(tokenizer, f"{task}={file}")
    assert str(caught.value).startswith(f"`evaluation.tasks`: {task}={file}: ")


@needs_lm_eval
def test_tasks_that_cannot_be_loaded(folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "far.yaml").write_text(
        "task: far\ndataset_path: nobody/nothing\noutput_type: multiple_choice\ntest_split: test\n"
        "doc_to_text: question\ndoc_to_choice: choices\ndoc_to_target: answer\nmetric_list: [{metric: acc}]\n"
    )
    own = {"task_files": str(tmp_path)}
    with pytest.raises(
        ValueError, match=r"far could not be loaded: .*hub. On a machine without it, give a local copy: "
    ):
        suite_of(tokenizer, "far", **own)
    with pytest.raises(ValueError, match=r"wmdp_local measures a file of yours. Name it: `--tasks wmdp_local="):
        suite_of(tokenizer, "wmdp_local")
    twice = f"wmdp_local={folder}/choices.jsonl"
    with pytest.raises(ValueError, match=r"wmdp_local=choices.jsonl is there twice. Name each task once"):
        suite_of(tokenizer, twice, twice)
    with pytest.raises(ValueError, match=r"`evaluation.task_files` \(`--task-files`\): nowhere is no folder."):
        suite_of(tokenizer, twice, task_files="nowhere")


@needs_lm_eval
def test_a_task_file_of_ones_own_takes_a_file(folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from datasets import Dataset, DatasetDict\ndef read(data, **options):\n"
        "    return DatasetDict({'test': Dataset.from_list([{'question': data}])})\n"
    )
    task = "task: mine\ndataset_path: ''\noutput_type: multiple_choice\ntest_split: test\ndoc_to_text: question\n"
    task += "doc_to_choice: [right, wrong]\ndoc_to_target: 0\nmetric_list: [{metric: acc}]\n"
    task += "custom_dataset: !function mine.read\n"
    (tmp_path / "mine.yaml").write_text(task)
    suite = suite_of(tokenizer, f"mine={folder}/answers.jsonl", task_files=str(tmp_path))
    assert suite.describe() == "mine=answers.jsonl (1)"


@needs_lm_eval
def test_a_group_with_figures_of_its_own(folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "rows.py").write_text(
        "from datasets import Dataset, DatasetDict\ndef read(number, **options):\n"
        "    return DatasetDict({'test': Dataset.from_list([{'question': 'Is it?'}] * number)})\n"
    )
    for name, number, right in (("one", 3, 0), ("two", 1, 1)):
        task = (
            f"task: {name}\ndataset_path: ''\noutput_type: multiple_choice\ntest_split: test\ndoc_to_text: question\n"
        )
        task += f"doc_to_choice: [right, wrong]\ndoc_to_target: {right}\nmetric_list: [{{metric: acc}}]\n"
        task += f"custom_dataset: !function rows.read\ndataset_kwargs: {{number: {number}}}\n"
        (tmp_path / f"{name}.yaml").write_text(task)
    weighing = "aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]\n"
    (tmp_path / "both.yaml").write_text(f"group: both\ntask: [one, two]\n{weighing}")
    found = suite_of(tokenizer, "both", task_files=str(tmp_path)).measure(
        AutoModelForCausalLM.from_pretrained(folder / "contracted")
    )
    accuracies = {name: values["metrics"]["acc"]["value"] for name, values in found.items()}
    assert accuracies in ({"both": 0.75, "one": 1.0, "two": 0.0}, {"both": 0.25, "one": 0.0, "two": 1.0})
    described = {name: (values["examples"], values["chance"], values["group"]) for name, values in found.items()}
    assert described == {"both": (4, None, None), "one": (3, 0.5, "both"), "two": (1, 0.5, "both")}


@needs_lm_eval
def test_texts_that_the_model_cannot_write(folder: Path, tokenizer: Any, make_base: Callable[..., Any]) -> None:
    suite = suite_of(tokenizer, f"tofu_local={folder}/answers.jsonl")
    short = make_base(vocab_size=len(tokenizer), max_position_embeddings=64)
    with pytest.raises(
        ValueError, match=r"tofu_local_rouge=answers.jsonl writes up to 128 tokens, but .* 64 positions"
    ):
        suite.measure(short)
    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None
    suite = suite_of(endless, f"tofu_local_rouge={folder}/answers.jsonl")
    with pytest.raises(
        ValueError, match=r"its tokenizer has no token that ends a text. Give the tokenizer an `eos_token`"
    ):
        suite.measure(AutoModelForCausalLM.from_pretrained(folder / "contracted"))


def test_unknown_tasks(monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    """The harness's own list, which takes ten seconds, is stood in for."""
    names = {False: ["wmdp_local"], True: ["wmdp_local", "wmdp_bio", "hellaswag"]}
    monkeypatch.setattr(tasks, "_check_installed", lambda: None)
    monkeypatch.setattr(tasks, "_manager", lambda config, defaults: SimpleNamespace(all_tasks=names[defaults]))
    message = "Unknown task in `evaluation.tasks` (`--tasks`): 'wmdp_boi'. Did you mean `wmdp_bio`? `lm-eval ls tasks`"
    with pytest.raises(ValueError, match=re.escape(message)):
        suite_of(tokenizer, "wmdp_boi")
    with pytest.raises(
        ValueError, match=r"wmdp_bio has data of its own, and does not read 'mine.jsonl'. Files are measured"
    ):
        suite_of(tokenizer, "wmdp_bio=mine.jsonl")


@pytest.mark.parametrize("found", ["", "0.4.10"])
def test_without_the_harness(found: str, monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    def version(name: str) -> str:
        if not found:
            raise PackageNotFoundError(name)
        return found

    monkeypatch.setattr(tasks, "version", version)
    message = f'0.4.13 or newer: {found or "none"} is installed. `pip install "lm-eval>=0.4.13"`, or name no tasks.'
    with pytest.raises(ValueError, match=re.escape(message)):
        suite_of(tokenizer, "wmdp_bio")


def test_names_of_tasks() -> None:
    given = ["wmdp_bio, tofu_local=a,b.jsonl,mmlu", "wmdp_local=c=d.jsonl", ""]
    parts = ["wmdp_bio", "tofu_local=a,b.jsonl", "mmlu", "wmdp_local=c=d.jsonl"]
    assert EvaluationConfig(tasks=given).tasks == parts
    assert tasks._parsed(parts[-1]) == ("wmdp_local", "c=d.jsonl")
    with pytest.raises(ValueError, match=r"`evaluation.task_limit` should be at least 1, got 0."):
        EvaluationConfig(task_limit=0)


def test_an_attack_needs_examples(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["relearn", str(folder / "contracted"), "--tasks", "wmdp_bio"]) == 2
    assert "An attack needs examples: `--forget FILE --retain FILE`. For tasks alone" in capsys.readouterr().err


def test_what_was_measured_is_known_by_the_content_of_files(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("{}")
    config = EvaluationConfig(tasks=[f"wmdp_local={file}"])
    key = suite_key(config)
    assert suite_key(replace(config, batch_size=3)) == key
    assert len({key, suite_key(replace(config, task_limit=3)), suite_key(replace(config, num_fewshot=3))}) == 3
    file.write_text("{ }")
    assert suite_key(config) != key


def test_a_run_measures_its_stages_in_the_main_process(monkeypatch: pytest.MonkeyPatch) -> None:
    measuring, progress = object.__new__(Measuring), []
    stages = ("before", "before_ablation", "after_ablation", "after_coherence")
    measuring.stages = {name: SimpleNamespace(model=f"folder of {name}") for name in stages}
    measuring.final_stage, measuring.device, measuring.state = "after_coherence", "cpu", None
    suite = SimpleNamespace(measure=lambda model: {"acc": model})
    measuring.run = SimpleNamespace(tasks=suite, progress=progress.append)
    monkeypatch.setattr("hf_era.run.measuring.load_causal_lm", lambda name: SimpleNamespace(to=lambda device: name))
    measured = {name: {"acc": f"folder of {name}"} for name in stages if name != "after_ablation"}
    assert measuring.measure_tasks("key") == {"tasks": measured}
    assert progress[-1] == 1.0


@pytest.mark.parametrize(
    ("metric", "value", "error", "number", "expected"),
    [
        ("acc", 0.0, 0.0, 10, (0.0, 0.2775)),
        ("acc", 0.5, 0.1, 10, (0.2366, 0.7634)),
        ("acc", 0.55, 0.1, 11, (0.354, 0.746)),  # weighted by size: no share of eleven
        ("rougeL_recall", 0.5, 0.1, 10, (0.304, 0.696)),
        ("rougeL_recall", 0.0, 0.0, 10, (None, None)),
        ("f1", 0.5, None, 10, (None, None)),
    ],
)
def test_intervals(
    metric: str, value: float, error: float | None, number: int, expected: tuple[float | None, float | None]
) -> None:
    assert tasks._interval(metric, value, error, number) == pytest.approx(expected, abs=1e-4)


def test_members_of_a_group_are_left_out_of_the_table() -> None:
    def task(group: str | None, chance: float | None) -> dict[str, Any]:
        metric = {"value": 0.5, "standard_error": 0.1, "low": 0.3, "high": 0.7}
        return {"examples": 1273, "chance": chance, "group": group, "metrics": {"acc": metric, "other": metric}}

    measured = {"wmdp": task(None, None), "wmdp_bio": task("wmdp", 0.25), "mine": task(None, 0.25)}
    result = ModelResult(
        name="x", created="", versions={}, machine={}, data={}, model="x", losses={}, tasks={"final": measured}
    )
    table = tasks_table(result)
    assert table is not None
    assert table.header == ["Task", "Metric", "This model", "Examples", "Chance"]
    figure = "0.500 [0.300, 0.700]"
    assert table.rows == [
        ["wmdp", "accuracy", figure, "1,273", "-"],
        ["wmdp", "other", figure, "1,273", "-"],
        ["mine", "accuracy", figure, "1,273", "0.250"],
        ["mine", "other", figure, "1,273", "0.250"],
    ]
    result.tasks = {}
    assert tasks_table(result) is None
