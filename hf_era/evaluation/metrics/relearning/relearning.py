"""`evaluate` metric: how much relearn attacks bring back, as `hf_era.evaluation.relearn.result` sums it up."""

import datasets
import evaluate

from hf_era.evaluation.relearn.result import STEPS, RelearnCurve, RelearnPoint, RelearnResult, RelearnTrial

_DESCRIPTION = """
Lowest forget loss of relearn attacks, its step, robust unlearning, and steps to recover; with means and 95 % intervals
(Student's t) over trials. Losses are in nats a token.
"""

_INPUTS = """
Args:
    predictions (`list[dict]`): each trial's curve: `steps`, `forget_losses`, `retain_losses`, lists of the same length; the
        first point is step 0, before the attack.
    before (`float`, *optional*): forget loss of the model before the method, on the same examples.

Returns:
    `trials`; `lowest_forget_loss`, `retain_loss_at_lowest`, `robust_unlearning` and `retain_loss_at_recovery`, each with
    `_low` and `_high` (None with a single trial); `lowest_step`, the mean; `lowest_at_the_end`, whether a trial
    was lowest at its last point: it had not turned, and more steps may lower it; `recovered`, how many trials came within
    0.05 nats of `before`; `steps_to_recover`, the median over all trials, where one that never did counts as above those
    that did (None where that is no number). What needs `before` is None without it.

Example:
    >>> from hf_era.evaluation import load
    >>> first = {"steps": [0, 1, 2], "forget_losses": [4.0, 2.0, 3.0], "retain_losses": [1.0, 1.25, 1.5]}
    >>> second = {"steps": [0, 1, 2], "forget_losses": [4.0, 3.0, 2.5], "retain_losses": [1.0, 1.25, 1.75]}
    >>> found = load("relearning").compute(predictions=[first, second], before=2.0)
    >>> found["lowest_forget_loss"], found["lowest_step"], found["robust_unlearning"]
    (2.25, 1.5, 0.25)
    >>> found["recovered"], found["steps_to_recover"]
    (1, None)
    >>> found["lowest_at_the_end"]
    True
"""


class Relearning(evaluate.Metric):
    def _info(self):  # type: ignore[no-untyped-def]
        losses = datasets.List(datasets.Value("float64"))
        curve = {"steps": datasets.List(datasets.Value("int64")), "forget_losses": losses, "retain_losses": losses}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": curve}),
        )

    def _compute(self, predictions, before=None):  # type: ignore[no-untyped-def]
        if not predictions:
            raise ValueError("`predictions` is empty. Pass the curve of at least one trial.")
        trials = [
            RelearnTrial(kind="full", stories=0, learning_rate=0.0, trial=number, seed=0, curve=_curve(number, values))
            for number, values in enumerate(predictions)
        ]
        result = RelearnResult(trials, None if before is None else {"forget": float(before)})
        (summary,) = result.summaries()
        estimates = {
            "lowest_forget_loss": summary.lowest_forget,
            "retain_loss_at_lowest": summary.retain_at_lowest,
            "robust_unlearning": summary.robust_unlearning,
            "retain_loss_at_recovery": summary.retain_at_recovery,
        }
        found = {name: getattr(summary, name) for name in ("trials", "lowest_step", "recovered", "steps_to_recover")}
        found["lowest_at_the_end"] = STEPS in summary.edges
        for name, estimate in estimates.items():
            found |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        return found


def _curve(number, values):  # type: ignore[no-untyped-def]
    columns = [values["steps"], values["forget_losses"], values["retain_losses"]]
    if len({len(column) for column in columns}) > 1:
        lengths = ", ".join(str(len(column)) for column in columns)
        raise ValueError(
            f"`predictions[{number}]`: `steps`, `forget_losses` and `retain_losses` should be of one length, got {lengths}."
        )
    return RelearnCurve([RelearnPoint(*point) for point in zip(*columns, strict=True)])
