"""The method `base`, which only measures the model before any method; and how that model is trained where none is given.

What a method is, and how to add one: `hf_era.methods.method`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import set_seed

from hf_era.methods.method import Cost, Method, Phase, Run, Settings, Stage, register_method
from hf_era.models import family_for
from hf_era.models.loading import causal_lm_from_config
from hf_era.models.measured import measure_activations
from hf_era.training import CausalLMTrainer, CausalLMTrainingConfig


def train_stock(
    run: Run, arguments: CausalLMTrainingConfig, folder: Path, stories: Dataset | None = None
) -> tuple[Any, Any]:
    """Trains a stock model from random weights, without routing; as `Run.train`. A control has the run's own L1 term."""
    set_seed(run.seed)
    model, coefficient = causal_lm_from_config(run.base_config, run.seed), run.control_l1_coefficient
    if coefficient > 0:
        family = family_for(run.base_config, run.expansion)
        resolve, layers = run.expansion.resolve_layers, family.layers_of(run.base_config)
        measure_activations(model, resolve(layers), resolve(layers, "attention"), family)
    return run.train(CausalLMTrainer, model, arguments, folder, stories, l1_coefficient=coefficient)


def train_base(run: Run, key: str) -> dict[str, Any]:
    """Trains a base, or the base control of a run from scratch: on all examples."""
    trainer, output = train_stock(run, run.stock_arguments("base", key), run.folder("base"))
    return {
        "steps": trainer.state.global_step,
        "train_loss": output.training_loss,
        "l1_coefficient": trainer.l1_coefficient,
    }


class Base(Method):
    """Nothing is trained; the model before the method is measured as it is."""

    name = "base"
    title = "the model before the method"
    role = "untouched"
    trains_for_steps = False
    texts = {"summary": "This is the model before the method, untouched."}
    training_phase = "untouched"

    def check(self, settings: Settings) -> None:
        if settings.start == "scratch" and not settings.base_control:
            raise ValueError(
                "`method: base` measures the model before the method, but `model.base_control` is off, so there is none. "
                "Set `model.base_control: true`, or `model.start: pretrained`."
            )

    def plan(self, settings: Settings) -> list[tuple[str, str]]:
        return [("method", "none: the model before the method is measured as it is")]

    def phases(self, run: Run) -> list[Phase]:
        def work(key: str) -> dict[str, Any]:
            return {"steps": 0, "log_history": [], "provenance": run.provenance()}

        return [Phase("untouched", "Taking the model as it is", run.base_key, work, cost=Cost())]

    def stages(self, run: Run) -> list[Stage]:
        return []


register_method(Base())
