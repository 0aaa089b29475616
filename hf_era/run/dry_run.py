"""A dry run: everything is loaded and checked, nothing is trained for good, and nothing is written where the run would live.

What it would take is measured with a model of its size that is thrown away: some real training steps, an evaluation of a few
examples, some generated tokens and two steps of an attack.
"""

from __future__ import annotations

import copy
import gc
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import numpy as np
import psutil
import pyarrow.compute as pc
import torch
from accelerate import PartialState
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import PrinterCallback, TrainerCallback

from hf_era.data import FORGET, RETAIN, UNLABELLED
from hf_era.data.columns import arrow_batches, flat_column
from hf_era.data.labelling import MODULE
from hf_era.evaluation import EvaluationConfig, Evaluator, RelearnAttack, generate_texts
from hf_era.evaluation.relearn.attack import MeasuredStories, measured_steps
from hf_era.methods import Phase, get_method
from hf_era.models.loading import causal_lm_from_config, expanded_from_config, without_weight_bars
from hf_era.run.config import RunConfig
from hf_era.run.context import Run
from hf_era.run.directory import RUN_FILE
from hf_era.run.memory_estimate import MemoryEstimate, estimate_memory, memory_of, said, ways_out
from hf_era.run.outputs import HELD_OUT, HELD_OUT_FILES
from hf_era.run.pipeline import RunPlan, prepare_run
from hf_era.run.time_left import spoken
from hf_era.training import CausalLMTrainer, GradientRoutingTrainer

STEPS, SECONDS = 5, 60.0
"""Training steps that are timed, and after how many seconds no further one is begun once there are two."""
EXAMPLES, NEW_TOKENS = 16, 8
"""Of each label, that are evaluated on; tokens that are generated."""
BYTES = 4
"""Of a weight in fp32, as it is trained and saved."""
LABELS = {FORGET: "forget", RETAIN: "retain", UNLABELLED: "unlabelled"}


@dataclass(frozen=True)
class DryRun:
    """What a run would take.

    Attributes:
        data (`list[dict]`): `part`, `label`, `examples`, `tokens` and, of what is trained on, `routed`: tokens with a
            routing weight below 0.5. Where labels name modules, also a row for each `module`: of the forget examples those.
        parameters (`dict[str, int]`): `total`, `auxiliary` and `trained`, of the model that is trained.
        memory (`dict[str, float]`): bytes of a training step in this process: `weights`, `gradients`, `optimizer`,
            `activations`, `logits`, `buffers` and their sum, `estimate`; `whole_logits`, what the logits would take without
            the chunked loss; `machine`, what there is for one process; `peak`, measured, unless the estimate is more than
            there is. Empty where nothing is trained.
        advice (`list[str]`): what would make it smaller.
        phases (`list[dict]`): `name`, `title`, `seconds` (`None`: not known), `done`, `at_most` (it may end earlier).
        files (`list[dict]`): `path` and `bytes` (`None`: not known beforehand) of what would be written.
    """

    data: list[dict[str, Any]]
    parameters: dict[str, int]
    memory: dict[str, float]
    phases: list[dict[str, Any]]
    files: list[dict[str, Any]]
    advice: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float | None:
        """Of what is left of the run, about; `None` where a phase does not say what it computes."""
        left = [phase["seconds"] for phase in self.phases if not phase["done"]]
        return None if None in left else sum(left)


@without_weight_bars()
def dry_run(config: RunConfig, console: Console | None = None) -> DryRun:
    """Says what a run would do and take, after all of its checks; all processes of a launch call it, the main one speaks.

    Raises:
        ValueError: for bad input, as `run_pipeline`.
    """
    state = PartialState()
    notes = Console(stderr=True, quiet=not state.is_main_process, soft_wrap=True)
    ready = prepare_run(config, notes, state)
    run, plan = ready.run, RunPlan(ready.run)
    speed = _Speed(run, plan)
    seconds_done = plan.seconds_done(ready.directory, ready.shared)
    found = DryRun(
        data=counts_by_label(run),
        parameters=speed.parameters,
        memory=speed.memory,
        advice=speed.advice,
        phases=[
            {
                "name": phase.name,
                "title": phase.title,
                "done": phase.name in seconds_done,
                "seconds": seconds_done.get(phase.name, speed.seconds_of(phase)),
                "at_most": phase.cost is not None and phase.cost.at_most,
            }
            for phase in plan.phases()
        ],
        files=_files(run, plan, speed.parameters),
    )
    show(found, run, console or Console(quiet=not state.is_main_process, width=None if sys.stdout.isatty() else 110))
    return found


