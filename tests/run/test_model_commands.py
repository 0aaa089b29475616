"""`hf-era eval` and `hf-era relearn` on models that are not ours, and what they say to bad input."""

import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from hf_era.cli import main
from hf_era.commands.generate import show
from hf_era.data import WordFinder, generate_stories, train_tokenizer
from hf_era.data.config import TREE_WORDS
from hf_era.evaluation import SamplingConfig, generate_texts
from hf_era.evaluation.model_evaluation import ForgetWordsWarning, words_message
from hf_era.evaluation.results import ModelResult
from hf_era.reporting.text import visible

QUICK = [
    *("--relearn.steps", "2", "--relearn.stories", "2", "--relearn.trials", "2"),
    *("--relearn.sweep_learning_rates", "0.001", "--relearn.lora_learning_rates", "0.001"),
    *("--generation.new_tokens", "4", "--evaluation.bootstrap_samples", "50"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forget and retain stories in files, and two tiny Llamas, `model` and `before`, with their tokenizer."""
    # What a glob or a chain of archives would take for something else is a name here.
    folder = tmp_path_factory.mktemp("model_commands") / "set [2024]*?::x"
    folder.mkdir()
    stories = list(dict.fromkeys(generate_stories(120, seed=3)))
    finder = WordFinder(TREE_WORDS)
    parts = {"forget": [text for text in stories if finder.found_in(text)][:12]}
    parts["retain"] = [text for text in stories if not finder.found_in(text)][:8]
    for name, texts in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenizer = train_tokenizer(stories, 300)
    for seed, name in enumerate(("model", "before")):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=1, pad_token_id=2,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def run(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs `hf-era COMMAND MODEL --forget ... --retain ... OPTIONS`; returns the exit status and what stderr said."""

    def call(command: str, *options: str, model: str = "model", forget: str = "forget.jsonl") -> tuple[int, str]:
        arguments = [
            command,
            str(files / model),
            "--forget",
            str(files / forget),
            "--retain",
            str(files / "retain.jsonl"),
        ]
        status = main([*arguments, "--output", str(tmp_path / "out"), *options])
        return status, capsys.readouterr().err

    return call


def losses_one_by_one(folder: Path, name: str, stories: Path, max_tokens: int = 64) -> float:
    """Token-weighted loss with transformers alone, story by story."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder / name), AutoTokenizer.from_pretrained(folder / name)
    total, tokens = 0.0, 0
    for line in stories.read_text().splitlines():
        text = json.loads(line)["text"].strip()[:1029].strip()
        ids = torch.tensor([[0, *tokenizer(text, add_special_tokens=False)["input_ids"]][:max_tokens]])
        with torch.no_grad():
            total += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    return total / tokens


def test_eval_gives_the_losses_that_transformers_gives(run, files, tmp_path):
    status, _ = run("eval", *QUICK[-4:], "--before", str(files / "before"))
    assert status == 0
    result = ModelResult.load(tmp_path / "out" / "result.json")
    for kind in ("forget", "retain"):
        expected = {name: losses_one_by_one(files, name, files / f"{kind}.jsonl") for name in ("model", "before")}
        assert result.losses[kind]["loss"] == pytest.approx(expected["model"], rel=1e-5)
        assert result.before["losses"][kind]["loss"] == pytest.approx(expected["before"], rel=1e-5)
        name = {"forget": "unlearning", "retain": "retain_tax"}[kind]
        assert result.estimate(name).value == pytest.approx(expected["model"] - expected["before"], abs=1e-5)
        assert result.estimate(name).low < result.estimate(name).value < result.estimate(name).high
    assert result.attack is None
    generations = result.generations
    assert set(generations["prompt_labels"]) == {"forget", "retain"}
    forget = (files / "forget.jsonl").read_text()
    for prompt, label in zip(generations["prompts"], generations["prompt_labels"], strict=True):
        assert (f'"{prompt}' in forget) == (label == "forget")  # the prompt alone, or more of its example
    assert len(generations["texts"]["final"]) == len(generations["prompts"])
    assert "<html" in (tmp_path / "out" / "report.html").read_text()


def test_relearn_takes_its_stories_out_of_the_forget_file(run, files, tmp_path):
    status, _ = run("relearn", *QUICK, "--before", str(files / "before"), "--no-generations")
    assert status == 0
    result = ModelResult.load(tmp_path / "out" / "result.json")
    # 2 trials of 2 stories: 4 of the 12 are the attacker's, the other 8 are measured on.
    assert (result.data["forget_stories"], result.data["attack_stories"]) == (8, 4)
    relearning = result.relearning
    assert {trial.kind for trial in relearning.trials} == {"full", "lora"}
    # One half chooses the strongest attack, the other is reported.
    assert relearning.measured["forget_stories"] == 4
    start = relearning.trials[0].curve.points[0]
    assert start.retain_loss == pytest.approx(result.losses["retain"]["loss"], rel=1e-5)
    assert relearning.before["retain"] == pytest.approx(result.before["losses"]["retain"]["loss"], rel=1e-5)
    assert relearning.strongest() is not None
    assert all(trial.tokens for trial in relearning.trials)
    assert relearning.before_attacked.start_forget == relearning.before["forget"]
    assert result.generations == {}


def test_relearn_with_too_few_stories(run):
    status, error = run("relearn", "--relearn.stories", "4", "--relearn.trials", "3")
    assert status == 2
    assert "`forget` holds 12 distinct examples; the attack needs 12 of them" in error


def test_relearn_allowed_to_use_fewer_says_so(run, tmp_path):
    many = ["--relearn.stories", "4", "--relearn.trials", "5", *QUICK[:2], *QUICK[6:], "--no-generations"]
    status, _ = run("relearn", *many, "--relearn.lora", "false", "--allow-fewer")
    assert status == 0
    result = ModelResult.load(tmp_path / "out" / "result.json")
    assert result.data["attack_stories"] + result.data["forget_stories"] == 12
    assert any("were asked for" in note for note in result.relearning.notes)


def test_stories_of_one_file_in_another_are_refused(run, files):
    status, error = run("relearn", "--attack", str(files / "forget.jsonl"))
    assert status == 2
    assert "`forget` and `attack` share 12 examples" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dtype", "int8"], "Unknown value for `dtype`: 'int8'"),
        (["--device", "warp"], "`device` should be auto, cpu, cuda, cuda:N or mps, got 'warp'"),
        (["--device", "cuda:99"], "`device` is 'cuda:99', but"),
        (["--max-tokens", "65"], "`max_tokens` is 65, but"),
        (["--batch-size", "many"], "`evaluation.batch_size` should be an integer or null, got 'many'"),
        (["--relearn.stpes", "3"], "Unknown key `stpes` in section `relearn`. Did you mean `steps`?"),
        (["--before", "./nowhere"], "`before`: the directory nowhere does not exist"),
        (["--tokenizer", "./nowhere"], "`tokenizer`: the directory nowhere does not exist"),
        (["--data-filtering", "nowhere.json"], "nowhere.json does not exist"),
        (["--forget-words", " "], "`forget_words` should hold words, got ' '. Take the empty word out."),
    ],
)
def test_wrong_options_name_the_field_and_the_way_out(run, options, message):
    status, error = run("eval", *options)
    assert status == 2
    assert message in error


def test_words_that_no_story_holds_are_not_counted(run, files, tmp_path):
    stories = "".join(json.dumps({"text": f"Acid number {i} and a base make salt."}) + "\n" for i in range(3))
    (files / "chemistry.jsonl").write_text(stories)
    options = ["--generation.prompts", "Acid", *QUICK[-4:], "--forget-words", "tree"]
    with pytest.warns(
        ForgetWordsWarning, match=r"none of the 3 forget examples holds one of tree\..* Name theirs: `--forget-words`\."
    ):
        status, _ = run("eval", *options, forget="chemistry.jsonl")
    assert status == 0
    generations = ModelResult.load(tmp_path / "out" / "result.json").generations
    assert generations["target_words"] == {"final": {"all": None, "without_prompt": None}}
    assert "not measured" in (tmp_path / "out" / "report.html").read_text()


# Stories of a set, and how many of them hold a forget word; what is said, if anything is
FOREST, SEA = (12, 12), (8, 0)


@pytest.mark.parametrize(
    ("forget", "retain", "attack", "message"),
    [
        (FOREST, SEA, None, None),
        ((12, 7), (40, 2), (12, 6), None),  # which file a story is in says what it is
        (SEA, FOREST, None, r"12 of the 12 retain examples hold one of tree, trees, .*, but 0 of the 8 forget examples\. "
                            r"Are `--forget` and `--retain` swapped\? If not, name the forget words: `--forget-words`\."),
        ((20, 2), FOREST, None, r"but 2 of the 20 forget examples\. Are `--forget` and `--retain` swapped\?"),
        (FOREST, SEA, (8, 0), r"none of the 8 attack examples holds one of tree, .*, but 12 of the 12 forget examples do\. "
                              r"Is `--attack` a file of forget examples\?"),
        (SEA, SEA, None, r"none of the 8 forget examples holds one of tree, .*, woodland and 1 more\. So neither "
                         r"their loss nor their number in generated texts is given\. Name theirs: `--forget-words`\.$"),
        (SEA, SEA, SEA, r"none of the 8 forget examples"),
    ],
)  # fmt: skip
def test_words_that_do_not_fit_the_stories_are_said(forget, retain, attack, message):
    data = {}
    for name, counts in (("forget", forget), ("retain", retain), ("attack", attack)):
        if counts:
            data[f"{name}_stories"], data[f"{name}_stories_with_a_forget_word"] = counts
    found = words_message(TREE_WORDS, data)
    assert (found is None) == (message is None)
    assert message is None or re.search(message, found)


def test_an_empty_forget_file(run, files):
    (files / "empty.jsonl").write_text("")
    status, error = run("eval", forget="empty.jsonl")
    assert status == 2
    assert "empty.jsonl holds no example" in error


def test_broken_weights_are_named(run, files):
    model = AutoModelForCausalLM.from_pretrained(files / "model")
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    model.save_pretrained(files / "broken")
    AutoTokenizer.from_pretrained(files / "model").save_pretrained(files / "broken")
    status, error = run("eval", model="broken")
    assert status == 2
    assert "The forget loss of" in error
    assert "is not finite" in error


def test_a_tokenizer_without_bos_and_padding(run, files, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(files / "model")
    tokenizer.bos_token = tokenizer.pad_token = None
    AutoModelForCausalLM.from_pretrained(files / "model").save_pretrained(files / "bare")
    tokenizer.save_pretrained(files / "bare")
    assert AutoTokenizer.from_pretrained(files / "bare").bos_token_id is None
    status, error = run("eval", *QUICK[-4:], model="bare")
    assert status == 0, error
    result = ModelResult.load(tmp_path / "out" / "result.json")
    # Without a BOS the first token of a story is not predicted: one fewer, where none was cut.
    assert result.losses["forget"]["tokens"] <= 12 * 63


def test_a_tokenizer_of_another_model(run, files):
    other = train_tokenizer(generate_stories(200, seed=5), 600)
    other.save_pretrained(files / "other_tokenizer")
    status, error = run("eval", "--tokenizer", str(files / "other_tokenizer"))
    assert status == 2
    assert "embeddings. Pass the tokenizer that the model was trained with" in error


def test_half_precision_is_measured_and_attacked(run, tmp_path):
    status, error = run("relearn", *QUICK, "--dtype", "bfloat16", "--no-generations")
    assert status == 0, error
    result = ModelResult.load(tmp_path / "out" / "result.json")
    assert result.relearning.trials


def test_generate_shows_what_both_models_write(files, capsys, monkeypatch):
    models = ["generate", str(files / "model"), "--before", str(files / "before")]
    options = ["--generation.new_tokens", "4", "--seed", "3"]
    assert main([*models, *options, "--prompt", "One day", "[red]The tree"]) == 0
    given = capsys.readouterr().out
    titles = [f"[before: {files.name}/before] ", f"[{files.name}/model] "]
    # Each prompt once for each model, the one before the method first; brackets are text.
    begun = [line for line in given.splitlines() if line.startswith("[")]
    assert [line.startswith(f"{titles[index % 2]}{('One day', '[red]The tree')[index // 2]}")
            for index, line in enumerate(begun)] == [True] * 4  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(files / "model")
    settings = SamplingConfig(prompts=["One day"], new_tokens=4, seed=3)
    for title, name in zip(titles, ("before", "model"), strict=True):
        model = AutoModelForCausalLM.from_pretrained(files / name)
        assert f"{title}{visible(generate_texts(model, tokenizer, settings).texts[0])}" in given
    monkeypatch.setattr("sys.stdin", io.StringIO("One day\n\nnot read\n"))
    assert main([*models, *options]) == 0
    assert capsys.readouterr().out.strip() == given.split("\n\n")[0].strip()


def test_in_a_terminal_the_texts_stand_side_by_side():
    screen = io.StringIO()
    show(
        Console(file=screen, force_terminal=True, width=60),
        [("The", {"[base]": "The tree\x1b[2J", "model": "The sea"})],
    )
    (line,) = [line for line in screen.getvalue().splitlines() if "tree" in line]
    assert line.index("tree\\u001b") < line.index("sea")
    assert "[base]" in screen.getvalue()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--before", "./nowhere"], "`before`: the directory nowhere does not exist"),
        (["--dtype", "int8"], "Unknown value for `dtype`: 'int8'"),
        (
            ["--generation.new_token", "3"],
            "Unknown key `new_token` in section `generation`. Did you mean `new_tokens`?",
        ),
        (["--prompt", "a" * 200], "which leaves no room in the model's 64 positions"),
    ],
)
def test_generate_names_what_is_wrong(files, capsys, options, message):
    assert main(["generate", str(files / "model"), *(options or [])]) == 2
    assert message in capsys.readouterr().err
