"""Data filtering: a stock model that never saw an example that is labelled forget. The control that forgetting is measured
against."""

from __future__ import annotations

from functools import partial
from typing import Any

from hf_era.data import UNLABELLED
from hf_era.methods.base import train_stock
from hf_era.methods.method import Method, Phase, RetainSettings, Run, Settings, Stage, register_method, stories_labelled
from hf_era.utils.files import fingerprint


class DataFiltering(Method):
    """Trains a stock model from random weights on what is not labelled forget, otherwise as the base control.

    It knows the labels that the run it is compared with knows: a forget example without one is trained on, or with
    `unlabelled: false` left out with all others that have none.
    """

    name = "data_filtering"
    title = "data filtering"
    role = "control"
    texts = {
        "summary": "This is data filtering, the yardstick: a stock model trained without the examples labelled forget.",
        "introduction": (
            "A causal language model that was trained by hf_era {version} without the examples labelled forget: *data "
            "filtering*, the control that models trained with gradient routing "
            "([arXiv 2410.04332](https://arxiv.org/abs/2410.04332)) are compared with. It has a stock Transformers "
            "architecture and loads without hf_era."
        ),
        "training": (
            "From random weights, without the examples labelled forget, with the steps and settings of the runs it is "
            "compared with."
        ),
        "labels": "Those without a label were trained as retain examples, unless the method's settings say otherwise.",
    }
    settings_class = RetainSettings
    training_phase = "filter"

    def check(self, settings: Settings) -> None:
        if settings.start != "scratch":
            raise ValueError(
                f"`method: data_filtering` trains a model that never saw a forget example, but `model.start` is "
                f"{settings.start!r}. Set `model.start: scratch`, and `model.base: null`."
            )

    def identity(self, run: Run) -> dict[str, Any]:
        # Empty where earlier versions trained it alike: without an L1 term, and on examples that all have their label.
        found: dict[str, Any] = {}
        if run.control_l1_coefficient > 0:
            found["control_l1_coefficient"] = run.control_l1_coefficient
        if run.method_settings.unlabelled and UNLABELLED in run.data.train["label"][:]:
            found["unlabelled_stories"] = "trained on"
        return found

    def check_data(self, settings: Settings, retain_stories: int, unlabelled_stories: int) -> None:
        settings.method_settings.check(self.name, retain_stories, unlabelled_stories)

    def plan(self, settings: Settings) -> list[tuple[str, str]]:
        return [("method", f"data filtering: a stock model is trained on {settings.method_settings.text}")]

    def labels_learnt(self, settings: Settings) -> tuple[int, ...]:
        own: RetainSettings = settings.method_settings
        return own.labels

    def phases(self, run: Run) -> list[Phase]:
        key = fingerprint(run.identity, "data filtering")
        settings: RetainSettings = run.method_settings
        stories = stories_labelled(run.data, *self.labels_learnt(run))

        def work(key: str) -> dict[str, Any]:
            arguments = run.stock_arguments("filter", key)
            trainer, _ = train_stock(run, arguments, run.folder("model"), stories)
            unlabelled = len(stories_labelled(run.data, UNLABELLED)) if settings.unlabelled else 0
            return {**run.training_report(trainer, arguments), "unlabelled_stories": unlabelled}

        title, clean_up = (
            f"Training on {settings.text}",
            partial(run.remove_checkpoints, "filter", key),
        )
        cost = run.training_cost(run.arguments, len(stories))
        return [Phase("filter", title, key, work, (run.folder("model"),), clean_up, cost)]

    def stages(self, run: Run) -> list[Stage]:
        return [Stage("after_training", run.folder("model"))]


register_method(DataFiltering())
