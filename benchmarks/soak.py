"""Does a long run leak? Trains 2,000 tiny steps with evaluation and checkpoints, and watches memory, open files and threads.

    python benchmarks/soak.py            # about 3 minutes on 2 CPU cores; writes a JSON file

The same training runs three times, each time in a new process:

* `evaluating and saving`: an evaluation of two sets and a checkpoint every 20 steps. The Trainer's list of log entries is
  emptied at each sample, for it is a record, grows by design, and would hide what else grows;
* `with the log`: the same, and the list is kept, as in a user's run;
* `training alone`: no evaluation, no checkpoint, no log.

After a warm-up, in which allocators and caches fill, the resident memory should not depend on the step. It is taken twice at
each sample: as it is, and when garbage was collected and the C library has given its free pages back. The first is what the
machine sees; the C library keeps free memory and gives it back when it likes, by some 100 KiB at a time, so only the second
shows a small leak.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import psutil
from rich.console import Console
from transformers import TrainerCallback

from benchmarks.common import RESULTS, environment, print_table, resident_bytes, write_result
from benchmarks.slope import fit_slope
from hf_era import RunConfig
from hf_era.models.loading import expanded_from_config
from hf_era.run.inputs import load_inputs
from hf_era.training import GradientRoutingTrainer

CONFIG: dict[str, Any] = {
    "name": "soak",
    "output_dir": "soak",  # only the inputs are made of this
    "model": {
        "vocabulary_size": 512,
        "architecture": {
            "hidden_size": 32, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 128, "window_size": 32,
        },
    },
    "expansion": {"width": 8},
    "data": {
        "generator_stories": 2_000, "max_tokens": 96, "forget_validation_stories": 32, "retain_validation_stories": 32,
    },
    "relearn": {"enabled": False},
}  # fmt: skip
VARIANTS = {
    "evaluating and saving": {"evaluates": True, "keeps_log": False},
    "with the log": {"evaluates": True, "keeps_log": True},
    "training alone": {"evaluates": False, "keeps_log": False},
}
MEMORY = ("resident_bytes", "held_bytes")


@dataclass(frozen=True)
class Sample:
    """What the process held after a step. resident_bytes: VmRSS. held_bytes: the same without garbage and free pages."""

    step: int
    seconds: float
    resident_bytes: int
    held_bytes: int
    open_files: int
    threads: int


class Watch(TrainerCallback):
    """Takes a sample every so many steps, into memory taken at the start: watching must not look like a leak."""

    def __init__(self, every: int, steps: int, keeps_log: bool) -> None:
        self.every, self.keeps_log, self._start = every, keeps_log, time.monotonic()
        self._rows = np.ones((steps // every, len(fields(Sample))))  # ones: written to, hence resident
        self._process, self._c_library = psutil.Process(), ctypes.CDLL(None)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.every:
            return
        if not self.keeps_log:
            state.log_history.clear()
        row = self._rows[state.global_step // self.every - 1]
        row[:3] = state.global_step, round(time.monotonic() - self._start, 2), resident_bytes()
        gc.collect()
        self._c_library.malloc_trim(0)
        row[3:] = resident_bytes(), self._process.num_fds(), self._process.num_threads()

    @property
    def samples(self) -> list[Sample]:
        return [
            Sample(int(row[0]), row[1], *(int(value) for value in row[2:])) for row in self._rows.tolist()
        ]  # fmt: skip


def train(variant: dict[str, bool], options: argparse.Namespace) -> list[Sample]:
    strategy = "steps" if variant["evaluates"] else "no"
    watch = Watch(options.sample_every, options.steps, variant["keeps_log"])
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig.from_dict({**CONFIG, "output_dir": str(Path(folder) / "run")})
        inputs = load_inputs(config)
        arguments = config.training_arguments(
            Path(folder) / "checkpoints",
            max_steps=options.steps,
            per_device_train_batch_size=8,
            eval_strategy=strategy,
            eval_steps=options.evaluate_every,
            save_strategy=strategy,
            save_steps=options.evaluate_every,
            save_total_limit=2,
            logging_strategy=strategy,
            logging_steps=options.evaluate_every,
            disable_tqdm=True,
            minimum_ablation_gap=0.0,  # a model this small localises nothing in so few steps
        )
        trainer = GradientRoutingTrainer(
            expanded_from_config(inputs.base_config, config.expansion, 0),
            arguments,
            train_dataset=inputs.data.train,
            eval_dataset={"forget": inputs.data.validation_forget, "retain": inputs.data.validation_retain},
            processing_class=inputs.tokenizer,
            callbacks=[watch],
        )
        trainer.train()
    return watch.samples


def summarise(samples: Sequence[Sample], warm_up: int) -> dict[str, Any]:
    """Slopes after the warm-up, per 1,000 steps: memory in KiB. Level: as many open files and threads at the end as then."""
    after = [sample for sample in samples if sample.step > warm_up]
    thousands = [sample.step / 1_000 for sample in after]
    found: dict[str, Any] = {}
    for name in MEMORY:
        values = [getattr(sample, name) for sample in after]
        slope = fit_slope(thousands, [value / 1_024 for value in values])
        found[name] = {
            "first_mib": values[0] / 2**20, "last_mib": values[-1] / 2**20, "kib_per_1000_steps": asdict(slope),
            "level": slope.low <= 0,
        }  # fmt: skip
    third = len(after) // 3
    for name in ("open_files", "threads"):
        values = [getattr(sample, name) for sample in after]
        found[name] = {"lowest": min(values), "highest": max(values), "last": values[-1]}
        found[name]["level"] = max(values[-third:]) <= max(values[:third])
    return found


def in_new_process(name: str, options: argparse.Namespace) -> list[Sample]:
    """`train` where nothing was allocated before."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(train, VARIANTS[name], options).result()


