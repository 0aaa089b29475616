"""What everybody meets first: help without waiting, options in either spelling, configs by name, a config to begin with."""

import json
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import hf_era
from hf_era.cli import _parser, main
from hf_era.commands.evaluate import model_config
from hf_era.run.config import load_run_config
from hf_era.run.recipes import config_names, find_config
from hf_era.utils.files import recipes_folder
from hf_era.utils.yaml_text import parse_yaml

# As `hf-era` starts: the words of each command after the other, and which heavy modules are there afterwards.
HELP = """
import json, sys
sys.argv = ["/somewhere/bin/hf-era"]
import hf_era, hf_era.cli
for words in json.loads(sys.orig_argv[-1]):
    try:
        hf_era.cli.main(words)
    except SystemExit:
        pass
print("LOADED", json.dumps([name for name in ("torch", "transformers", "accelerate", "datasets") if name in sys.modules]))
"""


def test_help_and_init_wait_for_nothing_heavy(run_python: Callable[..., str], tmp_path: Path) -> None:
    commands = ["run", "init", "eval", "relearn", "compare", "card", "matrix", "fields"]
    words = [["--help"], *([name, "--help"] for name in commands), ["init", str(tmp_path / "mine")], ["run", "--seed"]]
    said = run_python(HELP, json.dumps(words))
    assert said.count("usage: hf-era") == len(commands) + 1
    assert (tmp_path / "mine.yaml").is_file()
    assert said.splitlines()[-1] == "LOADED []"