# ---- Data ----


def counts_by_label(run: Run) -> list[dict[str, Any]]:
    """Examples and tokens of each part of the split and each label, and of the forget examples of each module where labels
    name modules; of the training examples the routed tokens, too."""
    of_modules = run.data.summary.get("modules", {})
    examples, tokens, routed = (dict.fromkeys([*LABELS, *of_modules], 0) for _ in range(3))
    for table in arrow_batches(run.data.train, ["label", "routing_weight", *([MODULE] if of_modules else [])]):
        labels = table["label"].to_numpy()
        weights, lengths = flat_column(table, "routing_weight")
        below = np.bincount(np.repeat(np.arange(len(labels)), lengths)[weights < 0.5], minlength=len(labels))
        groups = {label: labels == label for label in LABELS}
        groups |= {name: pc.fill_null(pc.equal(table[MODULE], name), False).to_numpy() for name in of_modules}
        for group, own in groups.items():
            examples[group] += int(own.sum())
            tokens[group] += int(lengths[own].sum())
            routed[group] += int(below[own].sum())
    rows: list[dict[str, Any]] = []
    for label, name in LABELS.items():
        if examples[label] or label != UNLABELLED:
            for group in (label, *(of_modules if label == FORGET else ())):
                counted = {"examples": examples[group], "tokens": tokens[group], "routed": routed[group]}
                of_module = {"module": group} if isinstance(group, str) else {}
                rows.append({"part": "train", "label": name, **of_module, **counted})
    held_out = {"validation": ("forget", "retain", "unlabelled"), "attack": ("forget",)}
    for part, names in held_out.items():
        for name in names:
            own_part: Dataset = getattr(run.data, f"{part}_{name}")
            if name == "unlabelled" and not len(own_part):
                continue
            size = sum(own_part["length"][:]) if len(own_part) else 0
            rows.append({"part": part, "label": name, "examples": len(own_part), "tokens": size})
            for module, own in of_modules.items() if name == "forget" else ():
                counted = {"examples": own[f"{part}_{name}_stories"], "tokens": own[f"{part}_{name}_tokens"]}
                rows.append({"part": part, "label": name, "module": module, **counted})
    if len(own_part := run.data.coherence_validation):
        counted = {"examples": len(own_part), "tokens": sum(own_part["length"][:])}
        rows.append({"part": "coherence", "label": "retain", **counted})
    return rows


# ---- Speed and memory ----


