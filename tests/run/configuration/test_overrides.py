"""Command-line overrides: they set the field they name and nothing else, or are refused with the way out."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_era.run.config import RunConfig, load_run_config


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (["--data.train", "stories.jsonl"], "data.train", "stories.jsonl"),
        (["--data.train=stories=1.jsonl"], "data.train", "stories=1.jsonl"),
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
        (["--data.forget_words", "@home", "%x", "what?", "a: b"], "data.forget_words", None),
        (["--data.forget_words", "@home", "%x", "what?", "c++"], "data.forget_words", ["@home", "%x", "what?", "c++"]),
        (["--expansion.target_layers", "0", "2"], "expansion.target_layers", [0, 2]),
        (["--expansion.target_layers", "[1]"], "expansion.target_layers", [1]),
        (["--expansion.target_layers", "null"], "expansion.target_layers", None),
        (["--data.num_proc", "2"], "data.num_proc", 2),
        (["--routing.frequency_bias", "-3.5"], "routing.frequency_bias", -3.5),
        (["--seed", "1", "--seed", "2"], "seed", 2),
    ],
)  # fmt: skip
def test_an_override_sets_a_field(arguments: list[str], field: str, value: Any) -> None:
    if value is None and "forget_words" in field:  # a mapping is no word
        with pytest.raises(ValueError, match=r"`data\.forget_words` should be text, got {'a': 'b'}"):
            load_run_config([], arguments)
        return
    section, _, name = field.rpartition(".")
    config = load_run_config([], arguments)
    assert getattr(getattr(config, section) if section else config, name) == value
    old = RunConfig()
    changed = {section: dataclasses.replace(getattr(old, section), **{name: value})} if section else {name: value}
    assert config == dataclasses.replace(old, **changed)  # and nothing else


def test_a_bare_name_is_a_training_field() -> None:
    config = load_run_config(
        [], ["--learning_rate", "3e-4", "--max_steps", "9", "--training.weight_decay", "0", "--bf16"]
    )
    assert config.training == {"learning_rate": 3e-4, "max_steps": 9, "weight_decay": 0.0, "bf16": True}
    assert type(config.training["max_steps"]) is int
    assert type(config.training["learning_rate"]) is type(config.training["weight_decay"]) is float


def test_a_part_of_a_mapping_can_be_overridden(write: Callable[..., Path]) -> None:
    path = write("training: {multipliers: {original_forget: -0.5, auxiliary_retain: 0.5}}")
    for name in ("--training.multipliers.original_forget", "--multipliers.original_forget"):
        config = load_run_config([path], [name, "0"])
        assert config.training["multipliers"] == {"original_forget": 0, "auxiliary_retain": 0.5}


def test_overrides_go_over_files(write: Callable[..., Path]) -> None:
    config = load_run_config(
        [write("seed: 1\ndata: {max_tokens: 64, max_characters: 99}")], ["--data.max_tokens", "32"]
    )
    assert (config.seed, config.data.max_tokens, config.data.max_characters) == (1, 32, 99)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lerning_rate", "1"], r"Unknown key `--lerning_rate` in the command line\. Did you mean `--.*learning_rate`"),
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
        (["--data.forget_words", ""], r"`data\.forget_words` should be text, got None\."),
        (["--data.forget_words", "[]"], r"`data\.forget_words` is empty\. Name at least one word"),
        (["--data.forget_words", "' '", "tree"], r"`data\.forget_words` should hold words, got ' '\. Take the empty"),
        (["--max_steps", "many"], r"`training\.max_steps` should be an integer, got 'many'\."),
    ],
)  # fmt: skip
def test_a_wrong_override_is_named(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_run_config([], arguments)
