"""A method in one file: settings, checks, phases, stages, and what reports call it; and one of ours, which trains."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_era import RunConfig, run_pipeline
from hf_era.evaluation import RunResult
from hf_era.methods import METHODS, Method, Phase, Run, Settings, Stage, register_method
from hf_era.models.loading import load_causal_lm
from hf_era.reporting.html.report import render_report
from hf_era.reporting.markdown.model_card import render_model_card
from hf_era.utils.fields import setting
from hf_era.utils.files import fingerprint


@dataclass
class ShrinkingSettings:
    """By how much."""

    factor: float = setting(0.5, "Factor of every matrix, in (0, 1).", identity=True)

    def __post_init__(self) -> None:
        if not 0 < self.factor < 1:
            raise ValueError(f"`method_settings.factor` should be in (0, 1), got {self.factor}.")


class Shrinking(Method):
    """Makes every matrix of the model before the method smaller. It removes everything alike."""

    name = "shrinking"
    title = "weight shrinking"
    texts = {
        "introduction": "A model whose matrices were **shrunk** by hf_era {version}.",
        "training": "Nothing was trained: every matrix was multiplied by a factor.",
    }
    settings_class = ShrinkingSettings
    training_phase = "shrink"

    def check(self, settings: Settings) -> None:
        if settings.start != "pretrained":
            raise ValueError("`method: shrinking` needs a model that exists. Set `model.start: pretrained`.")

    def phases(self, run: Run) -> list[Phase]:
        def shrink(key: str) -> dict[str, Any]:
            model = load_causal_lm(run.before_model)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.dim() == 2:
                        parameter.mul_(run.method_settings.factor)
            run.save(model.save_pretrained, run.folder("model"))
            return {"steps": 0, "log_history": [], "provenance": run.provenance()}

        key = fingerprint(run.identity, run.base_key)
        return [Phase("shrink", "Shrinking the weights", key, shrink, (run.folder("model"),))]

    def stages(self, run: Run) -> list[Stage]:
        return [Stage("after_shrinking", run.folder("model"), title="After shrinking")]


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    register_method(Shrinking())
    yield
    del METHODS["shrinking"]


@pytest.fixture
def shrunk(tmp_path: Path, make_run_config: Callable[..., RunConfig]) -> tuple[RunConfig, RunResult]:
    config = make_run_config(tmp_path, method="shrinking", method_settings={"factor": 0.25})
    return config, run_pipeline(config)


def test_it_runs_from_its_config_to_its_report(shrunk: tuple[RunConfig, RunResult]) -> None:
    config, result = shrunk
    assert [stage["name"] for stage in result.stages] == ["before", "after_shrinking"]
    assert list(result.losses) == ["before", "after_shrinking"]
    assert (result.method, result.method_title, result.final_stage) == (
        "shrinking",
        "weight shrinking",
        "after_shrinking",
    )
    assert result.config["method_settings"] == {"factor": 0.25}
    assert result.unlearning != 0
    assert result.attack is not None
    base, final = (load_file(config.output_path / name / "model.safetensors") for name in ("base/model", "model"))
    assert torch.equal(final["transformer.wte.weight"], base["transformer.wte.weight"] * 0.25)
    assert torch.equal(final["transformer.ln_f.bias"], base["transformer.ln_f.bias"])
    card, page = render_model_card(result), render_report(result)
    assert "A model whose matrices were **shrunk** by hf_era" in card
    assert "every matrix was multiplied by a factor" in card
    assert "After shrinking" in card
    assert "After shrinking" in page
    assert "weight shrinking" in page
    assert "gradient routing" not in page
    assert RunResult.load(config.output_path / "result.json") == result


def test_the_same_command_skips_it_and_other_settings_are_another_run(
    shrunk: tuple[RunConfig, RunResult], tmp_path: Path, make_run_config: Callable[..., RunConfig]
) -> None:
    config, result = shrunk
    written = (config.output_path / "model" / "model.safetensors").stat().st_mtime_ns
    assert run_pipeline(config).losses == result.losses
    assert (config.output_path / "model" / "model.safetensors").stat().st_mtime_ns == written
    other = make_run_config(tmp_path, method="shrinking", method_settings={"factor": 0.5})
    with pytest.raises(ValueError, match=r"holds another run \(`method_settings.factor` was 0.25, is now 0.5\)"):
        run_pipeline(other)


def test_one_that_trains_with_a_loss_of_its_own(tmp_path: Path, make_run_config: Callable[..., RunConfig]) -> None:
    settings, training = {"forget_coefficient": 5.0}, {"max_steps": 20, "learning_rate": 1e-2, "logging_steps": 1}
    config = make_run_config(tmp_path, method="gradient_difference", method_settings=settings, training=training)
    result = run_pipeline(config)
    assert result.training["steps"] == len(
        {entry["step"] for entry in result.training["log_history"] if "loss" in entry}
    )
    assert result.estimate("unlearning").value > result.estimate("retain_tax").value + 0.05
    assert "gradient difference" in render_model_card(result)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"method_settings": {"factr": 0.5}},
            r"Unknown key `factr` in section `method_settings`. Did you mean `factor`\?",
        ),
        ({"method_settings": {"factor": 2}}, r"`method_settings.factor` should be in \(0, 1\), got 2.0"),
        ({"model": {"start": "scratch"}}, "`method: shrinking` needs a model that exists"),
        ({"method": "shrinkin"}, r"Unknown value for `method`: 'shrinkin'. Did you mean `shrinking`\?"),
        (
            {"method": "gradient_routing", "method_settings": {"factor": 0.5}},
            "the method `gradient_routing` has no settings of its own, got {'factor': 0.5}. Leave them out",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path, make_run_config: Callable[..., RunConfig]
) -> None:
    with pytest.raises(ValueError, match=message):
        make_run_config(tmp_path, **{"method": "shrinking", **changes})


def test_a_name_is_given_once() -> None:
    with pytest.raises(ValueError, match=r"There is a method `shrinking` already: Shrinking\. Choose another name"):
        register_method(Shrinking())
