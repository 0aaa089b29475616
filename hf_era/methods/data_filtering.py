"""Data filtering: a stock model that never saw a forget story. The control that forgetting is measured against."""

from __future__ import annotations

from functools import partial
from typing import Any

from hf_era.data import RETAIN
from hf_era.methods.base import train_stock
from hf_era.methods.method import Method, Phase, Run, Settings, Stage, register_method, stories_labelled
from hf_era.utils.files import fingerprint


class DataFiltering(Method):
    """Trains a stock model from random weights on the retain stories alone, otherwise as the base control."""

    name = "data_filtering"
    title = "data filtering"
    role = "control"
    texts = {
        "summary": "This is data filtering, the yardstick: a stock model trained on the retain stories alone.",
        "introduction": (
            "A causal language model that was trained by hf_era {version} on the retain stories alone: *data filtering*, "
            "the control that models trained with gradient routing ([arXiv 2410.04332](https://arxiv.org/abs/2410.04332)) "
            "are compared with. It has a stock Transformers architecture and loads without hf_era."
        ),
        "training": (
            "From random weights, on the retain stories alone, with the steps and settings of the runs it is compared with."
        ),
        "labels": "The control was trained on none of them, labelled or not.",
    }
    training_phase = "filter"

    def check(self, settings: Settings) -> None:
        if settings.start != "scratch":
            raise ValueError(
                f"`method: data_filtering` trains a model that never saw a forget story, but `model.start` is "
                f"{settings.start!r}. Set `model.start: scratch`, and `model.base: null`."
            )

    def plan(self, settings: Settings) -> list[tuple[str, str]]:
        return [("method", "data filtering: a stock model is trained on the retain stories alone")]

    def phases(self, run: Run) -> list[Phase]:
        key = fingerprint(run.identity, "data filtering")

        def work(key: str) -> dict[str, Any]:
            arguments = run.stock_arguments("filter", key)
            # Forget stories that lost their label are left out too: this is the control with perfect labels.
            retain = stories_labelled(run.data, RETAIN)
            trainer, _ = train_stock(run, arguments, run.folder("model"), retain)
            return run.training_report(trainer, arguments)

        title, clean_up = "Training on the retain stories alone", partial(run.remove_checkpoints, "filter", key)
        return [Phase("filter", title, key, work, (run.folder("model"),), clean_up)]

    def stages(self, run: Run) -> list[Stage]:
        return [Stage("after_training", run.folder("model"))]


register_method(DataFiltering())