class _StepTimer(TrainerCallback):
    """Seconds of each step; ends a training whose steps take long once it has two."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.begun = device, 0.0
        self.seconds: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begun = _now(self.device)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(_now(self.device) - self.begun)
        if args.world_size == 1 and len(self.seconds) >= 2 and sum(self.seconds) > SECONDS:
            control.should_training_stop = True


def _takes_adapters(config: RunConfig) -> bool:
    """Whether the method would train adapters on a frozen base: it says so itself."""
    asked = copy.copy(config)
    asked.training = {**config.training, "lora": {}}
    try:
        get_method(config.method).check(asked)
    except ValueError:
        return False
    return True


class _Speed:
    """Measures, with a model of the run's size and random weights, how long things take on this machine.

    Attributes:
        parameters, memory, advice: as `DryRun` has them.
        fits (`bool`): whether there is the memory. If not, nothing is made of that size, and no time is known.
    """

    def __init__(self, run: Run, plan: RunPlan) -> None:
        self.run, self.plan, self.device = run, plan, run.arguments.device
        self.is_expanded = any(stage.is_expanded for stage in plan.measuring.stages.values())
        self.per_trained = 0.0
        make = run.config.training_arguments if self.is_expanded else run.config.stock_training_arguments
        estimate = estimate_memory(self._model, make(run.config.output_path / "checkpoints"), _longest(run))
        self.parameters, self.memory = estimate.parameters, {}
        trains = any(phase.cost is not None and phase.cost.trained for phase in (*plan.base, *plan.own))
        if trains:
            self.memory = memory_table(estimate, self.device, processes_here(run.state))
        self.fits = self.memory.get("estimate", 0) <= self.memory.get("machine", 0)

        may_freeze = self.is_expanded and _takes_adapters(run.config)
        self.advice = [] if not trains else ways_out(estimate, run.arguments, may_freeze)
        if not self.fits:
            return
        if trains:
            self._time_training()
        gc.collect()
        model = causal_lm_from_config(run.base_config, run.seed).to(self.device).eval()
        self.per_measured = self._time_evaluation(model)
        self.generation = self._time_generation(model)
        self.attack = self._time_attack(model)

    def seconds_of(self, phase: Phase) -> float | None:
        """Seconds of a phase, about; `None` if it does not say what it computes."""
        if phase.cost is None or not self.fits:
            return None
        if phase.name == "generation":
            return self.generation
        if phase.name == "attack":
            return self.attack
        return phase.cost.trained * self.per_trained + phase.cost.measured * self.per_measured

    def _model(self) -> Any:
        run = self.run
        if self.is_expanded:
            return expanded_from_config(run.base_config, run.expansion, run.seed)
        return causal_lm_from_config(run.base_config, run.seed)

    def _time_training(self) -> None:
        run, timer = self.run, _StepTimer(self.device)
        changes = {
            "max_steps": STEPS, "eval_strategy": "no", "save_strategy": "no", "logging_strategy": "no",
            "report_to": "none", "disable_tqdm": True, "push_to_hub": False, "metric_for_best_model": None,
        }  # fmt: skip
        with tempfile.TemporaryDirectory() as folder, _peak_memory(self.device) as peak:
            make = run.config.training_arguments if self.is_expanded else run.config.stock_training_arguments
            trainer_class: Any = GradientRoutingTrainer if self.is_expanded else CausalLMTrainer
            trainer = trainer_class(
                self._model(), make(folder, **changes), train_dataset=run.data.train, processing_class=run.tokenizer
            )
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(timer)
            trainer.train()
        batch = run.arguments.per_device_train_batch_size * run.arguments.gradient_accumulation_steps
        self.per_trained = median(timer.seconds[1:] or timer.seconds) / (batch * max(run.arguments.world_size, 1))
        self.memory["peak"] = peak[0]
        del trainer

    def _time_evaluation(self, model: Any) -> float:
        data = self.run.data
        forget, retain = (_some(part, EXAMPLES) for part in (data.validation_forget, data.validation_retain))
        settings = EvaluationConfig(batch_size=self.run.config.evaluation.batch_size, bootstrap_samples=0)
        evaluator = Evaluator(
            forget,
            retain,
            self.plan.measuring.padding,
            settings,
            device=self.device,
            progress=False,
            state=self.run.state,
        )
        seconds = _time(lambda: evaluator.measure(model, ""), self.device)
        return seconds / (len(forget) + len(retain))

    def _time_generation(self, model: Any) -> float:
        settings = self.run.config.generation
        if not settings.enabled:
            return 0.0
        prompts, tokens = self.run.inputs.prompts(settings).settings, min(settings.new_tokens, NEW_TOKENS)
        few = replace(prompts, new_tokens=tokens)
        seconds = _time(lambda: generate_texts(model, self.run.tokenizer, few, state=self.run.state), self.device)
        return len(self.plan.measuring.generating_stages()) * seconds * settings.new_tokens / tokens

    def _time_attack(self, model: Any) -> float:
        """Of all attacks. What a step takes grows with the number of examples: the fewest and the most are measured."""
        settings, measuring, data = self.run.config.relearn, self.plan.measuring, self.run.data
        if not settings.enabled:
            return 0.0
        most = settings.evaluation_stories
        forget, retain = (_some(part, most) for part in (data.validation_forget, data.validation_retain))
        bf16 = bool(settings.bf16 or self.run.arguments.bf16)
        selection = _some(data.validation_forget, most)  # as many again
        measured = MeasuredStories(forget, retain, measuring.padding, settings.batch_size, self.device, bf16, selection)
        point = _time(lambda: measured.losses(model), self.device)
        attacks = measuring.attacks()
        # Retain examples are as long as forget examples, about: what counts is how many there are in a step.
        numbers = [attack.examples(settings.batch_stories) for attack in attacks]
        sizes = sorted({min(numbers), max(numbers)})
        few = replace(settings, steps=2, patience=None, batch_stories=None)
        steps = []
        for size in sizes:
            times: list[float] = []
            attack = RelearnAttack(_some(data.attack_forget, size), measured, measuring.padding, few)
            attack.run(model, on_step=lambda _, times=times: times.append(_now(self.device)))  # type: ignore[misc]
            steps.append(max(times[-1] - times[-2] - point, 0.0))
        slope = (steps[-1] - steps[0]) / max(sizes[-1] - sizes[0], 1)
        seconds = 0.0
        for planned, number in zip(attacks, numbers, strict=True):
            own = replace(settings, steps=planned.steps or settings.steps)
            training = own.steps * max(steps[0] + slope * (number - sizes[0]), 0.0)
            seconds += planned.trials * (training + measured_steps(own) * point)
        return seconds / self.run.state.num_processes  # which share the trials out


def _longest(run: Run) -> int:
    return int(max(run.data.train["length"][:], default=2))


def processes_here(state: PartialState) -> int:
    """How many processes of the launch share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))


