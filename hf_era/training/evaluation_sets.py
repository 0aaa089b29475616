"""What the trainers ask of evaluation sets: something to predict in each of them, and names that say what they are.

Nothing measured is never a number: a mean over no token would be the best loss of all.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from torch.utils.data import IterableDataset
from transformers import ProgressCallback
from transformers.trainer_utils import has_length

from hf_era.evaluation.losses import count_labels

NOTHING_TO_PREDICT = (
    "none has a label behind its first token that is not -100. Give it examples of two tokens or more, and look at the "
    "labels that the data set or `data_collator` makes."
)


class EvaluationSetWarning(UserWarning):
    """Something that an evaluation usually gives cannot be measured on the sets it was given."""


def named_sets(eval_dataset: Any) -> dict[str, Any]:
    """The sets of a trainer, under the names that a message has for them."""
    if isinstance(eval_dataset, Mapping):
        return {f"`eval_dataset[{name!r}]`": stories for name, stories in eval_dataset.items()}
    return {} if eval_dataset is None else {"`eval_dataset`": eval_dataset}


def check_something_to_predict(name: str, stories: Any, collate: Callable[[list[Any]], Any], batch_size: int) -> None:
    """Raises `ValueError` if no example of a set has a token to predict. It looks until it finds one, and not at all into a
    stream, which might be read only once."""
    if isinstance(stories, IterableDataset) or not has_length(stories):
        return
    number, stories = len(stories), cast(Any, stories)
    rows = (range(start, min(start + batch_size, number)) for start in range(0, number, batch_size))
    batches = (collate([stories[index] for index in part]) for part in rows)
    if not any(count_labels([batch]) for batch in batches if "labels" in batch):
        raise ValueError(f"{name} has no token to predict: of its {number} examples, {NOTHING_TO_PREDICT}")


def check_names(eval_dataset: Any, **names: tuple[str, str]) -> None:
    """Checks that several sets include the forget and the retain set.

    Args:
        eval_dataset: of the trainer; one set alone has no name.
        names: `forget` and `retain`: the name of the set, and the default of the setting that gives it.

    Raises:
        ValueError: if a name was given that no set has.

    Warns: `EvaluationSetWarning` with what is lost, if a default is the name of no set.
    """
    if not isinstance(eval_dataset, Mapping):
        return
    known = " and ".join(repr(name) for name in eval_dataset)
    missing = [kind for kind, (name, _) in names.items() if name not in eval_dataset]
    for kind in missing:
        name, default = names[kind]
        if name != default:
            raise ValueError(
                f"`training.{kind}_dataset_name` is {name!r}, but the sets of `eval_dataset` are called {known}. Give it "
                "one of these names."
            )
    if missing:
        lost = {"forget": "no ablation gap, so no warning if nothing is localised", "retain": "no retain ablation gap"}
        settings = " and ".join(f"`{kind}_dataset_name`" for kind in missing)
        text = (
            f"The sets of `eval_dataset` are called {known}: there will be {', '.join(lost[kind] for kind in missing)}, and "
            f"no selectivity. Say which set is which with {settings} of `GradientRoutingConfig`."
        )
        warnings.warn(text, EvaluationSetWarning, stacklevel=4)


def tell_of_nothing_measured(figure: str, sized: bool) -> None:
    """What to do where a loss was measured on no token: raises `ValueError`; warns of a stream, which nothing could check
    before the training that an error would end."""
    text = f"No token to measure `{figure}` on: {NOTHING_TO_PREDICT}"
    if sized:
        raise ValueError(text)
    warnings.warn(text, EvaluationSetWarning, stacklevel=2)


@contextlib.contextmanager
def no_event(handler: Any) -> Iterator[None]:
    """Within this context a trainer's callbacks are not told that something was evaluated; bars are closed all the same."""

    def close_bars(args: Any, state: Any, control: Any, metrics: dict[str, float]) -> Any:
        for callback in handler.callbacks:
            if isinstance(callback, ProgressCallback):
                callback.on_evaluate(args, state, control)
        return control

    handler.on_evaluate = close_bars
    try:
        yield
    finally:
        del handler.on_evaluate
