"""YAML files: merged key by key, their numbers typed, and a broken file named."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hf_era.data import DataConfig
from hf_era.models.config import ExpansionConfig
from hf_era.run.config import RunConfig, load_run_config


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


def test_another_router_or_method_leaves_the_settings_of_the_earlier_one_behind(write: Callable[..., Path]) -> None:
    first = write(
        "training: {multipliers: {original_forget: 0.0}}\nmethod: npo\nmethod_settings: {beta: 0.5}\n", "first.yaml"
    )
    second = write("router: {name: gram, p_as: 0.25}\nmethod: rmu\n", "second.yaml")
    third = write("router: {name: sgtm}\n", "third.yaml")
    config = load_run_config([first, second])
    assert (config.router, config.training) == ({"name": "gram", "p_as": 0.25}, {})
    assert config.method_settings == RunConfig(method="rmu").method_settings
    assert load_run_config([first, second, third]).router == {"name": "sgtm"}
    # The same one keeps them.
    same = load_run_config([first, second, write("router: {name: gram, p_cr: 0.75}\nmethod: rmu\n", "same.yaml")])
    assert same.router == {"name": "gram", "p_as": 0.25, "p_cr": 0.75}
    same = load_run_config([first, write("method: npo\nrouter: activation\n", "npo.yaml")])
    assert (same.method_settings.beta, same.training) == (0.5, {"multipliers": {"original_forget": 0.0}})


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


def test_text_that_looks_like_a_number_is_what_is_written(write: Callable[..., Path]) -> None:
    words = ["007", "0x10", "1_000", "2024-11-25", "1:30", "12"]
    texts = "name: 010\noutput_dir: 2024_11_25\ntraining: {run_name: 010}\n"
    config = load_run_config([write(f"{texts}data: {{forget_words: [{', '.join(words)}]}}\n")])
    assert (config.name, config.output_dir, config.training) == ("010", "2024_11_25", {"run_name": "010"})
    assert config.data.forget_words == words
    numbers = load_run_config(
        [write("seed: 1_0\nmodel: {vocabulary_size: 0300}\ntraining: {minimum_ablation_gap: -1e-1}")]
    )
    assert (numbers.seed, numbers.model.vocabulary_size, numbers.training) == (10, 300, {"minimum_ablation_gap": -0.1})


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes("\ufeffseed: 3\n".encode())
    assert load_run_config([tmp_path / "recipe.yaml"]).seed == 3
    (tmp_path / "recipe.yaml").write_bytes("seed: 3\n".encode("utf-16"))
    with pytest.raises(ValueError, match=r"`config`: .*recipe\.yaml is UTF-16 text\. Save it as UTF-8\."):
        load_run_config([tmp_path / "recipe.yaml"])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.yaml", tmp_path):
        with pytest.raises(ValueError, match=rf"The config file {path} does not exist\. Pass a YAML file, or"):
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