def memory_table(estimate: MemoryEstimate, device: torch.device, processes: int = 1) -> dict[str, float]:
    """`DryRun.memory`, without what is measured."""
    parts = ("weights", "gradients", "optimizer", "activations", "logits", "buffers", "whole_logits")
    found: dict[str, float] = {name: getattr(estimate, name) for name in parts}
    return {**found, "estimate": estimate.total, "machine": memory_of(device, processes)}


def _some(stories: Dataset, number: int | None) -> Dataset:
    """So many examples, from the whole of the set: of one that is sorted the first would be alike."""
    if number is None or number >= len(stories):
        return stories
    return stories.select([index * len(stories) // number for index in range(number)])


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _time(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the second of two runs: the first may have to set something up."""
    work()
    begun = _now(device)
    work()
    return _now(device) - begun


@contextmanager
def _peak_memory(device: torch.device) -> Iterator[list[float]]:
    """A list with one number, filled at the end: bytes that the block took at most: on a GPU what was allocated there, else
    what the process had resident beyond what it had before."""
    peak = [0.0]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak[0] = float(torch.cuda.max_memory_allocated(device))
        return
    process, done = psutil.Process(), threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], float(process.memory_info().rss - before))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


# ---- Files ----


def _files(run: Run, plan: RunPlan, parameters: dict[str, int]) -> list[dict[str, Any]]:
    stock = BYTES * (parameters["total"] - parameters["auxiliary"])
    expanded = {stage.model for stage in plan.measuring.stages.values() if stage.is_expanded}
    output = run.config.output_path
    homes = [output, run.config.base_path] if plan.base else [output]
    found: list[dict[str, Any]] = [{"path": home / RUN_FILE, "bytes": None} for home in homes]
    for phase in plan.phases():
        where = run.config.base_path if phase in plan.base else output
        found.append({"path": where / "phases" / f"{phase.name}.json", "bytes": None})
        found += [
            {"path": path, "bytes": BYTES * parameters["total"] if path in expanded else stock}
            for path in phase.outputs
        ]
    parts = [file for part, file in HELD_OUT_FILES.items() if len(getattr(run.data, part))]
    others = (*(f"{HELD_OUT}/{file}.jsonl" for file in parts), "result.json", "report.html")
    found += [{"path": output / name, "bytes": None} for name in others]
    return [{**entry, "path": str(entry["path"])} for entry in found]


# ---- What is shown ----


def show(found: DryRun, run: Run, console: Console) -> None:
    """Prints a dry run as tables."""
    console.print()
    numbers = ("examples", "tokens", "routed")
    rows = [
        [
            row["part"],
            f"  of {row['module']}" if "module" in row else row["label"],
            *(f"{row[name]:,}" if name in row else "" for name in numbers),
        ]
        for row in found.data
    ]
    console.print(_table("Data", ["part", "label"], ["examples", "tokens", "routed as forget (weight < 0.5)"], rows))
    for note in _word_notes(run):
        console.print(note, markup=False)
    total, auxiliary = found.parameters["total"], found.parameters["auxiliary"]
    inside = f", {auxiliary:,} of them in auxiliary modules" if auxiliary else ""
    console.print(f"\nParameters: {total:,}{inside}; {found.parameters['trained']:,} are trained.")
    if found.memory:
        _show_memory(found, run, console)
    rows = [[phase["title"], _time_of(phase)] for phase in found.phases]
    console.print(_table("Time", ["phase"], ["about"], rows))
    at_most = any(phase["at_most"] and not phase["done"] for phase in found.phases)
    too_large = found.memory.get("estimate", 0) > found.memory.get("machine", 0)
    why = "nothing was measured" if too_large else "a phase does not say what it computes"
    whole = f"not known: {why}"
    if found.seconds is not None:
        whole = f"about {spoken(found.seconds)}" + (" at most: patience may end an attack earlier" if at_most else "")
    console.print(f"The whole run: {whole}. Measured now, on {run.arguments.device}, with what else it has to do.")
    rows = [[entry["path"], "" if entry["bytes"] is None else said(entry["bytes"])] for entry in found.files]
    console.print(_table("Files that would be written", ["path"], ["about"], rows))
    states = found.memory.get("optimizer", 2 * BYTES * total)
    console.print(
        f"While it trains also checkpoints of about {said(BYTES * total + states)} each, under "
        f"{run.config.output_path / 'checkpoints'}.",
        highlight=False,
    )
    console.print("Nothing was trained, and nothing was written there.")


_PARTS = {
    "weights": "weights",
    "gradients": "gradients, of what is trained",
    "optimizer": "optimizer states, of what is trained",
    "activations": "activations, kept for the backward pass",
    "logits": "logits and their loss",
    "buffers": "buffers",
    "estimate": "together",
    "peak": "measured in a step",
    "machine": "there is",
}


def _show_memory(found: DryRun, run: Run, console: Console) -> None:
    memory, batch = found.memory, run.arguments.per_device_train_batch_size
    rows = [[text, f"{memory[name] / 1e9:.3f}"] for name, text in _PARTS.items() if name in memory]
    console.print(_table("Memory of a training step, per process", ["part"], ["GB"], rows))
    console.print(
        f"Estimated for a batch of {batch} with {_longest(run)} tokens, the longest example; real steps took 3 to 14 % "
        "more, with adapters a third. "
        + (
            f"Without the chunked loss the logits would take {said(memory['whole_logits'])}."
            if run.arguments.chunked_loss
            else "The logits are held whole: `training.chunked_loss` is off."
        )
    )
    if memory["estimate"] > 0.8 * memory["machine"]:
        fits = memory["estimate"] <= memory["machine"]
        console.print(
            "That is close to all there is." if fits else "[bold red]That does not fit: nothing was measured.[/]"
        )
        console.print("What makes it smaller:")
        for line in found.advice:
            console.print(f"  * {line}.", markup=False)


def _word_notes(run: Run) -> list[str]:
    words = list(run.config.data.forget_words or [])
    cut = [word for word in words if len(run.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) > 1]
    if not cut:
        return []
    shown = ", ".join(cut[:10]) + (f" and {len(cut) - 10} more" if cut[10:] else "")
    return [f"Forget words without a token of their own, {len(cut)} of {len(words)}: {shown}."]


def _table(title: str, left: Sequence[str], right: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in (*left, *right):
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _time_of(phase: dict[str, Any]) -> str:
    if phase["done"]:
        return "done already"
    if phase["seconds"] is None:
        return "not known"
    return ("at most " if phase["at_most"] else "") + spoken(phase["seconds"])
