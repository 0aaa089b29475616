"""What each process of a launch does in `test_measuring.py`: `measuring_worker.py CONFIG.json OUTPUT_FOLDER`.

It measures the models in the config's folders by the phases that measure, then each edge case, and leaves everything that it
found in OUTPUT_FOLDER/RANK.pt. The test calls `measured` itself for what one process finds.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import set_seed

from hf_era import RunConfig
from hf_era.evaluation import AuxiliaryActivationMeter, EvaluationConfig, Evaluator, RelearnAttack
from hf_era.methods import get_method
from hf_era.models.loading import load_causal_lm
from hf_era.run.context import Run
from hf_era.run.inputs import load_inputs
from hf_era.run.measuring import Measuring
from hf_era.utils.files import read_json
from hf_era.utils.processes import in_all, main_first, share_out

OUT_OF_MEMORY = "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: planted"


def make_phases(config: RunConfig, state: PartialState) -> Measuring:
    """In one process, as in a launch, after the inputs were loaded."""
    arguments = config.training_arguments(config.output_path / "checkpoints")
    return Measuring(Run(config, load_inputs(config), arguments, state), get_method(config.method))


def measured(measuring: Measuring) -> dict[str, Any]:
    """The reports of the phases, and the losses of each story with what the meter saw."""
    return {
        **measuring.evaluate("key"),
        **measuring.generate("key"),
        **measuring.attack("key"),
        "stories": story_by_story(measuring, batch_size=2),
        "fewer stories than processes": story_by_story(measuring, batch_size=16, stories=1),
    }


def story_by_story(measuring: Measuring, batch_size: int, stories: int | None = None) -> dict[str, Any]:
    """Set -> what was found of each of its first stories (all, if no number is given), as lists."""
    evaluator, model = make_evaluator(measuring, batch_size, stories), load_causal_lm(measuring.run.folder("expanded"))
    found: dict[str, Any] = {}
    for name in evaluator.sets:
        with AuxiliaryActivationMeter(model) as meter:
            losses = evaluator.measure_set(model, name, "test", meter)
        rows = {layer: [part.tolist() for part in pair] for layer, pair in meter.story_rows().items()}
        found[name] = [losses.nll.tolist(), losses.tokens.tolist(), losses.forget_word_nll.tolist(), rows]
    return found


def make_evaluator(measuring: Measuring, batch_size: int, stories: int | None = None) -> Evaluator:
    data = measuring.run.data
    forget, retain = (
        part if stories is None else part.select(range(stories))
        for part in (data.validation_forget, data.validation_retain)
    )
    settings = EvaluationConfig(batch_size=batch_size)
    return Evaluator(forget, retain, measuring.padding, settings, progress=False, state=measuring.state)


@contextmanager
def planted_memory_error(holder: Any, name: str, too_large: Callable[..., bool]) -> Any:
    """Within this context a method fails as torch's allocator does, where `too_large` says so of its arguments."""
    original = getattr(holder, name)

    def planted(*arguments: Any, **options: Any) -> Any:
        if too_large(*arguments, **options):
            raise RuntimeError(OUT_OF_MEMORY)
        return original(*arguments, **options)

    setattr(holder, name, planted)
    try:
        yield
    finally:
        setattr(holder, name, original)


def out_of_memory_in_one_process(measuring: Measuring) -> dict[str, Any]:
    """The last process alone has no memory for batches of more than two stories."""
    evaluator, model = make_evaluator(measuring, 4), load_causal_lm(measuring.run.folder("expanded"))
    last = measuring.state.is_last_process
    # Seven forget stories: it has three of them in the second batch.
    with (
        warnings.catch_warnings(record=True) as warned,
        planted_memory_error(evaluator, "collator", lambda batch: last and len(batch) > 2),
    ):
        warnings.simplefilter("always")
        losses = evaluator.measure(model, "test")
    return {
        "size": evaluator.batch_size,
        "nll": losses["forget"].nll.tolist(),
        "warnings": [str(warning.message) for warning in warned],
    }


def stopped_attack(measuring: Measuring) -> dict[str, Any]:
    """An attack whose second trial fails in the last process; then the same one again."""
    original, made, last = RelearnAttack.run, [], measuring.state.is_last_process

    def run(attack: RelearnAttack, *arguments: Any, **options: Any) -> Any:
        made.append(attack.kind)
        if last and len(made) == 2:
            raise ValueError("planted in a trial")
        return original(attack, *arguments, **options)

    RelearnAttack.run = run  # type: ignore[method-assign]
    try:
        error = said(lambda: measuring.attack("stopped"))
        kept = [read_json(path)["trials"] for path in sorted(measuring.records.glob("attack-unfinished*.json"))]
        in_all(lambda: None, measuring.state)  # all have looked before it goes on
        before = len(made)
        report = measuring.attack("stopped")
        measuring.remove_kept_trials()
        in_all(lambda: None, measuring.state)
        left = list(measuring.records.glob("attack-unfinished*"))
    finally:
        RelearnAttack.run = original  # type: ignore[method-assign]
    return {"error": error, "kept": kept, "made again": len(made) - before, "report": report, "left": left}


class UnsendableError(Exception):
    """Its pickle cannot be read: the constructor takes something else than the text."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} and {other}")


def said(work: Callable[[], Any]) -> list[str]:
    try:
        work()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return ["no error"]


def errors(state: PartialState) -> dict[str, Any]:
    def fail(error: Callable[[], Exception]) -> Callable[[int], int]:
        def work(task: int) -> int:
            if task == 3:
                raise error()
            return task

        return work

    other_numbers = range(4 + state.process_index)
    return {
        "known": said(lambda: share_out(range(6), fail(lambda: ValueError("`field` is wrong")), state)),
        "unsendable": said(lambda: share_out(range(6), fail(lambda: UnsendableError("one", "other")), state)),
        "other tasks": said(lambda: share_out(other_numbers, lambda task: task, state)),
        "main first": said(lambda: main_first(lambda: 1 // 0 if state.is_main_process else 1, state)),
        "goes on": share_out(range(5), lambda task: task * task, state),
        "nothing": share_out([], lambda task: task, state),
    }


def main(config_file: str, output: str) -> None:
    warnings.simplefilter("error")
    set_seed(0)
    config = RunConfig.from_dict(json.loads(Path(config_file).read_text()))
    state = PartialState(cpu=True)
    assert state.num_processes > 1, "this is for launches"
    measuring = main_first(lambda: make_phases(config, state), state)
    found = {
        "measured": measured(measuring),
        "out of memory": out_of_memory_in_one_process(measuring),
        "stopped": stopped_attack(measuring),
        "errors": errors(state),
    }
    torch.save(found, Path(output) / f"{state.process_index}.pt")
    # The end of all: one process fails, and none may be left waiting.
    share_out(range(6), lambda task: task // (task - 3), state)


if __name__ == "__main__":
    main(*sys.argv[1:])
