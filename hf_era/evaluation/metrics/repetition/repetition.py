"""`evaluate` metric: the share of word trigrams that repeat an earlier one, as `hf_era.evaluation.text_metrics` has it."""

import datasets
import evaluate

from hf_era.evaluation.text_metrics import mean_repetition

_DESCRIPTION = "1 - distinct / all word trigrams of a text, mean over texts; 0 for a text of fewer than three words."

_INPUTS = """
Args:
    predictions (`list[str]`): texts.

Returns:
    `repetition` (`float`): in [0, 1).

Example:
    >>> from hf_era.evaluation import load
    >>> load("repetition").compute(predictions=["the big tree the big tree", "the end"])
    {'repetition': 0.125}
"""


class Repetition(evaluate.Metric):
    def _info(self):  # type: ignore[no-untyped-def]
        features = datasets.Features({"predictions": datasets.Value("string")})
        return evaluate.MetricInfo(description=_DESCRIPTION, citation="", inputs_description=_INPUTS, features=features)

    def _compute(self, predictions):  # type: ignore[no-untyped-def]
        return {"repetition": mean_repetition(predictions)}
