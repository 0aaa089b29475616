"""`ExpansionConfig` and `ExpandedGPTNeoConfig`: defaults, checks, errors, and what is saved."""

import json
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path

import pytest
from transformers import AutoConfig, GPTNeoConfig

from hf_era import ExpandedGPTNeoConfig, ExpansionConfig
from hf_era.models import ModuleConfig


def test_defaults() -> None:
    assert ExpansionConfig().to_dict() == {
        "module_name": "forget",
        "width": 64,
        "target_layers": None,
        "initialization_scale": 1.0,
    }


def test_every_field_has_a_help_text() -> None:
    assert all(item.metadata["help"] for item in fields(ExpansionConfig))


def test_no_target_layers_means_all_layers() -> None:
    assert ExpansionConfig().resolve_layers(4) == [0, 1, 2, 3]


def test_target_layers_are_sorted_and_may_be_a_tuple() -> None:
    config = ExpansionConfig(target_layers=(3, 0))  # type: ignore[arg-type]
    assert config.target_layers == [0, 3]
    assert config.resolve_layers(4) == [0, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "`expansion.width` should be an integer of at least 1, got 0."),
        ({"width": -3}, "`expansion.width` should be an integer of at least 1, got -3."),
        ({"width": 2.5}, "`expansion.width` should be an integer of at least 1, got 2.5."),
        ({"width": True}, "`expansion.width` should be an integer of at least 1, got True."),
        ({"target_layers": [-1]}, "`expansion.target_layers` counts from 0 and takes no negative index, got -1."),
        (
            {"target_layers": [1, 2, 1]},
            r"`expansion.target_layers` names layer 1 more than once, got \[1, 2, 1\].",
        ),
        ({"target_layers": [0.5]}, "`expansion.target_layers` should hold integers, got 0.5."),
        ({"target_layers": [True]}, "`expansion.target_layers` should hold integers, got True."),
        (
            {"target_layers": []},
            r"`expansion.target_layers` should be a list of layer indices such as \[0, 1\], got \[\]. "
            "Leave it out to expand all layers.",
        ),
        (
            {"target_layers": 2},
            r"`expansion.target_layers` should be a list of layer indices such as \[0, 1\], got 2. "
            "Leave it out to expand all layers.",
        ),
        ({"initialization_scale": 0}, "`expansion.initialization_scale` should be positive, got 0."),
        ({"initialization_scale": -1.0}, "`expansion.initialization_scale` should be positive, got -1.0."),
        ({"initialization_scale": float("nan")}, "`expansion.initialization_scale` should be positive, got nan."),
        (
            {"width_ratio": 0.0},
            "`expansion.width_ratio` should be positive, a share of the MLP's hidden units such as 0.125, got 0.0.",
        ),
        (
            {"width_ratio": float("nan")},
            "`expansion.width_ratio` should be positive, a share of the MLP's hidden units such as 0.125, got nan.",
        ),
        (
            {"width_ratio": True},
            "`expansion.width_ratio` should be positive, a share of the MLP's hidden units such as 0.125, got True.",
        ),
        (
            {"width_ratio": 0.5, "width": 8},
            "`expansion.width` and `expansion.width_ratio` are both given, 8 and 0.5. Give one of them, and null for the "
            "other where a recipe has it.",
        ),
        (
            {"width_ratio": 0.5, "modules": [{}]},
            r"`expansion.modules` and `expansion.module_name` \(or width, .*\) are both given. .*",
        ),
        ({"module_name": "a b"}, "`expansion.module_name` should be an identifier such as 'forget', got 'a b'."),
        ({"module_name": "a.b"}, "`expansion.module_name` should be an identifier such as 'forget', got 'a.b'."),
        ({"module_name": ""}, "`expansion.module_name` should be an identifier such as 'forget', got ''."),
    ],
)  # fmt: skip
def test_errors_name_field_value_and_way_out(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        ExpansionConfig(**options)


def test_unknown_key_has_a_suggestion() -> None:
    with pytest.raises(ValueError, match="Did you mean") as caught:
        ExpansionConfig.from_dict({"target_layer": [0]})
    assert str(caught.value) == (
        "Unknown key `target_layer` in `expansion`. Did you mean `target_layers`? "
        "Known: module_name, width, target_layers, initialization_scale, modules, width_ratio, "
        "mlp, down_projection."
    )


@pytest.mark.parametrize(("intermediate_size", "width"), [(None, 16), (24, 6), (3, 1)])
def test_a_width_ratio_is_a_share_of_the_mlps_width(
    intermediate_size: int | None, width: int, make_config: Callable[..., GPTNeoConfig]
) -> None:
    """The hidden size is 16, and no intermediate size means four times that; there is at least one unit."""
    base = make_config(intermediate_size=intermediate_size)
    one = ExpandedGPTNeoConfig.from_base_config(base, ExpansionConfig(width_ratio=0.25, target_layers=[1]))
    assert one.expansion == ExpansionConfig(width=width, target_layers=[1]).to_dict()
    modules = [{"name": "sea", "width_ratio": 0.25}, {"name": "forest", "width": 5}]
    several = ExpandedGPTNeoConfig.from_base_config(base, ExpansionConfig(modules=modules))
    assert [module.width for module in several.expansion_config.module_configs] == [width, 5]


def test_a_width_ratio_stays_one_until_the_model_is_known() -> None:
    expansion = ExpansionConfig(width_ratio=0.25)
    assert expansion.to_dict()["width_ratio"] == 0.25
    assert ExpansionConfig(**asdict(expansion)) == ExpansionConfig.from_dict(expansion.to_dict()) == expansion
    assert expansion.module_configs[0].width_text == "0.25 times the MLP's width"


def test_a_module_has_a_width_or_a_ratio() -> None:
    with pytest.raises(ValueError, match=r"are both given, 64 and 0\.5"):
        ModuleConfig(width=64, width_ratio=0.5)
    assert ExpansionConfig(width=64, width_ratio=0.5).width is None  # its default gives way, as recipes write it


def test_a_width_ratio_of_more_than_a_machine_holds_is_refused(make_config: Callable[..., GPTNeoConfig]) -> None:
    with pytest.raises(ValueError, match=r"^`expansion\.width`: .* needs at least .* of memory"):
        ExpandedGPTNeoConfig.from_base_config(make_config(), ExpansionConfig(width_ratio=1e300))


def test_a_width_ratio_of_what_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match=r"how wide the MLPs are is not known of this family\. Give `width`"):
        ModuleConfig(width_ratio=0.5).units(None)


