"""Command-line overrides: they set the field they name and nothing else, or are refused with the way out."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_era.cli import _parser
from hf_era.commands.evaluate import model_config
from hf_era.evaluation import RelearnConfig
from hf_era.run.config import RunConfig, load_run_config
from hf_era.utils.yaml_text import dump_yaml, parse_yaml


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (["--data.validation", "stories.jsonl"], "data.validation", "stories.jsonl"),
        (["--data.validation=stories=1.jsonl"], "data.validation", "stories=1.jsonl"),
        (["--seed", "7"], "seed", 7),
        (["--seed=7"], "seed", 7),
        (["--output_dir", "runs/x"], "output_dir", "runs/x"),
        (["--overwrite_output_dir"], "overwrite_output_dir", True),
        (["--overwrite_output_dir", "false"], "overwrite_output_dir", False),
        (["--data.add_eos"], "data.add_eos", True),
        (["--data.add_bos=no"], "data.add_bos", False),
        (["--data.forget_words", "cat", "dogs"], "data.forget_words", ["cat", "dogs"]),
        (["--data.forget_words", "cat"], "data.forget_words", ["cat"]),
        (["--data.forget_words", "[cat, dog]"], "data.forget_words", ["cat", "dog"]),
        (["--data.forget_words", "@home", "%x", "what?", "c++"], "data.forget_words", ["@home", "%x", "what?", "c++"]),
        (["--expansion.target_layers", "0", "2"], "expansion.target_layers", [0, 2]),
        (["--expansion.target_layers", "[1]"], "expansion.target_layers", [1]),
        (["--expansion.target_layers", "null"], "expansion.target_layers", None),
        (["--expansion.target_layers", "0,1"], "expansion.target_layers", [0, 1]),
        (["--expansion.target_layers", "0,", "1"], "expansion.target_layers", [0, 1]),
        (["--relearn.sweep_learning_rates", "1e-5,2e-4"], "relearn.sweep_learning_rates", [1e-5, 2e-4]),
        (["--data.labelled_fraction", "1e-1"], "data.labelled_fraction", 0.1),
        (["--data.num_proc", "2"], "data.num_proc", 2),
        (["--routing.frequency_bias", "-3.5"], "routing.frequency_bias", -3.5),
        (["--seed", "1", "--seed", "2"], "seed", 2),
        (["--output-dir", "runs/a_b-c"], "output_dir", "runs/a_b-c"),
        (["--data.forget-words", "a_b", "c-d"], "data.forget_words", ["a_b", "c-d"]),
    ],
)  # fmt: skip
def test_an_override_sets_a_field(arguments: list[str], field: str, value: Any) -> None:
    section, _, name = field.rpartition(".")
    config = load_run_config([], arguments)
    assert getattr(getattr(config, section) if section else config, name) == value
    old = RunConfig()
    changed = {section: dataclasses.replace(getattr(old, section), **{name: value})} if section else {name: value}
    assert config == dataclasses.replace(old, **changed)  # and nothing else


def test_a_preset_of_attacks_over_a_recipe_is_what_it_is_by_itself() -> None:
    given = ["--relearn.preset", "strong"]
    # The recipe's own attack is short, and has few examples.
    assert load_run_config(["demo"], given).relearn == RelearnConfig(preset="strong")
    assert load_run_config(["demo"], [*given, "--relearn.steps", "70"]).relearn.steps == 70
    assert (
        load_run_config(["demo"], ["--relearn.lora_rank", "2"]).relearn.steps == load_run_config(["demo"]).relearn.steps
    )


# What YAML takes for something else than text.
TEXTS = (
    "007", "010", "1_000", "1e3", "1.10", "0x10", "1:30", "2024-11-25", "2024_11_25", "no", "yes", "true", "~", "Null",
    "x: y", "Chapter 1 #intro", "- a", "[INST] a", "{a}", "'quoted'", "*", "&a", "!x", "%", "@home", "a\\n", " a ", "[[1]]",
)  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_taken_as_it_is_typed(text: str) -> None:
    for field in ("data.text_column", "data.train", "output_dir", "model.base", "data.subset"):
        section, _, name = field.rpartition(".")
        config = load_run_config([], [f"--{field}", text, "--data.forget_words", "tree"])
        assert getattr(getattr(config, section) if section else config, name) == text
    assert load_run_config([], ["--data.forget_words", text]).data.forget_words == [text]
    assert load_run_config([], ["--generation.prompts", text, text]).generation.prompts == [text, text]
    inherited = ("run_name", "hub_token", "metric_for_best_model", "lr_scheduler_type")  # of transformers
    words = [word for name in inherited for word in (f"--{name}", text)]
    assert load_run_config([], words).training == dict.fromkeys(inherited, text)


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_written_and_read_back_as_text(text: str) -> None:
    values = {"name": text, "words": [text], "nested": {text: text}, "number": 1e-5, "none": None}
    assert parse_yaml(dump_yaml(values)) == values
    assert yaml.safe_load(dump_yaml(values)) == values  # by others too


def test_eval_and_relearn_take_text_as_it_is_typed() -> None:
    words = ["relearn", "m", "--forget", "#f", "--retain", "1_0", "--name", "010", "--forget-words", "007", "no", "[a]"]
    options, overrides = _parser().parse_known_args(
        [*words, "--generation.prompts", "Chapter 1 #intro", "--stories", "1,4"]
    )
    config = model_config(options, overrides)
    assert (config.forget, config.retain, config.name, config.forget_words) == (
        "#f",
        "1_0",
        "010",
        ["007", "no", "[a]"],
    )
    assert (config.generation.prompts, config.relearn.stories) == (["Chapter 1 #intro"], [1, 4])


def test_a_list_of_texts_may_be_one_list_in_brackets() -> None:
    config = load_run_config([], ["--data.forget_words", "[007, no, 'a, b', 1e3]", "--report_to", "[a, b]"])
    assert config.data.forget_words == ["007", "no", "a, b", "1e3"]
    assert config.training["report_to"] == ["a", "b"]


def test_text_that_may_be_none_or_a_mapping_is_that_too() -> None:
    config = load_run_config([], ["--model.base", "null", "--router", "{name: activation}", "--hub_token", "null"])
    assert (config.model.base, config.router, config.training) == (None, {"name": "activation"}, {"hub_token": None})
    config = load_run_config([], ["--multipliers", '{"original_forget": -1e-1}'])
    assert config.training == {"multipliers": {"original_forget": -0.1}}
    with pytest.raises(ValueError, match=r"`name` becomes part of a path: .*, got ''\."):
        load_run_config([], ["--name", ""])


def test_a_number_inside_a_mapping_is_read_like_any_other() -> None:
    for value, words in ((-0.1, ("-1e-1", "-.1", "-0.10")), (1000.0, ("1e3", "1.0e+3", "+1e3"))):
        for word in words:
            for name in ("--multipliers.original_forget", "--minimum_ablation_gap"):
                config = load_run_config([], [name, word])
                found = config.training.get("minimum_ablation_gap", config.training.get("multipliers"))
                assert found == (value if name == "--minimum_ablation_gap" else {"original_forget": value})


def test_a_bare_name_is_a_training_field() -> None:
    config = load_run_config(
        [], ["--learning-rate", "3e-4", "--max_steps", "9", "--training.weight-decay", "0", "--bf16"]
    )
    assert config.training == {"learning_rate": 3e-4, "max_steps": 9, "weight_decay": 0.0, "bf16": True}
    assert type(config.training["max_steps"]) is int
    assert type(config.training["learning_rate"]) is type(config.training["weight_decay"]) is float


def test_a_part_of_a_mapping_can_be_overridden(write: Callable[..., Path]) -> None:
    path = write("training: {multipliers: {original_forget: -0.5, auxiliary_retain: 0.5}}")
    for name in ("--training.multipliers.original_forget", "--multipliers.original_forget"):
        config = load_run_config([path], [name, "0"])
        assert config.training["multipliers"] == {"original_forget": 0, "auxiliary_retain": 0.5}


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("learning_rate: 1", r"`training\.learning_rate`, `coherence\.learning_rate` or"),
        ("epochs: 3", r"`training\.num_train_epochs`\?"),
        ("width: 3", r"`expansion\.width`\?"),
        ("sede: 3", r"`seed`\?"),
    ],
)
def test_a_field_without_its_section_is_recognised_in_a_file(text: str, meant: str, write: Callable[..., Path]) -> None:
    with pytest.raises(
        ValueError, match=rf"in the config\. Did you mean {meant}.* Known: budget, coherence, data, data_"
    ):
        load_run_config([write(text)])


def test_overrides_go_over_files(write: Callable[..., Path]) -> None:
    config = load_run_config(
        [write("seed: 1\ndata: {max_tokens: 64, max_characters: 99}")], ["--data.max_tokens", "32"]
    )
    assert (config.seed, config.data.max_tokens, config.data.max_characters) == (1, 32, 99)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lerning_rate", "1"], r"Unknown key `--lerning_rate` in the command line\. Did you mean `--.*learning_rate`"),
        (["--learning_rat", "1"], r"`--learning_rat` in .*\. Did you mean `--learning_rate`\? `hf-era fields` lists"),
        (["--epochs", "3"], r"Unknown key `--epochs` in .*\. Did you mean `--num_train_epochs`\?"),
        (["--lr", "1"], r"Unknown key `--lr` in .*\. Did you mean `--learning_rate`\?"),
        (["--batch-size", "1"], r"Did you mean `--per_device_train_batch_size`, `--evaluation.batch_size` or"),
        (["--width", "1"], r"Unknown key `--width` in .*\. Did you mean `--expansion\.width`\?"),
        (["--training.lr", "1"], r"Unknown key `lr` in section `training`\. Did you mean `learning_rate`\?"),
        (["--xyzzy", "1"], r"Unknown key `--xyzzy` in the command line\. `hf-era fields` lists them all\."),
        (["--outputdir", "x"], r"Unknown key `--outputdir` in the command line\. Did you mean `--output_dir`\?"),
        (["--dta.train", "x"], r"Unknown key `--dta\.train` in the command line\. Did you mean `--data\.train`\?"),
        (["--data.trian", "x"], r"Unknown key `trian` in section `data`\. Did you mean `train`\? Known: .*add_bos"),
        (["--data", "x"], r"`data` should be a mapping, got 'x'\."),
        (["--training", "x"], r"`training` should be a mapping, got 'x'\."),
        (["seed", "3"], r"Unexpected argument 'seed'\. Overrides look like `--learning_rate 3e-4`\."),
        (["-s", "3"], r"Unexpected argument '-s'\."),
        (["--seed", "1", "2"], r"`seed` should be an integer, got \[1, 2\]\."),
        (["--seed", "x"], r"`seed` should be an integer, got 'x'\."),
        (["--seed", ".inf"], r"`seed` should be an integer, got inf\."),
        (["--seed"], r"`seed` should be an integer, got True\."),
        (["--seed", "1.5"], r"`seed` should be an integer, got 1\.5\."),
        (["--data.forget_words", ""], r"`data\.forget_words` should hold words, got ''\. Take the empty word out"),
        (["--expansion.target_layers", "0;1"], r"target_layers` should be a list of integers or null, got '0;1'"),
        (["--data.train", "a", "--data.forget_words", "[]"], r"Nothing says which examples are to be forgotten\. Name a"),
        (["--data.forget_words", " ", "tree"], r"`data\.forget_words` should hold words, got ' '\. Take the empty"),
        (["--max_steps", "many"], r"`training\.max_steps` should be an integer, got 'many'\."),
    ],
)  # fmt: skip
def test_a_wrong_override_is_named(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_run_config([], arguments)
