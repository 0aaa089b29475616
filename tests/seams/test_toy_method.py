"""Methods in one file: settings, checks, phases, stages, and what reports call them. One trains nothing, one trains."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import set_seed

from hf_era import RunConfig, run_pipeline
from hf_era.evaluation import RunResult
from hf_era.methods import METHODS, Method, Phase, Run, Settings, Stage, register_method
from hf_era.models.loading import load_causal_lm
from hf_era.reporting.html.report import render_report
from hf_era.reporting.markdown.model_card import render_model_card
from hf_era.training import CausalLMTrainer
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


class DifferenceTrainer(CausalLMTrainer):
    """The loss of retain tokens, minus a part of that of forget tokens (Liu et al. 2022, "gradient difference")."""

    extra_columns = ("routing_weight",)

    def __init__(self, *args: Any, ascent: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ascent = ascent

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        weight, labels = inputs["routing_weight"][:, :-1], inputs["labels"][:, 1:]
        logits = model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        return (torch.where(weight < 0.5, -self.ascent, 1.0) * losses).sum() / num_items_in_batch


class GradientDifference(Method):
    """Trains the model before the method with that loss."""

    name = "gradient_difference"
    title = "gradient difference"
    training_phase = "difference"

    def phases(self, run: Run) -> list[Phase]:
        def train(key: str) -> dict[str, Any]:
            arguments = run.training_arguments("difference", key)
            set_seed(run.seed)
            model = load_causal_lm(run.before_model).float()
            trainer, _ = run.train(DifferenceTrainer, model, arguments, run.folder("model"), ascent=30.0)
            return run.training_report(trainer, arguments)

        key = fingerprint(run.identity, run.base_key)
        clean_up = partial(run.remove_checkpoints, "difference", key)
        return [Phase("difference", "Training on the difference", key, train, (run.folder("model"),), clean_up)]

    def stages(self, run: Run) -> list[Stage]:
        return [Stage("after_training", run.folder("model"))]


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    methods = (Shrinking(), GradientDifference())
    for method in methods:
        register_method(method)
    yield
    for method in methods:
        del METHODS[method.name]


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
    routing = {"rule": "full_seq", "weighting": "uniform"}
    training = {"max_steps": 20, "learning_rate": 1e-2, "logging_steps": 1}
    config = make_run_config(tmp_path, method="gradient_difference", routing=routing, training=training)
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
