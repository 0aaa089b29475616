"""`evaluate` metric: forget words in generated texts, as `hf_era.evaluation.text_metrics` counts them."""

from dataclasses import asdict

import datasets
import evaluate

from hf_era.evaluation.text_metrics import count_target_words

_DESCRIPTION = "Counts forget words in texts: whole words, any case, punctuation around them stripped."

_INPUTS = """
Args:
    predictions (`list[str]`): whole texts, prompt included.
    words (`list[str]`): forget words or phrases.
    prompts (`list[str]`, *optional*): one per text, with which it begins.

Returns:
    `all` (`int`): forget words in the texts. `without_prompt` (`int`): those that end beyond the prompt; None without
    prompts.

Example:
    >>> from hf_era.evaluation import load
    >>> metric = load("target_words")
    >>> texts = ["The tree fell. Trees fall in a forest!", "A treehouse is no tree."]
    >>> metric.compute(predictions=texts, words=["tree", "trees", "forest"], prompts=["The tree", "A treehouse"])
    {'all': 4, 'without_prompt': 3}
"""


class TargetWords(evaluate.Metric):
    def _info(self):  # type: ignore[no-untyped-def]
        features = datasets.Features({"predictions": datasets.Value("string")})
        return evaluate.MetricInfo(description=_DESCRIPTION, citation="", inputs_description=_INPUTS, features=features)

    def _compute(self, predictions, words, prompts=None):  # type: ignore[no-untyped-def]
        return asdict(count_target_words(predictions, words, prompts))
