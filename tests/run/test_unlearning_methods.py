"""Whole runs of the methods for a model that exists: what they refuse, and that each goes from its recipe to its card."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from hf_era import RunConfig, run_pipeline
from hf_era.evaluation.results import load_control
from hf_era.reporting.markdown.model_card import render_model_card
from hf_era.run.config import load_run_config
from hf_era.run.inputs import check_labels

RECIPES = ("continue_all", "continue_retain", "gradient_difference", "npo", "rmu", "era_rmu")


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_lies_over_another_and_changes_no_scale_but_its_own(recipe: str) -> None:
    base = load_run_config(["posttrain_fullseq"])
    config = load_run_config(["posttrain_fullseq", f"recipes/configs/{recipe}.yaml"])
    assert config.method == config.output_path.parent.name == recipe
    assert (config.model, config.data, config.expansion, config.relearn) == (
        base.model, base.data, base.expansion, base.relearn
    )  # fmt: skip
    changed = {name for name in base.training if base.training[name] != config.training[name]}
    allowed = {"max_steps", "learning_rate", "weight_decay", "max_grad_norm"} if recipe == "rmu" else {"max_grad_norm"}
    assert changed <= allowed


@pytest.mark.parametrize("recipe", ["data_filtering", "base", "demix"])
def test_a_recipe_from_random_weights_lies_over_another(recipe: str) -> None:
    under = "posttrain_fullseq" if recipe == "base" else "scratch_fullseq"
    base, config = load_run_config([under]), load_run_config([under, f"recipes/configs/{recipe}.yaml"])
    assert config.output_path.parent.name == recipe
    assert (config.method, config.model.start, config.router) == {
        "data_filtering": ("data_filtering", "scratch", "activation"),
        "base": ("base", "pretrained", "activation"),
        "demix": ("gradient_routing", "scratch", "demix"),
    }[recipe]
    assert (config.data, config.relearn) == (base.data, base.relearn)
    changed = {name for name, value in base.training.items() if value != config.training.get(name)}
    assert changed <= {"multipliers"}  # those of another router
    alone = load_run_config([f"recipes/configs/{recipe}.yaml"])
    assert (alone.method, alone.model.start) == (
        config.method,
        config.model.start if recipe != "base" else "pretrained",
    )


@pytest.mark.parametrize("method", [name for name in RECIPES if name != "era_rmu"])
def test_a_method_for_a_trained_model_needs_one(method: str) -> None:
    with pytest.raises(
        ValueError, match=f"`method: {method}` changes a model that exists, but `model.start` is 'scratch'"
    ):
        RunConfig.from_dict({"method": method, "model": {"start": "scratch"}})
    with pytest.raises(
        ValueError, match=r"`training.trainable` is 'modules', but `method: .*` has no auxiliary module"
    ):
        RunConfig.from_dict({"method": method, "training": {"trainable": "modules"}})


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("rmu", "says itself which weights learn"),
        ("undo", "trains every weight that it noises"),
        ("noise_and_route", "trains every weight that it noises"),
        ("repselect", "changes the MLP projections, and these alone"),
    ],
)
def test_a_method_that_says_itself_what_learns_refuses_other_choices(method: str, reason: str) -> None:
    for field, value in {"lora": {"rank": 2}, "trainable": "routed"}.items():
        with pytest.raises(ValueError, match=rf"`training.{field}` is .*, but `method: {method}` {reason}"):
            RunConfig.from_dict({"method": method, "training": {field: value}})
    RunConfig.from_dict({"method": method, "training": {"trainable": "all"}})


@pytest.mark.parametrize("method", ["gradient_difference", "npo", "rmu", "undo", "noise_and_route"])
def test_label_smoothing_is_refused_where_the_loss_has_none(method: str) -> None:
    with pytest.raises(
        ValueError, match=rf"`training.label_smoothing_factor` is 0.1, but `method: {method}` has a loss"
    ):
        RunConfig.from_dict({"method": method, "training": {"label_smoothing_factor": 0.1}})
    RunConfig.from_dict({"method": "continue_all", "training": {"label_smoothing_factor": 0.1}})


@pytest.mark.parametrize("method", ["gradient_difference", "npo", "rmu", "era_rmu"])
def test_without_a_forget_example_it_is_refused(method: str) -> None:
    config = RunConfig.from_dict({"method": method})
    with pytest.raises(ValueError, match=f"`method: {method}` learns from forget examples, but no training example is"):
        check_labels(config, forget=0, retain=5, unlabelled=3)
    check_labels(RunConfig.from_dict({"method": "continue_retain"}), forget=0, retain=0, unlabelled=3)
    with pytest.raises(ValueError, match="`method: continue_retain` trains on what is not labelled forget, but every"):
        check_labels(RunConfig.from_dict({"method": "continue_retain"}), forget=5, retain=0, unlabelled=0)


def weights(config: RunConfig, folder: str) -> dict[str, Any]:
    return load_file(config.output_path / folder / "model.safetensors")


@pytest.mark.slow
@pytest.mark.usefixtures("_no_localisation_warning")
@pytest.mark.parametrize("recipe", RECIPES)
def test_from_the_recipe_to_the_card(recipe: str, tmp_path: Path, make_run_config: Callable[..., RunConfig]) -> None:
    own = load_run_config([recipe])
    settings = {name: value for name, value in vars(own.method_settings or object).items() if not name.startswith("_")}
    settings |= {"steps": 3} if recipe == "era_rmu" else {}
    given = {"method_settings": settings} if own.method_settings else {}
    config = make_run_config(tmp_path, method=recipe, **given)
    result = run_pipeline(config)
    assert result.method == recipe
    assert (result.final_stage, result.before_kind) == (
        "after_coherence" if recipe == "era_rmu" else "after_training", "pretrained"
    )  # fmt: skip
    assert result.estimate("unlearning").value != 0
    card = render_model_card(result)
    assert f"| Method | {result.method_title} |" in card
    assert result.attack is not None
    if recipe == "era_rmu":
        assert "After RMU" in card
        before, after = weights(config, "contracted"), weights(config, "unlearned")
        assert {name for name in after if not after[name].equal(before[name])} == {
            f"transformer.h.0.mlp.c_proj.{part}" for part in ("weight", "bias")
        }
    elif result.method_role == "control":
        with pytest.raises(ValueError, match="which is no such control"):
            load_control(config.output_path / "result.json")