def test_an_empty_list_is_no_module_and_none_is_the_one() -> None:
    assert ExpansionConfig(modules=None).module_configs == [ModuleConfig(width=64)]
    none = ExpansionConfig(modules=[])
    assert none.module_configs == []
    assert none.resolve_layers(3) == []
    assert none.to_dict() == {"modules": []}
    assert ExpansionConfig.from_dict(none.to_dict()) == ExpansionConfig(**asdict(none)) == none


def test_target_layer_out_of_range() -> None:
    with pytest.raises(ValueError, match="names layer 3, but the model has 3 layers") as caught:
        ExpansionConfig(target_layers=[0, 3]).resolve_layers(3)
    assert "Choose from 0 to 2." in str(caught.value)


def test_the_models_config_checks_the_expansion(make_config: Callable[..., GPTNeoConfig]) -> None:
    with pytest.raises(ValueError, match="names layer 7, but the model has 3 layers"):
        ExpandedGPTNeoConfig.from_base_config(make_config(), ExpansionConfig(target_layers=[7]))
    values = {"num_layers": 2, "attention_types": [[["global"], 2]]}
    with pytest.raises(ValueError, match="width"):
        ExpandedGPTNeoConfig(**values, expansion={"width": 0})
    with pytest.raises(ValueError, match=r"Unknown key `widht` in `expansion`\. Did you mean `width`\?"):
        ExpandedGPTNeoConfig(**values, expansion={"widht": 4})


def test_the_models_config_fills_in_defaults_and_takes_both_forms() -> None:
    values = {"num_layers": 2, "attention_types": [[["global"], 2]]}
    assert ExpandedGPTNeoConfig(**values).expansion == ExpansionConfig().to_dict()
    by_dict = ExpandedGPTNeoConfig(**values, expansion={"width": 4})
    by_object = ExpandedGPTNeoConfig(**values, expansion=ExpansionConfig(width=4))
    assert by_dict.expansion == by_object.expansion == ExpansionConfig(width=4).to_dict()
    assert by_dict.expansion_config == ExpansionConfig(width=4)


@pytest.mark.parametrize("intermediate_size", [None, 24])
def test_the_base_config_comes_back_unchanged(
    intermediate_size: int | None, make_config: Callable[..., GPTNeoConfig]
) -> None:
    base = make_config(intermediate_size=intermediate_size, tie_word_embeddings=False, resid_dropout=0.3)
    expanded = ExpandedGPTNeoConfig.from_base_config(base, ExpansionConfig(width=4))
    assert expanded.model_type == "expanded_gpt_neo"
    assert expanded.intermediate_size == intermediate_size
    back = expanded.to_base_config()
    assert type(back) is GPTNeoConfig
    assert back.to_dict() == base.to_dict()


def test_all_fields_of_the_base_are_carried_over(make_config: Callable[..., GPTNeoConfig]) -> None:
    base = make_config(resid_dropout=0.3, layer_norm_epsilon=1e-3)
    expanded = ExpandedGPTNeoConfig.from_base_config(base).to_dict()
    own = {"expansion", "load_with", "model_type"}
    assert {name: value for name, value in expanded.items() if name not in own} == {
        name: value for name, value in base.to_dict().items() if name not in own
    }


def test_saved_config_is_known_to_auto_config(tmp_path: Path, make_config: Callable[..., GPTNeoConfig]) -> None:
    config = ExpandedGPTNeoConfig.from_base_config(make_config(), ExpansionConfig(width=4, target_layers=[2]))
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "expanded_gpt_neo"
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is ExpandedGPTNeoConfig
    assert loaded.expansion_config == ExpansionConfig(width=4, target_layers=[2])
    assert {**loaded.to_dict(), "_name_or_path": ""} == config.to_dict()