def table_rows(name: str, found: dict[str, Any]) -> list[list[str]]:
    rows = []
    for key, words in zip(MEMORY, ("resident memory", "without free pages"), strict=True):
        memory, slope = found[key], found[key]["kib_per_1000_steps"]
        growth = f"{slope['value']:+.0f} KiB [{slope['low']:+.0f}, {slope['high']:+.0f}]"
        rows.append([name, words, f"{memory['first_mib']:.1f} MiB", f"{memory['last_mib']:.1f} MiB", growth])
        name = ""
    for key in ("open_files", "threads"):
        counts = found[key]
        rows.append(
            ["", key.replace("_", " "), str(counts["lowest"]), str(counts["last"]), f"at most {counts['highest']}"]
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3_000, help="training steps (default: 3000)")
    parser.add_argument("--warm-up", type=int, default=1_000, help="steps before the fit begins (default: 1000)")
    parser.add_argument("--sample-every", type=int, default=20, help="steps between samples (default: 20)")
    parser.add_argument(
        "--evaluate-every",
        type=int,
        default=20,
        help="steps between log entries, evaluations and checkpoints (default: 20)",
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "soak.json", help="where the figures are written")
    options = parser.parse_args()
    Console().print(f"Training {options.steps:,} tiny steps, {len(VARIANTS)} times over.")
    runs, rows = {}, []
    for name in VARIANTS:
        samples = in_new_process(name, options)
        found = summarise(samples, options.warm_up)
        rows += table_rows(name, found)
        runs[name] = {**found, "seconds": samples[-1].seconds, "samples": [asdict(sample) for sample in samples]}
    title = f"After {options.warm_up:,} of {options.steps:,} steps"
    print_table(title, ["", "", "first or lowest", "last", "growth per 1,000 steps, or highest"], rows)
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    write_result(options.output, {**environment(), "settings": settings, "runs": runs})


if __name__ == "__main__":
    main()
