"""YAML files and command-line overrides: merged, typed, and refused with the key, the value and the way out."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_era.configuration import ModelConfig, RunConfig, describe_fields, load_run_config
from hf_era.data import DataConfig
from hf_era.evaluation.evaluator import EvaluationConfig
from hf_era.models.expansion import ExpansionConfig
from hf_era.routing import RoutingRuleConfig
from hf_era.training.coherence import CoherenceConfig
from hf_era.training.config import GradientRoutingConfig

RECIPES = {
    "scratch_fullseq": ("scratch", "full_seq"),
    "posttrain_fullseq": ("pretrained", "full_seq"),
    "scratch_concept": ("scratch", "concept"),
    "posttrain_concept": ("pretrained", "concept"),
}
CONFIGS = Path(__file__).resolve().parents[1] / "recipes" / "configs"
SECTIONS = {
    "model": ModelConfig, "expansion": ExpansionConfig, "routing": RoutingRuleConfig, "data": DataConfig,
    "training": GradientRoutingConfig, "pretraining": GradientRoutingConfig, "coherence": CoherenceConfig,
    "evaluation": EvaluationConfig,
}  # fmt: skip


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(content: str, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        return path

    return write


# Files


def test_a_file_sets_what_it_names_and_nothing_else(write: Callable[..., Path]) -> None:
    config = load_run_config([write("seed: 3\ndata: {max_tokens: 64}\ntraining: {learning_rate: 0.001}\n")])
    expected = RunConfig(name="recipe", seed=3, data=DataConfig(max_tokens=64), training={"learning_rate": 0.001})
    assert config == expected


def test_the_name_is_that_of_the_first_file(write: Callable[..., Path]) -> None:
    first, second = write("seed: 1", "one.yaml"), write("seed: 2", "two.yaml")
    assert load_run_config([first, second]).name == "one"
    assert load_run_config([first, write("name: mine", "three.yaml")]).name == "mine"
    assert load_run_config([]).name == "run"


def test_a_later_file_goes_over_an_earlier_one_key_by_key(write: Callable[..., Path]) -> None:
    recipe = write(
        "seed: 1\nexpansion: {width: 16, target_layers: [0, 1, 2]}\n"
        "training: {learning_rate: 1.0e-3, multipliers: {original_forget: -0.5, original_retain: 0.9}}\n"
        "model: {architecture: {hidden_size: 64, num_layers: 2}}\n",
        "recipe.yaml",
    )
    overlay = write(
        "expansion: {target_layers: [1]}\ntraining: {max_steps: 7, multipliers: {original_forget: 0.0}}\n"
        "model: {architecture: {num_layers: 4}}\n",
        "overlay.yaml",
    )
    config = load_run_config([recipe, overlay])
    assert config.seed == 1
    assert config.expansion == ExpansionConfig(width=16, target_layers=[1])  # a list is replaced
    multipliers = {"original_forget": 0.0, "original_retain": 0.9}
    assert config.training == {"learning_rate": 1e-3, "max_steps": 7, "multipliers": multipliers}
    assert config.model.architecture == {"hidden_size": 64, "num_layers": 4}


def test_null_in_a_later_file_takes_a_value_away(write: Callable[..., Path]) -> None:
    first, second = write("model: {base: some/base}", "a.yaml"), write("model: {base: null}", "b.yaml")
    assert load_run_config([first]).model.base == "some/base"
    assert load_run_config([first, second]).model.base is None


def test_sections_with_nothing_in_them_are_fine(write: Callable[..., Path]) -> None:
    assert load_run_config([write("data:\ntraining:\npretraining:\n")]) == RunConfig(name="recipe")


def test_numbers_that_yaml_takes_for_text_are_numbers(write: Callable[..., Path]) -> None:
    config = load_run_config(
        [write("training: {learning_rate: 1e-4, warmup_steps: 30}\ncoherence: {learning_rate: 5e-5}")]
    )
    assert config.training == {"learning_rate": 1e-4, "warmup_steps": 30.0}
    assert config.coherence.learning_rate == 5e-5


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.yaml", tmp_path):
        with pytest.raises(ValueError, match=rf"The config file {path} does not exist\. Pass a YAML file such as"):
            load_run_config([path])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("data: [1, 2", r"recipe\.yaml is no valid YAML: .*line 1"),
        ("seed: 0\n  data: x: y\n", r"recipe\.yaml is no valid YAML: .*line 2"),
        ("- seed\n", r"recipe\.yaml should hold a mapping such as `seed: 0`, got list\."),
        ("", r"recipe\.yaml should hold a mapping such as `seed: 0`, got NoneType\."),
        ("just text", r"should hold a mapping such as `seed: 0`, got str\."),
    ],
)
def test_a_broken_file_is_named(write: Callable[..., Path], content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace(".*", r"[\s\S]*")):
        load_run_config([write(content)])


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(ValueError, match=r"recipe\.yaml is no valid YAML: 'utf-8' codec"):
        load_run_config([tmp_path / "recipe.yaml"])


# Overrides


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


# Keys and values


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sed: 0", r"Unknown key `sed` in the config\. Did you mean `seed`\? Known: coherence, data, .*, training\."),
        ("1: 2", r"Unknown key `1` in the config\. Known: "),
        ("dat: {train: x}", r"Unknown key `dat` in the config\. Did you mean `data`\?"),
        ("data: {forget_word: [x]}", r"Unknown key `forget_word` in section `data`\. Did you mean `forget_words`\? Known"),
        ("training: {learning_rte: 1}", r"Unknown key `learning_rte` in section `training`\. .*mean `learning_rate`\?"),
        ("pretraining: {maxsteps: 1}", r"Unknown key `maxsteps` in section `pretraining`\. Did you mean `max_steps`\?"),
        ("zzzz: 1", r"Unknown key `zzzz` in the config\. Known: coherence"),
        ("routing: {rule: full_sec}", r"'full_sec'\. Did you mean `full_seq`\? Known: full_seq, concept, none\."),
        ("routing: {weighting: frequencies}", r"`routing\.weighting`: 'frequencies'\. Did you mean `frequency`\?"),
        ("model: {start: pretraind}", r"'pretraind'\. Did you mean `pretrained`\? Known: pretrained, scratch\."),
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
        ("data: {forget_words: [tree, no]}", r"`data\.forget_words` should be text, got False\."),
        ("data: {labelled_fraction: 0}", r"`data\.labelled_fraction` should be in \(0, 1\], got 0\.0\."),
        ("data: {labelled_fraction: .nan}", r"`data\.labelled_fraction` should be in \(0, 1\], got nan\."),
        ("data: {max_tokens: 1}", r"`data\.max_tokens` should be at least 2, got 1\."),
        ("data: {attack_stories: -1}", r"`data\.attack_stories` should be at least 0, got -1\."),
        ("expansion: {width: 0}", r"`expansion\.width` should be an integer of at least 1, got 0\."),
        ("expansion: {width: 2.5}", r"`expansion\.width` should be an integer, got 2\.5\."),
        ("expansion: {target_layers: [1, 1]}", r"`expansion\.target_layers` names layer 1 more than once"),
        ("training: {learning_rate: fast}", r"`training\.learning_rate` should be a number, got 'fast'\."),
        ("training: {bf16: 1}", r"`training\.bf16` should be true or false, got 1\."),
        ("training: {auxiliary_weight_decay: x}", r"auxiliary_weight_decay` should be a number or null, got 'x'\."),
        ("model: {architecture: 5}", r"`model\.architecture` should be a mapping, got 5\."),
        ("coherence: {steps: 0}", r"`coherence\.steps` should be at least 1, got 0\."),
        ("evaluation: {batch_size: 0}", r"`evaluation\.batch_size` should be at least 1, got 0\."),
    ],
)  # fmt: skip
def test_a_wrong_key_or_value_is_named(write: Callable[..., Path], content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_run_config([write(content)])


@pytest.mark.parametrize(
    "name", ["output_dir", "seed", "eval_on_start", "load_best_model_at_end", "resume_from_checkpoint"]
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


@pytest.mark.parametrize(
    ("options", "trains"),
    [
        ({}, True),
        ({"base": "x"}, False),
        ({"start": "scratch"}, True),
        ({"start": "scratch", "base_control": False}, False),
        ({"base_control": False}, True),
    ],
)
def test_whether_a_base_is_trained_here(options: dict[str, Any], trains: bool) -> None:
    assert ModelConfig(**options).trains_base is trains


# Paths and arguments


def test_name_and_seed_are_filled_into_paths() -> None:
    config = RunConfig(
        name="mine", seed=4, output_dir="a/{name}/{seed}-{name}", model=ModelConfig(base_dir="b/{seed}/{name}")
    )
    assert config.output_path == Path("a/mine/4-mine")
    assert config.base_path == Path("b/4/mine")
    assert RunConfig(name="mine", seed=4).output_path == Path("runs/mine-seed4")
    assert RunConfig(name="mine", seed=4).base_path == Path("runs/mine-seed4/base")
    assert RunConfig(output_dir="{other} {}").output_path == Path("{other} {}")


def test_training_arguments_come_from_the_config_and_the_phase(tmp_path: Path) -> None:
    config = RunConfig(
        seed=5, training={"learning_rate": 1e-2, "max_steps": 3, "multipliers": {"original_forget": 0.0}}
    )
    arguments = config.training_arguments(tmp_path, max_steps=9)
    assert (arguments.seed, arguments.learning_rate, arguments.max_steps) == (5, 1e-2, 9)
    assert arguments.output_dir == str(tmp_path)
    assert arguments.gradient_multipliers.original_forget == 0.0
    assert arguments.gradient_multipliers.original_retain == 1.0


# Round trips


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_loads_and_survives_a_round_trip(path: Path, tmp_path: Path) -> None:
    config = load_run_config([path])
    assert RunConfig.from_dict(config.to_dict()) == config
    assert config.name == path.stem
    assert "{seed}" in config.output_dir
    config.training_arguments(tmp_path, bf16=False)  # its values are accepted where they end


def test_there_are_configs() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} >= {*RECIPES, "demo", "stories_small"}


@pytest.mark.parametrize("overlay", [None, "demo", "stories_small"])
@pytest.mark.parametrize("recipe", list(RECIPES))
def test_an_overlay_keeps_the_recipes_rule_and_start(recipe: str, overlay: str | None) -> None:
    paths = [CONFIGS / f"{name}.yaml" for name in (recipe, overlay) if name is not None]
    config = load_run_config(paths)
    start, rule = RECIPES[recipe]
    assert (config.name, config.model.start, config.routing.rule) == (recipe, start, rule)
    if rule == "full_seq":
        assert config.routing.weighting == "frequency"
    assert config.expansion.module_name == "forget"
    assert recipe in str(config.output_path)
    assert config.training["multipliers"]["original_forget"] == -0.75
    if overlay is None:
        assert config.expansion == ExpansionConfig(width=64, target_layers=[0, 1, 2, 3, 4])
        assert config.training["learning_rate"] == (5e-4 if start == "scratch" else 1e-4)
        assert config.coherence.enabled == (start == "pretrained")
        assert config.model.base == (None if start == "scratch" else "roneneldan/TinyStories-28M")
    else:
        alone = load_run_config(paths[1:])
        assert config.data == alone.data  # the overlay's data, not a mixture
        assert config.model.base is None
        assert config.model.architecture == alone.model.architecture
        assert config.training["max_steps"] == alone.training["max_steps"]
    assert RunConfig.from_dict(config.to_dict()) == config


def test_all_recipes_differ_in_what_they_are_called_after_only() -> None:
    def without(recipe: str) -> dict[str, Any]:
        values = load_run_config([CONFIGS / f"{recipe}.yaml"]).to_dict()
        return {key: values[key] for key in ("expansion", "data", "seed", "evaluation")}

    assert without("scratch_fullseq") == without("scratch_concept") == without("posttrain_fullseq")
    assert without("scratch_fullseq") == without("posttrain_concept")


# The list of fields


def test_every_field_is_described() -> None:
    lines = describe_fields().splitlines()
    described = {line.split(" ")[0].removeprefix("--"): lines[number + 1].strip()
                 for number, line in enumerate(lines) if line.startswith("--")}  # fmt: skip
    expected = {field.name for field in dataclasses.fields(RunConfig) if field.name not in SECTIONS}
    for section, kind in SECTIONS.items():
        expected |= {f"{section}.{field.name}" for field in dataclasses.fields(kind) if field.init}
    assert set(described) == expected
    ours = {name for name in described if not name.startswith(("training.", "pretraining."))}
    ours |= {f"training.{name}" for name in GradientRoutingConfig.__annotations__}
    assert [name for name in ours if len(described[name]) < 8] == []
    assert "%%" not in describe_fields()
    assert "--data.max_tokens (default: 256)" in lines
    assert "--routing.rule (default: 'full_seq')" in lines


def test_every_described_default_is_the_default() -> None:
    config = RunConfig()
    for line in describe_fields().splitlines():
        if line.startswith("--") and not line.startswith(("--training", "--pretraining")):
            name, _, default = line.removeprefix("--").partition(" (default: ")
            section, _, field = name.rpartition(".")
            assert default == f"{getattr(getattr(config, section) if section else config, field)!r})", name
