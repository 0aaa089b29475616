"""Configs of every kind: built, and then the same after a round trip; or refused with a message of ours."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st

from hf_era.models.config import ExpandedConfigMixin
from hf_era.models.families.gpt_neo import ExpandedGPTNeoConfig
from hf_era.run.config import RunConfig, load_run_config
from hf_era.run.inputs import _base_config

from .strategies import config_values, junk, numbers, texts

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, for settings that it calls deprecated


def check_config(config: RunConfig) -> None:
    """What holds of every config that was built."""
    again = RunConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()
    assert config.output_path.name  # it can be named
    text = yaml.safe_dump(config.to_dict(), allow_unicode=True)
    assert isinstance(text, str)
    assert config.data.generator_stories <= 200_000
    if config.expansion.target_layers is not None:
        assert config.expansion.target_layers == sorted(set(config.expansion.target_layers))


def test_configs(fuzz: Callable, accepted: Callable, tmp_path: Path) -> None:
    outcomes = {"built": 0, "refused": 0, "trained": 0}

    def check(values: dict[str, Any]) -> None:
        config, message = accepted(RunConfig.from_dict, values)
        outcomes["refused" if message else "built"] += 1
        if config is None:
            return
        check_config(config)
        arguments, message = accepted(config.training_arguments, tmp_path / "out")
        outcomes["trained"] += arguments is not None
        if arguments is not None:
            assert arguments.seed == config.seed

    fuzz("configs", check, values=config_values())
    # Neither all of them fit, nor none.
    assert min(outcomes.values()) > 0, outcomes


def test_nested_sections_of_the_model(fuzz: Callable, accepted: Callable) -> None:
    """`model.architecture` and `expansion` reach transformers: a config that can be built, or refused."""
    names = st.sampled_from(
        ["hidden_size", "num_layers", "num_heads", "vocab_size", "max_position_embeddings", "intermediate_size"]
    )
    other = st.sampled_from(
        ["attention_types", "activation_function", "initializer_range", "window_size", "model_type", "dtype", "rope"]
    )
    fitting = st.fixed_dictionaries(
        {
            "hidden_size": st.sampled_from([8, 16]),
            "num_layers": st.integers(1, 3),
            "num_heads": st.sampled_from([1, 2]),
        }
    ).map(lambda values: {**values, "attention_types": [[["global"], values["num_layers"]]]})
    changes = st.one_of(
        st.dictionaries(names, numbers, max_size=2),
        st.dictionaries(st.one_of(names, other, texts), st.one_of(junk, st.lists(junk, max_size=3)), max_size=2),
    )

    def check(base: dict[str, Any], changed: dict[str, Any], width: Any) -> None:
        values = {"model": {"architecture": {**base, **changed}}, "expansion": {"width": width}}
        config, _ = accepted(RunConfig.from_dict, values)
        stock, _ = (None, None) if config is None else accepted(_base_config, config)
        if stock is None:
            return
        expanded, refused = accepted(ExpandedGPTNeoConfig.from_base_config, stock, config.expansion)
        if refused is None:
            assert isinstance(expanded, ExpandedConfigMixin)
            assert expanded.to_base_config().to_dict() == stock.to_dict()

    fuzz("nested", check, base=fitting, changed=changes, width=st.one_of(st.integers(1, 8), numbers))


def test_overrides_of_the_command_line(fuzz: Callable, accepted: Callable) -> None:
    options = st.sampled_from(
        ["--seed", "--name", "--data.forget_words", "--data.max_tokens", "--expansion.target_layers", "--learning_rate",
         "--training.multipliers", "--model.architecture", "--x", "--data", "--a.b.c", "--"]
    )  # fmt: skip
    words = st.one_of(texts, numbers.map(lambda value: value if abs(value) < 1e300 else 1).map(str), options)

    def check(arguments: list[str], text: str) -> None:
        config, _ = accepted(load_run_config, [], arguments)
        if config is not None:
            check_config(config)
        config, _ = accepted(load_run_config, [], [f"--data.text_column={text}"])
        if config is not None:
            assert config.data.text_column == (None if text == "null" else text)

    yaml_text = st.text("01_-.:#!&*~[]{}'\" eno", max_size=6)
    arguments = st.lists(st.one_of(options, words), max_size=5)
    fuzz("overrides", check, arguments=arguments, text=st.one_of(texts, yaml_text))


def test_yaml_files(fuzz: Callable, accepted: Callable, tmp_path: Path) -> None:
    pieces = st.sampled_from(
        ["data:", "  train: x\n", "seed: 1\n", "&a ", "*a", "[", "]", "{", "}", "- ", ": ", "\n", "!!int ",
         "!!python/name:x ",
         "<<: ", "'", '"', "|\n", "#", "? ", "2024-13-45", "0x", ".inf", "~", "\t",
         "---\n", "...\n", "%YAML 1.1\n", "name: "]
    )  # fmt: skip
    content = st.one_of(
        st.lists(st.one_of(pieces, texts), max_size=12).map("".join).map(lambda text: text.encode("utf-8", "replace")),
        st.binary(max_size=60),
        config_values().map(_dumped),
    )
    file = tmp_path / "recipe.yaml"

    def check(content: bytes) -> None:
        file.write_bytes(content)
        config, _ = accepted(load_run_config, [file])
        if config is not None:
            check_config(config)

    fuzz("yaml", check, content=content)


def _dumped(values: Any) -> bytes:
    try:
        return yaml.dump(values).encode("utf-8", "replace")
    except ValueError:  # an integer of hundreds of digits
        return b"seed: 1"
