"""`evaluate` metric: losses on forget and on retain examples, as `hf_era.evaluation.losses` estimates them."""

import datasets
import evaluate
import torch

from hf_era.data.labelling import FORGET, RETAIN
from hf_era.evaluation.losses import loss_estimate, mean_of_batch_means

_DESCRIPTION = """
Token-weighted losses on forget and retain examples, nats a token, with 95 % bootstrap intervals over examples. Beside them,
under its own name, the mean of batch means, which gives the tokens of short examples more weight.
"""

_INPUTS = """
Args:
    predictions (`list[float]`): each example's summed negative log-likelihood, nats.
    references (`list[dict]`): each example's `label` (0 forget, 1 retain) and `tokens` (`int`, predicted tokens).
    batch_size (`int`, *optional*, defaults to `80`): examples a batch of the mean of batch means, in the order given.
    bootstrap_samples (`int`, *optional*, defaults to `1000`): resamples of the intervals. 0: no intervals.

Returns:
    For `forget` and `retain` each: `forget_loss`, `forget_loss_low`, `forget_loss_high`, `forget_tokens`,
    `forget_stories` and `forget_mean_of_batch_means`. A loss is None where there is no token.

Example:
    >>> from hf_era.evaluation import load
    >>> forget, retain = {"label": 0, "tokens": 10}, {"label": 1, "tokens": 20}
    >>> found = load("forget_retain_loss").compute(predictions=[30, 20, 40], references=[forget, retain, retain])
    >>> found["forget_loss"], found["retain_loss"], found["retain_loss_low"], found["retain_loss_high"]
    (3.0, 1.5, 1.0, 2.0)
"""


class ForgetRetainLoss(evaluate.Metric):
    def _info(self):  # type: ignore[no-untyped-def]
        story = {"label": datasets.Value("int64"), "tokens": datasets.Value("int64")}
        features = datasets.Features({"predictions": datasets.Value("float64"), "references": story})
        return evaluate.MetricInfo(description=_DESCRIPTION, citation="", inputs_description=_INPUTS, features=features)

    def _compute(self, predictions, references, batch_size=80, bootstrap_samples=1_000):  # type: ignore[no-untyped-def]
        labels = torch.tensor([story["label"] for story in references], dtype=torch.int64)
        _check_labels(labels)
        nll = torch.tensor(predictions, dtype=torch.float64)
        tokens = torch.tensor([story["tokens"] for story in references], dtype=torch.float64)
        found = {}
        for name, label in (("forget", FORGET), ("retain", RETAIN)):
            chosen = labels == label
            estimate = loss_estimate(nll[chosen], tokens[chosen], bootstrap_samples)
            found[f"{name}_loss"] = estimate.loss
            found[f"{name}_loss_low"] = estimate.low
            found[f"{name}_loss_high"] = estimate.high
            found[f"{name}_tokens"] = estimate.tokens
            found[f"{name}_stories"] = estimate.stories
            found[f"{name}_mean_of_batch_means"] = mean_of_batch_means(nll[chosen], tokens[chosen], batch_size)
        return found


def _check_labels(labels):  # type: ignore[no-untyped-def]
    for label in labels.tolist():
        if label not in (FORGET, RETAIN):
            raise ValueError(
                f"`references`: `label` should be {FORGET} (forget) or {RETAIN} (retain), got {label}. "
                "Leave examples without a label out."
            )
