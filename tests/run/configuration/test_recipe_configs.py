"""The recipes' own configs: each loads, survives a round trip, and keeps its rule and start under an overlay."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hf_era.models.config import ExpansionConfig
from hf_era.routing import RoutingBatch
from hf_era.run.config import RunConfig, load_run_config

RECIPES = {
    "scratch_fullseq": ("scratch", "full_seq"),
    "posttrain_fullseq": ("pretrained", "full_seq"),
    "scratch_concept": ("scratch", "concept"),
    "posttrain_concept": ("pretrained", "concept"),
}
CONFIGS = Path(__file__).resolve().parents[3] / "recipes" / "configs"
# A matrix is no run; its own test reads it.
RUNS = sorted(path for path in CONFIGS.glob("*.yaml") if "\nruns:" not in path.read_text(encoding="utf-8"))
METHODS = [path for path in RUNS if "\nmethod:" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_every_config_loads_and_survives_a_round_trip(path: Path, tmp_path: Path) -> None:
    config = load_run_config([path])
    assert RunConfig.from_dict(config.to_dict()) == config
    assert config.name == path.stem
    assert "{seed}" in config.output_dir
    config.training_arguments(tmp_path, bf16=False)  # its values are accepted where they end


def test_there_are_configs() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} >= {*RECIPES, "demo", "demo_stories", "stories_small"}


@pytest.mark.parametrize("overlay", [None, "demo_stories", "stories_small"])
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


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_a_method_lies_over_another_recipe(path: Path, tmp_path: Path) -> None:
    """As its page says, and then another method and router over that."""
    starts_from = "scratch" if path.stem == "data_filtering" else "posttrain"
    paths = [CONFIGS / f"{starts_from}_fullseq.yaml", path]
    config, alone = load_run_config(paths), load_run_config([path])
    assert (config.method, config.method_settings) == (alone.method, alone.method_settings)
    config.training_arguments(tmp_path, bf16=False)
    again = load_run_config(paths, ["--method", "gradient_routing", "--router", "sgtm"])
    assert again.training_arguments(tmp_path, bf16=False).token_router.name == "sgtm"


def test_all_recipes_differ_in_what_they_are_called_after_only() -> None:
    def without(recipe: str) -> dict[str, Any]:
        values = load_run_config([CONFIGS / f"{recipe}.yaml"]).to_dict()
        return {key: values[key] for key in ("expansion", "data", "seed", "evaluation")}

    assert without("scratch_fullseq") == without("scratch_concept") == without("posttrain_fullseq")
    assert without("scratch_fullseq") == without("posttrain_concept") == without("scratch_robust")
    assert without("scratch_fullseq") == without("posttrain_robust")


def test_the_robust_sibling_lets_the_core_learn_nothing_of_forget_examples(tmp_path: Path) -> None:
    arguments = load_run_config([CONFIGS / "scratch_robust.yaml"]).training_arguments(tmp_path, bf16=False)
    routing = arguments.token_router.route(RoutingBatch(torch.tensor([[0.0], [1.0]]), ["forget"]))
    assert routing.original.parameter_multiplier.tolist() == [[0.0], [1.0]]
    assert routing.modules["forget"].dial.tolist() == [1.0, 0.0]


def test_the_name_of_a_config_where_a_method_is_asked_for() -> None:
    with pytest.raises(
        ValueError, match="'noise_and_retain', which is no method, but a packaged config that sets one up"
    ):
        load_run_config(["posttrain_robust"], ["--method", "noise_and_retain"])


def test_a_matrix_is_no_run() -> None:
    with pytest.raises(ValueError, match="a matrix of them, for `hf-era matrix`"):
        load_run_config(["bakeoff"])