@pytest.mark.parametrize(
    ("argv", "orig_argv", "expected"),
    [
        (["/usr/bin/hf-era", "--help"], ["python", "/usr/bin/hf-era", "--help"], True),
        (["hf-era.exe"], ["hf-era.exe"], True),
        (["-m", "run"], ["python", "-X", "dev", "-m", "hf_era", "run"], True),
        (["train.py", "-m", "hf_era"], ["python", "train.py", "-m", "hf_era"], False),
        (["-m"], ["python", "-m", "theirs.train"], False),
        (["-m"], ["python", "-m", "hf_era.reporting.cards"], False),
        (["-c"], ["python", "-c", "import hf_era"], False),
        ([], [], False),
    ],
)
def test_only_the_command_line_itself_puts_the_registration_off(
    argv: list[str], orig_argv: list[str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", orig_argv)
    assert hf_era._is_command_line() is expected


def test_eval_and_relearn_take_underscores_too() -> None:
    words = [
        "--forget_words=a_b",
        "--batch_size",
        "4",
        "--text_column",
        "my_text",
        "--no_generations",
        "--max-tokens",
        "9",
    ]
    options, overrides = _parser().parse_known_args(["eval", "m", "--forget", "f_1", "--retain", "r", *words])
    config = model_config(options, [*overrides, "--relearn.lora-rank", "2", "--sweep-trials", "3"])
    assert (config.forget, config.forget_words, config.text_column) == ("f_1", ["a_b"], "my_text")
    assert (config.evaluation.batch_size, config.generation.enabled, config.max_tokens) == (4, False, 9)
    assert (config.relearn.lora_rank, config.relearn.sweep_trials) == (2, 3)
    with pytest.raises(ValueError, match=r"Unknown key `--epochs` in the command line\. Did you mean `--steps`\?"):
        model_config(options, ["--epochs", "3"])


@pytest.mark.parametrize("command", ["eval", "relearn"])
def test_help_names_the_folder_that_is_written(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert f"(default:NAME-{command})" in "".join(capsys.readouterr().out.split())


# ---- Packaged configs ----


def test_a_packaged_config_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    packaged = recipes_folder() / "configs" / "demo.yaml"
    assert find_config("demo") == find_config("demo.yaml") == packaged
    assert load_run_config(["scratch_concept", "demo"]).name == "scratch_concept"
    Path("demo").mkdir()  # no file
    assert find_config("demo") == packaged
    Path("demo.yaml").write_text("seed: 3")
    assert load_run_config(["demo"]).seed == 3  # one's own comes first
    assert find_config("stories_small.yaml", tmp_path / "sub") == packaged.with_name("stories_small.yaml")


def test_an_unknown_name_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "scratch_concpt"]) == 2
    said = capsys.readouterr().err
    assert (
        "The config file scratch_concpt does not exist. Did you mean `scratch_concept`? Pass a YAML file, or the"
        in said
    )
    assert f"name of a packaged config: {', '.join(config_names())}." in said
    assert main(["run", "x" * 254]) == 2  # with `.yaml`, too long for a file system
    assert "does not exist." in capsys.readouterr().err


def test_every_file_of_the_recipes_is_in_the_wheel(repository_root: Path) -> None:
    settings = tomllib.loads((repository_root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package, folder in (("hf_era", "hf_era"), ("hf_era.recipes", "recipes")):
        root = repository_root / folder
        patterns = ["*.py", *(["**/*.py"] if package == "hf_era" else []), *settings[package]]
        packaged = {path for pattern in patterns for path in root.glob(pattern)}
        files = {path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
        assert len(files) > 10
        assert files - packaged == set()


# ---- init ----


def test_init_writes_a_config_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init"]) == 0
    assert capsys.readouterr().out == (
        "Written: my_run.yaml. Name your data and your labels in it, then: hf-era run my_run.yaml\n"
    )
    assert main(["init", "sub/dragons"]) == 0
    config = load_run_config(["sub/dragons"])
    assert (config.name, config.data.train, config.data.forget_words) == (
        "dragons",
        "my_examples.jsonl",
        ["dragon", "dragons"],
    )
    assert config.data.attack_stories >= max(config.relearn.stories) * config.relearn.trials
    text = Path("sub/dragons.yaml").read_text()
    assert "hf-era run dragons.yaml" in text
    bare = [line for line in text.splitlines() if line and not line.endswith(":") and "#" not in line]
    assert bare == ["    original_retain: 1.0", "    auxiliary_retain: 1.0", "  eval_strategy: steps", "  enabled: true",
                    "  lora_learning_rates: [1.0e-3]"]  # fmt: skip


def test_the_other_ways_to_label_are_names_of_fields(tmp_path: Path) -> None:
    """Each of the template's commented lines is a setting that exists."""
    text = (recipes_folder() / "templates" / "my_run.yaml").read_text()
    offered = re.findall(r"^  # (\w+): (\S.*?)  +#|^  # (\w+): (\S+)$", text, re.MULTILINE)
    values = {name or last: parse_yaml(value or other) for name, value, last, other in offered}
    assert {"label_column", "forget_labels", "retain_labels", "score_column", "forget", "retain"} <= set(values)
    ways = [
        {name: values[name] for name in ("label_column", "forget_labels", "retain_labels")},
        {"score_column": values["score_column"]},
        {"forget": values["forget"], "retain": values["retain"]},
    ]
    for way in ways:
        path = tmp_path / "way.yaml"
        path.write_text(json.dumps({"data": way if "forget" in way else {"train": "a.jsonl", **way}}))
        data = load_run_config([path]).data
        assert {name: getattr(data, name) for name in way} == way


def test_init_can_begin_with_another_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path / "mine.yaml"), "--from", "scratch_concept"]) == 0
    assert (tmp_path / "mine.yaml").read_text() == find_config("scratch_concept").read_text()
    assert main(["init", str(tmp_path / "other"), "--from", "nowhere"]) == 2
    assert "The config file nowhere does not exist." in capsys.readouterr().err
    assert main(["init", ".."]) == 2
    assert "`NAME` becomes part of a path" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_init_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text("precious")
    assert main(["init", str(tmp_path / "mine")]) == 2
    assert "mine.yaml exists already and was left as it is. Choose another name" in capsys.readouterr().err
    assert (tmp_path / "mine.yaml").read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


# ---- fields, and a config in full ----


def test_fields_of_one_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fields", "data"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split(".")[0] for line in lines if line.startswith("--")} == {"--data"}
    assert "--data.max_tokens (an integer; default: 256)" in lines
    assert main(["fields", "trainig"]) == 2
    assert "Unknown value for `SECTION`: 'trainig'. Did you mean `training`?" in capsys.readouterr().err


def test_the_whole_config_can_be_printed_and_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["007", "x: y # z", "a\nb", "it's", "—", ""]
    words = ["--generation.prompts", *texts, "--multipliers.original_forget", "-1e-1", "--hub_token", "hf_secret"]
    words += ["--data.forget-words", "no", "tree", "--router", "{name: activation}"]
    assert main(["run", "scratch_concept", "--config", "demo", "--print-config", *words]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "printed.yaml").write_text(printed)
    config = load_run_config(["scratch_concept", "demo"], words)
    del config.training["hub_token"]
    assert load_run_config([tmp_path / "printed.yaml"]) == config
    assert f"  max_steps: {config.training['max_steps']}  # Overrides `num_train_epochs`\n" in printed
    assert f"  learning_rate: {config.training['learning_rate']}  # Peak learning rate\n" in printed
    assert "hf_secret" not in printed
