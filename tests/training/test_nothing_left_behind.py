"""A long run holds on to nothing of its evaluations and checkpoints but their lines in the log."""

import gc
from collections import Counter
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback


def living_objects() -> Counter[str]:
    gc.collect()
    return Counter(f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.get_objects())


def grown(before: Counter[str], after: Counter[str], times: int) -> dict[str, int]:
    """The types of which there are more by one or more each time."""
    return {name: number - before[name] for name, number in after.items() if number - before[name] >= times}


class CountingObjects(TrainerCallback):
    """Counts what is alive after the steps 10 and 20. The log is emptied: it is a record, and grows."""

    def __init__(self) -> None:
        living_objects()  # counting for the first time fills caches of its own
        self.counts: list[Counter[str]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.log_history.clear()
        if state.global_step in (10, 20):
            self.counts.append(living_objects())


def test_training_with_evaluations_and_checkpoints(
    make_trainer: Callable[..., Any], make_stories: Callable[..., Any]
) -> None:
    sets = {"forget": make_stories(4, seed=1), "retain": make_stories(4, seed=2)}
    watch = CountingObjects()
    each_step = {
        f"{what}_{how}": value for what in ("eval", "save") for how, value in (("strategy", "steps"), ("steps", 1))
    }
    make_trainer(
        evaluation=sets, callbacks=[watch], max_steps=21, save_total_limit=1, minimum_ablation_gap=-1.0, **each_step
    ).train()
    assert grown(*watch.counts, times=10) == {}


def test_evaluating_and_predicting_again(make_trainer: Callable[..., Any], make_stories: Callable[..., Any]) -> None:
    stories = make_stories(4, seed=1)
    trainer = make_trainer(evaluation=stories)

    def measure(times: int) -> Counter[str]:
        for _ in range(times):
            trainer.evaluate()
            trainer.evaluate(stories.remove_columns("length"))
            trainer.predict(stories)
        trainer.state.log_history.clear()
        return living_objects()

    before = measure(2)
    assert grown(before, measure(5), times=5) == {}
