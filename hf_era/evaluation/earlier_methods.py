"""The methods of result files of schema version 2: what those files left to the reports, and newer ones say themselves."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EarlierMethod:
    """As `RunResult` records it now: title, role, the stages that every run of it has, and prose."""

    title: str
    role: str
    stages: tuple[str, ...]
    texts: dict[str, str]


EARLIER_METHODS = {
    "gradient_routing": EarlierMethod(
        "gradient routing",
        "method",
        ("before_ablation", "after_ablation"),
        {
            "introduction": "A causal language model that was trained with **gradient routing** (Expand-Route-Ablate, "
            "[arXiv 2410.04332](https://arxiv.org/abs/2410.04332)) by hf_era {version}, so that what it learnt about the "
            "forget stories would gather in an auxiliary module. That module has been cut out; its weights are not in these "
            "files. What remains has a stock Transformers architecture and loads without hf_era.",
            "training": "An auxiliary module was added beside the MLP of the target layers. The model was trained on all "
            "stories, but the gradient of each token was scaled by its routing weight (1 retain, 0 forget) at the input of "
            "the down projections, by one multiplier for the original dims and another for the auxiliary module. Then the "
            "module was cut out.",
            "labels": "Those without a label were trained as retain stories and are counted apart.",
        },
    ),
    "data_filtering": EarlierMethod(
        "data filtering",
        "control",
        ("after_training",),
        {
            "summary": "This is data filtering, the yardstick: a stock model trained on the retain stories alone.",
            "introduction": "A causal language model that was trained by hf_era {version} on the retain stories alone: "
            "*data filtering*, the control that models trained with gradient routing "
            "([arXiv 2410.04332](https://arxiv.org/abs/2410.04332)) are compared with. It has a stock Transformers "
            "architecture and loads without hf_era.",
            "training": "From random weights, on the retain stories alone, with the steps and settings of the runs it is "
            "compared with.",
            "labels": "The control was trained on none of them, labelled or not.",
        },
    ),
    "base": EarlierMethod(
        "the model before the method",
        "untouched",
        ("before",),
        {"summary": "This is the model before the method, untouched."},
    ),
}
