"""Wrong keys, wrong values and settings that contradict each other are refused, each by its name."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hf_era.run.config import ModelConfig, RunConfig, load_run_config


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sed: 0", r"Unknown key `sed` in the config\. Did you mean `seed`\? Known: budget, coherence, .*, training\."),
        ("1: 2", r"Unknown key `1` in the config\. Known: "),
        ("dat: {train: x}", r"Unknown key `dat` in the config\. Did you mean `data`\?"),
        ("data: {forget_word: [x]}", r"Unknown key `forget_word` in section `data`\. Did you mean `forget_words`\? Known"),
        ("training: {learning_rte: 1}", r"Unknown key `learning_rte` in section `training`\. .*mean `learning_rate`\?"),
        ("pretraining: {maxsteps: 1}", r"Unknown key `maxsteps` in section `pretraining`\. Did you mean `max_steps`\?"),
        ("zzzz: 1", r"Unknown key `zzzz` in the config\. Known: budget, coherence"),
        ("routing: {rule: full_sec}", r"'full_sec'\. Did you mean `full_seq`\? Known: full_seq, concept, none\."),
        ("routing: {weighting: frequencies}", r"`routing\.weighting`: 'frequencies'\. Did you mean `frequency`\?"),
        ("model: {start: pretraind}", r"'pretraind'\. Did you mean `pretrained`\? Known: pretrained, scratch\."),
        ("model: {start: scratch}\ntraining: {lora: {}}", r"`training\.lora` is \{\}, which freezes the base, but.*scratch"),
        ("training: {trainable: modules}", r"`training\.trainable` is 'modules'.*Set `coherence\.enabled: false`"),
        ("data: 5", r"`data` should be a mapping, got 5\."),
        ("training: [1]", r"`training` should be a mapping, got \[1\]\."),
        ("seed: abc", r"`seed` should be an integer, got 'abc'\."),
        ("seed: null", r"`seed` should be an integer, got None\."),
        ("seed: [1]", r"`seed` should be an integer, got \[1\]\."),
        ("seed: true", r"`seed` should be an integer, got True\."),
        ("name: [a]", r"`name` should be text, got \['a'\]\."),
        ("overwrite_output_dir: 1", r"`overwrite_output_dir` should be true or false, got 1\."),
        ("overwrite_output_dir: 'true'", r"`overwrite_output_dir` should be true or false, got 'true'\."),
        ("data: {max_tokens: 1.5}", r"`data\.max_tokens` should be an integer, got 1\.5\."),
        ("data: {labelled_fraction: half}", r"`data\.labelled_fraction` should be a number, got 'half'\."),
        ("data: {num_proc: x}", r"`data\.num_proc` should be an integer or null, got 'x'\."),
        ("data: {forget_words: {a: b}}", r"`data\.forget_words` should be text, got {'a': 'b'}\."),
        ("data: {forget_words: [tree, no]}", r"`data\.forget_words` should be text, got False\. Put it in quotation"),
        ("name: 1.10", r"`name` should be text, got 1\.1\. Put it in quotation marks\."),
        ("data: {subset: yes}", r"`data\.subset` should be text or null, got True\. Put it in quotation marks\."),
        ("training: {eval_strategy: no}", r"`training\.eval_strategy` should be text, got False\. Put it in quot"),
        ("data: {forget_words: [~]}", r"`data\.forget_words` should be text, got None\. Put it in quotation marks\."),
        ("data: {labelled_fraction: 0}", r"`data\.labelled_fraction` should be in \(0, 1\], got 0\.0\."),
        ("data: {labelled_fraction: .nan}", r"`data\.labelled_fraction` should be in \(0, 1\], got nan\."),
        ("data: {label_errors: shrt}", r"Unknown value for `data\.label_errors`: 'shrt'\. Did you mean `short`"),
        ("data: {label_errors: short}", r"`data\.label_errors` is 'short', but with `data\.labelled_fraction` 1 no example"),
        ("data: {label_threshold: 0.5}", r"`data\.label_threshold` is 0\.5, but `data\.label_errors` is 'random'"),
        ("data: {label_errors: score, label_threshold: 1}", r"`data\.label_threshold` should be in \(0, 1\), got 1\.0\."),
        (
            "data: {label_errors: score, label_threshold: 0.5, labelled_fraction: 0.5}",
            r"`data\.label_threshold` and `data\.labelled_fraction` \(0\.5\) both say which",
        ),
        (
            "data: {label_errors: score, label_threshold: 0.5, score_column: s}",
            r"`data\.label_threshold` does not go with `data\.score_column`: .* Leave one of them out",
        ),
        ("data: {coherence_validation_stories: -1}", r"`data\.coherence_validation_stories` should be at least 0, got -1"),
        ("data: {max_tokens: 1}", r"`data\.max_tokens` should be at least 2, got 1\."),
        ("data: {attack_stories: -1}", r"`data\.attack_stories` should be at least 0, got -1\."),
        ("expansion: {width: 0}", r"`expansion\.width` should be an integer of at least 1, got 0\."),
        ("expansion: {width: 2.5}", r"`expansion\.width` should be an integer or null, got 2\.5\."),
        ("expansion: {width_ratio: x}", r"`expansion\.width_ratio` should be a number or null, got 'x'\."),
        ("expansion: {width_ratio: 0.5, width: 8}", r"`expansion\.width` and `expansion\.width_ratio` are both given"),
        ("expansion: {modules: []}", r"`expansion\.modules` is \[\]: there is no module that could learn the forget"),
        ("expansion: {target_layers: [1, 1]}", r"`expansion\.target_layers` names layer 1 more than once"),
        ("training: {learning_rate: fast}", r"`training\.learning_rate` should be a number, got 'fast'\."),
        ("training: {adam_beta1: 1.5}", r"`training\.adam_beta1` should be in \[0, 1\), got 1\.5\."),
        ("pretraining: {label_smoothing_factor: 1}", r"`pretraining\.label_smoothing_factor` should be in \[0, 1\), got 1"),
        ("training: {bf16: 1}", r"`training\.bf16` should be true or false, got 1\."),
        ("training: {auxiliary_weight_decay: x}", r"auxiliary_weight_decay` should be a number or null, got 'x'\."),
        ("model: {architecture: 5}", r"`model\.architecture` should be a mapping, got 5\."),
        ("model: {architecture: {a: !!timestamp 2026-11-24}}", r"architecture\.a` should hold text, .* got datetime\.date"),
        ("model: {architecture: {a: !!binary aGk=}}", r"`model\.architecture\.a` should hold text, numbers, .* got b'hi'"),
        ("model: {architecture: {a: {1: 2}}}", r"`model\.architecture\.a` should have text as keys, got 1"),
        ("model: {architecture: {a: [.nan]}}", r"`model\.architecture\.a` should hold finite numbers, got nan"),
        ("model: {architecture: {a: 99999999999999999999}}", r"`model\.architecture\.a` should hold numbers below 2\*\*64"),
        ("training: {lr_scheduler_kwargs: {a: !!set {b}}}", r"lr_scheduler_kwargs\.a` should hold text, .* got \{'b'\}"),
        ('name: "\\ud800"', r"`name` should be valid Unicode, got '.ud800'"),
        ("coherence: {steps: 0}", r"`coherence\.steps` should be at least 1, got 0\."),
        ("evaluation: {batch_size: 0}", r"`evaluation\.batch_size` should be at least 1, got 0\."),
    ],
)  # fmt: skip
def test_a_wrong_key_or_value_is_named(write: Callable[..., Path], content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_run_config([write(content)])


@pytest.mark.parametrize(
    "name",
    [
        "output_dir",
        "seed",
        "eval_on_start",
        "load_best_model_at_end",
        "resume_from_checkpoint",
        "save_only_model",
        "forget_dataset_name",
    ],
)
@pytest.mark.parametrize("section", ["training", "pretraining"])
def test_what_the_run_sets_itself_is_refused(section: str, name: str) -> None:
    with pytest.raises(ValueError, match=rf"`{section}\.{name}` is set by the run itself\. \w+"):
        load_run_config([], [f"--{section}.{name}", "1"])


@pytest.mark.parametrize("name", ["a/b", "a\\b", "..", ".hidden", "", "a\0b"])
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"`name` becomes part of a path: letters, digits, '-' and '_' are fine, got "):
        RunConfig(name=name)


def test_scratch_and_a_base_contradict_each_other(write: Callable[..., Path]) -> None:
    with pytest.raises(
        ValueError,
        match=r"`model\.base` is 'x', but `model\.start: scratch` starts from random weights\. Leave the base out",
    ):
        load_run_config([write("model: {start: scratch, base: x}")])


def test_a_base_and_an_architecture_contradict_each_other(write: Callable[..., Path]) -> None:
    with pytest.raises(
        ValueError, match=r"`model\.architecture` and `model\.base` are both given; the base has its own"
    ):
        load_run_config([write("model: {base: x, architecture: {num_layers: 2}}")])


def test_a_base_has_a_directory_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("run")
    output = str(tmp_path / "run")
    (tmp_path / "run").mkdir()
    for name in ("run", "link", "run/../run", "."):
        with pytest.raises(
            ValueError,
            match=r"`model\.base_dir` is .*, but `output_dir`, .*run, (is the same directory|lies inside it)\. Give the "
            r"base a directory of its own, or leave `model\.base_dir` out\.",
        ):
            RunConfig(output_dir=output, model=ModelConfig(base_dir=f"{tmp_path}/{name}"))
    for name in ("model", "phases/x", "checkpoints", "expanded", "contracted/a"):
        with pytest.raises(ValueError, match=r"`model\.base_dir` is .*, where the run in .*run puts its own "):
            RunConfig(output_dir=output, model=ModelConfig(base_dir=f"{tmp_path}/link/{name}"))
    for name in ("run/base", "run/mine", "bases", "run2", "model"):
        RunConfig(output_dir=output, model=ModelConfig(base_dir=f"{tmp_path}/{name}"))
    RunConfig(output_dir="runs/{seed}", seed=3, model=ModelConfig(base_dir="runs/{seed}/base"))
    with pytest.raises(ValueError, match=r"is the same directory"):
        RunConfig(output_dir="runs/{seed}", seed=3, model=ModelConfig(base_dir="runs/3"))


@pytest.mark.parametrize("value", [2.0**64, "18446744073709551616"])
def test_an_integer_that_no_file_could_hold_is_refused_however_it_is_written(value: object) -> None:
    with pytest.raises(ValueError, match=r"`training\.save_total_limit` should be an integer or null"):
        RunConfig.from_dict({"output_dir": "runs/x", "training": {"save_total_limit": value}})
